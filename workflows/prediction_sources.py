"""Where predictions come from: a folder that `predict` wrote, or a run that predicts on the spot."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from evaluation.predictions import INDEX, ClipPrediction, PredictionError, read_clips
from pipeline.errors import ConfigError
from pipeline.shards.reader import ShardSet
from pipeline.shards.storage import Location

if TYPE_CHECKING:
    from training.checkpoint import Checkpoint
    from training.networks.build import Networks

UNTRAINED = "untrained:"
"""Before a run's path: its networks as they were before any training, for comparison."""


def is_run(name: str) -> bool:
    """Whether a name means a run's folder, a checkpoint, or the networks of one."""
    path = Path(name)
    return (
        name.startswith(UNTRAINED)
        or path.suffix == ".pt"
        or any((path / each).is_file() for each in ("best.pt", "last.pt"))
    )


def is_predictions(path: Path) -> bool:
    """Whether a path is a folder that `predict` wrote to its end."""
    return (path / INDEX).is_file()


def predicted_clips(
    name: str, shards: Location | None, layer: str = "default", device: str = "auto", quiet: bool = False
) -> Iterator[ClipPrediction]:
    """The predictions of every clip.

    Args:
        name:   a folder of predictions; or a run, a checkpoint or UNTRAINED and one of these.
        shards: what a run predicts on.

    Raises:
        PredictionError, TrainingError, ConfigError: what is missing or does not fit.
    """
    if not is_run(name):
        if not is_predictions(Path(name)):
            raise PredictionError(
                f"{name}: neither predictions (`predict` writes them), nor a run, nor a checkpoint"
            )
        return read_clips(Path(name))
    if shards is None:
        raise ConfigError(f"{name} is a run; give the shard set that it is to predict on (--shards)")
    # torch loads only when needed
    from evaluation.predict import predict_clips, size_of
    from training.checkpoint import checkpoint_in, load

    checkpoint = load(checkpoint_in(Path(name.removeprefix(UNTRAINED))))
    objective, config = checkpoint.config.objective, checkpoint.config
    networks = networks_of(name, checkpoint, device)
    with ShardSet(shards) as opened:
        stored = opened.manifest.size
    return predict_clips(
        networks,
        objective.motion,
        shards,
        layer=layer,
        use_instances=objective.instances and checkpoint.progress.step > objective.instances_from,
        size=size_of(config.data.size, stored),
        quiet=quiet,
    )


def networks_of(name: str, checkpoint: Checkpoint, device: str) -> Networks:
    """The networks of a checkpoint, in evaluation mode: as trained, or as they were before, if UNTRAINED."""
    import torch

    from training.checkpoint import restore_networks
    from training.networks.build import make_networks
    from training.world import choose_device

    if not name.startswith(UNTRAINED):
        return restore_networks(checkpoint, choose_device(device))
    config, motion = checkpoint.config, checkpoint.config.objective.motion
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.training_seed)  # the same each time that one asks
        fresh = make_networks(config.networks.without_downloads(), motion.object_input, motion.crop_px)
    return fresh.to(choose_device(device)).eval()
