"""Trainings on a disk that is full: one line, the last checkpoint stays, and the run goes on to the same bits."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path

import pytest

from tests.faults.forks import At, Forks, forks
from tests.faults.table import Fault
from tests.faults.test_training_kills import assert_curves_are_whole, short, start, whole
from tests.training.runs import checkpoint_of, difference_of_runs

__all__ = ["forks", "whole"]

pytestmark = pytest.mark.fault(Fault.DISK_FULL)


def test_a_full_disk_again_and_again_loses_no_checkpoint(
    street_shards: Path, whole: Path, forks: Forks, tmp_path: Path
) -> None:
    """Files of a megabyte fit, checkpoints do not; then not even the rows of metrics."""
    out, config = tmp_path / "run", short(street_shards)
    assert (whole / "last.pt").stat().st_size > 1 << 20 > (whole / "config.yaml").stat().st_size

    first = start(forks, config, out, limits={"RLIMIT_FSIZE": 1 << 20})
    assert first.wait() == 1
    assert "File too large" in first.error
    assert not (out / "last.pt").exists()

    killed = start(forks, config, out, At(function="_Training._update", number=6))
    assert killed.wait() == -signal.SIGKILL
    assert checkpoint_of(out).progress.step == 4
    kept = (out / "last.pt").read_bytes()
    for limit in (1 << 20, 3000, 100):
        running = start(forks, config, out, limits={"RLIMIT_FSIZE": limit})
        assert running.wait() == 1, running.said
        assert "File too large" in running.error
        assert (out / "last.pt").read_bytes() == kept
        assert not list(out.glob(".*.partial"))

    assert start(forks, config, out).wait() == 0
    assert difference_of_runs(out, whole) is None
    assert_curves_are_whole(out)


def test_no_shared_memory_for_batches_is_one_line_and_not_waited_for(
    street_shards: Path, forks: Forks, tmp_path: Path
) -> None:
    """As in a container whose /dev/shm is small: what a data worker read cannot be handed on."""
    running = start(forks, short(street_shards, 2), tmp_path / "run", limits={"RLIMIT_FSIZE": 20_000})
    assert running.wait(60) == 1, running.said
    assert running.error.startswith("no room to ship a batch (")
    assert running.error.endswith("or set data.workers 0")


def test_no_room_for_curves_and_pictures_is_one_line(
    street_shards: Path, forks: Forks, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    config = replace(short(street_shards), picture_every=1, checkpoint_every=100)
    running = start(forks, config, out, limits={"RLIMIT_FSIZE": 16 << 10})
    assert running.wait() == 1, running.said
    assert "File too large" in running.error
    written = {path.name: path.stat().st_size for path in (out / "tensorboard").iterdir()}
    assert list(written.values()) == [16 << 10]  # it was the file of curves that was full
