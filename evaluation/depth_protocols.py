"""How the benchmarks score depth: Eigen's split of KITTI (raw and improved truth) and Cityscapes.

A prediction is an inverse-depth map of any size. It is resized to the truth's size BEFORE it is
inverted, bilinearly, by pixel edges (`u' = (u + 0.5) s - 0.5`, as OpenCV's INTER_LINEAR does). Pixels
count where the truth is valid and inside the crop; one scale an image, from all of them; scaled depth
is clamped to the cap. Errors are those of `evaluation.depth`.

Boxes are (x0, y0, x1, y1) at pixel edges: a whole image is (-0.5, -0.5, W - 0.5, H - 0.5).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from evaluation import depth
from evaluation.depth import MAX_DEPTH_M, MIN_DEPTH_M, DepthTally
from evaluation.figure import Figure
from evaluation.predictions import PredictionError
from pipeline.errors import ConfigError

Box = tuple[float, float, float, float]

ALL = "all"
"""The region of every pixel that counts."""
MEDIAN_SCALE = "median(true) / median(predicted) of each image, over all its pixels that count"
_EDGE_TOLERANCE_PX = 1e-6


@dataclass(frozen=True, kw_only=True)
class Crop:
    """The part of an image that counts, as shares of its height and width.

    Rows int(top H) to int(bottom H) - 1 and columns int(left W) to int(right W) - 1.
    """

    name: str
    top: float = 0.0
    bottom: float = 1.0
    left: float = 0.0
    right: float = 1.0

    def __post_init__(self) -> None:
        if not (0 <= self.top < self.bottom <= 1 and 0 <= self.left < self.right <= 1):
            raise ConfigError(f"crop {self.name}: shares must rise within [0, 1]")

    @property
    def text(self) -> str:
        """Name and shares, for people."""
        if (self.top, self.bottom, self.left, self.right) == (0, 1, 0, 1):
            return self.name
        return (
            f"{self.name} (rows {self.top:.8g}-{self.bottom:.8g} of the height, "
            f"columns {self.left:.8g}-{self.right:.8g} of the width)"
        )

    def window(self, height: int, width: int) -> tuple[slice, slice]:
        """Rows and columns that count in an image of this size."""
        return (
            slice(int(self.top * height), int(self.bottom * height)),
            slice(int(self.left * width), int(self.right * width)),
        )


@dataclass(frozen=True, kw_only=True)
class DepthProtocol:
    """One benchmark's rules.

    name:        what it is called
    truth:       where the truth comes from
    crop:        the part of the image that counts
    unseen_rows: share of the rows, at the bottom, that the networks do not see: a prediction shows the
                 rows above them
    cap_m:       scaled depth is clamped to it, and true depth must be less, unless
    far_truth:   what is truly farther counts as well
    """

    name: str
    truth: str
    crop: Crop
    unseen_rows: float = 0.0
    cap_m: float = MAX_DEPTH_M
    far_truth: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.unseen_rows <= 1 - self.crop.bottom:
            raise ConfigError(
                f"{self.name}: the crop ends at {self.crop.bottom:g} of the height, but the bottom "
                f"{self.unseen_rows:g} is not seen"
            )
        if not MIN_DEPTH_M < self.cap_m < np.inf:
            raise ConfigError(f"{self.name}: a cap of {self.cap_m:g} m; expected more than {MIN_DEPTH_M:g}")

    def shown(self, height: int, width: int) -> Box:
        """The box of a truth of this size that a prediction shows."""
        return -0.5, -0.5, width - 0.5, round(height * (1 - self.unseen_rows)) - 0.5

    @property
    def description(self) -> str:
        """All rules but the scale's, as text for `Figure.protocol`."""
        rows, far = "", "" if self.far_truth else f" < {self.cap_m:g} m"
        if self.unseen_rows:
            rows = f" (without the bottom {self.unseen_rows:.0%} of the rows, which are not predicted)"
        return (
            f"{self.name}: {self.truth}; {MIN_DEPTH_M:g} < true depth{far}; "
            f"{self.crop.text}; disparity resized bilinearly to the truth's size{rows}, then inverted; "
            f"scaled, then clamped to [{MIN_DEPTH_M:g}, {self.cap_m:g}] m"
        )


@dataclass(frozen=True, kw_only=True)
class DepthScore:
    """What was counted on some images; adds up.

    regions: ALL, and the name of every mask -> its errors
    scales:  median scale of every image that has pixels that count, metres a predicted unit
    """

    regions: Mapping[str, DepthTally] = field(default_factory=dict)
    scales: tuple[float, ...] = ()

    def __add__(self, other: DepthScore) -> DepthScore:
        regions = dict(self.regions)
        depth.merge(regions, other.regions)
        return DepthScore(regions=regions, scales=self.scales + other.scales)

    @property
    def scale_spread(self) -> float:
        """Standard deviation (of the population) over mean of the median scales; NaN without images."""
        return float(np.std(self.scales) / np.mean(self.scales)) if self.scales else float("nan")


GARG_CROP = Crop(name="Garg crop", top=0.40810811, bottom=0.99189189, left=0.03594771, right=0.96405229)
NO_CROP = Crop(name="no crop")
# All four are binary fractions: exactly rows 256:768 and columns 192:1856 of 2048x1024.
CITYSCAPES_CROP = Crop(
    name="rows 256:768, columns 192:1856 of 2048x1024",
    top=256 / 1024,
    bottom=768 / 1024,
    left=192 / 2048,
    right=1856 / 2048,
)

KITTI_EIGEN = DepthProtocol(
    name="KITTI Eigen",
    truth="raw LiDAR scans, depth = the LiDAR's forward x, devkit rounding, nearest point",
    crop=GARG_CROP,
)
KITTI_EIGEN_Z = replace(
    KITTI_EIGEN,
    name="KITTI Eigen, camera z",
    truth="raw LiDAR scans, depth = the camera's z (not the published rule), devkit rounding, nearest point",
)
KITTI_IMPROVED = DepthProtocol(
    name="KITTI Eigen, improved truth", truth="annotated depth PNGs / 256", crop=NO_CROP, far_truth=True
)
"""Monodepth2's code, from which published figures come, counts every annotated pixel here."""
CITYSCAPES = DepthProtocol(
    name="Cityscapes",
    truth="stereo disparities, each image's own baseline and focal length",
    crop=CITYSCAPES_CROP,
    unseen_rows=0.25,
)


def score_map(
    inverse_depth: np.ndarray,
    truth_m: np.ndarray,
    protocol: DepthProtocol,
    masks: Mapping[str, np.ndarray] | None = None,
    scale: float | None = None,
    shown: Box | None = None,
) -> DepthScore:
    """Score one predicted map against the truth of its image. Sum the scores of a benchmark's images.

    Args:
        inverse_depth: (h, w) floating, 1 / z-depth in any unit, of any size; 0 or NaN where nothing is
                       predicted.
        truth_m:       (H, W) true depth, metres, 0 where there is none.
        masks:         name -> (H, W) bool, further regions, such as object and background; they are
                       judged with the scale of all pixels.
        scale:         metres a predicted unit; else each image's median scale.
        shown:         the box of the truth's image that the prediction shows, where it is not all that
                       the protocol shows to networks: see `shown_box`.

    Returns:
        Regions ALL and the masks' names. An image without pixels that count adds nothing.

    Raises:
        PredictionError: no depth is predicted where it counts, or a value is none.
        ValueError: shapes or types are not as above.
    """
    masks = _checked(inverse_depth, truth_m, masks or {}, scale)
    height, width = truth_m.shape
    rows, columns = protocol.crop.window(height, width)
    truth_m = truth_m[rows, columns]
    valid = depth.valid_truth(truth_m, max_m=np.inf if protocol.far_truth else protocol.cap_m)
    count = int(valid.sum())
    if not count:
        return DepthScore(regions=dict.fromkeys([ALL, *masks], DepthTally()))
    predicted = resample(inverse_depth, shown or protocol.shown(height, width), rows, columns)[valid]
    missing = count - int((predicted > 0).sum())
    if missing:
        raise PredictionError(
            f"{missing} of {count} pixels that count have no predicted depth; "
            "predict the whole image, at a size of its aspect"
        )
    # From here on only pixels that count, as one row: truth is sparse.
    near, true = 1 / predicted[None].astype(np.float64), truth_m[valid][None].astype(np.float64)
    every = np.ones_like(true, bool)
    regions = {ALL: every, **{name: mask[rows, columns][valid][None] for name, mask in masks.items()}}
    median = depth.median_scale(near, true, every)
    return DepthScore(
        regions=depth.score_image(
            near, true, every, regions, scale=median if scale is None else scale, cap_m=protocol.cap_m
        ),
        scales=(median,),
    )


def figures(
    score: DepthScore, protocol: DepthProtocol, scale: float | None = None, masks_from: str = ""
) -> list[Figure]:
    """Every figure of a benchmark: the errors of each region, and how far the median scales spread.

    Args:
        scale:      the scale that was given to `score_map`, if one was.
        masks_from: where the masks come from; must be said if there are any.
    """
    if not masks_from and set(score.regions) - {ALL}:
        raise ValueError("say where the masks come from: their figures mean nothing without it")
    text = protocol.description + (f"; masks: {masks_from}" if masks_from else "")
    rule = MEDIAN_SCALE if scale is None else f"{scale:g} m a predicted unit, given, the same for all images"
    return [
        *depth.figures({ALL: DepthTally(), **score.regions}, text, rule),
        Figure(
            name="spread of the median scale",
            value=score.scale_spread,
            unit="fraction",
            protocol=f"{protocol.description}; standard deviation over mean, all images",
            count=len(score.scales),
            scale=MEDIAN_SCALE,
        ),
    ]


def shown_box(map_K: np.ndarray, map_size: tuple[int, int], truth_K: np.ndarray) -> Box:
    """The box of the truth's image that a map shows which was cut out of it and resized.

    Args:
        map_K:    (3, 3) intrinsics of the map, its pixels.
        map_size: (width, height) of the map.
        truth_K:  (3, 3) intrinsics of the same camera, pixels of the truth.
    """
    scale = truth_K[[0, 1], [0, 1]] / map_K[[0, 1], [0, 1]]
    low = (-0.5 - map_K[:2, 2]) * scale + truth_K[:2, 2]
    high = low + np.array(map_size) * scale
    return float(low[0]), float(low[1]), float(high[0]), float(high[1])


def resample(inverse_depth: np.ndarray, shown: Box, rows: slice, columns: slice) -> np.ndarray:
    """A window of a map that was resized bilinearly until it fills a box of the truth's image.

    With the box of a whole image this is a window of `cv2.resize(..., INTER_LINEAR)`.

    Args:
        inverse_depth: (h, w) floating; 0 or NaN: none.
        shown:         the box that the map fills, truth's pixels.
        rows, columns: the window, truth's pixels.

    Returns:
        (rows, columns) floating; NaN outside the box and wherever a pixel that is read has none.
    """
    height, width = inverse_depth.shape
    # Half precision is for storing: OpenCV and most networks have single precision.
    values = inverse_depth.astype(np.result_type(inverse_depth.dtype, np.float32), copy=False)
    if not (values > 0).all():
        values = np.where(values > 0, values, np.nan)
    x, next_x, part_x, off_x = _positions(columns, shown[0], shown[2], width)
    y, next_y, part_y, off_y = _positions(rows, shown[1], shown[3], height)
    part_x, part_y = part_x.astype(values.dtype), part_y.astype(values.dtype)[:, None]
    lines = values[y] * (1 - part_y) + values[next_y] * part_y
    window = lines[:, x] * (1 - part_x) + lines[:, next_x] * part_x
    window[off_y] = np.nan
    window[:, off_x] = np.nan
    return window


def _positions(
    window: slice, low: float, high: float, count: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Where the pixels of a window lie along an axis of `count` pixels that spans low..high.

    Returns the pixel before, the pixel after, the share of the latter, and which lie outside.
    """
    at = (np.arange(window.start, window.stop) - low) * (count / (high - low)) - 0.5
    outside = (at < -0.5 - _EDGE_TOLERANCE_PX) | (at > count - 0.5 + _EDGE_TOLERANCE_PX)
    at = np.clip(at, 0, count - 1)  # half a pixel along the edge takes the edge's value
    before = at.astype(np.intp)
    part = at - before
    # A pixel that is hit exactly must not read its neighbour, which may hold nothing.
    return before, before + (part > 0), part, outside


def _checked(
    inverse_depth: np.ndarray, truth_m: np.ndarray, masks: Mapping[str, np.ndarray], scale: float | None
) -> Mapping[str, np.ndarray]:
    """The masks, after all inputs were found to be what they should be."""
    if inverse_depth.ndim != 2 or not inverse_depth.size or inverse_depth.dtype.kind != "f":
        raise ValueError(f"inverse depth is {inverse_depth.dtype} {inverse_depth.shape}, not floating (h, w)")
    if truth_m.ndim != 2:
        raise ValueError(f"true depth is {truth_m.shape}, not (H, W)")
    if ALL in masks:
        raise ValueError(f"the name {ALL!r} is taken: it is the region of every pixel")
    for name, mask in masks.items():
        if mask.shape != truth_m.shape or mask.dtype != bool:
            raise ValueError(f"mask {name} is {mask.dtype} {mask.shape}, not bool {truth_m.shape}")
    if scale is not None and not 0 < scale < np.inf:
        raise ConfigError(f"a scale of {scale:g}; expected metres a predicted unit, above 0")
    if (inverse_depth < 0).any() or np.isinf(inverse_depth).any():
        raise PredictionError("a predicted inverse depth is below 0 or infinite; check what wrote it")
    return masks
