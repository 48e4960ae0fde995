"""How fast streets are rendered: `python -m pipeline.streetworld.benchmark [WIDTH HEIGHT [DEVICE]]`.

One thread, one clip of every scenario, times of rendering alone (no video, no truth file):
CPU seconds on a CPU, so that other work on the machine counts little, else wall clock.
"""

from __future__ import annotations

import sys
import time
from statistics import median

import torch

from pipeline.streetworld.render import render_frames
from pipeline.streetworld.scene import draw_scene
from pipeline.streetworld.world import SCENARIOS

FRAMES = 5


def measure(size: tuple[int, int] = (416, 128), device: str = "cpu") -> dict[str, float]:
    """Median seconds a frame of each scenario, on one thread."""
    torch.set_num_threads(1)
    clock = time.process_time if device == "cpu" else time.perf_counter
    seconds = {}
    for seed, scenario in enumerate(SCENARIOS):
        times = []
        frames = render_frames(draw_scene(seed, FRAMES, size), device)
        for _ in range(FRAMES):
            start = clock()
            next(frames)
            times.append(clock() - start)
        seconds[scenario] = median(times[1:])  # the first one also builds the scene's tables
    return seconds


def main(arguments: list[str]) -> None:
    size = (int(arguments[0]), int(arguments[1])) if len(arguments) > 1 else (416, 128)
    device = arguments[2] if len(arguments) > 2 else "cpu"
    seconds = measure(size, device)
    print(f"{size[0]}x{size[1]} on {device}, one thread")
    for scenario, value in seconds.items():
        print(f"  {scenario:12} {1000 * value:6.0f} ms a frame")
    mean = sum(seconds.values()) / len(seconds)
    print(f"  {'mean':12} {1000 * mean:6.0f} ms a frame, {1 / mean:.1f} frames/s a thread")


if __name__ == "__main__":
    main(sys.argv[1:])
