"""Numbers for predictions, ours or anybody's, each with its protocol.

    evaluate depth       a benchmark's images: KITTI Eigen (raw or improved truth), Cityscapes
    evaluate odometry    trajectories: t_err, r_err, ATE, 5-frame snippets
    evaluate motion      depth, camera motion and object motion on streetworld's exact truth
    evaluate objects     object motion alone
    evaluate tracks      matched pairs and tracks of a shard set, on streetworld
    evaluate masks       average precision of a shard set's raw detections, on streetworld
    evaluate scene-flow  KITTI 2015: D1, D2, Fl, SF
    evaluate leaks       frames that training and test lists or shard sets share

Predictions may be a folder that `predict` wrote, files of the field's formats, a run or checkpoint that
predicts on the spot, or `untrained:RUN`, its networks before training.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from evaluation.alignment import Rule
from evaluation.figure import Figure, figures_json, figures_table
from evaluation.ground_truth.scene_flow import Extent
from evaluation.leaks import NEAR, find_leaks, leaks_text, read_images
from evaluation.masks import ap_table
from evaluation.scene_flow import Second
from evaluation.streetworld import score_streetworld
from evaluation.tracks import figures
from pipeline.configuration import to_dict
from pipeline.mask_layer import DEFAULT_LAYER
from pipeline.shards.hdf5 import publish
from pipeline.shards.reader import ShardSet
from workflows.locations import ShardLocation
from workflows.prediction_sources import predicted_clips
from workflows.scoring_depth import DepthBenchmark, score_depth
from workflows.scoring_masks import score_masks, score_tracks
from workflows.scoring_odometry import score_odometry
from workflows.scoring_scene_flow import Scale, score_scene_flow


@dataclass(frozen=True, kw_only=True)
class Printed:
    json: bool = False
    """Print the figures as JSON."""
    out: Path | None = None
    """Write the figures here as well, as JSON; all but those of masks can be given to `tables` and `report`."""
    quiet: bool = False
    """No progress bar."""


@dataclass(frozen=True)
class Depth(DepthBenchmark, Printed):
    """Depth on a benchmark's images."""


@dataclass(frozen=True)
class Odometry(Printed):
    """Trajectories: t_err, r_err and ATE (KITTI odometry), 5-frame snippets, errors of single pairs."""

    estimate: tyro.conf.Positional[str]
    """Trajectory (KITTI, TUM, npy), a folder of them, predictions, or a run (with --shards)."""
    truth: tyro.conf.Positional[Path]
    """True trajectory, or a folder of them; sequences are told by file names."""
    alignment: Rule = "7dof"
    """What is fitted before the two are compared: none, scale, 6dof, 7dof."""
    tolerance_s: float = 0.02
    """Where both have times: largest difference of frames that belong together."""
    shards: ShardLocation | None = None
    """Shard set that a run predicts on, a folder or a URL."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda, cuda:1."""


@dataclass(frozen=True)
class Motion(Printed):
    """Depth, camera motion and object motion against streetworld's exact truth."""

    predictions: tyro.conf.Positional[str]
    """Folder that `predict` wrote, or a run, checkpoint or untrained:RUN (with --shards)."""
    truth: tyro.conf.Positional[Path]
    """Folder of the streetworld clips that the shard set was built from."""
    shards: ShardLocation | None = None
    """Shard set that a run predicts on, a folder or a URL."""
    layer: str = DEFAULT_LAYER
    """Masks layer of it."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda, cuda:1."""


@dataclass(frozen=True)
class Objects(Motion):
    """Object motion against streetworld's exact truth."""


@dataclass(frozen=True)
class Tracks(Printed):
    """Matched pairs and tracks against true object ids."""

    shards: tyro.conf.Positional[ShardLocation]
    """The shard set: a folder or a URL."""
    truth: tyro.conf.Positional[Path]
    """Folder of the streetworld clips that it was built from."""
    layer: str = DEFAULT_LAYER
    """Masks layer."""
    min_area: int = 64
    """True objects with fewer visible pixels in a frame are not asked for there."""


@dataclass(frozen=True)
class Masks(Printed):
    """Average precision of the raw detections by class and size, by COCO's protocol."""

    shards: tyro.conf.Positional[ShardLocation]
    """The shard set: a folder or a URL."""
    truth: tyro.conf.Positional[Path]
    """Folder of the streetworld clips that it was built from."""


@dataclass(frozen=True)
class SceneFlow(Printed):
    """KITTI 2015 scene flow: D1, D2, Fl and SF, on background, moving cars and all."""

    predictions: tyro.conf.Positional[str]
    """Predictions of the pairs (`build` makes clips of KITTI 2015's folder); or a folder with disp_0, disp_1, flow
    as for a submission; or a run (with --shards)."""
    truth: tyro.conf.Positional[Path]
    """Folder of KITTI 2015 scene flow that holds training/."""
    pairs: tuple[int, ...] = ()
    """Numbers of the pairs to score; none is all 200."""
    scale: Scale = "median"
    """Each pair's median; one constant for all; or metric, none."""
    second: Second = "moved"
    """D2 of the moved point, or sampled: the second depth at the flow's target."""
    flow: Path | None = None
    """Folder of flow PNGs to sample with, and to count as Fl; none: that of depth and motions."""
    extent: Extent = "occ"
    """occ, all pixels with truth; or noc, those seen in the other image too."""
    shards: ShardLocation | None = None
    """Shard set that a run predicts on, a folder or a URL."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda, cuda:1."""


@dataclass(frozen=True)
class Leaks:
    """Frames that a training set and a test set share, or that lie near each other. Exit code 1 if there are any."""

    train: tyro.conf.Positional[ShardLocation]
    """List of training images, or a shard set."""
    test: tyro.conf.Positional[ShardLocation]
    """List of test images, or a shard set."""
    near: int = NEAR
    """Images of one recording at most so many frames apart are near."""
    json: bool = False
    """Print what was found as JSON."""


Arguments = (
    Annotated[Depth, tyro.conf.subcommand("depth")]
    | Annotated[Odometry, tyro.conf.subcommand("odometry")]
    | Annotated[Motion, tyro.conf.subcommand("motion")]
    | Annotated[Objects, tyro.conf.subcommand("objects")]
    | Annotated[Tracks, tyro.conf.subcommand("tracks")]
    | Annotated[Masks, tyro.conf.subcommand("masks")]
    | Annotated[SceneFlow, tyro.conf.subcommand("scene-flow")]
    | Annotated[Leaks, tyro.conf.subcommand("leaks")]
)
ALIASES = {"--leaks": "leaks"}


def run(arguments: Depth | Odometry | Motion | Objects | Tracks | Masks | SceneFlow | Leaks) -> int:
    if isinstance(arguments, Leaks):
        leaks = find_leaks(read_images(arguments.train), read_images(arguments.test), arguments.near)
        print(json.dumps(to_dict(leaks), indent=1) if arguments.json else leaks_text(leaks))
        return 1 if leaks.found else 0
    if isinstance(arguments, Masks):
        with ShardSet(arguments.shards) as shards:
            results = score_masks(shards, arguments.truth)
        data = json.dumps([to_dict(each) for each in results], indent=1)
        if arguments.out is not None:
            publish(arguments.out, data.encode())
        print(data if arguments.json else ap_table(results))
        return 0
    found = _figures(arguments)
    if arguments.out is not None:
        publish(arguments.out, figures_json(found).encode())
    print(figures_json(found) if arguments.json else figures_table(found))
    return 0


def _figures(arguments: Depth | Odometry | Motion | Objects | Tracks | SceneFlow) -> Sequence[Figure]:
    if isinstance(arguments, SceneFlow):
        return score_scene_flow(
            arguments.predictions,
            arguments.truth,
            extent=arguments.extent,
            scale=arguments.scale,
            second=arguments.second,
            pairs=arguments.pairs,
            flow=arguments.flow,
            shards=arguments.shards,
            device=arguments.device,
            quiet=arguments.quiet,
        )
    if isinstance(arguments, Depth):
        return score_depth(arguments, quiet=arguments.quiet)
    if isinstance(arguments, Odometry):
        return score_odometry(
            arguments.estimate,
            arguments.truth,
            alignment=arguments.alignment,
            tolerance_s=arguments.tolerance_s,
            shards=arguments.shards,
            device=arguments.device,
            quiet=arguments.quiet,
        )
    if isinstance(arguments, Tracks):
        with ShardSet(arguments.shards) as shards:
            counts = score_tracks(shards, arguments.truth, arguments.layer, arguments.min_area)
        protocol = f"streetworld, masks {arguments.layer}, objects from {arguments.min_area} px; {counts.frames} frames"
        return figures(counts, protocol)
    clips = predicted_clips(
        arguments.predictions, arguments.shards, arguments.layer, arguments.device, arguments.quiet
    )
    found = score_streetworld(clips, arguments.truth)
    return [each for each in found if not isinstance(arguments, Objects) or _of_objects(each)]


def _of_objects(figure: Figure) -> bool:
    names = (
        "object ",
        "moving flag",
        "speed of parked",
        "displacement of parked",
        "recall of moving",
        "estimates",
    )
    return figure.name.startswith(names)
