"""How a video's frames are turned for display: phones record sideways and say so."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from av.sidedata.sidedata import SideData
from av.sidedata.sidedata import Type as SideDataType
from av.video.frame import VideoFrame

from pipeline.errors import SourceError
from pipeline.sources.naming import show


@dataclass(frozen=True, kw_only=True)
class Orientation:
    """How a decoded frame is turned for display: mirrored left-right first, then turned clockwise."""

    quarter_turns: int = 0
    mirrored: bool = False

    def size(self, width: int, height: int) -> tuple[int, int]:
        return (height, width) if self.quarter_turns % 2 else (width, height)

    def apply(self, image: np.ndarray) -> np.ndarray:
        """(H, W, 3) as decoded -> as displayed, contiguous."""
        if self.mirrored:
            image = image[:, ::-1]
        return np.ascontiguousarray(np.rot90(image, -self.quarter_turns))


UPRIGHT = Orientation()


def orientation_of(path: Path, frame: VideoFrame) -> Orientation:
    """Read the display matrix: row vectors (x, y), y down, are multiplied from the left."""
    attached = cast(Iterable[SideData], frame.side_data)  # typed as a mapping of names, iterates over values
    side_data = next((data for data in attached if data.type is SideDataType.DISPLAYMATRIX), None)
    if side_data is None:
        return UPRIGHT
    matrix = np.frombuffer(bytes(side_data), "<i4")[[0, 1, 3, 4]].reshape(2, 2) / 65536.0
    mirrored = bool(np.linalg.det(matrix) < 0)
    if mirrored:
        matrix = np.diag([-1.0, 1.0]) @ matrix
    degrees, below = np.degrees(np.arctan2(matrix[:, 1], matrix[:, 0]))
    turns = round(degrees / 90)
    skew = (below - degrees) % 360 - 90  # the second axis is a quarter turn after the first
    if abs(degrees - 90 * turns) > 1 or abs(skew) > 1 or not matrix.any(axis=1).all():
        raise SourceError(
            f"{show(path)}: is to be shown turned by {degrees:.1f} degrees; re-encode it upright"
        )
    return Orientation(quarter_turns=turns % 4, mirrored=mirrored)
