"""What a batch is, and how windows become one.

Workers ship 8-bit frames (`PackedBatch`); `unpack` turns them into floats where they are used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """B windows of F frames, H x W pixels.

    images:  (B, F, 3, H, W) float32 RGB in [0, 1], in time order
    K:       (B, 3, 3) float32, pixels
    labels:  (B, F-1, 2, H, W) int16: of each pair of neighbours, the earlier [0] and later [1] frame.
             0 background; k >= 1 the instance in slot k, the same in both; -1 an instance that the
             other frame does not show, neither background nor usable
    classes: (B, F-1, M) int64: class (`pipeline.classes`) of slot k at [k - 1], -1 where there is no
             such slot; M is the largest number of slots in the batch, 0 if it has no instance
    dt_s:    (B, F-1) float32, seconds from earlier to later frame
    names:   B times "set/clip:first frame"
    """

    images: Tensor
    K: Tensor
    labels: Tensor
    classes: Tensor
    dt_s: Tensor
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on a device; from pinned memory the copy does not wait."""
        return _each_tensor(self, lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory."""
        return _each_tensor(self, Tensor.pin_memory)


@dataclass(frozen=True, kw_only=True, eq=False)
class PackedBatch(Batch):
    """A batch as workers ship it: images are (B, F, H, W, 3) uint8."""

    def unpack(self, device: torch.device | str = "cpu") -> Batch:
        """Move to a device, then to float there: a quarter of the bytes travel."""
        moved = self.to(device)
        content = {each.name: getattr(moved, each.name) for each in fields(Batch)}
        images = moved.images.permute(0, 1, 4, 2, 3)
        floats = torch.empty(images.shape, dtype=torch.float32, device=images.device)
        return Batch(**{**content, "images": floats.copy_(images).div_(255)})


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """One window: images (F, H, W, 3) uint8, K (3, 3), labels (F-1, 2, H, W) int16, classes of each
    pair's slots, dt_s (F-1,), name."""

    images: np.ndarray
    K: np.ndarray
    labels: np.ndarray
    classes: tuple[np.ndarray, ...]
    dt_s: np.ndarray
    name: str


def collate(samples: Sequence[Sample], size: tuple[int, int], frames: int) -> PackedBatch:
    """Samples to a batch; of none (a rank's share of a last, small batch), an empty batch."""
    width, height = size
    slots = max((len(pair) for sample in samples for pair in sample.classes), default=0)
    classes = np.full((len(samples), frames - 1, slots), -1, np.int64)
    for row, sample in enumerate(samples):
        for pair, found in enumerate(sample.classes):
            classes[row, pair, : len(found)] = found

    def stacked(arrays: list[np.ndarray], shape: tuple[int, ...], dtype: type) -> Tensor:
        rows: np.ndarray = np.empty((len(arrays), *shape), dtype)
        for row, array in enumerate(arrays):
            rows[row] = array
        return torch.from_numpy(rows)

    return PackedBatch(
        images=stacked([each.images for each in samples], (frames, height, width, 3), np.uint8),
        K=stacked([each.K for each in samples], (3, 3), np.float32),
        labels=stacked([each.labels for each in samples], (frames - 1, 2, height, width), np.int16),
        classes=torch.from_numpy(classes),
        dt_s=stacked([each.dt_s for each in samples], (frames - 1,), np.float32),
        names=tuple(each.name for each in samples),
    )


def _each_tensor(batch: Any, function: Any) -> Any:
    values = {each.name: getattr(batch, each.name) for each in fields(batch)}
    return replace(batch, **{name: function(v) for name, v in values.items() if isinstance(v, Tensor)})
