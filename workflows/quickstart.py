"""The quickstart: synthetic streets -> video -> shards -> other masks -> training -> tables, pictures.

Everything a user does with real video, in minutes, offline, on two CPU cores, with figures
that can be checked, because streetworld knows the truth.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from evaluation.figure import Figure, figures_json
from evaluation.masks import ap_table
from evaluation.object_steps import object_steps
from evaluation.predict import predict, predict_clips
from evaluation.predictions import ClipPrediction, read_clips
from evaluation.streetworld import score_streetworld
from evaluation.tracks import figures
from pipeline.build import BuildConfig, build
from pipeline.clip import FramesConfig
from pipeline.configuration import from_dict, read_recipe
from pipeline.graph import GraphConfig
from pipeline.inspection import compare_layers, summarise
from pipeline.mask_layer import DEFAULT_LAYER
from pipeline.matching import MaskConfig
from pipeline.overlay import contact_sheet, draw, overlay_frames, write_picture, write_video
from pipeline.remask import remask
from pipeline.shards.hdf5 import publish
from pipeline.shards.reader import ShardSet
from training.checkpoint import load
from training.config import TrainConfig
from training.data import ShardSource
from training.loop import train
from training.networks.build import make_networks
from training.pictures import colour_disparity
from training.record import read_metrics
from workflows.commands import report
from workflows.commands.build import summary
from workflows.demo import show
from workflows.demo_picture import demo_picture, scene_of
from workflows.report import render as render_page
from workflows.scoring_masks import score_masks, score_tracks
from workflows.streetworld import render

STRICT = "strict"
RECIPE = Path(__file__).parent / "recipes" / "train-streetworld.yaml"
SHOWN = (
    "AbsRel, all",
    "AbsRel, background",
    "AbsRel, object",
    "d<1.25, all",
    "camera direction error",
    "camera rotation error",
    "object translation error, relative",
    "object direction cosine",
    "object rotation error, turning cars",
    "moving flag precision",
    "moving flag recall",
)
""" Figures of the quickstart's table, by name."""


@dataclass(frozen=True, kw_only=True)
class QuickstartConfig:
    """How much of everything."""

    clips: int = 6
    """Clips of held-out seeds."""
    frames: int = 12
    """Frames of each clip."""
    size: tuple[int, int] = (416, 128)
    """Width and height of the videos and of the stored frames."""
    graph: GraphConfig = field(default_factory=lambda: GraphConfig(workers=2))
    train_clips: int = 40
    """Clips to train on."""
    train_frames: int = 8
    """Frames of each."""
    train_size: tuple[int, int] = (208, 64)
    """Width and height at which networks are trained and see frames."""
    steps: int = 400
    """Training steps."""


def quickstart(out: Path, config: QuickstartConfig, say: Callable[[str], None] = print) -> None:
    """Run all steps into OUT, saying before each what a user would type. Finished steps are kept."""
    make_data(out, config, say)
    learn(out, config, say)
    judge(out, config, say)
    say(
        f"\nLook at {out / 'report.html'}, {out / 'demo.jpg'}, the videos in {out / 'demo'} and {out / 'overlay.mp4'}."
    )


def make_data(out: Path, config: QuickstartConfig, say: Callable[[str], None]) -> None:
    """First part: video to shards, and what the shards are worth."""
    streets, shards_folder = out / "streets", out / "shards"

    with _step(say, f"instance-motion streetworld {streets} --split test --clips {config.clips}"):
        render(streets, "test", config.clips, config.frames, config.size, workers=2)

    with _step(say, f"instance-motion build {streets / 'test'} {shards_folder}"):
        settings = BuildConfig(frames=FramesConfig(size=config.size))
        say(summary(build(streets / "test", shards_folder, settings, config.graph)))

    with _step(say, f"instance-motion remask {shards_folder} --name {STRICT} --min-score 0.8 --min-area 150"):
        remask(shards_folder, STRICT, MaskConfig(min_score=0.8, min_area=150), config.graph)
        with ShardSet(shards_folder) as shards:
            say(compare_layers(shards, DEFAULT_LAYER, STRICT).table())

    with ShardSet(shards_folder) as shards:
        clips = list(shards.manifest.clips)
        with _step(say, f"instance-motion inspect {shards_folder} --video overlay.mp4 --sheet sheet.jpg"):
            say(summarise(shards).table())
            write_video(out / "overlay.mp4", overlay_frames(shards, DEFAULT_LAYER, clips), fps=10)
            write_picture(out / "sheet.jpg", contact_sheet(shards, DEFAULT_LAYER, clips))
            write_picture(out / "picture.jpg", picture(shards))

        with _step(say, f"instance-motion evaluate tracks {shards_folder} {streets / 'test'}"):
            protocol = "held-out streets, detected masks"
            for figure in figures(score_tracks(shards, streets / "test", DEFAULT_LAYER, 64), protocol):
                say(f"{figure.name:32}  {figure.value:.3f} {figure.unit} (of {figure.count})")

        with _step(say, f"instance-motion evaluate masks {shards_folder} {streets / 'test'}"):
            say(ap_table(score_masks(shards, streets / "test")))


def learn(out: Path, config: QuickstartConfig, say: Callable[[str], None]) -> None:
    """Second part: train on shards."""
    streets, run = out / "streets", out / "run"
    width, height = config.train_size
    with _step(say, f"instance-motion streetworld {streets} --split train --clips {config.train_clips}"):
        render(streets, "train", config.train_clips, config.train_frames, config.size, workers=2)

    settings = BuildConfig(frames=FramesConfig(size=config.train_size), masks=MaskConfig(min_area=30))
    shards = out / f"shards-{width}x{height}"
    with _step(
        say, f"instance-motion build {streets / 'train'} {shards} --size {width} {height} --min-area 30"
    ):
        say(summary(build(streets / "train", shards, settings, config.graph)))

    with _step(say, f"instance-motion train {shards} --out {run} --recipe {RECIPE.name} ..."):
        training = training_config(shards, config)
        if not (run / "last.pt").is_file() or load(run / "last.pt").progress.step < config.steps:
            train(training, run, resume=(run / "last.pt").is_file(), say=say)
        rows = [row for row in read_metrics(run) if row["kind"] == "train"]
        tenth = max(1, len(rows) // 10)
        first, last = (
            np.mean([row["photometric"] for row in part]) for part in (rows[:tenth], rows[-tenth:])
        )
        say(f"photometric loss: first tenth of steps {first:.4f}, last tenth {last:.4f}")


def judge(out: Path, config: QuickstartConfig, say: Callable[[str], None]) -> None:
    """Third part: predict on held-out streets, compare with exact truth, and show it."""
    streets, run, shards, predictions = out / "streets", out / "run", out / "shards", out / "predictions"
    with _step(say, f"instance-motion predict {run} {shards} {predictions}"):
        predict(run, shards, predictions, quiet=True)
        write_picture(out / "depth.png", depth_picture(ShardSet(shards), predictions))

    with _step(say, f"instance-motion evaluate motion {predictions} {streets / 'test'}"):
        trained = list(read_clips(predictions))
        torch.manual_seed(1)
        training = load(run / "last.pt").config
        motion = training.objective.motion
        fresh = make_networks(training.networks, motion.object_input, motion.crop_px).eval()
        columns = {
            "trained": trained,
            "untrained": list(predict_clips(fresh, motion, shards, size=config.train_size)),
            "constant depth": [
                replace(clip, inverse_depth=np.ones_like(clip.inverse_depth)) for clip in trained
            ],
        }
        figures_of = {name: score_streetworld(clips, streets / "test") for name, clips in columns.items()}
        for name, found in figures_of.items():
            publish(out / "figures" / f"{name}.json", figures_json(found).encode())
        say(compare(figures_of))

    with _step(say, f"instance-motion demo {streets / 'test'} --checkpoint {run} --out {out / 'demo'}"):
        show(shards, predictions, out / "demo", quiet=True)
        write_picture(out / "demo.jpg", demo_still(shards, predictions))

    with _step(
        say, f"instance-motion report {run} --out {out / 'report.html'} --predictions {predictions} ..."
    ):
        arguments = report.Arguments(
            run,
            out=out / "report.html",
            predictions=predictions,
            shards=shards,
            truth=streets / "test",
            figures=tuple(f"{name}={out / 'figures' / name}.json" for name in figures_of),
            demo=out / "demo",
        )
        publish(arguments.out, render_page(report.make_page(arguments)).encode())


def training_config(shards: Path, config: QuickstartConfig) -> TrainConfig:
    """The streetworld recipe at a quarter of the width, for minutes instead of an hour."""
    recipe = from_dict(TrainConfig, read_recipe(RECIPE), "recipe")
    return replace(
        recipe,
        steps=config.steps,
        data=replace(recipe.data, shards=(ShardSource(shards),)),
        networks=replace(recipe.networks, depth=replace(recipe.networks.depth, width=0.25)),
        objective=replace(recipe.objective, instances_from=config.steps * 3 // 4, auto_mask_from=100),
        checkpoint_every=100,
        picture_every=100,
    )


def compare(columns: Mapping[str, Sequence[Figure]]) -> str:
    """A table of the main figures, one column a set of predictions of the same clips."""
    by_name = [{figure.name: figure for figure in found} for found in columns.values()]
    lines = [f"{'':52}" + "".join(f"{name:>16}" for name in columns)]
    for name in SHOWN:
        values = "".join(f"{figures[name].value:16.3f}" for figures in by_name)
        lines.append(f"{name:52}{values}  {by_name[0][name].unit}")
    return "\n".join(lines)


def depth_picture(shards: ShardSet, predictions: Path) -> np.ndarray:
    """First frames of held-out clips, predicted inverse depth beside them."""
    rows = []
    for clip in read_clips(predictions):
        image = shards.image(shards.clip(clip.name), 0)
        rows.append(
            np.concatenate([image, colour_disparity(clip.inverse_depth[0].astype(np.float32))], axis=1)
        )
    return np.concatenate(rows)


def demo_still(shards: Path, predictions: Path) -> np.ndarray:
    """The demo's picture of the frame in which most moves."""

    def moving(clip: ClipPrediction) -> list[int]:
        return [step.frame for step in object_steps(clip) if step.moving]

    clip = max(read_clips(predictions), key=lambda each: len(moving(each)))
    frame = max(range(len(clip)), key=moving(clip).count)
    with ShardSet(shards) as opened:
        image = opened.image(opened.clip(clip.name), frame)
    return demo_picture(scene_of(clip, object_steps(clip), None), frame, image)


def picture(shards: ShardSet) -> np.ndarray:
    """Two clips, three frames each: the frame above, its tracked instances below."""
    ranked = sorted(shards.manifest.clips, key=lambda clip: -_busy(shards, clip.name))
    blocks = []
    for clip in ranked[:2]:
        chosen = np.linspace(0, clip.frames - 1, 3).round().astype(int)
        plain = np.concatenate([shards.image(clip, int(frame)) for frame in chosen], axis=1)
        drawn = np.concatenate([draw(shards, DEFAULT_LAYER, clip, int(frame)) for frame in chosen], axis=1)
        blocks += [plain, drawn]
    return np.concatenate(blocks, axis=0)


def _busy(shards: ShardSet, name: str) -> int:
    """Matched pixels of a clip: how much there is to see."""
    clip = shards.clip(name)
    return sum(int(shards.instances(DEFAULT_LAYER, clip, frame).area.sum()) for frame in range(clip.frames))


@contextmanager
def _step(say: Callable[[str], None], line: str) -> Iterator[None]:
    say(f"\n$ {line}")
    begin = time.monotonic()
    yield
    say(f"[{time.monotonic() - begin:.1f} s]")
