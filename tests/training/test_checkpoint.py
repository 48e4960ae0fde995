"""Checkpoints: what is saved is what is loaded, and what is no checkpoint is said to be none."""

from __future__ import annotations

import json
import os
import pickle
import resource
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.errors import TrainingError
from tests.faults.table import Fault
from tests.training.runs import difference, settings
from training import checkpoint
from training.checkpoint import Checkpoint, Progress
from training.loop import make_optimiser
from training.networks.build import make_networks


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Everything a run has after one step, without the step."""
    config = settings(tmp_path_factory.mktemp("shards"))
    torch.manual_seed(7)
    networks = make_networks(config.networks, "crop", config.objective.motion.crop_px)
    optimiser = make_optimiser(networks, config.optimise)
    for weights in networks.parameters():
        weights.grad = torch.full_like(weights, 0.5)
    optimiser.step()
    return Checkpoint(
        config=config,
        data=("0a1b",),
        processes=1,
        networks=networks.state_dict(),
        averaged={name: value / 2 for name, value in networks.state_dict().items()},
        optimiser=optimiser.state_dict(),
        progress=Progress(step=7, epoch=2, epoch_step=1, bad_in_a_row=1, best_loss=0.25),
        random=checkpoint.random_states(),
    )


@pytest.fixture
def file(made: Checkpoint, tmp_path: Path) -> Path:
    path = tmp_path / "run" / "last.pt"
    checkpoint.save(path, made)
    return path


@pytest.fixture
def small(made: Checkpoint, tmp_path: Path) -> Path:
    """The same format, with little in it."""
    path = tmp_path / "small.pt"
    checkpoint.save(path, replace(made, networks={"a": torch.zeros(9)}, averaged=None, optimiser={}))
    return path


def refused(path: Path) -> str:
    with pytest.raises(TrainingError) as error:
        checkpoint.load(path)
    message = str(error.value)
    assert message.startswith(str(path))
    assert len(message.splitlines()) == 1
    return message.removeprefix(str(path))


# ---------------------------------------------------------------------------- there and back


def test_what_is_saved_is_what_is_loaded(made: Checkpoint, file: Path) -> None:
    found = checkpoint.load(file)
    assert (found.config, found.progress) == (made.config, made.progress)
    for part in ("networks", "averaged", "optimiser", "random"):
        assert difference(getattr(made, part), getattr(found, part), part) is None
    assert [path.name for path in file.parent.iterdir()] == ["last.pt"]


def test_averaged_weights_are_those_to_predict_with(made: Checkpoint) -> None:
    assert made.weights is made.averaged
    assert replace(made, averaged=None).weights is made.networks
    restored = checkpoint.restore_networks(made, "cpu")
    assert not restored.training
    assert difference(dict(restored.state_dict()), dict(made.weights)) is None


def test_random_numbers_go_on_where_they_were(made: Checkpoint) -> None:
    checkpoint.set_random_states(made.random)
    first = torch.rand(3)
    torch.rand(5)
    checkpoint.set_random_states(made.random)
    assert torch.equal(torch.rand(3), first)


def test_object_motion_and_heights_have_a_rate_of_their_own(made: Checkpoint) -> None:
    networks = make_networks(made.config.networks, "crop", 32)
    config = replace(made.config.optimise, rate=1e-3, object_rate=5.0)
    scene, objects = make_optimiser(networks, config).param_groups
    assert (scene["lr"], objects["lr"]) == pytest.approx((1e-3, 5e-3))
    own = {id(weights) for weights in [*networks.objects.parameters(), networks.log_height]}
    assert {id(weights) for weights in objects["params"]} == own
    assert len(scene["params"]) + len(objects["params"]) == len(list(networks.parameters()))


def test_a_folder_stands_for_its_best_checkpoint_else_its_last(file: Path, tmp_path: Path) -> None:
    assert checkpoint.checkpoint_in(file) == file
    assert checkpoint.checkpoint_in(file.parent) == file
    best = file.with_name("best.pt")
    best.write_bytes(b"")
    assert checkpoint.checkpoint_in(file.parent) == best
    with pytest.raises(TrainingError, match=r"no best\.pt or last\.pt there; give a run's folder or a check"):
        checkpoint.checkpoint_in(tmp_path)


@pytest.mark.fault(Fault.DISK_FULL)
def test_a_full_disk_leaves_the_old_checkpoint(made: Checkpoint, file: Path) -> None:
    """In a child process that may write files of a megabyte at most."""
    before = file.read_bytes()
    child = os.fork()
    if not child:
        code = 1
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
            checkpoint.save(file, replace(made, progress=Progress(step=8)))
        except OSError:
            code = 17
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 17
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == ["last.pt"]


# ---------------------------------------------------------------------------- what is refused


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    assert refused(tmp_path / "none.pt") == " does not exist; give a checkpoint that `train` wrote"


def test_a_folder_is_no_checkpoint(tmp_path: Path) -> None:
    assert refused(tmp_path) == " cannot be read (Is a directory); give a checkpoint file"


@pytest.mark.fault(Fault.HOSTILE_CHECKPOINT)
@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, -1])
def test_a_file_that_was_cut_short(keep: float, small: Path) -> None:
    data = small.read_bytes()
    small.write_bytes(data[: int(keep * len(data)) if keep == 0.5 else int(keep)])
    assert " is damaged" in refused(small)


@pytest.mark.fault(Fault.HOSTILE_CHECKPOINT)
@pytest.mark.parametrize(
    "content", [b"PK\x03\x04" + b"\0" * 40, b"\x80\x02.", b"\x80\x02u.", b"text", b"\xff" * 99]
)
def test_a_file_of_something_else(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "odd.pt"
    path.write_bytes(content)
    assert " is damaged" in refused(path)


class Code:
    """What runs a command as soon as it is unpickled."""

    def __init__(self, evidence: Path) -> None:
        self.evidence = evidence

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.evidence),)


@pytest.mark.fault(Fault.HOSTILE_CHECKPOINT)
@pytest.mark.parametrize("how", ["pickle", "torch", "beside weights"])
def test_a_file_that_carries_code_is_refused_and_not_run(how: str, small: Path, tmp_path: Path) -> None:
    evidence = tmp_path / "was_here"
    if how == "pickle":
        small.write_bytes(pickle.dumps(Code(evidence), protocol=2))
    else:
        content = torch.load(small, weights_only=True) if how == "beside weights" else {}
        torch.save({**content, "random": Code(evidence)}, small)
    assert "holds code besides tensors and plain values and was not read; do not use it" in refused(small)
    assert not evidence.exists()


@pytest.mark.fault(Fault.HOSTILE_CHECKPOINT)
def test_what_torch_saved_for_somebody_else(tmp_path: Path) -> None:
    path = tmp_path / "other.pt"
    torch.save([torch.zeros(2)], path)
    assert refused(path) == " is not a checkpoint of instance-motion"
    torch.save({"state_dict": {}}, path)
    assert "is None version None, expected instance-motion checkpoint version 2" in refused(path)


@pytest.mark.fault(Fault.HOSTILE_CHECKPOINT)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 3}, " is instance-motion checkpoint version 3, expected instance-motion checkpoint version 2; use the release that wrote it"),
        ({"format": "instance-shard"}, " is instance-shard version 2, expected"),
        ({"processes": "two"}, " is damaged (processes does not hold"),
        ({"data": ...}, ": 'data' is missing; it is damaged"),
        ({"data": "0a1b"}, " is damaged (data does not hold what it should); use another"),
        ({"data": [7]}, " is damaged (data does not hold"),
        ({"data": []}, " is damaged (data does not hold"),
        ({"extra": 1}, ": 'extra' is unknown; it is damaged"),
        ({"random": ...}, ": 'random' is missing; it is damaged"),
        ({"config": "{"}, " is damaged (Expecting property name"),
        ({"config": "[" * 100_000}, " is damaged (maximum recursion depth"),
        ({"config": 3}, " is damaged (the JSON object must be"),
        ({"config": json.dumps({"step": 3})}, "unknown key 'step'"),
        ({"config": json.dumps({"steps": "many"})}, "steps: expected int, found 'many'"),
        ({"config": json.dumps({"steps": 0})}, "steps must be at least 1, got 0"),
        ({"progress": 3}, "progress: expected a mapping, found int"),
        ({"progress": {"step": "x"}}, "progress.step: expected int, found 'x'"),
        ({"progress": {"stop": 1}}, "progress: unknown key 'stop'"),
        ({"networks": 3}, " is damaged (networks does not hold what it should); use another"),
        ({"networks": {"a": 3}}, " is damaged (networks does not hold"),
        ({"averaged": [1]}, " is damaged (averaged does not hold"),
        ({"optimiser": None}, " is damaged (optimiser does not hold"),
        ({"random": {}}, " is damaged (random does not hold"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)  # fmt: skip
def test_content_that_is_not_right(change: dict[str, Any], message: str, small: Path) -> None:
    content = {**torch.load(small, weights_only=True), **change}
    torch.save({name: value for name, value in content.items() if value is not ...}, small)
    assert message in refused(small)


def test_checkpoints_of_version_1_had_no_data_and_are_read(small: Path) -> None:
    content = torch.load(small, weights_only=True)
    del content["data"], content["processes"]
    torch.save({**content, "version": 1}, small)
    assert checkpoint.load(small).data is None


@pytest.mark.fault(Fault.HOSTILE_CHECKPOINT)
def test_weights_that_do_not_fit_are_named(made: Checkpoint) -> None:
    name = "ego.last.weight"
    without = {key: value for key, value in made.networks.items() if key != name}
    for weights, message in (
        (without, f"weights {name} are missing"),
        ({**made.networks, "ego.more": torch.zeros(1)}, "weights ego.more are unknown"),
        ({**made.networks, name: torch.zeros(6, 3)}, f"weights {name} are (6, 3), expected (6, 64, 1, 1)"),
    ):
        with pytest.raises(TrainingError) as error:
            checkpoint.restore_networks(replace(made, averaged=weights), "cpu")
        assert str(error.value) == (
            f"the checkpoint: {message}; its networks are others than the configuration's"
        )
