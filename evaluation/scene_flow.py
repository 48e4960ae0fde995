"""Scene flow against KITTI 2015's truth: the share of pixels whose disparity or optical flow is far off.

    D1   disparity f b / Z of a point in the first frame
    D2   its disparity in the second frame
    Fl   its optical flow from the first frame to the second
    SF   D1, D2 or Fl is an outlier, over the pixels that have truth for all three

All of them at the pixels of the FIRST frame. An outlier is off by more than 3 px AND by more than 5 % of
the true value (of flow: of its length); where nothing finite is predicted is an outlier, too. Sums first,
ratios last: the pixels of all pairs count alike.

A network says how points move, not what a disparity is: a point X of the first frame's camera moves to
X' = later_T_earlier O X (O = 1 on the background, PREDICTIONS.md), with disparity f b / Z' and flow
p' - p. One scale turns depths and translations into metres; flow does not depend on it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Literal

import numpy as np
from scipy.ndimage import map_coordinates

from evaluation.depth import Share, median_scale
from evaluation.depth_protocols import resample
from evaluation.figure import Figure
from evaluation.ground_truth.scene_flow import Extent, SceneFlowTruth
from evaluation.predictions import PredictionError

Second = Literal["moved", "sampled"]

OUTLIER_PX = 3.0
OUTLIER_PART = 20
"""Off by more than one part in so many (5 %), written so that it is exact for values in 1/256 px."""
MEDIAN_SCALE = "median(true) / median(predicted) depth of each pair at its D1 truth, used for D2, too"
METRIC = 1.0  # the scale of predictions in metres


@dataclass(frozen=True, kw_only=True)
class PairPrediction:
    """What a network says about one pair; maps show the whole image, at any size.

    inverse_depth:       (h, w) floating, 1 / z-depth of the first frame, > 0
    later_T_earlier:     (4, 4) camera motion from the first frame to the second
    labels:              (h', w') integers, regions of the first frame, 0 = background
    motions:             label -> (4, 4) O of its region, seen from the first camera; without one, O = 1
    later_inverse_depth: (h, w) of the second frame, for D2 by sampling only

    Raises:
        PredictionError: a value that no prediction has, or another shape.
    """

    inverse_depth: np.ndarray
    later_T_earlier: np.ndarray
    labels: np.ndarray
    motions: Mapping[int, np.ndarray] = field(default_factory=dict)
    later_inverse_depth: np.ndarray | None = None

    def __post_init__(self) -> None:
        for name in ("inverse_depth", "later_inverse_depth"):
            values = getattr(self, name)
            if values is None:
                continue
            if values.ndim != 2 or not values.size or values.dtype.kind != "f":
                raise PredictionError(f"{name} is {values.dtype} {values.shape}, expected floating (h, w)")
            if not (np.isfinite(values).all() and (values > 0).all()):
                raise PredictionError(f"{name} must be finite and above 0; predict the whole image")
        labels = self.labels
        if labels.ndim != 2 or not labels.size or labels.dtype.kind not in "iu":
            raise PredictionError(f"labels are {labels.dtype} {labels.shape}, expected integers (h, w)")
        if any(label <= 0 for label in self.motions):
            raise PredictionError("label 0 is the background, which only the camera moves; labels begin at 1")
        for motion in (self.later_T_earlier, *self.motions.values()):
            if motion.shape != (4, 4) or not np.isfinite(motion).all():
                raise PredictionError("a motion is no finite (4, 4) matrix; check what wrote it")


@dataclass(frozen=True, kw_only=True)
class MovedPixels:
    """Where the points of a frame's pixels are in the next frame; NaN where behind its camera.

    depth:   (H, W) float64, z-depth in the next camera, same unit
    flow_px: (H, W, 2) float64 (u, v)
    """

    depth: np.ndarray
    flow_px: np.ndarray


@dataclass(frozen=True, kw_only=True)
class SceneFlowEstimate:
    """What is compared, at the pixels of the first image; NaN where nothing is predicted.

    disparity_0_px, disparity_1_px: (H, W) floating, pixels;  flow_px: (H, W, 2) floating (u, v)
    None where a method does not say: it is not counted, and neither is SF.
    """

    disparity_0_px: np.ndarray
    disparity_1_px: np.ndarray | None = None
    flow_px: np.ndarray | None = None


@dataclass(frozen=True, kw_only=True)
class RegionShares:
    """Outliers of the pixels with truth, on background and moving cars; they add up."""

    background: Share = field(default_factory=Share)
    foreground: Share = field(default_factory=Share)

    def __add__(self, other: RegionShares) -> RegionShares:
        return RegionShares(
            background=self.background + other.background, foreground=self.foreground + other.foreground
        )

    @property
    def all(self) -> Share:
        """Every pixel alike."""
        return self.background + self.foreground


@dataclass(frozen=True, kw_only=True)
class SceneFlowScore:
    """Outliers over some pairs; scores add up."""

    pairs: int = 0
    d1: RegionShares = RegionShares()
    d2: RegionShares = RegionShares()
    fl: RegionShares = RegionShares()
    sf: RegionShares = RegionShares()

    def __add__(self, other: SceneFlowScore) -> SceneFlowScore:
        return SceneFlowScore(
            **{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)}
        )


def is_outlier(error_px: np.ndarray, true_px: np.ndarray) -> np.ndarray:
    """Bool, more than 3 px AND more than 5 % off; NaN is an outlier.

    Args:
        error_px: absolute error of a disparity, or length of a flow's error.
        true_px:  the true disparity, or the length of the true flow, same shape.
    """
    return ~((error_px <= OUTLIER_PX) | (error_px * OUTLIER_PART <= true_px))


def count_outliers(estimate: SceneFlowEstimate, truth: SceneFlowTruth) -> SceneFlowScore:
    """The outliers of one pair. Any method's disparities and flow can be given.

    Raises:
        PredictionError: a map is not of the truth's size.
    """
    outliers, valids = {}, {}
    for name, found, true, valid in (
        ("d1", estimate.disparity_0_px, truth.disparity_0_px, truth.valid_0),
        ("d2", estimate.disparity_1_px, truth.disparity_1_px, truth.valid_1),
        ("fl", estimate.flow_px, truth.flow_px, truth.flow_valid),
    ):
        if found is None:
            continue
        if found.shape != true.shape:
            raise PredictionError(
                f"pair {truth.name}: {name} is predicted as {found.shape}, the truth is {true.shape}; "
                "give it at the truth's size"
            )
        outliers[name], valids[name] = _outliers_of(found, true, valid), valid
    if len(outliers) == 3:
        valids["sf"] = np.logical_and.reduce(list(valids.values()))
        outliers["sf"] = np.logical_or.reduce(list(outliers.values())) & valids["sf"]
    shares = {name: _shares(outliers[name], valid, truth.foreground) for name, valid in valids.items()}
    return SceneFlowScore(pairs=1, **shares)


def score_pair(
    prediction: PairPrediction,
    truth: SceneFlowTruth,
    scale: float | None = None,
    second: Second = "moved",
    flow_px: np.ndarray | None = None,
) -> SceneFlowScore:
    """The outliers of a network's prediction. Sum the scores of all pairs.

    Args:
        scale:           metres a predicted unit, METRIC or `constant_scale`; None: the pair's `image_scale`.
        second, flow_px: see `estimate_pair`.

    Returns:
        A pair that has no D1 truth to take its scale from adds nothing.
    """
    scale = image_scale(prediction, truth) if scale is None else scale
    if np.isnan(scale):
        return SceneFlowScore()
    return count_outliers(estimate_pair(prediction, truth, scale, second, flow_px), truth)


def estimate_pair(
    prediction: PairPrediction,
    truth: SceneFlowTruth,
    scale: float = METRIC,
    second: Second = "moved",
    flow_px: np.ndarray | None = None,
) -> SceneFlowEstimate:
    """Disparities and flow out of a prediction, in the camera of the truth.

    Args:
        truth:   gives size, K and baseline; no truth is looked at.
        scale:   metres a predicted unit, above 0.
        second:  moved, D2 is the disparity f b / Z' of the moved point; sampled, that of the second
                 frame's depth at p + flow, or at the border where this lies outside the image.
        flow_px: (H, W, 2) flow to sample with and to count as Fl; that of the moved points if None.

    Raises:
        PredictionError: sampled without a second frame's depth, or flow of another size.
        ValueError: scale is not above 0.
    """
    if not 0 < scale < np.inf:
        raise ValueError(f"a scale of {scale:g}; expected metres a predicted unit, above 0")
    width, height = truth.size
    if flow_px is not None and flow_px.shape != (height, width, 2):
        raise PredictionError(
            f"pair {truth.name}: flow is {flow_px.shape}, expected {(height, width, 2)}, the truth's size"
        )
    inverse_depth = _full_size(prediction.inverse_depth, truth.size)
    labels = _nearest(prediction.labels, truth.size)
    moved = move(1 / inverse_depth, truth.K, prediction.later_T_earlier, labels, prediction.motions)
    flow_px = moved.flow_px if flow_px is None else flow_px
    if second == "moved":
        later = 1 / moved.depth
    elif prediction.later_inverse_depth is None:
        raise PredictionError("D2 by sampling needs the second frame's depth; predict both frames")
    else:
        later = _sample(prediction.later_inverse_depth, flow_px)
    disparity_px = truth.K[0, 0] * truth.baseline_m / scale
    return SceneFlowEstimate(
        disparity_0_px=disparity_px * inverse_depth, disparity_1_px=disparity_px * later, flow_px=flow_px
    )


def move(
    depth: np.ndarray,
    K: np.ndarray,
    later_T_earlier: np.ndarray,
    labels: np.ndarray,
    motions: Mapping[int, np.ndarray],
) -> MovedPixels:
    """Where every pixel's point goes, with the motion of its region.

    X' = later_T_earlier O Z K^-1 p,  p' ~ K X'

    Args:
        depth:           (H, W) z-depth of the first frame, any unit, > 0.
        K:               (3, 3) intrinsics, pixels of the maps; last row (0, 0, 1).
        later_T_earlier: (4, 4) camera motion, translation in the same unit.
        labels:          (H, W) integers, regions; 0 and labels without a motion follow the camera only.
        motions:         label -> (4, 4) O, seen from the first camera, translation in the same unit.

    Raises:
        ValueError: shapes disagree, or K is no camera of this kind.
    """
    if depth.ndim != 2 or labels.shape != depth.shape:
        raise ValueError(f"depth is {depth.shape}, labels are {labels.shape}; expected (H, W) of one size")
    if K.shape != (3, 3) or tuple(K[2]) != (0, 0, 1):
        raise ValueError(f"K is {K.tolist()}; expected (3, 3) with the last row 0, 0, 1")
    depth = depth.astype(np.float64)
    v, u = (np.arange(count, dtype=np.float64) for count in depth.shape)
    uvz = _project(u, v[:, None], depth, K, later_T_earlier)
    for label, motion in motions.items():
        rows, columns = np.nonzero(labels == label)
        uvz[:, rows, columns] = _project(
            u[columns], v[rows], depth[rows, columns], K, later_T_earlier @ motion
        )
    z = np.where(uvz[2] > 0, uvz[2], np.nan)
    return MovedPixels(depth=z, flow_px=np.stack([uvz[0] / z - u, uvz[1] / z - v[:, None]], axis=-1))


def image_scale(prediction: PairPrediction, truth: SceneFlowTruth) -> float:
    """Metres a predicted unit: median(true) / median(predicted) depth over D1's truth; NaN without any."""
    return median_scale(1 / _full_size(prediction.inverse_depth, truth.size), truth.depth_m, truth.valid_0)


def constant_scale(scales: Iterable[float]) -> float:
    """One scale for all pairs: the median of the pairs' own scales (`image_scale`), NaN left out.

    Raises:
        PredictionError: there is no scale at all.
    """
    known = [scale for scale in scales if not np.isnan(scale)]
    if not known:
        raise PredictionError("no pair has a scale: none of them has truth for D1")
    return float(np.median(known))


def figures(
    score: SceneFlowScore,
    scale: float | None = None,
    scale_from: str = "given",
    second: Second = "moved",
    flow_from: str = "",
    extent: Extent = "occ",
) -> list[Figure]:
    """D1, D2, Fl and SF on background, foreground and all, in percent; counts are pixels with truth.

    Args:
        scale, second: as they were given to `score_pair`.
        scale_from:    where a constant scale comes from.
        flow_from:     whose flow was given to `score_pair`; empty if none was.
        extent:        which truth was read.
    """
    pixels = {"occ": "all pixels with truth", "noc": "pixels that are seen in the other image, too"}[extent]
    flow = f"of {flow_from}" if flow_from else "of depth and motions"
    d2 = {
        "moved": "; D2 of the moved point",
        "sampled": f"; D2 of the second depth at the target of the flow {flow}, or at the border if outside",
    }[second]
    fl = f"; flow {flow}"
    sf = f"; outlier in D1, D2 or Fl, pixels with truth for all three{d2}{fl}"
    protocol = (
        f"KITTI 2015 scene flow, training, {score.pairs} pairs, {extent} ({pixels}); outlier: more than "
        f"{OUTLIER_PX:g} px and more than {1 / OUTLIER_PART:.0%} off; pixels of all pairs alike; "
        "fg: moving cars (obj_map)"
    )
    rule, found = _scale_rule(scale, scale_from), []
    for measure, text in {"D1": "", "D2": d2, "Fl": fl, "SF": sf}.items():
        shares: RegionShares = getattr(score, measure.lower())
        for region, share in (("bg", shares.background), ("fg", shares.foreground), ("all", shares.all)):
            found.append(Figure(name=f"{measure}, {region}", value=100 * share.value, unit="%",
                                protocol=protocol + text, count=share.whole,
                                scale="" if measure == "Fl" else rule))  # fmt: skip
    return found


def _scale_rule(scale: float | None, scale_from: str) -> str:
    if scale is None:
        return MEDIAN_SCALE
    if scale == METRIC:
        return "none, predictions are in metres"
    return f"{scale:g} m a predicted unit, the same for all pairs ({scale_from})"


def _outliers_of(found: np.ndarray, true: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """(H, W) bool, False where there is no truth."""
    outliers = np.zeros(valid.shape, bool)
    true = true[valid].astype(np.float64)
    with np.errstate(invalid="ignore"):  # inf - inf: what is predicted is not finite, an outlier
        error = np.abs(found[valid] - true)
    if true.ndim == 2:
        error, true = np.hypot(*error.T), np.hypot(*true.T)
    outliers[valid] = is_outlier(error, true)
    return outliers


def _shares(outliers: np.ndarray, valid: np.ndarray, foreground: np.ndarray) -> RegionShares:
    front = valid & foreground
    part, whole = int((outliers & front).sum()), int(front.sum())
    return RegionShares(
        background=Share(part=int(outliers.sum()) - part, whole=int(valid.sum()) - whole),
        foreground=Share(part=part, whole=whole),
    )


def _project(u: np.ndarray, v: np.ndarray, depth: np.ndarray, K: np.ndarray, b_T_a: np.ndarray) -> np.ndarray:
    """(3, ...) K X_b of the pixels (u, v): the pixel times its depth in b, and that depth."""
    # (K R K^-1) p Z + K t: nine products a pixel, and no points in between.
    A, b = K @ b_T_a[:3, :3] @ np.linalg.inv(K), K @ b_T_a[:3, 3]
    return np.stack([(A[i, 0] * u + A[i, 1] * v + A[i, 2]) * depth + b[i] for i in range(3)])


def _full_size(inverse_depth: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W) float64, resized bilinearly, by pixel edges, before it is inverted."""
    width, height = size
    shown = (-0.5, -0.5, width - 0.5, height - 0.5)
    return resample(inverse_depth, shown, slice(0, height), slice(0, width)).astype(np.float64)


def _nearest(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W) labels, resized by pixel edges, each pixel the one that its centre falls into."""
    rows, columns = (
        ((np.arange(count) + 0.5) * stored / count).astype(np.intp)
        for count, stored in zip(size[::-1], labels.shape, strict=True)
    )
    return labels[rows[:, None], columns]


def _sample(inverse_depth: np.ndarray, flow_px: np.ndarray) -> np.ndarray:
    """(H, W) float64 values of a map of any size at p + flow, bilinear; NaN where flow is not finite."""
    height, width = flow_px.shape[:2]
    known = np.isfinite(flow_px).all(axis=-1)
    rows, columns = np.nonzero(known)
    # By pixel edges, from the truth's size to the map's own: one interpolation, not two.
    x = (columns + flow_px[known][:, 0] + 0.5) * (inverse_depth.shape[1] / width) - 0.5
    y = (rows + flow_px[known][:, 1] + 0.5) * (inverse_depth.shape[0] / height) - 0.5
    sampled = np.full((height, width), np.nan)
    sampled[known] = map_coordinates(inverse_depth.astype(np.float64), [y, x], order=1, mode="nearest")
    return sampled
