"""Checkpoints: one file that a run goes on from exactly, or that others predict with.

A checkpoint holds tensors and plain values only and is read with `weights_only=True`: a file
that carries code is refused, not run. Files are written whole or not at all.

    format, version   "instance-motion checkpoint", 1
    config            the resolved configuration, JSON
    networks          state of `training.networks.build.Networks`
    averaged          the same, averaged over steps, or None
    optimiser         state of the optimiser
    progress          step, epoch, step of the epoch, bad steps in a row, best validation loss
    random            states of torch's random number generators, by device
"""

from __future__ import annotations

import io
import json
import pickle
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline.configuration import from_dict, to_dict
from pipeline.errors import ConfigError, TrainingError
from pipeline.shards.hdf5 import publish
from training.config import TrainConfig
from training.networks.build import Networks, make_networks

FORMAT, VERSION = "instance-motion checkpoint", 1
KEYS = {"format", "version", "config", "networks", "averaged", "optimiser", "progress", "random"}


@dataclass(frozen=True)
class Progress:
    """Where a run stands: `step` updates are done; the data go on at `epoch_step` of `epoch`."""

    step: int = 0
    epoch: int = 0
    epoch_step: int = 0
    bad_in_a_row: int = 0
    best_loss: float | None = None


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What a checkpoint file holds, checked."""

    config: TrainConfig
    networks: dict[str, torch.Tensor]
    averaged: dict[str, torch.Tensor] | None
    optimiser: dict[str, Any]
    progress: Progress
    random: dict[str, torch.Tensor]

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        """The weights to predict with: averaged ones where there are any."""
        return self.averaged or self.networks


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint whole or not at all.

    Raises:
        OSError: disk full, no permission; what was at `path` before is still there.
    """
    memory = io.BytesIO()
    torch.save(
        {
            "format": FORMAT,
            "version": VERSION,
            "config": json.dumps(to_dict(checkpoint.config)),
            "networks": checkpoint.networks,
            "averaged": checkpoint.averaged,
            "optimiser": checkpoint.optimiser,
            "progress": asdict(checkpoint.progress),
            "random": checkpoint.random,
        },
        memory,
    )
    publish(path, memory.getvalue())


def load(path: Path, device: torch.device | str = "cpu") -> Checkpoint:
    """Read a checkpoint of this version.

    Raises:
        TrainingError: no such file, damaged, carrying code, or of another version.
    """
    try:
        data = torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise TrainingError(f"{path} does not exist; give a checkpoint that `train` wrote") from None
    except (IsADirectoryError, PermissionError) as error:
        raise TrainingError(f"{path} cannot be read ({error.strerror}); give a checkpoint file") from None
    except pickle.UnpicklingError:
        raise TrainingError(
            f"{path} is damaged, or holds code besides tensors and plain values and was not read; do not use it"
        ) from None
    except Exception as error:  # a damaged file makes the unpickler stumble in many ways
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise TrainingError(f"{path} is damaged or not a checkpoint ({first[:120]}); use another") from None
    if not isinstance(data, dict):
        raise TrainingError(f"{path} is not a checkpoint of instance-motion")
    found = data.get("format"), data.get("version")
    if found != (FORMAT, VERSION):
        raise TrainingError(
            f"{path} is {found[0]} version {found[1]}, expected {FORMAT} version {VERSION}; "
            "use the release that wrote it"
        )
    if set(data) != KEYS:
        odd = sorted(KEYS ^ set(data))[0]
        raise TrainingError(f"{path}: {odd!r} is {'missing' if odd in KEYS else 'unknown'}; it is damaged")
    try:
        config = from_dict(TrainConfig, json.loads(data["config"]), where=str(path))
        progress = from_dict(Progress, data["progress"], where="progress")
    except (ConfigError, TypeError, ValueError, RecursionError) as error:
        raise TrainingError(f"{path} is damaged ({error})") from None
    for name, is_right in {
        "networks": _holds_tensors(data["networks"]),
        "averaged": data["averaged"] is None or _holds_tensors(data["averaged"]),
        "optimiser": isinstance(data["optimiser"], dict),
        "random": _holds_tensors(data["random"]) and "cpu" in data["random"],
    }.items():
        if not is_right:
            raise TrainingError(f"{path} is damaged ({name} does not hold what it should); use another")
    return Checkpoint(
        config=config,
        networks=data["networks"],
        averaged=data["averaged"],
        optimiser=data["optimiser"],
        progress=progress,
        random=data["random"],
    )


def _holds_tensors(value: Any) -> bool:
    return isinstance(value, dict) and all(map(torch.is_tensor, value.values()))


def find_run(out: Path, resume: bool) -> Checkpoint | None:
    """The checkpoint to go on from, or None for a new run.

    Raises:
        TrainingError: `out` holds a run and `resume` is not set, or the other way round.
    """
    last = out / "last.pt"
    if resume:
        if not last.is_file():
            raise TrainingError(f"{last} does not exist, so there is nothing to resume; leave --resume out")
        return load(last)
    if last.is_file():
        raise TrainingError(f"{out} holds a run already; --resume goes on with it, or choose another folder")
    return None


def require_same(found: TrainConfig, asked: TrainConfig) -> None:
    """Refuse to resume with other settings, as far as they say what is learned from what.

    Raises:
        ConfigError: one line with the first setting that has changed.
    """
    free = {"steps", "device", "init_from", "compile", "checkpoint_every", "validate_every"}
    free |= {"picture_every", "log_every", "bad_steps"}
    before, now = to_dict(found), to_dict(asked)
    for settings in (before, now):
        for name in free:
            settings.pop(name)
        settings["data"].pop("workers")
        settings["data"].pop("start_method")
    if before["data"]["size"] is None or now["data"]["size"] is None:
        # As the shards store them, which a run writes down when it begins.
        before["data"].pop("size"), now["data"].pop("size")
    if change := _first_change(before, now):
        raise ConfigError(f"{change}; resume with the same settings, or start a new run with init_from")


def _first_change(before: Any, now: Any, where: str = "") -> str | None:
    if not (isinstance(before, dict) and isinstance(now, dict)):
        return None if before == now else f"{where} is {now}, the run to resume has {before}"
    each = (_first_change(before[name], now[name], f"{where}.{name}".lstrip(".")) for name in before)
    return next((change for change in each if change), None)


def checkpoint_in(run: Path) -> Path:
    """The checkpoint that is meant by a file, or by a run's folder: its best one, else its last.

    Raises:
        TrainingError: there is none.
    """
    if run.is_file():
        return run
    for name in ("best.pt", "last.pt"):
        if (run / name).is_file():
            return run / name
    raise TrainingError(f"{run}: no best.pt or last.pt there; give a run's folder or a checkpoint")


def restore_networks(checkpoint: Checkpoint, device: torch.device | str) -> Networks:
    """The networks of a checkpoint, with the weights to predict with, in evaluation mode.

    Raises:
        TrainingError: its weights are not those of the networks that it names.
    """
    config = checkpoint.config
    motion = config.objective.motion
    networks = make_networks(config.networks.without_downloads(), motion.object_input, motion.crop_px)
    fill(networks, checkpoint.weights, "the checkpoint")
    return networks.to(device).eval()


def fill(networks: Networks, state: dict[str, torch.Tensor], where: str) -> None:
    """Load weights, all of them.

    Raises:
        TrainingError: one line with the first weight that does not fit.
    """
    own = networks.state_dict()
    odd = sorted(set(own) ^ set(state))
    if odd:
        raise TrainingError(
            f"{where}: weights {odd[0]} are {'missing' if odd[0] in own else 'unknown'}; "
            "its networks are others than the configuration's"
        )
    for name, value in state.items():
        if own[name].shape != value.shape:
            raise TrainingError(
                f"{where}: weights {name} are {tuple(value.shape)}, expected {tuple(own[name].shape)}; "
                "its networks are others than the configuration's"
            )
    networks.load_state_dict(state)


def random_states() -> dict[str, torch.Tensor]:
    """States of torch's random number generators."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states |= {f"cuda:{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    return states


def set_random_states(states: dict[str, torch.Tensor]) -> None:
    """Put back what `random_states` gave; devices that are not here are left out."""
    torch.set_rng_state(states["cpu"].cpu())
    for name, state in states.items():
        if name.startswith("cuda:") and int(name[5:]) < torch.cuda.device_count():
            torch.cuda.set_rng_state(state.cpu(), int(name[5:]))
