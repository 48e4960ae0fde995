"""Masks of stored frames at the pixels of a benchmark's truth."""

from __future__ import annotations

import numpy as np

from evaluation.depth_protocols import Box


def nearest(mask: np.ndarray, shown: Box, shape: tuple[int, ...]) -> np.ndarray:
    """(H, W) int8: a mask that fills a box of the truth's image, by the nearest pixel; -1 outside."""
    x0, y0, x1, y1 = shown
    u = (np.arange(shape[1]) - x0) * mask.shape[1] / (x1 - x0) - 0.5
    v = (np.arange(shape[0]) - y0) * mask.shape[0] / (y1 - y0) - 0.5
    columns, rows = np.rint(u).astype(int), np.rint(v).astype(int)
    found = mask[rows.clip(0, mask.shape[0] - 1)[:, None], columns.clip(0, mask.shape[1] - 1)].astype(np.int8)
    found[(rows < 0) | (rows >= mask.shape[0])] = -1
    found[:, (columns < 0) | (columns >= mask.shape[1])] = -1
    return found
