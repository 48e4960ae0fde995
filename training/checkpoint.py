"""Checkpoints: one file that a run goes on from exactly, or that others predict with.

A checkpoint holds tensors and plain values only and is read by `pipeline.tensor_files`: a file that
carries code, or claims more than it holds, is refused. Files are written whole or not at all.

    format, version   "instance-motion checkpoint", 2; 1 is read, too: it has neither data nor processes
    config            the resolved configuration, JSON
    data              digests of the shard sets that were trained on
    processes         how many trained together
    networks          state of `training.networks.build.Networks`
    averaged          the same, averaged over steps, or None
    optimiser         state of the optimiser
    progress          step, epoch, step of the epoch, bad steps in a row, best validation loss
    random            states of torch's random number generators, by device
"""

from __future__ import annotations

import io
import json
import math
import pickle
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline.configuration import from_dict, to_dict
from pipeline.errors import ConfigError, TrainingError
from pipeline.shards.hdf5 import publish
from pipeline.tensor_files import are_plain_tensors, is_plain_tensor, read_tensors
from training.config import TrainConfig
from training.networks.build import Networks, NetworksConfig, make_networks

FORMAT, VERSION = "instance-motion checkpoint", 2
KEYS = {"format", "version", "config", "data", "processes", "networks", "averaged", "optimiser"}
KEYS |= {"progress", "random"}


@dataclass(frozen=True)
class Progress:
    """Where a run stands: `step` updates are done; the data go on at `epoch_step` of `epoch`."""

    step: int = 0
    epoch: int = 0
    epoch_step: int = 0
    bad_in_a_row: int = 0
    best_loss: float | None = None

    def __post_init__(self) -> None:
        for name in ("step", "epoch", "epoch_step", "bad_in_a_row"):
            if not 0 <= getattr(self, name) < 1 << 48:
                raise ConfigError(f"progress.{name} is {getattr(self, name):.0f}, expected a count")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What a checkpoint file holds, checked."""

    config: TrainConfig
    data: tuple[str, ...] | None
    processes: int | None
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
            "data": None if checkpoint.data is None else list(checkpoint.data),
            "processes": checkpoint.processes,
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
    """Read a checkpoint of this version or the one before.

    Raises:
        TrainingError: no such file, damaged, carrying code, or of another version.
    """
    try:
        data = read_tensors(path, device)
    except FileNotFoundError:
        raise TrainingError(f"{path} does not exist; give a checkpoint that `train` wrote") from None
    except OSError as error:
        raise TrainingError(f"{path} cannot be read ({error.strerror}); give a checkpoint file") from None
    except pickle.UnpicklingError:
        raise TrainingError(
            f"{path} is damaged, or holds code besides tensors and plain values and was not read; do not use it"
        ) from None
    except ValueError as error:
        raise TrainingError(f"{path} is damaged or not a checkpoint ({error}); use another") from None
    if not isinstance(data, dict):
        raise TrainingError(f"{path} is not a checkpoint of instance-motion")
    if (data.get("format"), data.get("version")) == (FORMAT, 1):
        data = {"data": None, "processes": None, **data, "version": VERSION}
    found = data.get("format"), data.get("version")
    if found != (FORMAT, VERSION):
        raise TrainingError(
            f"{path} is {_word(found[0])} version {_word(found[1])}, expected {FORMAT} version {VERSION}; "
            "use the release that wrote it"
        )
    if set(data) != KEYS:
        odd = min(_word(key) for key in KEYS ^ set(data))
        raise TrainingError(f"{path}: {odd!r} is {'missing' if odd in KEYS else 'unknown'}; it is damaged")
    try:
        config = from_dict(TrainConfig, json.loads(data["config"]), where=str(path))
        progress = from_dict(Progress, data["progress"], where="progress")
    except (ConfigError, TypeError, ValueError, RecursionError) as error:
        raise TrainingError(f"{path} is damaged ({' '.join(str(error).split())})") from None
    for name, is_right in {
        "data": data["data"] is None or _are_words(data["data"], len(config.data.shards)),
        "processes": data["processes"] is None or type(data["processes"]) is int,
        "networks": are_plain_tensors(data["networks"]),
        "averaged": data["averaged"] is None or are_plain_tensors(data["averaged"]),
        "optimiser": isinstance(data["optimiser"], dict),
        "random": are_plain_tensors(data["random"]) and "cpu" in data["random"],
    }.items():
        if not is_right:
            raise TrainingError(f"{path} is damaged ({name} does not hold what it should); use another")
    return Checkpoint(
        config=config,
        data=None if data["data"] is None else tuple(data["data"]),
        processes=data["processes"],
        networks=data["networks"],
        averaged=data["averaged"],
        optimiser=data["optimiser"],
        progress=progress,
        random=data["random"],
    )


def _are_words(value: Any, count: int) -> bool:
    return isinstance(value, list) and len(value) == count and all(isinstance(word, str) for word in value)


def _word(value: Any) -> str:
    """What a file says of itself, where it is a word or a number."""
    return (
        str(value)[:60]
        if value is None or isinstance(value, str | bool | float)
        else (str(value) if isinstance(value, int) and abs(value) < 1 << 63 else f"a {type(value).__name__}")
    )


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
    if (out / "best.pt").is_file():  # of a run that was killed early; it must not pass for the new one's
        raise TrainingError(f"{out} holds a best.pt without last.pt; move it away, or choose another folder")
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


def require_same_samples(found: Checkpoint, digests: Sequence[str], processes: int) -> None:
    """Refuse to resume where the epoch in hand would go on with other samples.

    Raises:
        ConfigError: one line with the first shard set that has been built or masked anew since; or with the
            number of processes that deal an epoch's samples among them.
    """
    if found.data is None:  # of version 1
        return
    if found.processes != processes:
        raise ConfigError(
            f"the run to resume was on {found.processes} process(es), this is on {processes}; resume on as many, "
            "or start a new run with init_from"
        )
    for source, before, now in zip(found.config.data.shards, found.data, digests, strict=True):
        if before != now:
            raise ConfigError(
                f"{source.folder}, layer {source.layer}, is not what the run to resume was trained on: it has been "
                "built or masked anew since; start a new run with init_from"
            )


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
    networks = filled_networks(config, config.networks, checkpoint.weights, "the checkpoint")
    return networks.to(device).eval()


def filled_networks(
    config: TrainConfig, chosen: NetworksConfig, state: dict[str, torch.Tensor], where: str
) -> Networks:
    """The chosen networks with weights from a file.

    Raises:
        TrainingError: one line with the first weight that does not fit; nothing has been allocated then.
    """
    motion, chosen = config.objective.motion, chosen.without_downloads()
    with torch.device("meta"):  # as large as a hostile configuration wants them, and without memory
        require_fit(make_networks(chosen, motion.object_input, motion.crop_px), state, where)
    networks = make_networks(chosen, motion.object_input, motion.crop_px)
    networks.load_state_dict(state)
    return networks


def require_fit(networks: Networks, state: dict[str, torch.Tensor], where: str) -> None:
    """Refuse weights that are not those of the networks, all of them.

    Raises:
        TrainingError: one line with the first weight that does not fit.
    """
    others = "its networks are others than the configuration's"
    own = networks.state_dict()
    if odd := sorted(set(own) ^ set(state)):
        missing = "missing" if odd[0] in own else "unknown"
        raise TrainingError(f"{where}: weights {odd[0][:80]} are {missing}; {others}")
    for name, value in state.items():
        for found, expected in ((tuple(value.shape), tuple(own[name].shape)), (value.dtype, own[name].dtype)):
            if found != expected:
                raise TrainingError(f"{where}: weights {name} are {found}, expected {expected}; {others}")


def restore_optimiser(optimiser: torch.optim.Optimizer, found: dict[str, Any], where: str) -> None:
    """Put back an optimiser's state: of these weights and settings, and nothing else.

    Raises:
        TrainingError: one line with what does not fit.
    """
    own, wrong = optimiser.state_dict(), f"{where} is damaged (optimiser: "
    groups, state = found.get("param_groups"), found.get("state")
    if not (isinstance(groups, list) and isinstance(state, dict) and len(groups) == len(own["param_groups"])):
        raise TrainingError(
            f"{wrong}expected {len(own['param_groups'])} groups and their state); use another"
        )
    for number, (group, expected) in enumerate(zip(groups, own["param_groups"], strict=True)):
        for name, value in expected.items():
            # The rate follows the step; what another release of torch does not know keeps its default.
            same = isinstance(group, dict) and (
                _is_rate(group.get(name)) if name == "lr" else _same(group.get(name, value), value)
            )
            if not same:
                raise TrainingError(f"{wrong}{name} of group {number} is another); use another")
    weights = [each for group in optimiser.param_groups for each in group["params"]]
    for index, values in state.items():
        fits = (
            isinstance(index, int)
            and 0 <= index < len(weights)
            and isinstance(values, dict)
            and set(values) == {"step", "exp_avg", "exp_avg_sq"}
            and all(map(is_plain_tensor, values.values()))
            and all(
                value.shape == (torch.Size() if name == "step" else weights[index].shape)
                and value.dtype == torch.float32
                for name, value in values.items()
            )
        )
        if not fits:
            raise TrainingError(
                f"{wrong}what it knows of weight {_word(index)} does not fit it); use another"
            )
    optimiser.load_state_dict(found)


def _is_rate(value: Any) -> bool:
    return isinstance(value, float) and 0 <= value < math.inf


def _same(found: Any, expected: Any) -> bool:
    """Equal plain values; lists of numbers may have become tuples."""
    if isinstance(expected, (list, tuple)):
        return (
            isinstance(found, (list, tuple))
            and len(found) == len(expected)
            and all(map(_same, found, expected))
        )
    return type(found) is type(expected) and found == expected


def random_states() -> dict[str, torch.Tensor]:
    """States of torch's random number generators."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states |= {f"cuda:{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    return states


def set_random_states(states: dict[str, torch.Tensor]) -> None:
    """Put back what `random_states` gave; devices that are not here are left out.

    Raises:
        TrainingError: not a state of such a generator.
    """
    try:
        torch.set_rng_state(states["cpu"].cpu())
        for number in range(torch.cuda.device_count()):
            if f"cuda:{number}" in states:
                torch.cuda.set_rng_state(states[f"cuda:{number}"].cpu(), number)
    except (RuntimeError, TypeError) as error:
        reason = str(error).splitlines()[0][:120]
        raise TrainingError(f"the checkpoint is damaged (random: {reason}); use another") from None
