"""A build whose OUT is an object store: complete there or not there, and gone on with when run again."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.builds import command, run
from tests.conftest import ROOT
from tests.faults.clips import SIZE, write_source
from tests.faults.table import Fault
from tests.object_store import Proxy, files, new_url, object_store, objects

pytestmark = pytest.mark.fault(Fault.STORAGE)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Proxy]:
    with object_store(monkeypatch, tmp_path / "cache") as proxy:
        yield proxy


def test_a_build_into_a_store_is_there_whole_or_not_at_all(store: Proxy, tmp_path: Path) -> None:
    videos, masks = write_source(tmp_path, {"a": 6, "b": 4})
    url, work = new_url(), tmp_path / "work"
    options = ("--quiet", "--fov-deg", "70", "--size", *SIZE, "--detector", f"masks:{masks}", "--json")
    nowhere = run("build", videos, url, *options)
    assert nowhere.returncode == 2
    assert "--work FOLDER" in nowhere.stderr

    half = store.trouble("PUT", "/evidence/00000.h5")
    line = command("build", videos, url, *options, "--work", work)
    killed = subprocess.Popen(line, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    half.wait()
    killed.kill()
    assert killed.wait() == -signal.SIGKILL
    half.go.set()
    assert "shardset.json" not in objects(url)

    store.troubles.clear()
    done = run("build", videos, url, *options, "--work", work)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["worked_frames"] == 0  # the build was finished, only the copy was not
    assert objects(url) == files(work)
    assert run("verify", url, "--quiet", workers=None).returncode == 0


def test_a_set_whose_clips_may_still_be_mended_is_not_copied(store: Proxy, tmp_path: Path) -> None:
    videos, masks = write_source(tmp_path, {"a": 6, "b": 40})
    damaged = bytearray((videos / "b.mp4").read_bytes())
    middle = len(damaged) // 2
    damaged[middle : middle + 400] = bytes(400)
    (videos / "b.mp4").write_bytes(damaged)
    url, work = new_url(), tmp_path / "work"
    options = ("--quiet", "--fov-deg", "70", "--size", *SIZE, "--detector", f"masks:{masks}", "--work", work)
    done = run("build", videos, url, *options)
    assert done.returncode == 1
    assert "1 clip(s) failed" in done.stdout
    assert "not copied" in done.stderr
    assert not objects(url)
    assert run("copy", work, url, "--quiet", workers=None).returncode == 0
    assert "shardset.json" in objects(url)
