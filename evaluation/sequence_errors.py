"""Errors of whole trajectories: KITTI odometry's t_err and r_err, and the absolute error ATE.

Poses are `world_T_camera` (N, 4, 4); the truth is in metres. Geiger et al. 2012: from every 10th frame,
segments of 100, 200, ... 800 m of the TRUE path. A segment ends with the first frame that lies further
along the path than its length. With the motions from its first to its last frame,

    E = inv(est_delta) true_delta,    delta = inv(world_T_first) world_T_last,

its translation error is |t(E)| / length and its rotation error angle(R(E)) / length. t_err (%) and r_err
(deg/100 m) are means over all segments of all lengths. ATE (m) is the root mean square distance of
estimated from true positions. The estimate is aligned first, see `evaluation.alignment`.

All is done as in the benchmark's kit and in kitti-odom-eval (MIT), so that published figures are found
again to their last digit. One thing differs from the latter: where an estimate has gaps, it measures the
true path across them in two worlds, and here the path is the true one.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from evaluation.alignment import DEFAULT_RULE, RULES, Rule, align, rebase, require_poses
from evaluation.figure import Figure

LENGTHS_M = (100.0, 200.0, 300.0, 400.0, 500.0, 600.0, 700.0, 800.0)
START_STEP = 10
"""Frames between the starts of segments."""


@dataclass(frozen=True, kw_only=True)
class SequenceSums:
    """Sums over the segments and frames of sequences; they add up if aligned by one rule.

    segments:   with both ends estimated; what the errors are means over
    unanswered: segments of the truth of which the estimate lacks an end
    translation: of translation errors, metres a metre
    rotation:    of rotation errors, degrees a metre
    frames:      estimated frames
    square:      of distances from true positions, squared, m^2
    """

    segments: int = 0
    unanswered: int = 0
    translation: float = 0.0
    rotation: float = 0.0
    frames: int = 0
    square: float = 0.0

    def __add__(self, other: SequenceSums) -> SequenceSums:
        return SequenceSums(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})

    @property
    def t_err(self) -> float:
        """Percent; NaN without segments."""
        return 100 * self.translation / self.segments if self.segments else float("nan")

    @property
    def r_err(self) -> float:
        """Degrees in 100 m; NaN without segments."""
        return 100 * self.rotation / self.segments if self.segments else float("nan")

    @property
    def ate(self) -> float:
        """Metres; NaN without frames."""
        return float(np.sqrt(self.square / self.frames)) if self.frames else float("nan")


def sequence_sums(
    estimate: np.ndarray,
    truth: np.ndarray,
    truth_rows: np.ndarray | None = None,
    alignment: Rule = DEFAULT_RULE,
) -> SequenceSums:
    """Errors of one sequence.

    Args:
        estimate:   (N, 4, 4) world_T_camera, any world, any unit.
        truth:      (M, 4, 4) world_T_camera, m, of all frames of the sequence: starts are counted and
                    the path is measured on them, whether they are estimated or not.
        truth_rows: (N,) rising, the row of truth that each estimated pose is of, as `common_frames` and
                    `associate` find them; left out, N = M and each is of its own.
        alignment:  rule of `evaluation.alignment`. Both are re-based to the first common frame before.

    Returns:
        The sums; no segment where the path is not longer than 100 m.

    Raises:
        ConfigError: no such rule.
        ValueError: shapes or rows are not as above, N is 0, or a number is not finite.
    """
    require_poses("truth", truth)
    require_poses("estimate", estimate)
    rows = np.arange(len(truth)) if truth_rows is None else np.asarray(truth_rows)
    if rows.shape != (len(estimate),):
        raise ValueError(f"{len(estimate)} estimated poses for {rows.shape} rows of the truth")
    if rows.dtype.kind not in "iu" or rows[0] < 0 or rows[-1] >= len(truth) or (np.diff(rows) <= 0).any():
        raise ValueError(f"truth_rows must be rising whole numbers in [0, {len(truth)})")

    truth = rebase(truth, rows[0])
    estimate = align(rebase(estimate), truth[rows], alignment)
    first, last, length = segments(path_lengths(truth))
    row_of = np.full(len(truth), -1)
    row_of[rows] = np.arange(len(rows))
    known = (row_of[first] >= 0) & (row_of[last] >= 0)
    first, last, length = first[known], last[known], length[known]

    E = np.linalg.inv(_deltas(estimate, row_of[first], row_of[last])) @ _deltas(truth, first, last)
    return SequenceSums(
        segments=int(known.sum()),
        unanswered=int((~known).sum()),
        translation=float((np.linalg.norm(E[:, :3, 3], axis=-1) / length).sum()),
        rotation=float((np.degrees(_benchmark_angle(E[:, :3, :3])) / length).sum()),
        frames=len(estimate),
        square=float(((estimate[:, :3, 3] - truth[rows, :3, 3]) ** 2).sum()),
    )


def path_lengths(world_T_camera: np.ndarray) -> np.ndarray:
    """(N, 4, 4) poses -> (N,) length of the way to each from the first, in the poses' unit."""
    steps = np.linalg.norm(np.diff(world_T_camera[:, :3, 3], axis=0), axis=-1)
    return np.concatenate([[0.0], np.cumsum(steps)])


def segments(path: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Segments of a sequence by the way (N,), m, to each frame.

    Returns:
        (S,) first frames, (S,) last frames and (S,) nominal lengths, m: for every START_STEP-th frame and
        every length the path goes on for. The last frame is the first one BEYOND the length.
    """
    starts = np.arange(0, len(path), START_STEP)
    ends = np.searchsorted(path, path[starts, None] + np.array(LENGTHS_M), side="right")
    start, length = np.nonzero(ends < len(path))
    return starts[start], ends[start, length], np.array(LENGTHS_M)[length]


def figures(sums: SequenceSums, protocol: str, alignment: Rule = DEFAULT_RULE) -> list[Figure]:
    """Ratios of the sums, each with what it counts.

    Args:
        protocol:  the data that were scored, as text.
        alignment: the rule with which the sums were made.
    """
    scale = RULES[alignment]
    asked = sums.segments + sums.unanswered
    lengths = f"{LENGTHS_M[0]:.0f}, {LENGTHS_M[1]:.0f}, ... {LENGTHS_M[-1]:.0f} m"
    how = f"{protocol}; segments of {lengths} of the true path from every {START_STEP}th frame, mean over all"
    ate = f"{protocol}; {alignment} alignment, root mean square over frames"
    answered = sums.segments / asked if asked else float("nan")
    return [
        Figure(name="t_err", value=sums.t_err, unit="%", protocol=how, count=sums.segments, scale=scale),
        Figure(name="r_err", value=sums.r_err, unit="deg/100 m", protocol=how, count=sums.segments,
               scale=scale),
        Figure(name="segments with both ends estimated", value=answered, unit="fraction", protocol=how,
               count=asked, scale=scale),
        Figure(name="ATE", value=sums.ate, unit="m", protocol=ate, count=sums.frames, scale=scale),
    ]  # fmt: skip


def _deltas(world_T_camera: np.ndarray, first: np.ndarray, last: np.ndarray) -> np.ndarray:
    """(S, 4, 4) first_T_last."""
    return np.linalg.inv(world_T_camera[first]) @ world_T_camera[last]


def _benchmark_angle(R: np.ndarray) -> np.ndarray:
    """Angle of (S, 3, 3) rotations, radians, as the benchmark computes it.

    `evaluation.odometry.rotation_angle` is the better one, but true poses are printed with seven digits:
    their products are no exact rotations, and the two differ from the fifth digit of r_err on.
    """
    return np.arccos(np.clip((np.trace(R, axis1=-2, axis2=-1) - 1) / 2, -1, 1))
