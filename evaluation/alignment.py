"""Alignment of an estimated trajectory to the true one, before the two are compared.

Poses are `world_T_camera` (N, 4, 4). The worlds of estimate and truth have nothing in common, and what
one camera sees has a scale of its own. A rule says how much of the truth is used to bring them together:

    none   the first estimated pose is put onto the first true one; nothing is fitted
    scale  the same, and positions relative to the first pose are scaled by sum(true . est) / sum(est^2),
           least squares over all frames
    6dof   the rigid motion that fits positions best (Umeyama 1991 with scale 1)
    7dof   the similarity that fits positions best (Umeyama 1991)

Lengths between poses change by the scale alone, and rotations between them by no rule.

Positions do not always determine a fit. What they leave open is what the first poses say (the rule
"none"), and the scale is 1:

- positions on one line leave the turn about it open: of all best fits, the one whose rotation is
  nearest to the first poses' is taken. Two poses always lie on a line;
- one pose, or a trajectory that stands still, leaves the whole rotation open. An estimate that stands
  still also leaves its scale open; to a truth that stands still a moving estimate fits with scale 0.

A scale is never negative: an estimate that drives backwards is not mirrored into one that drives
forwards, but fits best with scale 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import numpy as np

from evaluation.predictions import PredictionError
from pipeline.errors import ConfigError

Rule = Literal["none", "scale", "6dof", "7dof"]

RULES: Mapping[Rule, str] = MappingProxyType(
    {
        "none": "none (first poses put onto each other)",
        "scale": "one a sequence: sum(true . est) / sum(est^2) of positions relative to the first frame's",
        "6dof": "none (6-DoF alignment of positions, Umeyama)",
        "7dof": "one a sequence, by 7-DoF alignment of positions (Umeyama)",
    }
)
"""What each rule does to the scale, as text for `Figure.scale`."""

DEFAULT_RULE: Rule = "7dof"

_RANK_TOLERANCE = 1e-12
"""Singular values below this share of the largest are rounding: positions lie on a line."""


@dataclass(frozen=True, kw_only=True)
class Similarity:
    """How an estimate's world lies in the true one: X_true = true_T_scaled (scale X_est).

    scale:         >= 0, true units in an estimated one
    true_T_scaled: (4, 4) rigid motion, true units
    """

    scale: float
    true_T_scaled: np.ndarray

    def __call__(self, world_T_camera: np.ndarray) -> np.ndarray:
        """(..., 4, 4) poses in the estimate's world -> the same in the true one, in true units."""
        scaled = np.array(world_T_camera, np.float64)
        scaled[..., :3, 3] *= self.scale
        return self.true_T_scaled @ scaled


def align(estimate: np.ndarray, truth: np.ndarray, rule: Rule = DEFAULT_RULE) -> np.ndarray:
    """Bring estimated poses into the true world.

    Args:
        estimate: (N, 4, 4) world_T_camera, any world, any unit.
        truth:    (N, 4, 4) world_T_camera of the same frames.
        rule:     see the module.

    Returns:
        (N, 4, 4) float64 estimated poses in truth's world and unit.

    Raises:
        ConfigError: no such rule.
        ValueError: the shapes are not as above, N is 0, or a number is not finite.
    """
    return fit(estimate, truth, rule)(estimate)


def fit(estimate: np.ndarray, truth: np.ndarray, rule: Rule = DEFAULT_RULE) -> Similarity:
    """The similarity by which `align` moves the estimate; arguments and errors are those of `align`."""
    if rule not in RULES:
        raise ConfigError(f"alignment {rule!r}; expected one of {', '.join(RULES)}")
    require_poses("estimate", estimate)
    require_poses("truth", truth)
    if len(estimate) != len(truth):
        raise ValueError(f"{len(estimate)} estimated poses for {len(truth)} true ones")
    estimate, truth = np.asarray(estimate, np.float64), np.asarray(truth, np.float64)
    if rule in ("none", "scale"):
        return _first_poses(estimate, truth, scaled=rule == "scale")
    return _umeyama(estimate, truth, scaled=rule == "7dof")


def rebase(world_T_camera: np.ndarray, row: int = 0) -> np.ndarray:
    """(N, 4, 4) poses -> (N, 4, 4) float64 poses of which that of `row` is the identity.

    Raises:
        ValueError: not (N, 4, 4), N is 0, or a number is not finite.
    """
    require_poses("world_T_camera", world_T_camera)
    poses = np.array(world_T_camera, np.float64)
    # Positions are subtracted before they are turned, so that a camera that stands still has no spread.
    poses[:, :3, 3] -= world_T_camera[row, :3, 3]
    # Not the transposed rotation: published figures come from the full inverse of poses printed with
    # seven digits, and the two differ in the digits that are compared.
    poses[:, :3] = np.linalg.inv(world_T_camera[row, :3, :3]) @ poses[:, :3]
    return poses


def common_frames(estimate_index: np.ndarray, truth_index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which rows of an estimate and of a truth are of one frame.

    Args:
        estimate_index: (N,) frame numbers, rising.
        truth_index:    (M,) frame numbers, rising.

    Returns:
        (K,) rows of the estimate and (K,) rows of the truth, both rising, K > 0.

    Raises:
        PredictionError: no frame is in both.
        ValueError: frame numbers do not rise.
    """
    for name, index in (("estimate_index", estimate_index), ("truth_index", truth_index)):
        if np.ndim(index) != 1 or not (np.diff(index) > 0).all():
            raise ValueError(f"{name} must be a row of rising frame numbers")
    _, estimate_rows, truth_rows = np.intersect1d(
        estimate_index, truth_index, assume_unique=True, return_indices=True
    )
    if not len(estimate_rows):
        raise PredictionError(
            f"the estimate has {_extent(estimate_index)}, the truth {_extent(truth_index)}: no frame is in "
            "both; give a trajectory of the same sequence, with the truth's frame numbers"
        )
    return estimate_rows, truth_rows


def require_poses(name: str, poses: np.ndarray) -> None:
    """Refuse what is not a (N, 4, 4) array of finite numbers with N > 0, with a ValueError."""
    if np.ndim(poses) != 3 or not len(poses) or np.shape(poses)[1:] != (4, 4):
        raise ValueError(f"{name} is {np.shape(poses)}, expected (N, 4, 4) with N > 0")
    if not np.isfinite(poses).all():
        raise ValueError(f"{name} holds a number that is not finite")


def _first_poses(estimate: np.ndarray, truth: np.ndarray, scaled: bool) -> Similarity:
    """First pose onto first pose; positions from there scaled by least squares if asked for."""
    scale = 1.0
    if scaled:
        x, y = rebase(estimate)[:, :3, 3], rebase(truth)[:, :3, 3]
        square = float((x**2).sum())
        scale = max(float((x * y).sum()), 0.0) / square if square > 0 else 1.0
    scaled_T_first = estimate[0].copy()
    scaled_T_first[:3, 3] *= scale
    return Similarity(scale=scale, true_T_scaled=truth[0] @ np.linalg.inv(scaled_T_first))


def _umeyama(estimate: np.ndarray, truth: np.ndarray, scaled: bool) -> Similarity:
    """Umeyama 1991, Eqs. 34-43, on positions x of the estimate and y of the truth."""
    # From the first positions on: then means of equal positions are exact, and of far ones nearly so.
    first_x, first_y = estimate[0, :3, 3], truth[0, :3, 3]
    x, y = estimate[:, :3, 3] - first_x, truth[:, :3, 3] - first_y
    mean_x, mean_y = x.mean(axis=0), y.mean(axis=0)
    variance = float(((x - mean_x) ** 2).sum()) / len(x)
    U, D, Vt = np.linalg.svd((y - mean_y).T @ (x - mean_x) / len(x))
    R0 = truth[0, :3, :3] @ estimate[0, :3, :3].T
    S = _rotation_between_axes(U, D, Vt, R0)
    R = U @ S @ Vt
    scale = 1.0
    if scaled and variance > 0:
        scale = float(D @ np.diag(S)) / variance
    motion = np.eye(4)
    motion[:3, :3] = R
    motion[:3, 3] = first_y + mean_y - scale * R @ (first_x + mean_x)
    return Similarity(scale=scale, true_T_scaled=motion)


def _rotation_between_axes(U: np.ndarray, D: np.ndarray, Vt: np.ndarray, R0: np.ndarray) -> np.ndarray:
    """Umeyama's S, Eqs. 39 and 43: U S Vt is a rotation, and of all that fit best the nearest to R0.

    Axes with a singular value above rounding are fixed, two at most, for they fix the third: S is the
    identity there and, on the k axes left, the orthogonal Q with det(U) det(Q) det(Vt) = 1 that makes
    trace(R0^T U S Vt) largest. With two fixed axes Q is Umeyama's last entry, 1 or -1.
    """
    rounding = _RANK_TOLERANCE * D[0]
    fixed = min(np.count_nonzero(rounding < D), 2)
    P, _, Wt = np.linalg.svd((Vt @ R0.T @ U)[fixed:, fixed:])
    Q = Wt.T @ P.T
    if np.linalg.det(U) * np.linalg.det(Q) * np.linalg.det(Vt) < 0:
        P[:, -1] *= -1  # the axis on which a flip costs least
        Q = Wt.T @ P.T
    S = np.eye(3)
    S[fixed:, fixed:] = Q
    return S


def _extent(index: np.ndarray) -> str:
    return f"frames {index[0]} to {index[-1]}" if len(index) else "no frame"
