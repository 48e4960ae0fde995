"""From a checkpoint and a shard set to predictions: the one module where evaluation meets networks."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from evaluation.predictions import (
    ClipPrediction,
    ObjectMotions,
    PredictionIndex,
    remove_index,
    write_clip,
    write_index,
)
from pipeline.errors import ConfigError
from pipeline.progress import Bar
from pipeline.shards.manifest import ClipEntry
from pipeline.shards.reader import ShardSet
from pipeline.shards.storage import Location
from training.alignment import AlignmentConfig
from training.augment import NUMBERS, Augmentation, AugmentConfig, draw
from training.batches import Batch, collate
from training.checkpoint import checkpoint_in, load, restore_networks
from training.data import DataConfig, ShardSource, WindowDataset
from training.geometry.sampling import resize
from training.motion import MotionConfig, Motions, align_again, find_motions
from training.networks.build import Networks
from training.pairs import Pairs, direct
from training.sampler import SampleKey
from training.windows import choose_clips
from training.world import choose_device

CHUNK = 8
"""Frames that the networks see at once."""


def predict(
    run: Path,
    shards: Location,
    out: Path,
    layer: str = "default",
    device: str = "auto",
    include: tuple[str, ...] = (),
    depth_type: str = "float16",
    align: bool = True,
    quiet: bool = False,
) -> PredictionIndex:
    """Predict depth, camera motion and object motions of every frame of a shard set.

    Args:
        run:     a run's folder (its best checkpoint, else its last) or a checkpoint.
        out:     folder of the predictions; clips that it holds already are predicted again, and until
            all are, it does not count as predictions.
        layer:   masks layer whose matched instances get a motion.
        include: patterns of clip names to take; none is all.
        align:   move motions until the images agree, as far as the run was trained so
            (training/alignment.py); else they are what the networks propose.

    Raises:
        TrainingError, ShardError, ConfigError: what is missing or does not fit.
    """
    path = checkpoint_in(run)
    checkpoint = load(path)
    networks = restore_networks(checkpoint, choose_device(device))
    with ShardSet(shards) as opened:
        stored = opened.manifest.size
        index = PredictionIndex(
            checkpoint=hashlib.sha256(path.read_bytes()).hexdigest(),
            size=stored,
            depth_type=depth_type,  # type: ignore[arg-type]  # the index checks it
            clips=(),
        )
    objective = checkpoint.config.objective
    motion = objective.motion if align else replace(objective.motion, alignment=AlignmentConfig())
    names: list[str] = []
    clips = predict_clips(
        networks,
        motion,
        shards,
        layer=layer,
        include=include,
        use_instances=objective.instances and checkpoint.progress.step > objective.instances_from,
        size=size_of(checkpoint.config.data.size, stored),
        quiet=quiet,
    )
    for clip in clips:
        if not names:
            # Else older predictions and these would pass for one, should this not get to its end.
            remove_index(out)
        write_clip(out, clip, index)
        names.append(clip.name)
    index = replace(index, clips=tuple(names))
    write_index(out, index)
    return index


def size_of(trained: tuple[int, int] | None, stored: tuple[int, int]) -> tuple[int, int]:
    """Width and height at which networks see whole stored frames as they were trained to: as much
    smaller or larger as the stored frame has to be to cover a training frame; None: as stored."""
    if trained is None:
        return stored
    scale = max(trained[0] / stored[0], trained[1] / stored[1])
    return round(stored[0] * scale), round(stored[1] * scale)


def predict_clips(
    networks: Networks,
    motion: MotionConfig,
    shards: Location,
    layer: str = "default",
    include: tuple[str, ...] = (),
    use_instances: bool = True,
    size: tuple[int, int] | None = None,
    quiet: bool = True,
) -> Iterator[ClipPrediction]:
    """The predictions, clip by clip, without writing them. A clip of one frame gets its depth.

    Args:
        networks: in evaluation mode, on the device to use.
        motion:   how the object network was trained to look.
        use_instances: False for networks that were trained without masks: every pixel counts as
            background, and there are no object motions.
        size: width and height at which they see the frames; None is as stored. Depth is brought back
            to the stored size, and where that is the larger one motions are aligned there once more.

    Raises:
        ShardError, ConfigError: what is missing or does not fit.
    """
    config = DataConfig(
        shards=(ShardSource(shards, layer),),
        frames=2,
        skip_static=False,
        augment=AugmentConfig.none(),
        include=include,
        workers=0,
    )
    with ShardSet(shards) as opened:
        opened.masks_entry(layer)  # say at once that a layer is not there
        names = set(choose_clips((clip.name for clip in opened.manifest.clips), include=include))
        clips = [clip for clip in opened.manifest.clips if clip.name in names]
        if not clips:
            raise ConfigError(f"{shards}: no clip fits {', '.join(include)}; look at include")
        stored = opened.manifest.size
        pairs = any(clip.frames > 1 for clip in clips)
        source = _Source(
            shards=opened,
            layer=layer,
            seen=draw(AugmentConfig.none(), stored, size or stored, np.zeros(NUMBERS)),
            windows=WindowDataset(config) if pairs else None,
        )
        model = _Model(networks=networks, motion=motion, use_instances=use_instances)
        total = sum(clip.frames for clip in clips)
        with Bar(total=total, unit="frame", desc="predict", disable=quiet) as bar:
            for clip in clips:
                if clip.frames == 1:
                    yield _predict_frame(model, source, clip)
                    bar.update()
                else:
                    yield _predict_clip(model, source, clip, bar)


@torch.no_grad()
def predict_images(
    networks: Networks, images: Iterable[np.ndarray], size: tuple[int, int]
) -> Iterator[np.ndarray]:
    """(h, w) float32 inverse depth of each (H, W, 3) uint8 RGB image, which the network sees whole.

    Args:
        size: width and height at which it sees them, whatever their aspect, as benchmarks have it.
    """
    for image in images:
        shrinks = size[0] < image.shape[1] and size[1] < image.shape[0]
        small = cv2.resize(image, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
        seen = torch.from_numpy(np.ascontiguousarray(small)).permute(2, 0, 1)[None]
        disparity = networks.depth(seen.to(networks.log_height.device).float() / 255)[0]
        yield disparity[0, 0].float().cpu().numpy()


@dataclass(frozen=True, kw_only=True)
class _Model:
    """Networks, how they look at objects, and whether they know masks."""

    networks: Networks
    motion: MotionConfig
    use_instances: bool

    @property
    def device(self) -> torch.device:
        return self.networks.log_height.device

    def depth(self, images: Tensor) -> Tensor:
        """(N, 1, h, w) inverse depth of (N, 3, h, w) images."""
        return self.networks.depth(images)[0].float()


@dataclass(frozen=True, kw_only=True)
class _Source:
    """An opened shard set, and how networks see its frames.

    seen:    what happens to a stored frame before they see it
    windows: every pair of neighbouring frames, as stored; None where no clip has a pair
    """

    shards: ShardSet
    layer: str
    seen: Augmentation
    windows: WindowDataset | None

    @cached_property
    def first_frames(self) -> dict[tuple[str, int], int]:
        """Number of the window that begins at a frame of a clip."""
        assert self.windows is not None
        clips, table = self.shards.manifest.clips, self.windows.windows[0]
        rows = (table[number] for number in range(len(table)))
        return {(clips[clip].name, first): number for number, (clip, first, _) in enumerate(rows)}

    def pairs(self, clip: ClipEntry, frames: range, device: torch.device) -> Batch:
        """(earlier, later) of each of these frames and the next, as stored."""
        assert self.windows is not None
        windows = [self.first_frames[clip.name, frame] for frame in frames]
        samples = [self.windows[SampleKey(0, 0, 0, window)] for window in windows]
        return collate(samples, self.windows.size, self.windows.config.frames).unpack(device)

    def image(self, clip: ClipEntry, frame: int) -> Tensor:
        """(3, h, w) float32 RGB in [0, 1], as networks see it."""
        image = self.seen.image(self.shards.image(clip, frame))
        return torch.from_numpy(image).permute(2, 0, 1).float() / 255

    def as_seen(self, batch: Batch, images: Tensor) -> Batch:
        """A batch as networks see it, in windows of the (F + 1, 3, h, w) images."""
        labels = batch.labels.flatten(0, 2).cpu().numpy()
        small = np.stack([self.seen.labels(each) for each in labels])
        K = batch.K.new_tensor(self.seen.pixel_map()) @ batch.K
        return replace(
            batch,
            images=torch.stack([images[:-1], images[1:]], 1),
            K=K,
            labels=torch.from_numpy(small).to(batch.labels.device).unflatten(0, batch.labels.shape[:3]),
        )

    def as_stored(self, disparity: Tensor) -> Tensor:
        """(N, 1, H, W) inverse depth at the stored size."""
        width, height = self.seen.stored
        return resize(disparity, (height, width)) if self.seen.moves_pixels else disparity


@torch.no_grad()
def _predict_frame(model: _Model, source: _Source, clip: ClipEntry) -> ClipPrediction:
    """A clip of one frame: depth, and nothing that could move."""
    disparity = source.as_stored(model.depth(source.image(clip, 0)[None].to(model.device)))
    return ClipPrediction(
        name=clip.name,
        inverse_depth=disparity[:, 0].cpu().numpy(),
        labels=source.shards.labels(source.layer, clip, 0)[None],
        later_T_earlier=np.zeros((0, 4, 4)),
        objects=ObjectMotions.empty(),
        K=clip.intrinsics,
        timestamps_s=source.shards.timestamps_s(clip),
    )


@torch.no_grad()
def _predict_clip(model: _Model, source: _Source, clip: ClipEntry, bar: Bar) -> ClipPrediction:
    """All frames of a clip; neighbouring pairs share their depths."""
    disparities: list[np.ndarray] = []
    cameras: list[np.ndarray] = []
    objects: list[ObjectMotions] = []
    labels = np.stack([source.shards.labels(source.layer, clip, frame) for frame in range(clip.frames)])
    for begin in range(0, clip.frames - 1, CHUNK):
        frames = range(begin, min(begin + CHUNK, clip.frames - 1))
        batch = source.pairs(clip, frames, model.device)
        images = torch.stack([source.image(clip, frame) for frame in (*frames, frames[-1] + 1)])
        disparity = model.depth(images.to(model.device))
        motions = _motions(model, source, batch, images.to(model.device), disparity)
        objects.append(_object_rows(motions, batch, source, clip, begin, labels))
        cameras.append(motions.camera[: len(frames)].double().cpu().numpy())
        count = len(frames) + (frames[-1] == clip.frames - 2)  # the last frame begins no pair
        disparities.append(source.as_stored(disparity[:count])[:, 0].cpu().numpy())
        bar.update(count)
    return ClipPrediction(
        name=clip.name,
        inverse_depth=np.concatenate(disparities),
        labels=labels,
        later_T_earlier=np.concatenate(cameras),
        objects=ObjectMotions.join(objects),
        K=clip.intrinsics,
        timestamps_s=source.shards.timestamps_s(clip),
    )


def _motions(model: _Model, source: _Source, batch: Batch, images: Tensor, disparity: Tensor) -> Motions:
    """Motions of a chunk's pairs, found as networks see them, aligned as they are stored if larger."""

    def pairs_of(batch: Batch, disparity: Tensor) -> Pairs:
        return direct(batch, torch.stack([1 / disparity[:-1], 1 / disparity[1:]], 1), model.use_instances)

    networks, alignment = model.networks, model.motion.alignment
    seen = pairs_of(source.as_seen(batch, images), disparity)
    motions = find_motions(networks.ego, networks.objects, seen, model.motion)
    scale = source.seen.stored[0] / source.seen.resized[0]
    if scale > 1 and (alignment.camera_steps or alignment.object_steps):
        stored = pairs_of(batch, source.as_stored(disparity))
        return align_again(motions, stored, scale, model.motion)
    return motions


def _object_rows(
    motions: Motions, batch: Batch, source: _Source, clip: ClipEntry, begin: int, labels: np.ndarray
) -> ObjectMotions:
    """A row for each instance, forward in time.

    Args:
        begin:  frame of the batch's first pair.
        labels: (clip.frames, H, W) stored labels.
    """
    found = motions.instances
    instance = torch.nonzero(found.pair < len(batch))[:, 0]  # those with the earlier frame as target
    pair, slot = (each[instance].cpu().numpy() for each in (found.pair, found.slot))
    slots, frame = batch.labels[:, 0].cpu().numpy(), begin + pair

    def stored_labels(side: int) -> np.ndarray:
        """The label of the pixels that are in each slot, in the earlier or later frame."""
        return np.array(
            [labels[f + side][slots[n, side] == k][0] for n, f, k in zip(pair, frame, slot, strict=True)],
            np.uint16,
        )

    here = stored_labels(0)
    tracks = [
        source.shards.instances(source.layer, clip, int(f)).track[label - 1]
        for f, label in zip(frame, here, strict=True)
    ]
    return ObjectMotions(
        frame=frame.astype(np.int32),
        slot=slot.astype(np.int32),
        label=here,
        next_label=stored_labels(1),
        track=np.array(tracks, np.uint32),
        class_index=found.class_index[instance].cpu().numpy().astype(np.uint8),
        motion=motions.objects[instance].double().cpu().numpy(),
        centre=motions.centre[instance].double().cpu().numpy(),
    )
