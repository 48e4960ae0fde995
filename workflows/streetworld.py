"""`instance-motion streetworld`: render the benchmark of named seeds, with its truth."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Literal

import torch

from pipeline.errors import BuildError, ConfigError
from pipeline.progress import Bar
from pipeline.streetworld.clip import ClipConfig, is_rendered, render_clip
from pipeline.streetworld.render import Jitter

FIRST_SEED: dict[str, int] = {"train": 0, "val": 100_000, "test": 200_000}
"""Seeds of the splits: 100,000 each, so that no clip is in two."""

Split = Literal["train", "val", "test", "all"]


def render(
    out: Path,
    split: Split = "all",
    clips: int = 10,
    frames: int = 24,
    size: tuple[int, int] = (416, 128),
    fps: float = 10.0,
    workers: int = 2,
    first: int = 0,
    device: str = "cpu",
    exposure_jitter: float = 0.0,
    pixel_noise: float = 0.0,
) -> list[Path]:
    """Render synthetic streets with exact truth into OUT/SPLIT/SPLIT_NNNN/.

    Clip n of a split always shows the same seed, so names are a benchmark. Clips that are
    already there are kept; run the command again to go on after an interruption. The files
    are the same whatever the number of workers.

    Args:
        out: Folder for the clips.
        split: Which seeds: train, val, test, or all three.
        clips: Clips of each split.
        frames: Frames of each clip.
        size: Width and height in pixels, even numbers.
        fps: Frames a second.
        workers: Processes, one CPU thread each.
        first: Number of the first clip; each split has 100,000.
        device: Where to render: cpu, cuda.
        exposure_jitter: Standard deviation of the log brightness from frame to frame.
        pixel_noise: Standard deviation of pixel noise, of 255.

    Returns:
        The clip folders, in order.
    """
    config = ClipConfig(
        frames=frames, size=size, fps=fps, jitter=Jitter(exposure=exposure_jitter, noise=pixel_noise)
    )
    if clips < 1 or first < 0 or first + clips > 100_000:
        raise ConfigError(f"clips {first}..{first + clips - 1} asked for; a split has clips 0..99999")
    if workers < 1:
        raise ConfigError(f"workers must be 1 or more, got {workers}")
    splits = list(FIRST_SEED) if split == "all" else [split]
    jobs = [
        (out / name / f"{name}_{n:04d}", FIRST_SEED[name] + n)
        for name in splits
        for n in range(first, first + clips)
    ]
    missing = [(folder, seed) for folder, seed in jobs if not is_rendered(folder, seed, config)]
    started = time.monotonic()
    with Bar(total=len(jobs), initial=len(jobs) - len(missing), unit="clip", desc="streetworld") as bar:
        for done, _ in enumerate(_render_all(missing, config, device, workers), 1):
            bar.update()
            bar.set_postfix_str(f"{done * frames / (time.monotonic() - started):.1f} frames/s")
    return [folder for folder, _ in jobs]


def _render_all(
    jobs: list[tuple[Path, int]], config: ClipConfig, device: str, workers: int
) -> Iterator[Path]:
    """Render in parallel, yielding folders as they are finished."""
    if workers == 1 or len(jobs) < 2:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            for folder, seed in jobs:
                render_clip(folder, seed, config, device)
                yield folder
        finally:
            torch.set_num_threads(threads)
        return
    # Spawned, not forked: torch and CUDA do not survive a fork.
    pool = ProcessPoolExecutor(
        min(workers, len(jobs)), mp_context=multiprocessing.get_context("spawn"), initializer=_start_worker
    )
    waiting = iter(jobs)
    running: dict[Future[None], Path] = {}
    try:
        while True:
            # A short queue, so that an interruption waits only for the clips in hand.
            while len(running) < 2 * workers and (job := next(waiting, None)) is not None:
                running[pool.submit(render_clip, *job, config, device)] = job[0]
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                folder = running.pop(future)
                future.result()
                yield folder
    except BrokenProcessPool as error:
        raise BuildError(
            "a renderer was killed (out of memory?); run the same command again to go on, with fewer workers"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker() -> None:
    """One thread a worker; Ctrl-C is the parent's to handle, the clip in hand is finished."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
