"""Depth benchmarks from files: a list of images, their truth, and predictions of any origin.

Predictions are read as `evaluation.depth_files` reads them, or made here: by a run or checkpoint, by its
networks before any training (`untrained:RUN`), or the same depth everywhere (`constant`), below which
no figure means anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import tyro

from evaluation import depth_protocols
from evaluation.depth_files import Frame, Kind, PredictedMap, own_frames, read_maps
from evaluation.depth_protocols import DepthProtocol, DepthScore, score_map, shown_box
from evaluation.figure import Figure
from evaluation.ground_truth.cityscapes_depth import camera_path, cityscapes_depth, read_stereo_camera
from evaluation.ground_truth.errors import GroundTruthError, MissingTruthError
from evaluation.ground_truth.kitti_depth import improved_depth, raw_depth, read_lidar_camera
from evaluation.ground_truth.split_lists import (
    CityscapesFrame,
    read_cityscapes_split,
    read_kitti_split,
)
from evaluation.predictions import PredictionError
from pipeline.errors import ConfigError
from pipeline.progress import Bar
from pipeline.shards.reader import ShardSet
from pipeline.sources.images import read_image
from workflows.locations import ShardLocation
from workflows.masks_at_truth import nearest
from workflows.prediction_sources import UNTRAINED, is_predictions, is_run, networks_of

ProtocolName = Literal["kitti-eigen", "kitti-eigen-z", "kitti-improved", "cityscapes"]
PROTOCOLS: dict[str, DepthProtocol] = {
    "kitti-eigen": depth_protocols.KITTI_EIGEN,
    "kitti-eigen-z": depth_protocols.KITTI_EIGEN_Z,
    "kitti-improved": depth_protocols.KITTI_IMPROVED,
    "cityscapes": depth_protocols.CITYSCAPES,
}
CONSTANT = "constant"


@dataclass(frozen=True, kw_only=True)
class DepthBenchmark:
    """What is scored, and against what; the command line of `evaluate depth`."""

    predictions: tyro.conf.Positional[str]
    """Predictions (folder, array, PNGs), a run or checkpoint, untrained:RUN, or `constant`."""
    truth: tyro.conf.Positional[Path]
    """Folder of the truth: KITTI raw with velodyne_points, annotated depth, or Cityscapes."""
    split: Path
    """List of the benchmark's images."""
    protocol: ProtocolName = "kitti-eigen"
    """Which benchmark's rules."""
    kind: Kind | None = None
    """What arrays hold: depth or disparity."""
    key: str = ""
    """Which array of an .npz file."""
    images: Path | None = None
    """Folder of the images that a run is to see; none: they are with the truth."""
    size: tuple[int, int] | None = None
    """Width and height at which a run sees them; none: as it was trained."""
    scale_m: float | None = None
    """Metres a predicted unit; none: each image's median."""
    masks: ShardLocation | None = None
    """Shard set (folder or URL) of the images whose masks tell objects from background."""
    layer: str = "default"
    """Masks layer."""
    available: bool = False
    """Leave out images whose truth is not there."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda, cuda:1."""

    def __post_init__(self) -> None:
        if self.protocol not in get_args(ProtocolName):
            raise ConfigError(f"no protocol {self.protocol!r}; there are {', '.join(PROTOCOLS)}")


def score_depth(benchmark: DepthBenchmark, quiet: bool = False) -> list[Figure]:
    """Every figure of a benchmark.

    Raises:
        GroundTruthError, PredictionError, TrainingError, ConfigError: what is missing or does not fit.
    """
    protocol = PROTOCOLS[benchmark.protocol]
    every = _frames(benchmark)
    chosen = [frame for frame in every if not benchmark.available or _has_truth(benchmark, frame)]
    if not chosen:
        raise GroundTruthError(f"{benchmark.truth}: has the truth of no image in {benchmark.split}")
    maps, frames = _maps(benchmark, every, chosen)
    wanted = set(chosen)
    total = DepthScore()
    with ExitStack() as stack:
        bar = stack.enter_context(Bar(total=len(chosen), unit="image", desc="score", disable=quiet))
        masks_of = _masks(benchmark, chosen, stack)
        for frame, predicted in zip(frames, maps, strict=True):
            if frame not in wanted:
                continue
            truth_m = _truth(benchmark, frame)
            shown = (
                None
                if predicted.K is None
                else shown_box(predicted.K, predicted.size, _camera(benchmark, frame))
            )
            masks = masks_of(frame, truth_m.shape)
            try:
                total += score_map(
                    predicted.inverse_depth, truth_m, protocol, masks, benchmark.scale_m, shown
                )
            except PredictionError as error:
                raise PredictionError(f"{frame.file_names[0]}: {error}") from None
            bar.update()
    origin = f"masks {benchmark.layer} of {benchmark.masks}" if benchmark.masks else ""
    return depth_protocols.figures(total, protocol, benchmark.scale_m, origin)


def _frames(benchmark: DepthBenchmark) -> Sequence[Frame]:
    if benchmark.protocol == "cityscapes":
        return read_cityscapes_split(benchmark.split)
    return read_kitti_split(benchmark.split)


def _truth(benchmark: DepthBenchmark, frame: Frame) -> np.ndarray:
    """(H, W) true depth, metres, 0 = none."""
    if isinstance(frame, CityscapesFrame):
        return cityscapes_depth(benchmark.truth, frame)
    if benchmark.protocol == "kitti-improved":
        return improved_depth(benchmark.truth, frame)
    return raw_depth(benchmark.truth, frame, "z" if benchmark.protocol == "kitti-eigen-z" else "x")


def _has_truth(benchmark: DepthBenchmark, frame: Frame) -> bool:
    try:
        _truth(benchmark, frame)
    except MissingTruthError:
        return False
    return True


def _camera(benchmark: DepthBenchmark, frame: Frame) -> np.ndarray:
    """(3, 3) intrinsics in the truth's pixels."""
    if isinstance(frame, CityscapesFrame):
        return read_stereo_camera(camera_path(benchmark.truth, frame)).K
    return read_lidar_camera((benchmark.images or benchmark.truth) / frame.date, frame.camera).K


def _maps(
    benchmark: DepthBenchmark, every: Sequence[Frame], chosen: Sequence[Frame]
) -> tuple[Iterator[PredictedMap], Sequence[Frame]]:
    """The predictions, and the images that they are for."""
    name = benchmark.predictions
    if name == CONSTANT:
        return (PredictedMap(inverse_depth=np.ones((2, 2))) for _ in chosen), chosen
    path = Path(name.removeprefix(UNTRAINED))
    if is_run(name):
        return _predicted(benchmark, path, chosen), chosen
    if is_predictions(path):
        return read_maps(path, chosen, benchmark.kind, benchmark.key), chosen
    # Arrays in the split's order and files with numbers count all of its images.
    return read_maps(path, every, benchmark.kind, benchmark.key), every


def _predicted(benchmark: DepthBenchmark, run: Path, frames: Sequence[Frame]) -> Iterator[PredictedMap]:
    """What a run makes of the images themselves: whole, resized to its training size."""
    # torch loads only when needed
    from evaluation.predict import predict_images
    from training.checkpoint import checkpoint_in, load

    checkpoint = load(checkpoint_in(run))
    size = benchmark.size or checkpoint.config.data.size
    if size is None:
        raise ConfigError(f"{run}: was trained on frames as its shards store them; give their size")
    networks = networks_of(benchmark.predictions, checkpoint, benchmark.device)
    root = benchmark.images or benchmark.truth
    images = (_image(root, frame) for frame in frames)
    return (PredictedMap(inverse_depth=each) for each in predict_images(networks, images, size))


def _image(root: Path, frame: Frame) -> np.ndarray:
    """(H, W, 3) uint8 RGB, the part that the protocol shows to networks."""
    if isinstance(frame, CityscapesFrame):
        places = [root / "leftImg8bit" / "test" / frame.city / f"{frame.stem}_leftImg8bit.png"]
    else:
        places = [root / f"{frame.file_names[0]}{suffix}" for suffix in (".png", ".jpg")]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise GroundTruthError(f"{places[0]}: missing; give the folder of the images")
    image = read_image(path)
    if isinstance(frame, CityscapesFrame):
        image = image[: round(len(image) * (1 - depth_protocols.CITYSCAPES.unseen_rows))]
    return image


def _masks(
    benchmark: DepthBenchmark, frames: Sequence[Frame], stack: ExitStack
) -> Callable[[Frame, tuple[int, ...]], dict[str, np.ndarray]]:
    """From an image and its truth's shape to the masks of objects and background, if there are any."""
    if benchmark.masks is None:
        return lambda frame, shape: {}
    shards = stack.enter_context(ShardSet(benchmark.masks))
    places = dict(zip(frames, own_frames([clip.name for clip in shards.manifest.clips], frames), strict=True))

    def masks_of(frame: Frame, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
        name, index = places[frame]
        clip = shards.clip(name)
        if not 0 <= index < clip.frames:
            raise PredictionError(
                f"{benchmark.masks}: {name} has {clip.frames} frames, none for {frame.file_names[0]}"
            )
        labels = shards.labels(benchmark.layer, clip, index)
        shown = shown_box(clip.intrinsics, shards.manifest.size, _camera(benchmark, frame))
        objects = nearest(labels > 0, shown, shape)
        return {"object": objects == 1, "background": objects == 0}

    return masks_of
