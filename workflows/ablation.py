"""Which parts of the method matter, on synthetic streets: `python -m workflows.ablation STREETS OUT`.

For every seed the background is learned first (geometric consistency, no instances); from
there each row goes on with its own switches for the same number of steps. All rows see the
same data in the same order and are scored against exact truth on held-out streets at every
milestone; curves.png and depth.png show them. Finished work is kept: run it again to go on, or with
more seeds or rows.

STREETS holds what `instance-motion streetworld STREETS` renders (splits train and test). Masks are
the true ones, so that what is measured is the learning.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
import tyro

from evaluation.predict import predict_clips
from evaluation.streetworld import score_streetworld
from pipeline.build import BuildConfig, build
from pipeline.clip import FramesConfig
from pipeline.configuration import from_dict, read_recipe, to_dict
from pipeline.detectors import DetectorConfig
from pipeline.errors import ConfigError, InstanceMotionError
from pipeline.graph import GraphConfig
from pipeline.matching import MaskConfig
from pipeline.shards.hdf5 import publish
from pipeline.shards.manifest import MANIFEST, read_manifest
from pipeline.streetworld.truth import write_label_images
from training.checkpoint import load, restore_networks
from training.config import TrainConfig
from training.data import ShardSource
from training.loop import train
from workflows.ablation_pictures import draw_curves, draw_depths, score_path

RECIPE = Path(__file__).parent / "recipes" / "train-streetworld.yaml"

OBJECTIVE = "objective"
NO_ALIGNMENT = {"camera_steps": 0, "object_steps": 0}
ROWS: dict[str, dict[str, Any]] = {
    "geo": {"instances": False},
    "inst+inverse": {"geometric": 0.0, "motion": {"object_warp": "inverse"}},
    "inst+geo+inverse": {"motion": {"object_warp": "inverse"}},
    "inst+forward": {"geometric": 0.0},
    "full": {},
    "none": {"instances": False, "geometric": 0.0},
    "full, no size prior": {"anchors": {"size": 0.0}},
    "full, no ground contact": {"anchors": {"contact": 0.0}},
    "full, not compact": {"anchors": {"compact": 0.0}},
    "full, not grounded": {"motion": {"grounded": None}},
    "full, no static gate": {"motion": {"static_gate": False}},
    "full, no anchor at all": {
        "anchors": {"size": 0.0, "contact": 0.0, "compact": 0.0},
        "motion": {"grounded": None, "static_gate": False},
    },
    "full, no consistency": {"anchors": {"consistency": 0.0}},
    "full, no margin for cut ones": {"motion": {"gate_margin_cut": None}},
    "full, geometric by region": {"geometric_mean": "region"},
    "full, scale not kept": {"keep_scale": False},
    "full, camera aligned once": {"motion": {"alignment": {"camera_again": False}}},
    "full, no hints": {"hint": 0.0},
    "full, no alignment": {"motion": {"alignment": NO_ALIGNMENT}},
    "full, neither hints nor alignment": {"hint": 0.0, "motion": {"alignment": NO_ALIGNMENT}},
    "full, depth detached": {"object_depth": "detached"},
    "full, warp with gradient": {"motion": {"detach_intermediate": False}},
    "full, one refinement": {"motion": {"refinements": 1}},
    "full, no rotation": {"motion": {"object_rotation": False}},
    "full, no instance photometric": {"instance_photometric": 0.0},
}
"""Changes of the objective, row by row; `full` is the recipe's."""

SHOWN = {
    "all": "AbsRel, all",
    "bg": "AbsRel, background",
    "obj": "AbsRel, object",
    "moving": "AbsRel, moving",
    "parked": "AbsRel, parked",
    "far": "far share, moving cars",
    "ego deg": "camera direction error",
    "ego rot": "camera rotation error",
    "obj trans": "object translation error, relative",
    "cosine": "object direction cosine",
    "turning": "object rotation error, turning cars",
    "(none)": "object rotation error of predicting none, turning cars",
}
"""Columns of the table: figures of `evaluate motion`."""


@dataclass(frozen=True)
class Arguments:
    streets: tyro.conf.Positional[Path]
    """Folder of rendered streets, with train/ and test/."""
    out: tyro.conf.Positional[Path]
    """Folder of shards, runs and scores."""
    rows: tuple[str, ...] = ("geo", "inst+inverse", "full")
    """Rows of the table; `all` is every one."""
    seeds: tuple[int, ...] = (0,)
    size: tuple[int, int] = (208, 64)
    """Width and height of the training frames."""
    test_size: tuple[int, int] | None = None
    """Width and height at which test frames are stored, at the same shape; none is as in training. On
    larger ones `predict` aligns motions once more. Its scores are kept beside the others."""
    background_steps: int = 4000
    """Steps before the rows part."""
    steps: int = 2000
    """Steps of each row."""
    milestones: int = 4
    """How often a row is scored."""
    recipe: Path = RECIPE
    """Settings of the full method."""

    def __post_init__(self) -> None:
        unknown = sorted(set(self.rows) - set(ROWS) - {"all"})
        if unknown:
            raise ConfigError(f"no row {unknown[0]!r}; there are {', '.join(ROWS)}")
        if self.milestones < 1 or self.steps % self.milestones:
            raise ConfigError(f"steps ({self.steps}) must be a multiple of milestones ({self.milestones})")
        (width, height), stored = self.size, self.stored_test_size
        if stored[0] * height != stored[1] * width:
            raise ConfigError(f"test_size {stored} must have the shape of size {self.size}")

    @property
    def stored_test_size(self) -> tuple[int, int]:
        return self.test_size or self.size

    @property
    def larger_test(self) -> str:
        """What is added to the names of things that belong to test frames of another size."""
        return "" if self.stored_test_size == self.size else "-{}x{}".format(*self.stored_test_size)


def main(arguments: Arguments) -> None:
    """Train and score what is missing; print the table and draw the curves."""
    shards = make_shards(arguments, "train", arguments.size)
    tests = make_shards(arguments, "test", arguments.stored_test_size, arguments.larger_test)
    rows = tuple(ROWS) if "all" in arguments.rows else arguments.rows
    for seed in arguments.seeds:
        base = from_dict(TrainConfig, read_recipe(arguments.recipe), str(arguments.recipe))
        base = replace(
            base,
            training_seed=seed,
            data=replace(base.data, shards=(ShardSource(shards),), seed=seed),
            optimise=replace(base.optimise, schedule="constant"),
        )
        start = arguments.out / "runs" / f"background-{seed}"
        background = replace(base, objective=changed(base, ROWS["geo"]))
        advance(background, start, arguments.background_steps)
        for row in rows:
            run = arguments.out / "runs" / f"{row}-{seed}".replace(" ", "_")
            objective = replace(changed(base, ROWS[row]), instances_from=0, auto_mask_from=0)
            data = replace(base.data, seed=seed + 1000)  # not the same order again
            config = replace(base, objective=objective, data=data, init_from=start)
            for milestone in range(1, arguments.milestones + 1):
                done = arguments.steps * milestone // arguments.milestones
                advance(config, run, done)
                score(run, done, tests, arguments)
            print(table(arguments, rows), flush=True)
    draw_curves(
        {row: _runs(arguments, row) for row in rows}, arguments.out / "curves.png", arguments.larger_test
    )
    newest = {row: _runs(arguments, row)[0] for row in rows}
    draw_depths(newest, arguments.size, tests, arguments.streets / "test", arguments.out / "depth.png")


def make_shards(arguments: Arguments, split: str, size: tuple[int, int], suffix: str = "") -> Path:
    """The shard set of a split, on true masks; a suffix keeps one of another size apart."""
    streets, folder = arguments.streets / split, arguments.out / "shards" / (split + suffix)
    if (folder / MANIFEST).is_file() and read_manifest(folder).size == size:
        return folder  # other seeds may be read from it at this moment
    if not streets.is_dir():
        raise ConfigError(f"{streets} is missing; render it with `instance-motion streetworld`")
    masks = arguments.out / "masks" / split
    for clip in sorted(path for path in streets.iterdir() if not path.name.startswith(".")):
        if not (masks / clip.name / "classes.json").is_file():
            write_label_images(clip, masks / clip.name)
    config = BuildConfig(
        frames=FramesConfig(size=size),
        detector=DetectorConfig(detector=f"masks:{masks}"),
        masks=MaskConfig(min_area=40),
    )
    build(streets, folder, config, GraphConfig(workers=0))
    return folder


def changed(base: TrainConfig, changes: Mapping[str, Any]) -> Any:
    """The recipe's objective with a row's switches."""
    return from_dict(type(base.objective), _merged(to_dict(base.objective), changes), OBJECTIVE)


def _merged(data: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Data with changes at any depth."""
    changed = {
        name: _merged(data[name], value) if isinstance(value, Mapping) else value
        for name, value in changes.items()
    }
    return {**data, **changed}


def advance(config: TrainConfig, run: Path, steps: int) -> None:
    """Train a run up to so many steps, from wherever it is."""
    last = run / "last.pt"
    if not last.is_file() or load(last).progress.step < steps:
        train(replace(config, steps=steps), run, resume=last.is_file())


def score(run: Path, steps: int, shards: Path, arguments: Arguments) -> None:
    """Score a run's newest weights, if they are those of this step; kept as JSON under it."""
    path = score_path(run, steps, arguments.larger_test)
    if path.is_file():
        return
    checkpoint = load(run / "last.pt")
    if checkpoint.progress.step != steps:
        return  # weights of earlier milestones are gone
    networks, objective = restore_networks(checkpoint, "cpu"), checkpoint.config.objective
    clips = predict_clips(
        networks, objective.motion, shards, use_instances=objective.instances, size=arguments.size
    )
    figures = score_streetworld(clips, arguments.streets / "test")
    publish(path, json.dumps({figure.name: figure.value for figure in figures}, indent=1).encode())


def table(arguments: Arguments, rows: tuple[str, ...]) -> str:
    """Mean over the seeds that are done, +- standard deviation where there are several."""
    lines = [f"{'':30}{'seeds':>6}" + "".join(f"{name:>13}" for name in SHOWN)]
    for row in rows:
        paths = [score_path(run, arguments.steps, arguments.larger_test) for run in _runs(arguments, row)]
        scores = [json.loads(path.read_text()) for path in paths if path.is_file()]
        if scores:
            values = [[score[figure] for score in scores] for figure in SHOWN.values()]
            lines.append(f"{row:30}{len(scores):6}" + "".join(f"{_spread(each):>13}" for each in values))
    return "\n".join(lines)


def _runs(arguments: Arguments, row: str) -> list[Path]:
    return [arguments.out / "runs" / f"{row}-{seed}".replace(" ", "_") for seed in arguments.seeds]


def _spread(values: list[float]) -> str:
    if any(map(math.isnan, values)):
        return "-"  # without instances there are no object motions
    return f"{mean(values):.3f}" + (f"+-{stdev(values):.3f}" if len(values) > 1 else "")


if __name__ == "__main__":
    torch.set_num_threads(1)
    try:
        main(tyro.cli(Arguments, prog="python -m workflows.ablation", description=__doc__))
    except InstanceMotionError as error:
        sys.exit(f"error: {error}")
