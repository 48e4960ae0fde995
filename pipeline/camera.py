"""Pinhole intrinsics, lens distortion, and what resizing and cropping do to them.

Pixels are (u, v), u right, v down, and (0, 0) is the CENTRE of the top-left pixel.
Cameras look along +z, x right, y down.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipeline.errors import SourceError


@dataclass(frozen=True, kw_only=True)
class Distortion:
    """Lens distortion in OpenCV's models.

    radtan:  k1 k2 p1 p2 [k3 [k4 k5 k6]]   (4, 5 or 8 numbers)
    fisheye: k1 k2 k3 k4                   (equidistant)
    """

    model: Literal["radtan", "fisheye"]
    coefficients: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Camera:
    """Intrinsics of one camera for frames of one size.

    K:    (3, 3) float64, pixels
    size: (width, height), pixels
    """

    K: np.ndarray
    size: tuple[int, int]
    distortion: Distortion | None = None

    def __post_init__(self) -> None:
        check_plausible(self.K, self.size)


def check_plausible(K: np.ndarray, size: tuple[int, int]) -> None:
    """Refuse intrinsics that no driving camera has, saying what to give instead."""
    raise NotImplementedError
