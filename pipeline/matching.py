"""Raw detections of neighbouring frames -> matched instances. Pure functions.

Two masks in consecutive frames are one object when, carried over by the optical flow, they
overlap mutually best and by more than an IoU threshold, on pixels that are not occluded
(flow agrees forward and backward). IoU is counted twice, on the pixels of either frame, and
both must pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from pipeline.classes import CLASS_INDEX, CLASSES
from pipeline.detections import Detections
from pipeline.errors import ConfigError
from pipeline.flow import Flow, consistent
from pipeline.masks import Patch, paste
from pipeline.shards.evidence import OVERLAP_FLOOR, Overlaps


@dataclass(frozen=True, kw_only=True)
class MaskConfig:
    """Which raw detections become instances, and when two of them are one object."""

    min_score: float = 0.5
    """Least detection score, in [0.05, 1]."""
    mask_probability: float = 0.5
    """A pixel belongs to a mask from this probability on, in (0, 1). Any value other than
    0.5 makes the overlaps be counted again, from the flow."""
    classes: tuple[str, ...] = CLASSES
    """Classes to keep."""
    min_area: int = 64
    """Least visible pixels of an instance, in the stored frame."""
    max_hidden: float = 0.5
    """An instance more hidden than this by instances of higher score is dropped, in [0, 1]."""
    max_instances: int | None = None
    """Instances kept per frame, largest visible area first; none: all."""
    min_iou: float = 0.5
    """Masks match when both IoUs are above this, in [0.1, 1)."""
    max_gap: int = 3
    """Longest gap, in frames, over which a track goes on."""

    def __post_init__(self) -> None:
        if not 0.05 <= self.min_score <= 1:
            raise ConfigError(f"min_score must lie in [0.05, 1], got {self.min_score}")
        if not 0 < self.mask_probability < 1:
            raise ConfigError(f"mask_probability must lie in (0, 1), got {self.mask_probability}")
        unknown = [name for name in self.classes if name not in CLASS_INDEX]
        if unknown or not self.classes:
            raise ConfigError(
                f"classes must be some of {', '.join(CLASSES)}; got {', '.join(self.classes) or 'none'}"
            )
        if self.min_area < 1:
            raise ConfigError(f"min_area must be at least 1 pixel, got {self.min_area}")
        if not 0 <= self.max_hidden <= 1:
            raise ConfigError(f"max_hidden must lie in [0, 1], got {self.max_hidden}")
        if self.max_instances is not None and self.max_instances < 1:
            raise ConfigError(f"max_instances must be at least 1, got {self.max_instances}")
        if not OVERLAP_FLOOR <= self.min_iou < 1:
            raise ConfigError(f"min_iou must lie in [{OVERLAP_FLOOR}, 1), got {self.min_iou}")
        if self.max_gap < 0:
            raise ConfigError(f"max_gap must not be negative, got {self.max_gap}")
        # Order and repetition of classes mean nothing: equal settings shall be equal.
        object.__setattr__(self, "classes", tuple(name for name in CLASSES if name in self.classes))


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Instances of one frame, resolved to a label map.

    labels:    (H, W) uint8, or uint16 from 256 instances on; 0 background, n = row n - 1 below
    detection: (K,) int64, index of each instance in the frame's raw detections
    area:      (K,) int64, pixels with this label
    box:       (K, 4) float32, pixel edges, tight around those pixels
    """

    labels: np.ndarray
    detection: np.ndarray
    area: np.ndarray
    box: np.ndarray

    def __len__(self) -> int:
        return len(self.detection)


class Match(NamedTuple):
    """Rows of the matched instances in either selection, and both IoUs: (P,), (P,), (P, 2)."""

    prev: np.ndarray
    next: np.ndarray
    iou: np.ndarray


def select(detections: Detections, size: tuple[int, int], config: MaskConfig) -> Selection:
    """Choose the instances of a frame and paint their label map.

    Instances are painted by falling score, ties by their order in `detections`; a pixel
    belongs to the first that covers it. An instance left with too few pixels, or too small
    a part of its mask, is dropped and covers nothing.
    """
    width, height = size
    classes = np.isin(detections.classes, [CLASS_INDEX[name] for name in config.classes])
    candidates = np.flatnonzero((detections.scores >= np.float32(config.min_score)) & classes)
    candidates = candidates[np.argsort(-detections.scores[candidates], kind="stable")]

    owner = np.zeros((height, width), np.int32)  # 0 free, n = n-th accepted instance
    accepted, areas, boxes = [], [], []
    for index in candidates:
        patch = paste(detections.masks[index], detections.boxes[index], size, config.mask_probability)
        window = owner[patch.slices]
        visible = patch.mask & (window == 0)
        area, whole = int(visible.sum()), int(patch.mask.sum())
        if area < config.min_area or area < (1 - config.max_hidden) * whole:
            continue
        accepted.append(int(index))
        areas.append(area)
        boxes.append(_tight_box(Patch(patch.y0, patch.x0, visible)))
        window[visible] = len(accepted)

    return _compact(
        owner, np.array(accepted, np.int64), np.array(areas, np.int64), boxes, config.max_instances
    )


def overlaps(
    prev: Detections, next_: Detections, flow: Flow, size: tuple[int, int], probability: float = 0.5
) -> Overlaps:
    """Intersections and unions of all raw detection pairs of two neighbouring frames.

    Masks may overlap within a frame. A pixel of either frame is carried to the nearest
    pixel of the other by the flow that starts on it; only pixels whose flow is consistent
    count, in intersections, areas and unions alike. Pairs with an IoU below
    `OVERLAP_FLOOR` on either frame's pixels are left out.
    """
    if not len(prev) or not len(next_):
        return Overlaps.empty()
    codes_prev, members_prev = _code_map(prev, size, probability)
    codes_next, members_next = _code_map(next_, size, probability)
    visible_prev, visible_next = consistent(flow)

    joint = _code_pairs(codes_prev, codes_next, flow.forward, visible_prev)
    on_prev = _intersection_union(*joint, members_prev, members_next)
    here, there, counts = _code_pairs(codes_next, codes_prev, flow.backward, visible_next)
    on_next = _intersection_union(there, here, counts, members_prev, members_next)

    pixels = np.concatenate([on_prev, on_next], axis=-1)  # (Dp, Dn, 4)
    iou = np.minimum(
        pixels[..., 0] / np.maximum(pixels[..., 1], 1), pixels[..., 2] / np.maximum(pixels[..., 3], 1)
    )
    rows, columns = np.nonzero(iou >= OVERLAP_FLOOR)
    return Overlaps(
        prev=rows.astype(np.uint16),
        next=columns.astype(np.uint16),
        pixels=pixels[rows, columns].astype(np.uint32),
    )


def match(prev: np.ndarray, next_: np.ndarray, table: Overlaps, min_iou: float) -> Match:
    """Mutually best pairs among chosen detections.

    Args:
        prev, next_: detection indices of the chosen instances in either frame, any order.
        table:       overlaps of all raw detection pairs of the two frames.
        min_iou:     both IoUs must be above this.

    Returns:
        Positions in `prev` and `next_`, by rising position in `prev`. Each occurs at most
        once. Of equally good partners the one that comes first counts as the best.
    """
    iou = np.zeros((len(prev), len(next_), 2))
    row_of = {int(detection): row for row, detection in enumerate(prev)}
    column_of = {int(detection): column for column, detection in enumerate(next_)}
    for a, b, both in zip(table.prev, table.next, table.iou, strict=True):
        if int(a) in row_of and int(b) in column_of:
            iou[row_of[int(a)], column_of[int(b)]] = both
    if not iou.size:
        return Match(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, 2)))
    worse = iou.min(axis=-1)
    rows = np.arange(len(prev))
    best = worse.argmax(axis=1)
    mutual = (worse.argmax(axis=0)[best] == rows) & (worse[rows, best] > min_iou)
    rows = rows[mutual]
    return Match(rows, best[mutual], iou[rows, best[mutual]])


def _code_map(
    detections: Detections, size: tuple[int, int], probability: float
) -> tuple[np.ndarray, np.ndarray]:
    """Which masks cover each pixel, as one code per pixel.

    Returns (H, W) int32 codes, 0 where no mask is, and (C, D) float64 members: 1 where the
    code's pixels belong to the mask. Masks overlap little, so there are few codes, and all
    overlaps of two frames come from one histogram of code pairs.
    """
    codes = np.zeros((size[1], size[0]), np.int32)
    members: list[frozenset[int]] = [frozenset()]
    for index, (grid, box) in enumerate(zip(detections.masks, detections.boxes, strict=True)):
        patch = paste(grid, box, size, probability)
        window = codes[patch.slices]
        covered = window[patch.mask]
        renamed = np.zeros(len(members), np.int32)
        for old in np.flatnonzero(np.bincount(covered)):
            renamed[old] = len(members)
            members.append(members[old] | {index})
        window[patch.mask] = renamed[covered]
    table = np.zeros((len(members), len(detections)))
    for code, indices in enumerate(members):
        table[code, sorted(indices)] = 1
    return codes, table


def _code_pairs(
    here: np.ndarray, there: np.ndarray, flow: np.ndarray, visible: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Code here, code there, and the number of visible pixels with both: (U,) each."""
    height, width = here.shape
    steps = np.rint(flow).astype(np.int32)
    target = np.arange(height * width, dtype=np.int32).reshape(height, width)
    target += steps[..., 1] * width
    target += steps[..., 0]
    # Visible pixels land inside; the others may land anywhere and do not count.
    codes_there = there.ravel().take(target, mode="clip")
    counted = visible & ((here | codes_there) != 0)  # elsewhere nothing is labelled
    base = int(there.max()) + 1
    joint = here[counted].astype(np.int64) * base + codes_there[counted]
    if (int(here.max()) + 1) * base <= here.size:  # a table is faster than sorting while it is small
        table = np.bincount(joint)
        pairs = np.flatnonzero(table)
        counts = table[pairs]
    else:
        pairs, counts = np.unique(joint, return_counts=True)
    return pairs // base, pairs % base, counts


def _intersection_union(
    codes_a: np.ndarray, codes_b: np.ndarray, counts: np.ndarray, members_a: np.ndarray, members_b: np.ndarray
) -> np.ndarray:
    """(Da, Db, 2) int64 intersections and unions. Sums of whole numbers: exact in float64."""
    in_a, in_b = members_a[codes_a], members_b[codes_b]  # (U, Da), (U, Db)
    weighted = in_a * counts[:, None]
    intersection = weighted.T @ in_b
    union = weighted.sum(axis=0)[:, None] + counts @ in_b - intersection
    return np.stack([intersection, union], axis=-1).astype(np.int64)


def _compact(
    owner: np.ndarray,
    detection: np.ndarray,
    area: np.ndarray,
    boxes: Sequence[np.ndarray],
    max_instances: int | None,
) -> Selection:
    """Drop the smallest instances above the limit and number the rest from 1."""
    box = np.array(boxes, np.float32).reshape(-1, 4)
    kept = np.arange(len(detection))
    if max_instances is not None and len(kept) > max_instances:
        kept = np.sort(np.argsort(-area, kind="stable")[:max_instances])
    dtype = np.uint8 if len(kept) < 256 else np.uint16
    rename = np.zeros(len(detection) + 1, dtype)
    rename[kept + 1] = np.arange(1, len(kept) + 1)
    return Selection(labels=rename[owner], detection=detection[kept], area=area[kept], box=box[kept])


def _tight_box(patch: Patch) -> np.ndarray:
    """Pixel edges around the set pixels of a patch."""
    rows, columns = np.flatnonzero(patch.mask.any(axis=1)), np.flatnonzero(patch.mask.any(axis=0))
    return np.array(
        [
            patch.x0 + columns[0] - 0.5,
            patch.y0 + rows[0] - 0.5,
            patch.x0 + columns[-1] + 0.5,
            patch.y0 + rows[-1] + 0.5,
        ],
        np.float32,
    )
