"""The processes that train together: one, or those that `torchrun` started."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.errors import ConfigError


@dataclass(frozen=True)
class World:
    """This process (`rank`, from 0) among `size`, and the device that it computes on."""

    rank: int
    size: int
    device: torch.device

    @property
    def leads(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def mean(self, value: Tensor) -> Tensor:
        """Mean over all processes."""
        if self.size == 1:
            return value
        total = value.clone()
        dist.all_reduce(total)
        return total / self.size

    def means(self, values: dict[str, Tensor], names: Sequence[str]) -> dict[str, float]:
        """Mean of each value over all processes, in the order of `names`.

        Where a process lacks a value it counts as 0; a value that all lack is left out. So all
        exchange the same numbers, whichever of them had a batch without instances.

        Raises:
            ValueError: a value that is not among `names`.
        """
        if strange := set(values) - set(names):
            raise ValueError(f"{sorted(strange)} are not among {list(names)}")
        absent = torch.zeros((), device=self.device)
        there = torch.tensor([float(name in values) for name in names], device=self.device)
        found = torch.stack([values.get(name, absent).detach() for name in names])
        mean, share = self.mean(torch.stack([found, there])).tolist()
        return {name: value for name, value, seen in zip(names, mean, share, strict=True) if seen}

    def any(self, flag: bool) -> bool:
        """Whether any process says so; all get the same answer."""
        return self.any_of([flag])[0]

    def any_of(self, flags: Sequence[bool]) -> list[bool]:
        """The same for several questions at once."""
        if self.size == 1:
            return list(flags)
        votes = torch.tensor([float(flag) for flag in flags], device=self.device)
        dist.all_reduce(votes, op=dist.ReduceOp.MAX)
        return [bool(vote) for vote in votes.tolist()]

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            dist.barrier()


@contextmanager
def join_world(device: str) -> Iterator[World]:
    """The world that the environment describes (RANK, WORLD_SIZE, LOCAL_RANK, as `torchrun` sets them).

    Args:
        device: auto, cpu, cuda, cuda:1; with several processes each takes the GPU of its local rank.

    Raises:
        ConfigError: a device that is not there.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    chosen = choose_device(device, local if size > 1 else None)
    if size == 1:
        yield World(0, 1, chosen)
        return
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield World(rank, size, chosen)
    finally:
        dist.destroy_process_group()


def choose_device(name: str, local_rank: int | None = None) -> torch.device:
    """The device that a setting means.

    Raises:
        ConfigError: it is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device {name!r} is none; use auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda":
        count = torch.cuda.device_count()
        index = local_rank if local_rank is not None else device.index or 0
        if index >= count:
            raise ConfigError(f"device cuda:{index} asked for, {count} GPUs are here; use device cpu")
        device = torch.device("cuda", index)
    return device
