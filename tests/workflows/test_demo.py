"""demo: a real video in, a playable video and numbers out."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

from pipeline.errors import ConfigError
from pipeline.streetworld.truth import TRUTH_FILE
from tests.evaluation.made import small_prediction
from tests.training.runs import settings
from tests.workflows.test_cli import run
from training import checkpoint
from training.checkpoint import Checkpoint, Progress
from training.networks.build import make_networks
from workflows.commands.demo import Arguments
from workflows.demo import frames_per_second, stored_size


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped at its beginning: what is drawn is not the question here."""
    config = settings(Path("anywhere"), objective_instances_from=0, data_size=(104, 32))
    networks = make_networks(config.networks, "crop", config.objective.motion.crop_px)
    folder = tmp_path_factory.mktemp("run")
    saved = Checkpoint(
        config=config,
        data=None,
        processes=None,
        networks=networks.state_dict(),
        averaged=None,
        optimiser={},
        progress=Progress(step=9),
        random=checkpoint.random_states(),
    )
    checkpoint.save(folder / "last.pt", saved)
    return folder


def test_a_video_becomes_a_video_of_what_moves_and_its_numbers(
    streets: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video = next((streets / "test_0001").glob("*.mp4"))
    assert video.name != TRUTH_FILE
    out = tmp_path / "demo"
    command = ("demo", str(video), "--checkpoint", str(trained), "--out", str(out), "--fov-deg", "60")
    options = ("--size", "208", "64", "--workers", "0", "--min-area", "20", "--quiet")
    code, printed, error = run(capsys, *command, *options, "--scale-m", "2")
    assert code == 0, error
    (made,) = (Path(line) for line in printed.split())
    with av.open(str(made)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    assert len(frames) == 6
    assert all(np.ptp(frame) > 100 for frame in frames)
    name = made.stem
    assert len((out / f"{name}.kitti.txt").read_text().splitlines()) == 6
    assert len((out / f"{name}.tum.txt").read_text().splitlines()) == 6
    with open(out / f"{name}.objects.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["unit"] for row in rows} <= {"m"}
    data = json.loads((out / f"{name}.objects.json").read_text())
    assert sum(len(track["steps"]) for track in data["tracks"]) == len(rows)

    before = (out / "shards" / "shardset.json").stat().st_mtime_ns
    code, again, _ = run(capsys, *command, *options)
    assert (code, again) == (0, printed)
    assert (out / "shards" / "shardset.json").stat().st_mtime_ns == before  # built once


def test_what_cannot_be_shown_is_one_line(
    streets: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = ("demo", str(tmp_path / "no.mp4"), "--checkpoint", str(trained), "--out", str(tmp_path / "a"))
    code, _, error = run(capsys, *missing, "--quiet")
    assert code != 0
    assert error.count("\n") == 1
    code, _, error = run(
        capsys, "demo", str(streets), "--checkpoint", str(tmp_path), "--out", str(tmp_path / "b")
    )
    assert code == 1
    assert "no best.pt or last.pt there" in error
    assert not (tmp_path / "b").exists()
    with pytest.raises(ConfigError, match="scale_m must be positive"):
        Arguments(Path("v"), Path("c"), Path("o"), scale_m=0.0)


@pytest.mark.parametrize(
    ("trained_at", "stored"),
    [(None, (832, 256)), ((208, 64), (832, 256)), ((416, 128), (832, 256)), ((640, 192), (640, 192))],
)
def test_frames_are_stored_a_whole_number_of_times_as_large_as_in_training(
    trained_at: tuple[int, int] | None, stored: tuple[int, int]
) -> None:
    assert stored_size(trained_at) == stored


def test_a_video_plays_as_fast_as_its_frames_were_taken() -> None:
    clip = replace(small_prediction(), timestamps_s=np.array([0.0, 0.04, 0.08]))
    assert frames_per_second(clip) == pytest.approx(25)
