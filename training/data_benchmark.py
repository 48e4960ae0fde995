"""What a training sample costs: `python -m training.data_benchmark SHARDS [--workers 0 1 2]`.

Prints CPU milliseconds a sample, medians over the samples, of each part of its way, and samples a
second as a training loop would get them. Reading is from the page cache after the first round.

    read      blobs from HDF5, JPEG and label maps decoded, matches looked up
    assemble  scale, crop, flip, colour; instances numbered
    collate   stacked to a batch of 8-bit frames
    unpack    8-bit frames to floats, in the training process
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import cv2
import torch

from training.batches import assemble, collate
from training.data import DataConfig, ShardSource, WindowDataset, make_loader
from training.sampler import Sampler, SamplerState

T = TypeVar("T")

RELEASED_CODE_CPU_S = 0.53
"""CPU seconds a sample of the released Insta-DM loader at 832x256: triplet, masks matched, augmented."""


@dataclass(frozen=True, kw_only=True)
class SampleCost:
    """CPU seconds a sample; medians."""

    read_s: float
    assemble_s: float
    collate_s: float
    unpack_s: float

    @property
    def total_s(self) -> float:
        return self.read_s + self.assemble_s + self.collate_s + self.unpack_s


def sample_benchmark(config: DataConfig, batches: int = 25) -> SampleCost:
    """Time every part of a sample's way in this process, on one thread, after one unmeasured batch."""
    dataset = WindowDataset(config)
    sampler = Sampler(
        windows=tuple(map(len, dataset.windows)),
        weights=tuple(source.weight for source in config.shards),
        batch_size=config.batch_size,
        epoch_size=(batches + 1) * config.batch_size,
        seed=config.seed,
    )
    seconds: dict[str, list[float]] = {"read": [], "assemble": [], "collate": [], "unpack": []}
    for keys in sampler.batches(SamplerState()):
        samples = []
        for key in keys:
            stored, spent = _timed(lambda key=key: dataset.read(key.set_index, key.window))  # type: ignore[misc]
            seconds["read"].append(spent)
            change = dataset.augmentation(key)
            sample, spent = _timed(lambda stored=stored, change=change: assemble(stored, change))  # type: ignore[misc]
            seconds["assemble"].append(spent)
            samples.append(sample)
        packed, spent = _timed(lambda samples=samples: collate(samples, dataset.size, config.frames))  # type: ignore[misc]
        seconds["collate"].append(spent / len(keys))
        _, spent = _timed(packed.unpack)
        seconds["unpack"].append(spent / len(keys))
    warm = {name: values[len(values) // (batches + 1) :] for name, values in seconds.items()}
    return SampleCost(**{f"{name}_s": statistics.median(values) for name, values in warm.items()})


def throughput(config: DataConfig, batches: int = 25, device: torch.device | str = "cpu") -> float:
    """Samples a second that a loop gets which does nothing else; start-up is not counted."""
    loader = make_loader(
        replace(config, epoch_size=(batches + 1) * config.batch_size), split="all", device=device
    )
    arriving = iter(loader)
    next(arriving)
    begin, count = time.perf_counter(), 0
    for batch in arriving:
        count += len(batch)
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
    return count / (time.perf_counter() - begin)


def _timed(function: Callable[[], T]) -> tuple[T, float]:
    begin = time.process_time()
    return function(), time.process_time() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description="What a training sample costs.")
    parser.add_argument("shards", type=Path, help="a shard set")
    parser.add_argument("--layer", default="default", help="masks layer (default: default)")
    parser.add_argument("--frames", type=int, default=3, help="frames of a window (default 3)")
    parser.add_argument("--batch-size", type=int, default=4, help="samples of a batch (default 4)")
    parser.add_argument("--batches", type=int, default=25, help="batches to time (default 25)")
    parser.add_argument("--jitter", type=float, default=0.0, help="probability of new colours (default 0)")
    parser.add_argument("--workers", type=int, nargs="*", default=(0, 1, 2), help="worker counts to try")
    parser.add_argument("--device", default="cpu", help="where batches are wanted (default cpu)")
    options = parser.parse_args()

    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    config = DataConfig(
        shards=(ShardSource(options.shards, options.layer),),
        frames=options.frames,
        batch_size=options.batch_size,
        augment=replace(DataConfig().augment, jitter=options.jitter),
        skip_static=False,
    )
    cost = sample_benchmark(config, options.batches)
    dataset = WindowDataset(config)
    width, height = dataset.size
    print(
        f"{options.shards.name}: windows of {config.frames} frames, {width}x{height}, B {config.batch_size}"
    )
    for name in ("read", "assemble", "collate", "unpack"):
        print(f"{name:<10}{1000 * getattr(cost, name + '_s'):>8.2f} CPU ms a sample")
    ratio = RELEASED_CODE_CPU_S / cost.total_s
    print(
        f"{'in all':<10}{1000 * cost.total_s:>8.2f} CPU ms; released code 530 at 832x256: {ratio:.0f} times"
    )
    for workers in options.workers:
        rate = throughput(replace(config, workers=workers), options.batches, options.device)
        print(f"{workers} workers{rate:>8.0f} samples/s on {options.device}")


if __name__ == "__main__":
    main()
