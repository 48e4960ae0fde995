"""Which windows make up which batch: a pure function of (seed, epoch, step).

An epoch has a fixed number of samples, shared out between the shard sets by their weights.
The windows of a set are dealt like cards: pass after pass over all of them, each in an order of
its own, and an epoch takes up where the one before left off. So every window is seen equally
often, also when an epoch is shorter than the set or longer.

Nothing depends on the number of workers; with several ranks, rank r takes rows r, r + world, ...
of each global batch. Random numbers come from Philox's raw output, whose stream NumPy promises not
to change between releases (that of `Generator.permutation` it may).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from pipeline.errors import ConfigError

_DEAL, _INTERLEAVE, _AUGMENT = range(3)  # what a random number is for; keeps the streams apart


class SampleKey(NamedTuple):
    """One sample: `position` counts the epoch's samples over all ranks; set and window are indices."""

    epoch: int
    position: int
    set_index: int
    window: int


@dataclass(frozen=True)
class SamplerState:
    """Where training stands: `step` batches of `epoch` are done, the next one is batch `step`."""

    epoch: int = 0
    step: int = 0

    def __post_init__(self) -> None:
        if self.epoch < 0 or self.step < 0:
            raise ConfigError(f"epoch and step count from 0, got {self.epoch} and {self.step}")


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """The order of samples.

    windows:    windows in each shard set
    weights:    share of each set in an epoch's samples, in any unit
    epoch_size: samples of an epoch over all ranks; None is as many as there are windows
    batch_size: samples of a batch on one rank
    shuffle:    False: windows in stored order, the same in every epoch (weights do not count); fewer
                than there are, if epoch_size says so, spread evenly
    drop_last:  leave out the epoch's last batch if it is not full

    Raises:
        ConfigError: no window, or fewer samples than one batch takes.
    """

    windows: tuple[int, ...]
    weights: tuple[float, ...]
    batch_size: int
    seed: int = 0
    epoch_size: int | None = None
    shuffle: bool = True
    drop_last: bool = True
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world:
            raise ConfigError(f"rank {self.rank} of {self.world} processes; ranks count from 0")
        if not sum(self.windows):
            raise ConfigError("there is no window to train on; see what `describe` says of the data")
        if self.steps == 0:
            raise ConfigError(
                f"an epoch of {self.samples} samples is shorter than one batch of "
                f"{self.batch_size} x {self.world}; lower batch_size or raise epoch_size"
            )

    @property
    def samples(self) -> int:
        """Samples of an epoch, all ranks together."""
        total = sum(self.windows)
        if self.epoch_size is None:
            return total
        return self.epoch_size if self.shuffle else min(self.epoch_size, total)

    @property
    def steps(self) -> int:
        """Batches of an epoch, the same number on every rank."""
        batch = self.batch_size * self.world
        return self.samples // batch if self.drop_last else -(-self.samples // batch)

    def order(self, epoch: int) -> np.ndarray:
        """(samples, 2) int64: set and window of each sample of an epoch."""
        if not self.shuffle:
            rows = [(s, w) for s, count in enumerate(self.windows) for w in range(count)]
            picks = np.arange(self.samples) * len(rows) // self.samples
            return np.array(rows, np.int64)[picks]
        shares = apportion(self.samples, self.weights)
        rows_of_sets = [
            np.stack([np.full(share, index), self._deal(index, epoch * share, share)], axis=1)
            for index, share in enumerate(shares)
            if share
        ]
        return np.concatenate(rows_of_sets)[permutation(self.samples, self.seed, _INTERLEAVE, epoch)]

    def batches(self, state: SamplerState) -> Iterator[list[SampleKey]]:
        """This rank's batches from `state` to the end of its epoch."""
        order, batch = self.order(state.epoch), self.batch_size * self.world
        for step in range(state.step, self.steps):
            positions = range(step * batch, min((step + 1) * batch, self.samples))[self.rank :: self.world]
            yield [SampleKey(state.epoch, position, *map(int, order[position])) for position in positions]

    def after(self, state: SamplerState) -> SamplerState:
        """The state once the batch that `state` points to is done."""
        last = state.step + 1 >= self.steps
        return SamplerState(state.epoch + 1, 0) if last else SamplerState(state.epoch, state.step + 1)

    def _deal(self, index: int, first: int, count: int) -> np.ndarray:
        """Cards first..first+count-1 of a set's endless deck."""
        windows = self.windows[index]
        passes = range(first // windows, (first + count - 1) // windows + 1)
        deck = np.concatenate([permutation(windows, self.seed, _DEAL, index, number) for number in passes])
        begin = first - passes[0] * windows
        return deck[begin : begin + count]


def apportion(total: int, weights: Sequence[float]) -> list[int]:
    """Whole shares of `total` in the ratio of `weights`: largest remainders, ties to the first."""
    exact = np.asarray(weights, np.float64) / np.sum(weights) * total
    shares = np.floor(exact).astype(np.int64)
    for index in np.argsort(shares - exact, kind="stable")[: total - int(shares.sum())]:
        shares[index] += 1
    return [int(share) for share in shares]


def permutation(count: int, *key: int) -> np.ndarray:
    """(count,) int64: an order of 0..count-1 that depends on `key` alone."""
    return np.argsort(_raw(count, key), kind="stable")


def augmentation_numbers(count: int, seed: int, epoch: int, position: int) -> np.ndarray:
    """(count,) float64 in [0, 1): the random numbers of one sample."""
    return (_raw(count, (seed, _AUGMENT, epoch, position)) >> np.uint64(11)) * 2.0**-53


def _raw(count: int, key: tuple[int, ...]) -> np.ndarray:
    return np.random.Philox(np.random.SeedSequence(key)).random_raw(count)
