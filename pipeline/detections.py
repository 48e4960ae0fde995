"""Raw detections of one frame, as every detector gives them and the evidence layer keeps them.

Boxes are (x0, y0, x1, y1), edges in pixels where (0, 0) is the CENTRE of the top-left
pixel: the box of a whole W x H image is (-0.5, -0.5, W - 0.5, H - 0.5). (detectron2 puts
(0, 0) at the top-left CORNER; its boxes are shifted by -0.5 where they enter.)

A mask is a grid of probabilities spread evenly over its box. Networks give 28x28; masks
that the user already has come as a grid with one cell per pixel, which pastes exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Detections:
    """D detections of one frame, highest score first; ties keep the detector's order.

    boxes:   (D, 4) float32, pixel edges, may reach outside the image
    scores:  (D,) float32 in [0, 1]
    classes: (D,) uint8, index into `pipeline.classes.CLASSES`
    masks:   D arrays (gh, gw) uint8, round(255 * probability)
    """

    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray
    masks: tuple[np.ndarray, ...]

    def __post_init__(self) -> None:
        count = len(self.scores)
        if self.boxes.shape != (count, 4) or self.classes.shape != (count,) or len(self.masks) != count:
            raise ValueError(
                f"detections disagree: boxes {self.boxes.shape}, scores {self.scores.shape}, "
                f"classes {self.classes.shape}, {len(self.masks)} masks"
            )

    def __len__(self) -> int:
        return len(self.scores)

    def select(self, keep: np.ndarray | Sequence[int]) -> Detections:
        """The detections at the given indices, in that order."""
        keep = np.asarray(keep, dtype=np.int64)
        return Detections(
            boxes=self.boxes[keep],
            scores=self.scores[keep],
            classes=self.classes[keep],
            masks=tuple(self.masks[i] for i in keep),
        )

    @staticmethod
    def empty() -> Detections:
        return Detections(
            boxes=np.zeros((0, 4), np.float32),
            scores=np.zeros(0, np.float32),
            classes=np.zeros(0, np.uint8),
            masks=(),
        )


@dataclass(frozen=True, kw_only=True)
class SourceFrame:
    """One frame as a detector sees it, at source resolution.

    image:   (H, W, 3) uint8 RGB, lens distortion already removed
    clip:    name of the clip
    name:    name of the frame within the clip (see `pipeline.sources.clip.Clip`)
    rectify: removes the lens distortion from a further image of this camera, for masks
             that were drawn on the distorted frame; None where there is none to remove.
             Takes (H, W) uint8, samples the nearest pixel.
    """

    image: np.ndarray
    clip: str
    name: str
    rectify: Callable[[np.ndarray], np.ndarray] | None = None


class Detector(Protocol):
    """Frames of one clip in, raw detections out, in pixels of the frame given."""

    def detect(self, frames: Sequence[SourceFrame]) -> list[Detections]: ...
