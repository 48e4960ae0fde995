"""Camera motion against truth: 5-frame snippets (Table 5) and errors of single pairs.

Poses are `world_T_camera` (N, 4, 4). The snippet error is the one of the literature (Zhou et al.
2017): sqrt(sum of squares) / N over the N frames of a snippet, with one scale a snippet that fits
best. It is not a root mean square, which would be larger by sqrt(N).
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from evaluation.figure import Figure

SNIPPET = 5
MIN_STEP_M = 0.01
"""A camera that moves less between two frames stands still: its direction is not asked for."""


@dataclass(frozen=True, kw_only=True)
class SnippetSums:
    """Sums of snippet errors (m); they add up."""

    snippets: int = 0
    error: float = 0.0
    error_square: float = 0.0

    def __add__(self, other: SnippetSums) -> SnippetSums:
        return SnippetSums(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})

    @property
    def mean(self) -> float:
        return self.error / self.snippets if self.snippets else float("nan")

    @property
    def std(self) -> float:
        """Standard deviation over snippets (of the population)."""
        if not self.snippets:
            return float("nan")
        return float(np.sqrt(max(self.error_square / self.snippets - self.mean**2, 0)))


@dataclass(frozen=True, kw_only=True)
class PairSums:
    """Sums over pairs of neighbouring frames, degrees; they add up.

    pairs:    all pairs; rotation: error of the camera's rotation; rotation_none: of predicting none
    moving:   pairs in which the camera moves; direction: error of its direction in those
    """

    pairs: int = 0
    rotation: float = 0.0
    rotation_none: float = 0.0
    moving: int = 0
    direction: float = 0.0

    def __add__(self, other: PairSums) -> PairSums:
        return PairSums(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})


def snippet_starts(count: int, tails: bool, length: int = SNIPPET) -> list[tuple[int, int]]:
    """(first frame, frames) of every snippet of a sequence of `count` frames.

    tails = False: the n - 4 full ones. tails = True: n - 1, one from each frame but the last, those at
    the end shorter. Both sets are in use in the literature.
    """
    if tails:
        return [(i, min(length, count - i)) for i in range(count - 1)]
    return [(i, length) for i in range(count - length + 1)]


def snippet_error(estimate: np.ndarray, truth: np.ndarray) -> float:
    """Error (in truth's units) of one snippet of N poses world_T_camera, any world, any scale.

    Both are re-based to their first frame; scale = sum(true . est) / sum(est^2) over positions.
    """
    est, gt = _positions(estimate), _positions(truth)
    square = float((est**2).sum())
    scale = float((gt * est).sum()) / square if square > 0 else 0.0
    return float(np.sqrt(((gt - scale * est) ** 2).sum())) / len(gt)


def snippet_sums(estimate: np.ndarray, truth: np.ndarray, tails: bool = False) -> SnippetSums:
    """Errors of all snippets of a sequence; a sequence shorter than a snippet has none."""
    if estimate.shape != truth.shape:
        raise ValueError(f"{estimate.shape} estimated poses for {truth.shape} true ones")
    errors = np.array(
        [snippet_error(estimate[i : i + n], truth[i : i + n]) for i, n in snippet_starts(len(truth), tails)]
    )
    return SnippetSums(snippets=len(errors), error=float(errors.sum()), error_square=float((errors**2).sum()))


def relative_motions(world_T_camera: np.ndarray) -> np.ndarray:
    """(N, 4, 4) poses -> (N - 1, 4, 4) later_T_earlier."""
    return inverse(world_T_camera[1:]) @ world_T_camera[:-1]


def pair_sums(estimate: np.ndarray, truth: np.ndarray, min_step_m: float = MIN_STEP_M) -> PairSums:
    """Rotation and direction errors of camera motions later_T_earlier, both (P, 4, 4).

    The direction is that in which the camera moves, in the axes of its earlier frame. An estimate of
    no motion at all has none, and counts as 90 degrees off.
    """
    if estimate.shape != truth.shape:
        raise ValueError(f"{estimate.shape} estimated motions for {truth.shape} true ones")
    est, gt = inverse(estimate), inverse(truth)  # earlier_T_later holds the camera's displacement
    moving = np.linalg.norm(gt[:, :3, 3], axis=-1) >= min_step_m
    return PairSums(
        pairs=len(truth),
        rotation=float(np.degrees(rotation_angle(estimate[:, :3, :3].mT @ truth[:, :3, :3])).sum()),
        rotation_none=float(np.degrees(rotation_angle(truth[:, :3, :3])).sum()),
        moving=int(moving.sum()),
        direction=float(np.degrees(angle_between(est[moving, :3, 3], gt[moving, :3, 3])).sum()),
    )


def figures(full: SnippetSums, tails: SnippetSums, pairs: PairSums, protocol: str) -> list[Figure]:
    """Ratios of the sums, each with what it counts."""
    found = []
    for name, sums in (("n-4 full snippets", full), ("n-1 snippets with short tails", tails)):
        how = f"{protocol}; {name}, one scale a snippet, sqrt(sum of squares)/N"
        for statistic, value in (("mean", sums.mean), ("std", sums.std)):
            found.append(
                Figure(name=f"5-frame ATE {statistic}, {name}", value=value, unit="m", protocol=how,
                       count=sums.snippets)
            )  # fmt: skip
    for name, total, count in (
        ("camera direction error", pairs.direction, pairs.moving),
        ("camera rotation error", pairs.rotation, pairs.pairs),
        ("camera rotation error of predicting none", pairs.rotation_none, pairs.pairs),
    ):
        value = total / count if count else float("nan")
        found.append(Figure(name=name, value=value, unit="deg", protocol=protocol, count=count))
    return found


def inverse(motions: np.ndarray) -> np.ndarray:
    """Inverse of (..., 4, 4) rigid motions."""
    result = np.zeros_like(motions, dtype=np.float64)
    R = motions[..., :3, :3].swapaxes(-1, -2)
    result[..., :3, :3] = R
    result[..., :3, 3:] = -R @ motions[..., :3, 3:]
    result[..., 3, 3] = 1
    return result


def rotation_angle(R: np.ndarray) -> np.ndarray:
    """Angle of (..., 3, 3) rotations, radians; exact near 0 and near pi, where arccos alone is not."""
    axis = np.stack(
        [R[..., 2, 1] - R[..., 1, 2], R[..., 0, 2] - R[..., 2, 0], R[..., 1, 0] - R[..., 0, 1]], axis=-1
    )
    return np.arctan2(np.linalg.norm(axis, axis=-1), np.trace(R, axis1=-2, axis2=-1) - 1)


def angle_between(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Angle between (..., 3) vectors, radians; pi / 2 where one of them is 0."""
    sine = np.linalg.norm(np.cross(a, b), axis=-1)
    dot = (a * b).sum(axis=-1)
    return np.where((sine == 0) & (dot == 0), np.pi / 2, np.arctan2(sine, dot))


def _positions(world_T_camera: np.ndarray) -> np.ndarray:
    """(N, 3) positions of cameras in the first one."""
    return (inverse(world_T_camera[0]) @ world_T_camera)[:, :3, 3]
