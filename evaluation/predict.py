"""From a checkpoint and a shard set to predictions: the one module where evaluation meets networks."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from evaluation.predictions import (
    ClipPrediction,
    ObjectMotions,
    PredictionIndex,
    write_clip,
    write_index,
)
from pipeline.errors import ConfigError
from pipeline.shards.manifest import ClipEntry
from pipeline.shards.reader import ShardSet
from training.alignment import AlignmentConfig
from training.augment import NUMBERS, Augmentation, AugmentConfig, draw
from training.checkpoint import checkpoint_in, load, restore_networks
from training.data import DataConfig, PackedBatch, ShardSource, WindowDataset, collate
from training.geometry.sampling import resize
from training.motion import MotionConfig, find_motions
from training.networks.build import Networks
from training.pairs import direct
from training.sampler import SampleKey
from training.windows import choose_clips
from training.world import choose_device

CHUNK = 8
"""Frames that the networks see at once."""


def predict(
    run: Path,
    shards: Path,
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
        out:     folder of the predictions; clips that it holds already are predicted again.
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
    names = []
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
    shards: Path,
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
            to the stored size.

    Raises:
        ShardError, ConfigError: what is missing or does not fit.
    """
    config = DataConfig(
        shards=(ShardSource(shards, layer),),
        frames=2,
        skip_static=False,
        size=size,
        augment=AugmentConfig.none(),
        include=include,
        workers=0,
    )
    with ShardSet(shards) as opened:
        opened.masks_entry(layer)  # say at once that a layer is not there
        names = set(choose_clips((clip.name for clip in opened.manifest.clips), include=include))
        clips = [(index, clip) for index, clip in enumerate(opened.manifest.clips) if clip.name in names]
        if not clips:
            raise ConfigError(f"{shards}: no clip fits {', '.join(include)}; look at include")
        stored = opened.manifest.size
        change = draw(AugmentConfig.none(), stored, size or stored, np.zeros(NUMBERS))
        rows: dict[int, dict[int, int]] = {}
        if any(clip.frames > 1 for _, clip in clips):
            dataset = WindowDataset(config)
            for number in range(len(dataset.windows[0])):
                clip_index, first, _ = dataset.windows[0][number]
                rows.setdefault(clip_index, {})[first] = number
        total = sum(clip.frames for _, clip in clips)
        with tqdm(total=total, unit="frame", desc="predict", disable=quiet) as bar:
            for index, clip in clips:
                if clip.frames == 1:
                    yield _predict_frame(networks, change, opened, layer, clip)
                    bar.update()
                else:
                    yield _predict_clip(
                        networks,
                        motion,
                        use_instances,
                        dataset,
                        change,
                        opened,
                        layer,
                        clip,
                        rows[index],
                        bar,
                    )


@torch.no_grad()
def _predict_frame(
    networks: Networks, change: Augmentation, shards: ShardSet, layer: str, clip: ClipEntry
) -> ClipPrediction:
    """A clip of one frame: depth, and nothing that could move."""
    image = torch.from_numpy(change.image(shards.image(clip, 0))).permute(2, 0, 1)[None]
    disparity = networks.depth(image.to(networks.log_height.device).float() / 255)[0].float()
    disparity = _as_stored(disparity, change)
    return ClipPrediction(
        name=clip.name,
        inverse_depth=disparity[:, 0].cpu().numpy(),
        labels=shards.labels(layer, clip, 0)[None],
        later_T_earlier=np.zeros((0, 4, 4)),
        objects=ObjectMotions.empty(),
        K=clip.intrinsics,
        timestamps_s=shards.timestamps_s(clip),
    )


@torch.no_grad()
def _predict_clip(
    networks: Networks,
    motion: MotionConfig,
    use_instances: bool,
    dataset: WindowDataset,
    change: Augmentation,
    shards: ShardSet,
    layer: str,
    clip: ClipEntry,
    windows: dict[int, int],
    bar: tqdm,
) -> ClipPrediction:
    """All frames of a clip; neighbouring pairs share their depths."""
    device = networks.log_height.device
    disparities: list[np.ndarray] = []
    cameras: list[np.ndarray] = []
    objects: list[dict[str, np.ndarray]] = []
    labels = [shards.labels(layer, clip, frame) for frame in range(clip.frames)]
    seen = [change.labels(each) for each in labels]
    for begin in range(0, clip.frames - 1, CHUNK):
        frames = range(begin, min(begin + CHUNK, clip.frames - 1))
        batch = _batch(dataset, [windows[frame] for frame in frames]).unpack(device)
        images = torch.cat([batch.images[:, 0], batch.images[-1:, 1]])
        disparity = networks.depth(images)[0].float()
        depth = torch.stack([1 / disparity[:-1], 1 / disparity[1:]], 1)
        pairs = direct(batch, depth, use_instances)
        motions = find_motions(networks.ego, networks.objects, pairs, motion)
        count = len(frames)
        found = motions.instances
        chosen = found.pair < count  # earlier frame as target: motion forward in time
        instance = torch.nonzero(chosen)[:, 0]
        frame = begin + found.pair[instance].cpu().numpy()
        slot = found.slot[instance].cpu().numpy()
        slots = batch.labels[:, 0].cpu().numpy()
        here = [_stored(seen, begin, slots[:, 0], f, s) for f, s in zip(frame, slot, strict=True)]
        after = [_stored(seen, begin + 1, slots[:, 1], f + 1, s) for f, s in zip(frame, slot, strict=True)]
        tracks = [
            shards.instances(layer, clip, int(f)).track[label - 1]
            for f, label in zip(frame, here, strict=True)
        ]
        objects.append(
            {
                "frame": frame.astype(np.int32),
                "slot": slot.astype(np.int32),
                "label": np.array(here, np.uint16),
                "next_label": np.array(after, np.uint16),
                "track": np.array(tracks, np.uint32),
                "class_index": found.class_index[instance].cpu().numpy().astype(np.uint8),
                "motion": motions.objects[instance].double().cpu().numpy(),
                "centre": motions.centre[instance].double().cpu().numpy(),
            }
        )
        cameras.append(motions.camera[:count].double().cpu().numpy())
        last = begin + count == clip.frames - 1
        disparities.append(_as_stored(disparity[: count + last], change)[:, 0].cpu().numpy())
        bar.update(count + last)
    return ClipPrediction(
        name=clip.name,
        inverse_depth=np.concatenate(disparities),
        labels=np.stack(labels),
        later_T_earlier=np.concatenate(cameras),
        objects=ObjectMotions(
            **{name: np.concatenate([each[name] for each in objects]) for name in objects[0]}
        ),
        K=clip.intrinsics,
        timestamps_s=shards.timestamps_s(clip),
    )


def _as_stored(disparity: Tensor, change: Augmentation) -> Tensor:
    """(N, 1, H, W) inverse depth at the stored size."""
    width, height = change.stored
    return resize(disparity, (height, width)) if change.moves_pixels else disparity


def _batch(dataset: WindowDataset, windows: list[int]) -> PackedBatch:
    samples = [dataset[SampleKey(0, 0, 0, window)] for window in windows]
    return collate(samples, dataset.size, dataset.config.frames)


def _stored(labels: list[np.ndarray], first: int, slots: np.ndarray, frame: int, slot: int) -> int:
    """The stored label of a frame's pixels that are in a slot."""
    return int(labels[frame][slots[frame - first] == slot][0])
