"""Stored windows to samples, samples to batches.

StoredWindow --assemble--> Sample --collate--> PackedBatch --unpack--> Batch
         (worker processes)                            (training process)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from training.augment import Augmentation


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
    """A batch as workers ship it: images are uint8, 0 to 255; labels int8 where slot numbers fit.

    A third of the bytes, and shipping them is what a worker's help costs.
    """

    def shared(self) -> PackedBatch:
        """The same batch in memory that another process can read.

        Raises:
            RuntimeError: there is no room for it (/dev/shm).
        """
        return _each_tensor(self, lambda tensor: tensor.share_memory_() if tensor.numel() else tensor)

    def unpack(self, device: torch.device | str = "cpu") -> Batch:
        """Move to a device, then to float there."""
        moved = self.to(device)
        content = {each.name: getattr(moved, each.name) for each in fields(Batch)}
        images, labels = moved.images.to(torch.float32).div_(255), moved.labels.to(torch.int16)
        return Batch(**{**content, "images": images, "labels": labels})


@dataclass(frozen=True, kw_only=True, eq=False)
class StoredWindow:
    """F frames of a clip as a shard set holds them, in time order.

    images:  F times (h, w, 3) uint8 RGB
    labels:  F label maps (h, w), uint8 or uint16; label n is row n - 1 of that frame's instances
    matches: F-1 times (P, 2): labels of one object in a frame and the next of the window
    classes: F times the class of every instance
    times_s: (F,);  K: (3, 3);  name: "set/clip:first frame"
    """

    images: Sequence[np.ndarray]
    labels: Sequence[np.ndarray]
    matches: Sequence[np.ndarray]
    classes: Sequence[np.ndarray]
    times_s: np.ndarray
    K: np.ndarray
    name: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """One row of a PackedBatch: images (F, 3, H, W) uint8, K (3, 3), labels (F-1, 2, H, W) int16,
    classes of the slots of each of the F-1 pairs, dt_s (F-1,), name."""

    images: np.ndarray
    K: np.ndarray
    labels: np.ndarray
    classes: Sequence[np.ndarray]
    dt_s: np.ndarray
    name: str


def assemble(
    stored: StoredWindow, change: Augmentation, *, min_area: int = 1, max_instances: int | None = None
) -> Sample:
    """Augment a window and number the instances that each pair of frames shares.

    Args:
        min_area: least pixels of an instance in both frames, after augmentation.
        max_instances: slots of a pair, largest first; None is no limit.
    """
    frames, (width, height) = len(stored.images), change.size
    images: np.ndarray = np.empty((frames, 3, height, width), np.uint8)
    for image, planes in zip(stored.images, images, strict=True):
        cv2.split(change.image(image), list(planes))  # writes into the planes
    placed = [change.labels(each) for each in stored.labels]
    areas = [_areas(each) for each in placed]
    labels: np.ndarray = np.empty((frames - 1, 2, height, width), np.int16)
    classes = []
    for pair, matches in enumerate(stored.matches):
        slots = _slots(matches, areas[pair], areas[pair + 1], min_area, max_instances)
        for side in (0, 1):
            _relabel(placed[pair + side], slots[:, side], out=labels[pair, side])
        classes.append(stored.classes[pair][slots[:, 0] - 1].astype(np.int64))
    return Sample(
        images=images,
        K=change.intrinsics(stored.K),
        labels=labels,
        classes=classes,
        dt_s=np.diff(stored.times_s),
        name=stored.name,
    )


def collate(samples: Sequence[Sample], size: tuple[int, int], frames: int) -> PackedBatch:
    """Samples to a batch; of none (a rank's share of a last, small batch), an empty batch."""
    width, height = size
    slots = max((len(pair) for sample in samples for pair in sample.classes), default=0)
    label_type = np.int8 if slots <= np.iinfo(np.int8).max else np.int16
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
        images=stacked([each.images for each in samples], (frames, 3, height, width), np.uint8),
        K=stacked([each.K for each in samples], (3, 3), np.float32),
        labels=stacked([each.labels for each in samples], (frames - 1, 2, height, width), label_type),
        classes=torch.from_numpy(classes),
        dt_s=stacked([each.dt_s for each in samples], (frames - 1,), np.float32),
        names=tuple(each.name for each in samples),
    )


def _slots(
    matches: np.ndarray,
    areas_before: np.ndarray,
    areas_after: np.ndarray,
    min_area: int,
    max_instances: int | None,
) -> np.ndarray:
    """(M, 2) labels of the instances that get slots 1..M, largest first.

    The area of an instance is the smaller one of the two frames, which is what both can show. A
    crop may leave nothing of it in one of them; then there is no match any more.
    """
    area = np.minimum(areas_before[matches[:, 0]], areas_after[matches[:, 1]])
    order = np.argsort(-area, kind="stable")
    return matches[order[area[order] >= min_area][:max_instances]]


def _areas(labels: np.ndarray) -> np.ndarray:
    """Pixels of every label that the map's type can hold: (256,) or (65536,) int64."""
    values = 256**labels.dtype.itemsize
    return cv2.calcHist([labels], [0], None, [values], [0, values]).ravel().astype(np.int64)


def _relabel(labels: np.ndarray, slots: np.ndarray, out: np.ndarray) -> None:
    """Stored labels to slot numbers; instances without a slot become -1."""
    table = np.full(256**labels.dtype.itemsize, -1, np.int16)
    table[0] = 0
    table[slots] = np.arange(1, len(slots) + 1)
    if labels.dtype == np.uint8:
        cv2.LUT(labels, table, out)
    else:
        out[...] = table[labels]


def _each_tensor(batch: Any, function: Any) -> Any:
    values = {each.name: getattr(batch, each.name) for each in fields(batch)}
    return replace(batch, **{name: function(v) for name, v in values.items() if isinstance(v, Tensor)})
