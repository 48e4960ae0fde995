"""kill -9 before every kind of change on the disk: what is there in the end is what undisturbed work makes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.build import build
from pipeline.remask import remask
from tests.builds import contents
from tests.conftest import ROOT
from tests.faults.clips import write_source
from tests.faults.killer import HALF, HERE, STRICT, config
from tests.faults.table import Fault

CLIPS = {"long": 14, "short": 5, "shorter": 3}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_source(tmp_path_factory.mktemp("source"), CLIPS)


@pytest.fixture(scope="module")
def undisturbed(source: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "set"
    videos, masks = source
    build(videos, out, config(masks), HERE, quiet=True)
    return out


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one: hundreds of synced writes on a busy disk take minutes."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as made:
        yield Path(made)


def killer(seed: int, *arguments: object) -> dict[str, object]:
    """Kill again and again; how often, and before what."""
    line = [sys.executable, "-m", "tests.faults.killer", str(seed), *map(str, arguments)]
    done = subprocess.run(line, capture_output=True, text=True, cwd=ROOT, timeout=600)
    assert done.returncode == 0, done.stderr
    told: dict[str, object] = json.loads(done.stdout)
    print(" ".join(map(str, arguments[:1])), told)
    return told


@pytest.mark.fault(Fault.KILLED)
@pytest.mark.parametrize(
    "seed", [0, 1, pytest.param(2, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)]
)
def test_a_build_killed_before_any_change_on_the_disk_ends_with_the_same_bytes(
    source: tuple[Path, Path], undisturbed: Path, folder: Path, seed: int
) -> None:
    out, (videos, masks) = folder / "set", source
    told = killer(seed, "build", videos, out, masks)
    assert told["rounds"] > 20  # type: ignore[operator]
    assert {"open", "os.rename", HALF} <= set(told["before"])  # type: ignore[call-overload]
    assert contents(out) == contents(undisturbed)
    assert not [*out.rglob("*.partial"), *out.glob(".build")]


@pytest.mark.fault(Fault.KILLED)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_remask_killed_before_any_change_on_the_disk_leaves_the_old_layers_and_ends_with_the_same_bytes(
    undisturbed: Path, folder: Path, seed: int
) -> None:
    wanted = Path(shutil.copytree(undisturbed, folder / "wanted"))
    remask(wanted, "strict", STRICT, HERE, quiet=True)
    out = Path(shutil.copytree(undisturbed, folder / "set"))
    told = killer(seed, "remask", out, "strict")
    assert told["rounds"] > 1  # type: ignore[operator]
    assert contents(out) == contents(wanted)
    assert not list(out.rglob("*.partial"))


@pytest.mark.fault(Fault.TASK_TWICE)
def test_a_piece_that_comes_after_the_end_leaves_the_set_finished(
    source: tuple[Path, Path], undisturbed: Path, folder: Path
) -> None:
    """A worker that was given up may still be at work when the build is done."""
    out, (videos, masks) = Path(shutil.copytree(undisturbed, folder / "set")), source
    late = out / ".build" / "pieces" / "000000-00000000.frames.h5"
    late.parent.mkdir(parents=True)
    late.write_bytes(b"late")
    assert build(videos, out, config(masks), HERE, quiet=True).worked_frames == 0
    assert contents(out) == contents(undisturbed)
    assert not (out / ".build").exists()
