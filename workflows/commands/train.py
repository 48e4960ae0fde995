"""Learn depth, camera motion and each object's own motion from shard sets.

    instance-motion train shards/ --out runs/first
    instance-motion train shards/ --out runs/kitti --recipe workflows/recipes/train-kitti-resnet18.yaml
    instance-motion train shards/ --out runs/first --resume
    torchrun --nproc-per-node 4 -m workflows.cli train shards/ --out runs/four --recipe ...

Ctrl-C finishes the step in hand and saves; --resume goes on exactly there. Curves and
pictures: `tensorboard --logdir runs`. Settings are those of the recipe, overridden by the
command line: --steps 1000 --objective.photometric 2 --objective.motion.object-warp inverse
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from pipeline.configuration import from_dict
from pipeline.events import Event, event
from training.config import TrainConfig
from training.data import ShardSource
from workflows.locations import ShardLocation

PREFIXES = True
"""Settings keep their groups' names on the command line: several networks have a width."""


@dataclass(frozen=True)
class Arguments:
    out: Path
    """Folder of the run: configuration, checkpoints, curves."""
    shards: tyro.conf.Positional[tuple[ShardLocation, ...]] = ()
    """Shard sets to train on, folders or URLs; none: those of the recipe (data.shards)."""
    layer: str = "default"
    """Masks layer of the shard sets named on the command line."""
    resume: bool = False
    """Go on with the run in OUT."""
    settings: Annotated[TrainConfig, tyro.conf.arg(name="")] = field(default_factory=TrainConfig)
    recipe: Path | None = None
    """YAML file with settings; the command line overrides it."""
    quiet: bool = False
    """No progress bar."""


def from_recipe(data: Mapping[str, Any]) -> Arguments:
    """Defaults of the command line under a recipe."""
    return Arguments(out=tyro.MISSING, settings=from_dict(TrainConfig, data, "recipe"))


def run(arguments: Arguments) -> int:
    from training.loop import train  # torch loads only when needed

    settings = arguments.settings
    if arguments.shards:
        sources = tuple(ShardSource(folder, arguments.layer) for folder in arguments.shards)
        settings = replace(settings, data=replace(settings.data, shards=sources))
    best = train(
        settings,
        arguments.out,
        resume=arguments.resume,
        quiet=arguments.quiet,
        say=_say,
    )
    print(best)
    return 0


def _say(line: str) -> None:
    print(line, file=sys.stderr)
    event(Event.SAID, line=line)
