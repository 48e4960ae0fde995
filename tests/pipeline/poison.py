"""Clips for fault tests: one that kills its process, one that fails, one that is fine."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from pipeline.camera import Camera, pinhole
from pipeline.errors import SourceError
from pipeline.sources.clip import Clip

SIZE = (64, 48)


@dataclass(frozen=True)
class Reader:
    """Noise; at frame 3 it does what it is told to."""

    fault: str
    first: int = 0

    def part(self, start: int, stop: int) -> Reader:
        return replace(self, first=self.first + start)

    def frames(self, start: int, stop: int) -> Iterator[np.ndarray]:
        for index in range(self.first + start, self.first + stop):
            if index == 3 and self.fault == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if index == 3 and self.fault == "damage":
                raise SourceError("frame 3 is damaged")
            if index == 3 and self.fault == "bug":
                raise KeyError("a bug of ours")
            rng = np.random.default_rng(index)
            yield rng.integers(0, 255, (SIZE[1], SIZE[0], 3), np.uint8)


def clip(name: str, fault: str = "", frames: int = 6) -> Clip:
    return Clip(
        name=name,
        timestamps_s=np.arange(frames) * 0.1,
        frame_names=tuple(f"{i:06d}" for i in range(frames)),
        camera=Camera(K=pinhole(50, 50, 31.5, 23.5), size=SIZE),
        reader=Reader(fault),
        fingerprint=name,
    )
