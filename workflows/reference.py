"""Plain references beside fast paths: the definitions, one pair and one pixel mask at a time.

Benchmarks measure against them and tests compare with them. Nothing else uses them.
"""

from __future__ import annotations

import numpy as np

from pipeline.detections import Detections
from pipeline.flow import Flow, consistent
from pipeline.masks import paste
from pipeline.shards.evidence import OVERLAP_FLOOR


def plain_overlaps(
    prev: Detections, next_: Detections, flow: Flow, size: tuple[int, int]
) -> dict[tuple[int, int], list[int]]:
    """`pipeline.matching.overlaps` by its definition: {(prev, next): its four pixel counts}."""
    visible_prev, visible_next = consistent(flow)
    found = {}
    for i in range(len(prev)):
        for j in range(len(next_)):
            a, b = _full(prev, i, size), _full(next_, j, size)
            counts = []
            for here, there, seen in (
                (a, _carried(b, flow.forward), visible_prev),
                (b, _carried(a, flow.backward), visible_next),
            ):
                counts += [int((here & there & seen).sum()), int(((here | there) & seen).sum())]
            if min(counts[0] / max(counts[1], 1), counts[2] / max(counts[3], 1)) >= OVERLAP_FLOOR:
                found[i, j] = counts
    return found


def _full(detections: Detections, index: int, size: tuple[int, int]) -> np.ndarray:
    """(H, W) bool mask of one detection."""
    mask = np.zeros((size[1], size[0]), bool)
    patch = paste(detections.masks[index], detections.boxes[index], size)
    mask[patch.slices] = patch.mask
    return mask


def _carried(mask: np.ndarray, step: np.ndarray) -> np.ndarray:
    """The mask's value at the nearest pixel that each pixel's flow leads to."""
    height, width = mask.shape
    v, u = np.mgrid[:height, :width]
    u = np.clip(u + np.rint(step[..., 0]).astype(int), 0, width - 1)
    v = np.clip(v + np.rint(step[..., 1]).astype(int), 0, height - 1)
    return mask[v, u]
