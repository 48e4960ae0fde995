"""Whole builds by the real command: both laws, kills, full disks, bad clips, two writers, clusters."""

from __future__ import annotations

import hashlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.build import BuildConfig
from pipeline.build import build as build_set
from pipeline.clip import FramesConfig
from pipeline.flow import FlowConfig, compute_flow
from pipeline.graph import GraphConfig
from pipeline.matching import MaskConfig, overlaps
from pipeline.plan import PlanConfig
from pipeline.remask import remask
from pipeline.shards.reader import ShardSet
from tests.conftest import ROOT

# Small pieces and files, so that a clip spans several of both.
CUT = ("--frames-per-piece", "3", "--frames-per-file", "6")
SIZE = ("--size", "208", "64")


def command(*arguments: object, workers: int | None = 0) -> list[str]:
    line = [sys.executable, "-m", "workflows.cli", *map(str, arguments)]
    return line if workers is None else [*line, "--workers", str(workers)]


def run(*arguments: object, workers: int | None = 0, **options) -> subprocess.CompletedProcess[str]:  # type: ignore[no-untyped-def]
    return subprocess.run(
        command(*arguments, workers=workers), capture_output=True, text=True, cwd=ROOT, timeout=300, **options
    )


def build(source: Path, out: Path, *options: object, workers: int | None = 0) -> None:
    done = run("build", source, out, *SIZE, *CUT, "--quiet", *options, workers=workers)
    assert done.returncode == 0, done.stderr


def contents(out: Path, *layers: str) -> dict[str, str]:
    """SHA-256 of every file of the set; of some layers only, if named."""
    found = {}
    for layer in layers or ("frames", "evidence", "masks", "shardset.json"):
        paths = [out / layer] if (out / layer).is_file() else sorted((out / layer).rglob("*.h5"))
        for path in paths:
            found[str(path.relative_to(out))] = hashlib.sha256(path.read_bytes()).hexdigest()
    assert found
    return found


@pytest.fixture(scope="session")
def reference(streets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed build of the streets, in one process."""
    out = tmp_path_factory.mktemp("reference") / "set"
    build(streets, out)
    return out


@pytest.fixture
def copy(reference: Path, tmp_path: Path) -> Path:
    """The reference, to be changed by a test."""
    return Path(shutil.copytree(reference, tmp_path / "copy"))


def test_the_reference_is_whole_and_not_empty(reference: Path) -> None:
    done = run("verify", reference, "--quiet", workers=None)
    assert done.returncode == 0, done.stdout
    assert not (reference / ".build").exists()
    summary = json.loads(run("inspect", reference, "--json", workers=None).stdout)
    assert summary["frames"] == 26
    assert summary["raw_detections"] > 26
    assert summary["masks"]["default"]["instances"] > 10


@pytest.mark.parametrize("workers", [1, 2])
def test_any_number_of_workers_gives_the_same_bytes(
    streets: Path, reference: Path, tmp_path: Path, workers: int
) -> None:
    build(streets, tmp_path / "set", workers=workers)
    assert contents(tmp_path / "set") == contents(reference)


@pytest.mark.parametrize("seed", [1, 2])
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


def test_a_finished_build_does_nothing_and_other_settings_are_refused(streets: Path, reference: Path) -> None:
    before = contents(reference)
    again = run("build", streets, reference, *SIZE, *CUT, "--quiet")
    assert again.returncode == 0
    assert "nothing was left to do" in again.stdout
    other = run("build", streets, reference, "--size", "416", "128", *CUT, "--quiet")
    assert other.returncode == 1
    assert "built from other input or settings" in other.stderr
    masks = run("build", streets, reference, *SIZE, *CUT, "--quiet", "--min-score", "0.7")
    assert masks.returncode == 1
    assert "remask" in masks.stderr
    assert contents(reference) == before


GRID = {
    "score": MaskConfig(min_score=0.3),
    "strict-score": MaskConfig(min_score=0.9),
    "wide-masks": MaskConfig(mask_probability=0.25),
    "narrow-masks": MaskConfig(mask_probability=0.8),
    "people": MaskConfig(classes=("person",)),
    "large": MaskConfig(min_area=200),
    "iou": MaskConfig(min_iou=0.75),
    "few": MaskConfig(max_instances=2, max_gap=0),
    "all-at-once": MaskConfig(
        min_score=0.2,
        mask_probability=0.4,
        min_area=20,
        min_iou=0.3,
        max_hidden=0.9,
        classes=("car",),
        max_gap=5,
    ),
}


@pytest.mark.parametrize("setting", GRID)
def test_remask_gives_the_bytes_of_a_full_build(
    streets: Path, copy: Path, tmp_path: Path, setting: str
) -> None:
    here = GraphConfig(workers=0)
    config = BuildConfig(
        frames=FramesConfig(size=(208, 64)),
        plan=PlanConfig(frames_per_piece=3, frames_per_file=6),
        masks=GRID[setting],
    )
    threads = torch.get_num_threads()
    build_set(streets, tmp_path / "full", config, here, quiet=True)
    torch.set_num_threads(threads)
    remask(copy, setting, GRID[setting], here, quiet=True)
    assert contents(tmp_path / "full", "frames", "evidence") == contents(copy, "frames", "evidence")
    full = contents(tmp_path / "full", "masks/default")
    remasked = contents(copy, f"masks/{setting}")
    assert list(full.values()) == list(remasked.values())
    assert list(remasked.values()) != list(contents(copy, "masks/default").values())


def test_another_mask_probability_counts_the_overlaps_again(copy: Path) -> None:
    remask(copy, "wide", MaskConfig(mask_probability=0.2), GraphConfig(workers=0), quiet=True)
    compared = 0
    with ShardSet(copy) as shards:
        for clip in shards.manifest.clips:
            for frame in range(1, clip.frames):
                before, here = (shards.evidence(clip, each).detections for each in (frame - 1, frame))
                flow = compute_flow(shards.image(clip, frame - 1), shards.image(clip, frame), FlowConfig())
                table = overlaps(before, here, flow, shards.manifest.size, 0.2)
                iou = {
                    (int(a), int(b)): both
                    for a, b, both in zip(table.prev, table.next, table.iou, strict=True)
                }
                pairs = shards.pairs("wide", clip, frame)
                rows = [shards.instances("wide", clip, each).detection for each in (frame - 1, frame)]
                for a, b, found in zip(pairs.prev, pairs.next, pairs.iou, strict=True):
                    expected = iou[int(rows[0][a - 1]), int(rows[1][b - 1])]
                    np.testing.assert_allclose(found, expected, rtol=1e-6)
                    compared += 1
    assert compared > 5


def test_remask_keeps_a_layer_with_the_same_settings_and_guards_one_with_others(copy: Path) -> None:
    same = run("remask", copy, "--name", "default", "--quiet")
    assert same.returncode == 0
    other = run("remask", copy, "--name", "default", "--min-score", "0.6", "--quiet")
    assert other.returncode == 1
    assert "has a masks layer 'default' with other settings" in other.stderr
    outside = run("remask", copy, "--name", "../x", "--quiet")
    assert outside.returncode == 2
    assert not (copy / "masks" / "x").exists()


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


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[str]:
    """A real scheduler and two worker processes, as somebody else would have started them."""
    info = tmp_path / "scheduler.json"
    bin_folder = Path(sys.executable).parent
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    processes = [
        _start(
            [bin_folder / "dask", "scheduler", "--port", "0", "--no-dashboard", "--scheduler-file", info],
            environment,
        )
    ]
    try:
        while not info.exists():
            time.sleep(0.05)
        worker = [
            bin_folder / "dask",
            "worker",
            "--scheduler-file",
            info,
            "--nthreads",
            "1",
            "--no-dashboard",
        ]
        processes += [
            _start([*worker, "--local-directory", tmp_path / f"w{i}"], environment) for i in range(2)
        ]
        yield json.loads(info.read_text())["address"]
    finally:
        for process in reversed(processes):
            process.terminate()
        for process in processes:
            process.wait()


def _start(line: Sequence[object], environment: dict[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        list(map(str, line)), env=environment, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def test_a_cluster_gives_the_same_bytes_and_lacking_gpus_are_an_error_in_time(
    streets: Path, reference: Path, tmp_path: Path, cluster: str
) -> None:
    build(streets, tmp_path / "set", "--scheduler", cluster, workers=None)
    assert contents(tmp_path / "set") == contents(reference)
    begin = time.monotonic()
    options = ("--device", "cuda", "--scheduler", cluster, "--worker-timeout-s", "10")
    done = run("build", streets, tmp_path / "gpu", *SIZE, *options, "--quiet", workers=None)
    assert done.returncode == 1
    assert "none with the resource GPU" in done.stderr
    assert time.monotonic() - begin < 90


def test_no_scheduler_is_an_error_in_time(streets: Path, tmp_path: Path) -> None:
    options = ("--scheduler", "tcp://127.0.0.1:9", "--worker-timeout-s", "3")
    done = run("build", streets, tmp_path / "set", *SIZE, *options, "--quiet", workers=None)
    assert done.returncode == 1
    assert "no dask scheduler answers at tcp://127.0.0.1:9" in done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_one_line_at_once(streets: Path, tmp_path: Path) -> None:
    done = run("build", streets, tmp_path / "set", *SIZE, "--device", "cuda", "--quiet", workers=2)
    assert done.returncode == 1
    assert done.stderr.startswith("error: this machine has no GPU")
    assert len(done.stderr.strip().splitlines()) == 1


def test_nothing_usable_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = run("build", tmp_path / "empty", tmp_path / "set", "--quiet")
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1
    missing = run("build", tmp_path / "nowhere", tmp_path / "set", "--quiet")
    assert missing.returncode == 1
    assert "does not exist" in missing.stderr
