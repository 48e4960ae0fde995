"""Builds that are killed, stopped, crowded, or given what cannot be read: nothing is lost."""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from pipeline.errors import BuildError
from pipeline.lease import lease
from tests.builds import CUT, SIZE, build, command, contents, run
from tests.conftest import ROOT
from tests.faults.table import Fault


@pytest.mark.fault(Fault.KILLED)
@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_kill_and_resume_gives_the_same_bytes(
    streets: Path, reference: Path, tmp_path: Path, seed: int
) -> None:
    out = tmp_path / "set"
    line = command("build", streets, out, *SIZE, *CUT, "--quiet", workers=2)
    wanted = random.Random(seed).randint(1, 5)
    process = subprocess.Popen(line, cwd=ROOT, start_new_session=True, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 120
        while len(list(out.glob(".build/pieces/*.evidence.h5"))) < wanted:
            assert process.poll() is None, process.stderr and process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    kept = len(list(out.glob(".build/pieces/*.evidence.h5")))
    assert wanted <= kept < 9  # the kill came before the end
    assert not (out / "shardset.json").exists()
    report = json.loads(run("build", streets, out, *SIZE, *CUT, "--quiet", "--json").stdout)
    assert report["worked_frames"] < 26  # finished pieces were not done again
    assert contents(out) == contents(reference)


@pytest.mark.fault(Fault.STOPPED)
def test_ctrl_c_stops_within_seconds_and_says_how_to_go_on(streets: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    line = command("build", streets, out, *SIZE, *CUT, "--quiet", workers=1)
    process = subprocess.Popen(line, cwd=ROOT, start_new_session=True, stderr=subprocess.PIPE, text=True)
    while not list(out.glob(".build/pieces/*.h5")) and process.poll() is None:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)  # what a terminal does
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.strip().splitlines()[-1] == "stopped; run the same command again to go on"
    assert "Traceback" not in errors


@pytest.mark.fault(Fault.DISK_FULL)
def test_a_full_disk_is_one_line_and_the_build_goes_on_later(
    streets: Path, reference: Path, tmp_path: Path
) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # as on a full disk: write() fails

    out = tmp_path / "set"
    done = run("build", streets, out, *SIZE, *CUT, "--quiet", preexec_fn=limit)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("error: the disk is full")
    assert "Traceback" not in done.stderr
    assert not list(out.rglob("*.partial"))
    build(streets, out)
    assert contents(out) == contents(reference)


@pytest.mark.fault(Fault.TWO_WRITERS)
def test_a_file_system_without_locks_is_not_taken_for_a_busy_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))  # as Lustre does, mounted without flock

    monkeypatch.setattr("fcntl.flock", flock)
    with (
        pytest.raises(BuildError, match=r"cannot be locked \(Function not implemented\); its file system"),
        lease(tmp_path, "test"),
    ):
        pass


@pytest.mark.fault(Fault.TWO_WRITERS)
def test_the_second_writer_learns_who_the_first_is(streets: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    line = command("build", streets, out, *SIZE, *CUT, "--quiet")
    first = subprocess.Popen(line, cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        while not (out / ".lease").exists() or not (out / ".lease").read_text():
            time.sleep(0.02)
        first.send_signal(signal.SIGSTOP)  # it holds the lease, however slow the second is to start
        second = run("build", streets, out, *SIZE, *CUT, "--quiet")
    finally:
        first.kill()
        first.wait()
    assert second.returncode == 1
    assert f"is being written by instance-motion build, process {first.pid}" in second.stderr


@pytest.mark.fault(Fault.DAMAGED_VIDEO)
def test_bad_clips_are_reported_and_the_others_are_built(
    streets: Path, reference: Path, tmp_path: Path
) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    whole = (streets / "test_0000" / "video.mp4").read_bytes()
    (videos / "good.mp4").write_bytes(whole)
    (videos / "cut.mp4").write_bytes(whole[: len(whole) * 6 // 10])
    (videos / "empty.mp4").write_bytes(b"")
    damaged = bytearray(whole)
    middle = len(damaged) // 2
    damaged[middle : middle + 400] = bytes(b ^ 0xA5 for b in damaged[middle : middle + 400])
    (videos / "damaged.mp4").write_bytes(damaged)
    out = tmp_path / "set"
    done = run("build", videos, out, *SIZE, *CUT, "--quiet", "--fov-deg", "80", "--json")
    assert done.returncode == 1
    report = json.loads(done.stdout)
    assert report["clips"] == 1
    assert sorted(entry["clip"] for entry in report["quarantine"]) == ["cut", "damaged", "empty"]
    assert all("\n" not in entry["reason"] and entry["reason"] for entry in report["quarantine"])
    assert run("verify", out, "--quiet", workers=None).returncode == 0
    again = run("build", videos, out, *SIZE, *CUT, "--quiet", "--fov-deg", "80", "--json")
    assert again.returncode == 1  # still there, still reported
    assert json.loads(again.stdout)["clips"] == 1


@pytest.mark.fault(Fault.NO_GPU)
@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_one_line_at_once(streets: Path, tmp_path: Path) -> None:
    done = run("build", streets, tmp_path / "set", *SIZE, "--device", "cuda", "--quiet", workers=2)
    assert done.returncode == 1
    assert done.stderr.startswith("error: this machine has no GPU")
    assert len(done.stderr.strip().splitlines()) == 1
