"""Figures of the pipeline, side by side in one run: medians, ratios, one core each.

    python -m workflows.benchmark SOURCE [--fov-deg 70]

SOURCE is anything that `instance-motion build` takes; its first clip is used. Prints bytes a
frame, the cost of matching a pair, of remaking masks, and of everything around the detector.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import tyro

from pipeline.build import BuildConfig, build
from pipeline.clip import Networks, process_piece
from pipeline.configuration import from_dict
from pipeline.detections import Detections, SourceFrame
from pipeline.detectors import make_detector
from pipeline.flow import FlowConfig, compute_flow, load_flow_model
from pipeline.graph import GraphConfig
from pipeline.matching import MaskConfig, overlaps
from pipeline.remask import remask
from pipeline.shards.reader import ShardSet
from pipeline.sources.clip import Clip
from pipeline.sources.scan import scan
from pipeline.worker import use_one_thread
from workflows.reference import plain_overlaps

RELEASED_BYTES, RELEASED_MATCH_MS = 4.24e6, {3: 355.0, 20: 3300.0}
"""The released code's figures, measured on two CPU cores at 832x256 (jpg, npy, two .flo)."""


@dataclass(frozen=True)
class Arguments:
    source: tyro.conf.Positional[Path]
    """Video, image folder or data set; its first clip is used."""
    settings: BuildConfig = field(default_factory=BuildConfig)
    frames: int = 24
    """Frames to work on."""
    repeats: int = 5
    """Runs of each measurement; the median counts."""


def main() -> None:
    arguments = tyro.cli(Arguments, description=__doc__, config=(tyro.conf.OmitArgPrefixes,))
    use_one_thread()
    clip = next(clip for clip in scan(arguments.source, arguments.settings.source) if isinstance(clip, Clip))
    frames = min(arguments.frames, len(clip))
    around_the_detector(clip, frames, arguments.settings, arguments.repeats)
    with tempfile.TemporaryDirectory() as folder:
        remaking_masks(arguments, Path(folder) / "set")
        matching(Path(folder) / "set", arguments.repeats)


def around_the_detector(clip: Clip, frames: int, settings: BuildConfig, repeats: int) -> None:
    """Everything that a piece does, against its detector alone, in turns."""
    detector = make_detector(settings.detector)
    flow_model = load_flow_model(settings.flow, "cpu")
    networks = Networks(detector=detector, flow_model=flow_model, batch_size=settings.detector.batch_size)
    images = [
        SourceFrame(image=image, clip=clip.name, name=name)
        for image, name in zip(clip.reader.frames(0, frames), clip.frame_names, strict=False)
    ]
    alone, whole, stages = [], [], {}
    for _ in range(max(2, repeats // 2)):
        alone.append(_cpu(lambda: [detector.detect([image]) for image in images]))
        begin = time.process_time()
        piece = process_piece(clip, 0, frames, settings.frames, settings.flow, networks)
        whole.append(time.process_time() - begin)
        stages = piece.seconds
    a, w = statistics.median(alone) / frames, statistics.median(whole) / frames
    print(f"detector alone             {1000 * a:9.1f} CPU ms a frame")
    print(
        f"whole pipeline             {1000 * w:9.1f} CPU ms a frame: {a / w:.0%} of the detector's own throughput"
    )
    print(
        "  wall ms a stage          "
        + ", ".join(f"{k} {1000 * v / frames:.1f}" for k, v in sorted(stages.items()))
    )


def remaking_masks(arguments: Arguments, out: Path) -> None:
    """A build, and remask of all of it, each in one process."""
    here = GraphConfig(workers=0)
    begin = time.process_time()
    build(arguments.source, out, arguments.settings, here, quiet=True)
    built = time.process_time() - begin
    times = {}
    for name, config in {
        "score": MaskConfig(min_score=0.7),
        "mask": MaskConfig(mask_probability=0.4),
    }.items():
        begin = time.process_time()
        remask(out, name, config, here, quiet=True)
        times[name] = time.process_time() - begin
    with ShardSet(out) as shards:
        frames = sum(clip.frames for clip in shards.manifest.clips)
        training = sum(entry.bytes for entry in shards.manifest.frames.values())
        training += sum(entry.bytes for entry in shards.manifest.masks["default"].files.values())
        evidence = sum(entry.bytes for entry in shards.manifest.evidence.values())
    size = training / frames
    print(f"bytes a training frame     {size:9,.0f}, 1/{RELEASED_BYTES / size:.0f} of the released code's")
    print(f"  evidence besides         {evidence / frames:9,.0f}")
    print(f"build                      {1000 * built / frames:9.1f} CPU ms a frame")
    for name, label in {"score": "remask, another score", "mask": "remask, another mask cut"}.items():
        print(
            f"{label:26} {1000 * times[name] / frames:9.2f} CPU ms a frame: build / remask = {built / times[name]:.0f}"
        )


def matching(folder: Path, repeats: int) -> None:
    """One pair, 3 and 20 instances: the fast path and its plain reference, on a real flow."""
    with ShardSet(folder) as shards:
        clip, size = shards.manifest.clips[0], shards.manifest.size
        images = [shards.image(clip, frame) for frame in (0, 1)]
        flow_config = from_dict(FlowConfig, shards.manifest.config["flow"])
    flow = compute_flow(images[0], images[1], flow_config)
    for count in (3, 20):
        pair = _discs(count, size, seed=0), _discs(count, size, seed=1), flow, size
        fast = statistics.median(_cpu(partial(overlaps, *pair)) for _ in range(4 * repeats))
        plain = statistics.median(_cpu(partial(plain_overlaps, *pair)) for _ in range(repeats))
        released = RELEASED_MATCH_MS[count] / (1000 * fast)
        print(
            f"matching, {count:2} instances     {1000 * fast:9.1f} CPU ms a pair: "
            f"plain / fast = {plain / fast:.0f}, released code / fast = {released:.0f}"
        )


def _discs(count: int, size: tuple[int, int], seed: int) -> Detections:
    """Soft discs of a car's size, side by side and overlapping a little."""
    rng = np.random.default_rng(seed)
    corner = np.stack([np.linspace(0, size[0] - 90, count), np.full(count, size[1] / 3)], axis=1)
    corner += rng.uniform(-4, 4, corner.shape)
    v, u = np.mgrid[-1:1:28j, -1:1:28j]
    grid = (255 / (1 + np.exp(8 * (u * u + v * v - 0.8)))).astype(np.uint8)
    return Detections(
        boxes=np.concatenate([corner, corner + np.array([80, 50])], axis=1).astype(np.float32),
        scores=np.linspace(1, 0.6, count).astype(np.float32),
        classes=np.full(count, 2, np.uint8),
        masks=(grid,) * count,
    )


def _cpu(call: Callable[[], object]) -> float:
    begin = time.process_time()
    call()
    return time.process_time() - begin


if __name__ == "__main__":
    main()
