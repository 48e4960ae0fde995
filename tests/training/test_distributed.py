"""Two processes on this machine, and one that takes all their samples: the same losses, the same weights."""

from __future__ import annotations

import os
import signal
import socket
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.faults.table import Fault
from tests.training.runs import checkpoint_of, finish, settings, start, wait_for_step
from training.data import make_loader
from training.loop import train
from training.networks.build import make_networks
from training.record import read_metrics
from training.world import World

LOSSES, WEIGHTS = 2e-5, 1e-3
"""Of a loss, and of the way that a network's weights have come. Measured: 5e-7 and 6e-5, for sums in
float32 in another order: Adam divides small gradients by their own size, so that their rounding
weighs like that of large ones."""


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def launcher() -> tuple[str, ...]:
    where = ("--master-addr", "127.0.0.1", "--master-port", free_port())
    return ("-m", "torch.distributed.run", "--nproc-per-node", "2", *where)


def test_two_processes_learn_what_one_learns_from_the_doubled_batch(
    street_shards: Path, tmp_path: Path
) -> None:
    """Before and after the instances come in, with batches in which one process has none of them,
    and held-out windows of which one process gets fewer."""
    one = settings(
        street_shards,
        steps=5,
        data_min_area=300,
        objective_auto_mask=False,  # a pixel that just passes for one may just not for the other
        objective_instances_from=2,
        optimise_rate=1e-4,
        validate_every=3,
    )
    two = replace(one, data=replace(one.data, batch_size=1))
    rows_with_instances = [(batch.classes >= 0).flatten(1).any(1).tolist() for batch in make_loader(one.data)]
    assert [False, True] in rows_with_instances[2:] or [True, False] in rows_with_instances[2:]
    assert one.data.validation_size == 3

    out = tmp_path / "two"
    process = start(two, out, launcher=launcher())
    train(one, tmp_path / "one", quiet=True, say=lambda line: None)
    code, said = finish(process, out)
    assert code == 0, said
    assert said.count("2 x cpu") == 1  # only one of them talks

    expected, found = read_metrics(tmp_path / "one"), read_metrics(tmp_path / "two")
    assert [list(row) for row in found] == [list(row) for row in expected]
    for row, reference in zip(found, expected, strict=True):
        assert row.pop("kind") == reference.pop("kind")
        assert row == pytest.approx(reference, rel=LOSSES, abs=1e-7)
    both = checkpoint_of(tmp_path / "one"), checkpoint_of(tmp_path / "two")
    assert both[0].progress.step == both[1].progress.step == 5
    torch.manual_seed(one.training_seed)
    first = make_networks(one.networks, "crop", one.objective.motion.crop_px).state_dict()
    for network in ("depth", "ego", "objects", "log_height"):
        begin, a, b = (
            torch.cat([value.flatten() for name, value in state.items() if name.startswith(network)])
            for state in (first, both[0].networks, both[1].networks)
        )
        assert (a - b).norm() <= WEIGHTS * (a - begin).norm()
        assert (a - begin).norm() > 1e-3


@pytest.mark.slow
@pytest.mark.fault(Fault.STOPPED)
def test_ctrl_c_stops_all_processes_after_the_same_step(street_shards: Path, tmp_path: Path) -> None:
    config = settings(street_shards, data_batch_size=1, steps=10_000, optimise_schedule="constant")
    out = tmp_path / "run"
    process = start(config, out, launcher=launcher())
    wait_for_step(process, out, 1)
    os.killpg(process.pid, signal.SIGINT)
    _, said = finish(process, out)
    done = checkpoint_of(out).progress.step
    assert f"interrupted: stopped after step {done}; the same command with --resume" in said

    process = start(replace(config, steps=done + 2), out, "--resume", launcher=launcher())
    assert finish(process, out)[0] == 0
    assert checkpoint_of(out).progress.step == done + 2


# ---------------------------------------------------------------------------- one process alone


def test_a_world_of_one_exchanges_with_nobody() -> None:
    world = World(0, 1, torch.device("cpu"))
    values = {"total": torch.tensor(3.0), "size": torch.tensor(0.25)}
    assert world.leads
    assert world.means(values, ("total", "photometric", "size")) == {"total": 3.0, "size": 0.25}
    assert world.any_of([True, False]) == [True, False]
    with pytest.raises(ValueError, match="'odd'.* are not among"):
        world.means({"odd": torch.tensor(1.0)}, ("total",))
