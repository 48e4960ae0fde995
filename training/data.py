"""From shard sets to batches: windows of frames, their cameras, and matched instance labels.

    loader = make_loader(config, state=SamplerState(epoch=3, step=120))
    for batch in loader:          # to the end of epoch 3; again: epoch 4
        ...                       # loader.state is what to save after this step

Workers ship 8-bit frames, a quarter of the bytes; they become float on the device that `make_loader`
is given. Batches are the same for any number of workers, started in any way. Conventions:
pipeline/CONVENTIONS.md; geometry of augmentation: training/augment.py; order: training/sampler.py.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from pipeline.errors import ConfigError, InstanceMotionError, ShardError, TrainingError
from pipeline.shards.manifest import ClipEntry
from pipeline.shards.reader import ShardSet, locate
from pipeline.shards.storage import Location, parse_location
from training.augment import NUMBERS, Augmentation, AugmentConfig, draw
from training.batches import Batch, PackedBatch, Sample, StoredWindow, assemble, collate
from training.sampler import SampleKey, Sampler, SamplerState, augmentation_numbers
from training.windows import (
    SetSummary,
    Split,
    WindowTable,
    choose_clips,
    find_windows,
    matched_labels,
    require_windows,
    summarise,
)

MAX_SIDE = 1 << 13
"""Pixels of a side of training frames; a checkpoint from somebody else may ask for any."""
_START = SamplerState()


@dataclass(frozen=True)
class ShardSource:
    """One shard set, one of its masks layers, and its weight among the sets."""

    folder: Location
    """A folder or a URL, such as s3://bucket/kitti."""
    layer: str = "default"
    weight: float = 1.0
    """Share of this set in the samples of an epoch, in any unit that all sets share."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", parse_location(self.folder))
        if not 0 < self.weight < float("inf"):
            raise ConfigError(f"{self.folder}: weight must be a positive number, got {self.weight}")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is trained on, and in which order."""

    shards: tuple[ShardSource, ...] = ()
    """Shard sets, their masks layers and weights."""
    frames: int = 3
    """Frames of a window."""
    strides: tuple[int, ...] = (1,)
    """Frame steps within a window. Beyond 1, instances are matched by track."""
    skip_static: bool = True
    """Leave out windows in which the camera stands still."""
    max_instances: int | None = None
    """Instances kept per pair of frames, largest first; none is all."""
    min_area: int = 1
    """Least pixels of an instance in both training frames; smaller ones are left unused."""
    size: tuple[int, int] | None = None
    """Width and height of training frames; none is as stored."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    batch_size: int = 4
    """Samples of a batch on one process."""
    epoch_size: int | None = None
    """Samples of an epoch, all processes together; none is as many as there are windows."""
    include: tuple[str, ...] = ()
    """Patterns (* ? [abc]) of clips to take; none is all."""
    exclude: tuple[str, ...] = ()
    """Patterns of clips to leave out."""
    held_out: tuple[str, ...] = ()
    """Patterns of clips kept for validation."""
    validation_share: float = 0.0
    """Share of the other clips kept for validation too, by a hash of their names."""
    validation_size: int | None = None
    """Windows used for validation, spread evenly; none is all."""
    workers: int = 2
    """Processes that read ahead; 0 reads in the training process."""
    start_method: Literal["fork", "spawn", "forkserver"] = "fork"
    """How those processes are started."""
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"frames": 2, "max_instances": 0, "min_area": 1, "batch_size": 1, "epoch_size": 1}
        for name, low in {**least, "validation_size": 1, "workers": 0, "seed": 0}.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise ConfigError(f"{name} must be at least {low}, got {value}")
        if not self.strides or min(self.strides) < 1 or len(set(self.strides)) != len(self.strides):
            raise ConfigError(f"strides must be different numbers from 1 on, got {self.strides}")
        if self.size is not None and not 1 <= min(self.size) <= max(self.size) <= MAX_SIDE:
            raise ConfigError(f"size must be width and height in pixels, up to {MAX_SIDE}, got {self.size}")
        if not 0 <= self.validation_share < 1:
            raise ConfigError(f"validation_share must lie in [0, 1), got {self.validation_share}")


class WindowDataset(Dataset):
    """Samples of one or more shard sets by `SampleKey`; files are opened on first use in each process.

    Raises:
        ConfigError: no set, no clip left, or sets whose training frames differ in size.
        ShardError: a set is missing or damaged.
    """

    def __init__(self, config: DataConfig, split: Split = "all") -> None:
        if not config.shards:
            raise ConfigError("no shard set to train on; give at least one folder in `shards`")
        self.config = config
        self.sets = tuple(ShardSet(source.folder) for source in config.shards)
        self.size = _common_size(self.sets, config.size)
        self.windows = tuple(
            _find(shards, source.layer, config, split)
            for shards, source in zip(self.sets, config.shards, strict=True)
        )
        require_windows([str(source.folder) for source in config.shards], self.windows, split)

    def __len__(self) -> int:
        return sum(map(len, self.windows))

    def __getitem__(self, key: SampleKey) -> Sample:
        return assemble(
            self.read(key.set_index, key.window),
            self.augmentation(key),
            min_area=self.config.min_area,
            max_instances=self.config.max_instances,
        )

    def augmentation(self, key: SampleKey) -> Augmentation:
        """What happens to a sample: the same, whichever process asks."""
        numbers = augmentation_numbers(NUMBERS, self.config.seed, key.epoch, key.position)
        stored = self.sets[key.set_index].manifest.size
        return draw(self.config.augment, stored, self.size, numbers)

    def __getitems__(self, keys: Sequence[SampleKey]) -> PackedBatch | InstanceMotionError:
        """A whole batch. What the user can mend is returned, not raised: the loader would wrap a
        worker's exception into pages of traceback."""
        try:
            batch = collate([self[key] for key in keys], self.size, self.config.frames)
            return batch if get_worker_info() is None else _shared(batch)
        except InstanceMotionError as error:
            return error

    def read(self, set_index: int, window: int) -> StoredWindow:
        """One window as it is stored."""
        shards, layer = self.sets[set_index], self.config.shards[set_index].layer
        clip_index, first, stride = self.windows[set_index][window]
        clip = shards.manifest.clips[clip_index]
        frames = [first + stride * step for step in range(self.config.frames)]
        classes = [shards.instances(layer, clip, frame).class_index for frame in frames]
        matches = [matched_labels(shards, layer, clip, frame, stride) for frame in frames[1:]]
        where = f"{shards.folder}: layer {layer}, clip {clip.name}"
        _check_tables(where, frames, classes, matches, len(shards.manifest.classes))
        times_s = np.array([_time_s(shards, clip, frame) for frame in frames])
        _check_camera(where, clip.intrinsics, times_s)
        return StoredWindow(
            images=[shards.image(clip, frame) for frame in frames],
            labels=[shards.labels(layer, clip, frame) for frame in frames],
            matches=matches,
            classes=classes,
            times_s=times_s,
            K=clip.intrinsics,
            name=f"{shards.name}/{clip.name}:{first}",
        )

    def digests(self) -> tuple[str, ...]:
        """What each set holds, in short: equal digests, equal samples."""
        return tuple(
            shards.digest(source.layer) for shards, source in zip(self.sets, self.config.shards, strict=True)
        )

    def describe(self) -> tuple[SetSummary, ...]:
        """What each set holds, for the training log."""
        return tuple(
            summarise(shards, source.layer, table, self.config.frames)
            for shards, source, table in zip(self.sets, self.config.shards, self.windows, strict=True)
        )


class Loader:
    """Batches of one process, from `state` on; each iteration runs to the end of an epoch.

    `state` names the next batch that a loop will get, whatever workers have read ahead: saved after
    a step and given to `make_loader`, it goes on exactly there.
    """

    def __init__(
        self, dataset: WindowDataset, sampler: Sampler, state: SamplerState, device: torch.device
    ) -> None:
        self.dataset, self.sampler, self.state, self.device = dataset, sampler, state, device
        config = dataset.config
        if state.step >= sampler.steps:  # no batch would ever come
            raise ConfigError(
                f"batch {state.step} of an epoch of {sampler.steps} batches is asked for; the shard sets are "
                "others than those of the run: put them back, or start a new run with init_from"
            )
        self._remaining = _Remaining(sampler, state)
        self._batches: DataLoader = DataLoader(
            dataset,
            batch_sampler=self._remaining,  # of keys, which need not be numbers
            collate_fn=_as_it_is,
            num_workers=config.workers,
            worker_init_fn=_start_worker,
            multiprocessing_context=config.start_method if config.workers else None,
            persistent_workers=config.workers > 0,
            pin_memory=device.type == "cuda",
            generator=torch.Generator(),  # it draws numbers; the global stream is the training's
        )

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        return self.sampler.steps

    def __iter__(self) -> Iterator[Batch]:
        self._remaining.state = self.state
        for item in self._batches:
            if isinstance(item, InstanceMotionError):
                raise item
            self.state = self.sampler.after(self.state)
            yield item.unpack(self.device)


def make_loader(
    config: DataConfig,
    *,
    split: Split = "train",
    ordered: bool | None = None,
    state: SamplerState = _START,
    rank: int = 0,
    world: int = 1,
    device: torch.device | str = "cpu",
) -> Loader:
    """Batches on `device`, in an order that (config.seed, state) determine.

    `ordered` (the default for validation) gives every window in stored order, or validation_size of
    them, without augmentation, the last batch perhaps smaller. With `world` processes, process
    `rank` gets rows rank::world of each batch of batch_size * world samples that one process
    would get.

    Raises:
        ConfigError: a setting that the data do not admit.
        ShardError: here or while iterating: a set is missing or damaged.
    """
    ordered = split == "validation" if ordered is None else ordered
    if ordered:
        config = replace(config, augment=AugmentConfig.none(), epoch_size=config.validation_size)
    dataset = WindowDataset(config, split)
    sampler = Sampler(
        windows=tuple(map(len, dataset.windows)),
        weights=tuple(source.weight for source in config.shards),
        batch_size=config.batch_size,
        seed=config.seed,
        epoch_size=config.epoch_size,
        shuffle=not ordered,
        drop_last=not ordered,
        rank=rank,
        world=world,
    )
    return Loader(dataset, sampler, state, torch.device(device))


def _find(shards: ShardSet, layer: str, config: DataConfig, split: Split) -> WindowTable:
    shards.masks_entry(layer)  # say at once that a layer is not there
    chosen = choose_clips(
        (clip.name for clip in shards.manifest.clips),
        include=config.include,
        exclude=config.exclude,
        held_out=config.held_out,
        validation_share=config.validation_share,
        split=split,
    )
    with shards:  # workers open their own
        return find_windows(
            shards,
            chosen,
            frames=config.frames,
            strides=config.strides,
            skip_static=config.skip_static,
        )


def _common_size(sets: Sequence[ShardSet], size: tuple[int, int] | None) -> tuple[int, int]:
    """(width, height) of training frames, which all sets must share."""
    first = sets[0]
    for other in sets[1:]:
        if size is None and other.manifest.size != first.manifest.size:
            (w0, h0), (w1, h1) = first.manifest.size, other.manifest.size
            raise ConfigError(
                f"{first.folder} holds frames of {w0}x{h0} and {other.folder} of {w1}x{h1}; "
                "give `size`, to which both are brought"
            )
    return size or first.manifest.size


def _check_tables(
    where: str,
    frames: Sequence[int],
    classes: Sequence[np.ndarray],
    matches: Sequence[np.ndarray],
    known: int,
) -> None:
    """What is used as an index must be one."""
    for frame, of_frame in zip(frames, classes, strict=True):
        if len(of_frame) and of_frame.max() >= known:
            raise ShardError(
                f"{where}, frame {frame}: class {of_frame.max()} where the set knows {known}; rebuild it"
            )
    for pair, found in enumerate(matches):
        for side in (0, 1):
            frame, count = frames[pair + side], len(classes[pair + side])
            if len(found) and not 1 <= found[:, side].min() <= found[:, side].max() <= count:
                raise ShardError(
                    f"{where}, frame {frames[pair + 1]}: matches label {found[:, side].max()} where frame "
                    f"{frame} has {count} instances; rebuild the layer"
                )


def _check_camera(where: str, K: np.ndarray, times_s: np.ndarray) -> None:
    """What everything is divided by must be numbers."""
    if not (np.isfinite(K).all() and K[0, 0] > 0 and K[1, 1] > 0 and np.array_equal(K[2], (0, 0, 1))):
        raise ShardError(
            f"{where}: its intrinsics are no camera's ({K[0, 0]:g}, {K[1, 1]:g} px); rebuild the set"
        )
    if not (np.isfinite(times_s).all() and (np.diff(times_s) > 0).all()):
        raise ShardError(f"{where}: its times do not rise from frame to frame; rebuild the set")


def _time_s(shards: ShardSet, clip: ClipEntry, frame: int) -> float:
    index, row = locate(clip, frame)
    return float(shards.frames_file(index).timestamps_s[row])


class _Remaining:
    """The loader's remaining batches of keys; `state` is moved on between epochs."""

    def __init__(self, sampler: Sampler, state: SamplerState) -> None:
        self.sampler, self.state = sampler, state

    def __iter__(self) -> Iterator[list[SampleKey]]:
        return self.sampler.batches(self.state)

    def __len__(self) -> int:
        return self.sampler.steps - self.state.step


def _shared(batch: PackedBatch) -> PackedBatch:
    """Here already: where the queue's own thread does it and fails, the batch is lost and waited for."""
    try:
        return batch.shared()
    except RuntimeError as error:
        raise TrainingError(
            f"no room to ship a batch ({str(error).splitlines()[0][:120]}); make shared memory (/dev/shm) "
            "larger, batches smaller, or set data.workers 0"
        ) from None


def _as_it_is(item: Any) -> Any:
    return item


def _start_worker(_: int) -> None:
    # What stops the training (Ctrl-C, SIGTERM to the group) is for it alone: it ends its workers itself.
    os.setpgid(0, 0)
    cv2.setNumThreads(0)  # a pool of threads does not survive a fork, and workers share the cores
