"""From a detection's soft mask to pixels: the one place that knows how grids are sampled.

A mask is a (gh, gw) grid of uint8 probabilities spread evenly over its box: cell (r, c)
has its centre at the fractions ((c + 0.5) / gw, (r + 0.5) / gh) of the box. Between cell
centres it is bilinear, beyond the outermost ones it falls off to zero as if a ring of
zeros lay around the grid. That is how detectron2 pastes (`grid_sample` with
`align_corners=False` and zero padding), up to its pixel convention: its (0, 0) is the
top-left CORNER, ours the CENTRE of the top-left pixel (see `pipeline.detections`).

Shard files must have the same bytes on every machine, so the sampling uses numpy's
elementwise operations only (IEEE, one rounding each): no BLAS, no OpenCV, no fused
multiply-add, whose results depend on the processor.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np


class Patch(NamedTuple):
    """The pixels of one pasted mask: mask[i, j] belongs to image pixel (y0 + i, x0 + j).

    mask: (h, w) bool, lies wholly inside the image; (0, 0) where the box misses it
    """

    y0: int
    x0: int
    mask: np.ndarray

    @property
    def slices(self) -> tuple[slice, slice]:
        """Rows and columns of the patch, to index an (H, W) image."""
        height, width = self.mask.shape
        return slice(self.y0, self.y0 + height), slice(self.x0, self.x0 + width)


def paste(grid: np.ndarray, box: np.ndarray, size: tuple[int, int], threshold: float = 0.5) -> Patch:
    """Cut one soft mask at a probability, on the pixels of an image.

    A grid with one cell per pixel of an integer-sized box pastes exactly. The patch covers
    the pixels whose centres lie in the closed box and in the image, set or not. (Below a
    threshold of 0.5 detectron2 also sets pixels up to half a cell outside the box.)

    Args:
        grid:      (gh, gw) uint8, round(255 * probability)
        box:       (4,) x0, y0, x1, y1, edges in pixels, (0, 0) the centre of the top-left
                   pixel; without positive finite extent nothing is pasted
        size:      (width, height) of the image, pixels
        threshold: a pixel is set where the sampled probability is >= threshold, in (0, 1]
    """
    x0, y0, x1, y1 = (float(edge) for edge in box)
    width, height = size
    columns = _taps(x0, x1, grid.shape[1], width)
    rows = _taps(y0, y1, grid.shape[0], height)
    if columns is None or rows is None:
        return Patch(0, 0, np.zeros((0, 0), dtype=bool))

    padded = np.zeros((grid.shape[0] + 2, grid.shape[1] + 2), dtype=np.float32)
    padded[1:-1, 1:-1] = grid
    # a + (b - a) w rather than a (1 - w) + b w: exact where both taps agree.
    above = padded[rows.cell]
    values = above + (padded[rows.cell + 1] - above) * rows.weight[:, None]
    left = values[:, columns.cell]
    values = left + (values[:, columns.cell + 1] - left) * columns.weight
    return Patch(rows.first, columns.first, values >= np.float32(255 * threshold))


class _Taps(NamedTuple):
    """Which two cells every pixel along one axis lies between, and where.

    first:  index of the first pixel
    cell:   (n,) index, in the zero-padded grid, of the cell before each pixel
    weight: (n,) float32 in [0, 1], share of the cell after it
    """

    first: int
    cell: np.ndarray
    weight: np.ndarray


def _taps(start: float, stop: float, cells: int, length: int) -> _Taps | None:
    """Taps of the pixels in [start, stop] and in [0, length); None where there are none."""
    if not (math.isfinite(start) and math.isfinite(stop) and start < stop) or cells == 0:
        return None
    first = max(math.ceil(start), 0)
    last = min(math.floor(stop), length - 1)
    if first > last:
        return None
    pixels = np.arange(first, last + 1, dtype=np.float64)
    # Multiply before dividing: with one cell per pixel every position is then exact.
    position = (pixels - start) * cells / (stop - start) + 0.5  # in the padded grid
    cell = position.astype(np.int64)  # position > 0, so this rounds down
    return _Taps(first, cell, (position - cell).astype(np.float32))
