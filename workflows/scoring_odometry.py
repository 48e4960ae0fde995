"""Odometry from files: trajectories of any format, or predictions, against true ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from evaluation import odometry, sequence_errors
from evaluation.alignment import Rule, common_frames
from evaluation.figure import Figure
from evaluation.odometry import PairSums, SnippetSums
from evaluation.predictions import PredictionError
from evaluation.sequence_errors import SequenceSums
from evaluation.trajectories import chain
from evaluation.trajectory_files import Trajectory, associate, read_trajectory
from pipeline.errors import ConfigError
from pipeline.shards.storage import Location
from workflows.prediction_sources import is_predictions, is_run, predicted_clips

SUFFIXES = (".txt", ".tum", ".npy", ".npz")


def score_odometry(
    estimate: str,
    truth: Path,
    *,
    alignment: Rule = "7dof",
    tolerance_s: float = 0.02,
    shards: Location | None = None,
    device: str = "auto",
    quiet: bool = False,
) -> list[Figure]:
    """Every figure of each sequence, and of all together where there are several.

    Args:
        estimate: a trajectory, a folder of them, predictions, or a run (with `shards`).
        truth:    a true trajectory, or a folder of them; sequences are told by file names.
        alignment, tolerance_s: see `evaluation.alignment` and `associate`.
    """
    estimates = _estimates(estimate, shards, device, quiet)
    truths = _trajectories(truth)
    found, total = [], _Sums()
    for name, trajectory in estimates.items():
        true = _truth_of(name, truths, len(estimates))
        sums = _score(trajectory, true, alignment, tolerance_s)
        found += sums.figures(f"odometry, sequence {name}", alignment)
        total = total + sums
    if len(estimates) > 1:
        found += total.figures(f"odometry, all {len(estimates)} sequences", alignment)
    return found


@dataclass(frozen=True)
class _Sums:
    """All that is counted; adds up."""

    sequence: SequenceSums = field(default_factory=SequenceSums)
    full: SnippetSums = field(default_factory=SnippetSums)
    tails: SnippetSums = field(default_factory=SnippetSums)
    pairs: PairSums = field(default_factory=PairSums)

    def __add__(self, other: _Sums) -> _Sums:
        return _Sums(
            self.sequence + other.sequence,
            self.full + other.full,
            self.tails + other.tails,
            self.pairs + other.pairs,
        )

    def figures(self, protocol: str, alignment: Rule) -> list[Figure]:
        return [
            *sequence_errors.figures(self.sequence, protocol, alignment),
            *odometry.figures(self.full, self.tails, self.pairs, protocol),
        ]


def _score(estimate: Trajectory, truth: Trajectory, alignment: Rule, tolerance_s: float) -> _Sums:
    if estimate.times_s is not None and truth.times_s is not None:
        rows, true_rows = associate(estimate.times_s, truth.times_s, tolerance_s)
    else:
        rows, true_rows = common_frames(estimate.index, truth.index)
    poses, true = estimate.world_T_camera[rows], truth.world_T_camera
    # Snippets and pairs need neighbours: frames without a gap between them, the longest such stretch.
    stretch = max(np.split(np.arange(len(rows)), np.flatnonzero(np.diff(true_rows) != 1) + 1), key=len)
    near, near_true = poses[stretch], true[true_rows[stretch]]
    return _Sums(
        sequence_errors.sequence_sums(poses, true, true_rows, alignment),
        odometry.snippet_sums(near, near_true),
        odometry.snippet_sums(near, near_true, tails=True),
        odometry.pair_sums(odometry.relative_motions(near), odometry.relative_motions(near_true)),
    )


def _estimates(name: str, shards: Location | None, device: str, quiet: bool) -> dict[str, Trajectory]:
    if not is_run(name) and not is_predictions(Path(name)):
        return _trajectories(Path(name))
    return {
        clip.name: Trajectory(
            index=np.arange(len(clip)),
            times_s=clip.timestamps_s,
            world_T_camera=chain(clip.later_T_earlier),
        )
        for clip in predicted_clips(name, shards, device=device, quiet=quiet)
    }


def _trajectories(path: Path) -> dict[str, Trajectory]:
    if not path.is_dir():
        return {path.stem: read_trajectory(path)}
    files = sorted(each for each in path.iterdir() if each.suffix in SUFFIXES and each.is_file())
    if not files:
        raise PredictionError(f"{path}: holds no trajectory ({', '.join(SUFFIXES)})")
    return {each.stem: read_trajectory(each) for each in files}


def _truth_of(name: str, truths: Mapping[str, Trajectory], asked: int) -> Trajectory:
    """The truth of a sequence: of its name, or of a part of the name (`09/image_2` is sequence 09)."""
    for part in (name, *name.split("/")):
        if part in truths:
            return truths[part]
    if len(truths) == asked == 1:
        return next(iter(truths.values()))
    raise ConfigError(f"no true trajectory is called {name}; there are {', '.join(sorted(truths))}")
