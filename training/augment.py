"""Random scale, crop, flip and colour of one window of frames.

Geometry is ONE affine map from stored pixels to training pixels, shared by all frames of the
window, by image, label map and intrinsics:

    u_new = s_x (u + 0.5) - 0.5 - x_0          then, flipped,  u_new = W - 1 - u_new

with s_x = resized width / stored width exactly (the rounded one) and a whole-numbered x_0, which
counts pixels of the resized frame. Colour is ONE affine map of (R, G, B) for the whole window that
never looks at the images: whatever was equally bright in two frames still is. (Contrast is about
mid-grey for that reason, not about an image's own mean.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from pipeline.errors import ConfigError

NUMBERS = 9
"""Random numbers that `draw` takes; each has its place, so that no option shifts another's."""
_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
_MID_GREY = 127.5


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """What is varied from window to window; `AugmentConfig.none()` varies nothing."""

    flip: float = 0.5
    """Probability of mirroring left and right."""
    scale: tuple[float, float] = (1.0, 1.15)
    """Range of enlargement, 1 = the stored frame just covers the training size; then a random crop."""
    jitter: float = 0.0
    """Probability of changing colours."""
    brightness: float = 0.2
    """Colours are multiplied by 1 - this to 1 + this."""
    contrast: float = 0.2
    """Distance from mid-grey is multiplied by 1 - this to 1 + this."""
    saturation: float = 0.2
    """Distance from the grey of equal brightness is multiplied by 1 - this to 1 + this."""
    hue: float = 0.05
    """Colours turn about the grey axis by up to this share of a full turn, either way."""

    def __post_init__(self) -> None:
        for name in ("flip", "jitter"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is a probability in [0, 1], got {getattr(self, name)}")
        for name in ("brightness", "contrast", "saturation"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} must lie in [0, 1), got {getattr(self, name)}")
        if not 0 <= self.hue <= 0.5:
            raise ConfigError(f"hue must lie in [0, 0.5], got {self.hue}")
        low, high = self.scale
        if not 1 <= low <= high <= 8:
            raise ConfigError(f"scale must satisfy 1 <= low <= high <= 8, got {low} and {high}")

    @staticmethod
    def none() -> AugmentConfig:
        """Every window as it is stored."""
        return AugmentConfig(flip=0.0, scale=(1.0, 1.0), jitter=0.0)


@dataclass(frozen=True, kw_only=True, eq=False)
class Augmentation:
    """What happens to one window; sizes are (width, height).

    offset: (x_0, y_0), the training frame's top-left pixel within the resized frame
    colour: (3, 4) float64 on values 0..255, new = colour @ (R, G, B, 1), or None
    """

    stored: tuple[int, int]
    resized: tuple[int, int]
    size: tuple[int, int]
    offset: tuple[int, int]
    flip: bool = False
    colour: np.ndarray | None = None

    @property
    def moves_pixels(self) -> bool:
        """False: every pixel stays where it is stored."""
        return self.flip or not self.stored == self.resized == self.size

    def pixel_map(self) -> np.ndarray:
        """(3, 3) float64: homogeneous training pixel from homogeneous stored pixel."""
        (sx, sy), (x0, y0) = np.divide(self.resized, self.stored), self.offset
        placed = np.array([[sx, 0, 0.5 * sx - 0.5 - x0], [0, sy, 0.5 * sy - 0.5 - y0], [0, 0, 1]])
        mirror = np.array([[-1.0, 0, self.size[0] - 1], [0, 1, 0], [0, 0, 1]])
        return mirror @ placed if self.flip else placed

    def intrinsics(self, K: np.ndarray) -> np.ndarray:
        """(3, 3) float64 intrinsics of the training frame.

        A mirrored image is a right-handed view of the mirrored world (x to -x), so that the focal
        length stays positive and c_x becomes W - 1 - c_x.
        """
        K = self.pixel_map() @ K
        return K @ np.diag([-1.0, 1.0, 1.0]) if self.flip else K

    def image(self, image: np.ndarray) -> np.ndarray:
        """(h, w, 3) uint8 stored frame -> (H, W, 3) uint8 training frame.

        Enlarges bilinearly; shrinks by averaging the area that a new pixel covers, so that fine
        texture does not alias. Both put pixel edges on pixel edges.
        """
        # One axis may shrink while the other grows: OpenCV's INTER_AREA is off by a pixel where it
        # enlarges, so each does what it is good at. Maps from edge to edge compose exactly.
        smaller = (min(self.stored[0], self.resized[0]), min(self.stored[1], self.resized[1]))
        if smaller != self.stored:
            image = cv2.resize(image, smaller, interpolation=cv2.INTER_AREA)
        if smaller != self.resized:
            image = cv2.resize(image, self.resized, interpolation=cv2.INTER_LINEAR)
        image = self._cut(image)
        return image if self.colour is None else cv2.transform(image, self.colour)

    def labels(self, labels: np.ndarray) -> np.ndarray:
        """(h, w) stored label map -> (H, W): each pixel takes the label at its place by the same map."""
        if self.resized != self.stored:
            labels = cv2.resize(labels, self.resized, interpolation=cv2.INTER_NEAREST_EXACT)
        return self._cut(labels)

    def _cut(self, resized: np.ndarray) -> np.ndarray:
        (x0, y0), (width, height) = self.offset, self.size
        cut = resized[y0 : y0 + height, x0 : x0 + width]
        return cv2.flip(cut, 1) if self.flip else cut


def draw(
    config: AugmentConfig, stored: tuple[int, int], size: tuple[int, int], numbers: np.ndarray
) -> Augmentation:
    """Choose what happens to one window.

    Frames keep their aspect: they are scaled until they cover the training size, then by the drawn
    scale, then cropped: at random where anything is varied, else in the middle.

    Args:
        stored, size: (width, height) of stored and of training frames.
        numbers: (NUMBERS,) in [0, 1).
    """
    low, high = config.scale
    cover = max(size[0] / stored[0], size[1] / stored[1])
    scale = cover * (low + (high - low) * numbers[0])
    resized = (max(size[0], round(stored[0] * scale)), max(size[1], round(stored[1] * scale)))
    spare = (resized[0] - size[0], resized[1] - size[1])
    varied = high > 1
    return Augmentation(
        stored=stored,
        resized=resized,
        size=size,
        offset=(
            int(numbers[1] * (spare[0] + 1)) if varied else spare[0] // 2,
            int(numbers[2] * (spare[1] + 1)) if varied else spare[1] // 2,
        ),
        flip=bool(numbers[3] < config.flip),
        colour=_draw_colour(config, numbers[5:9]) if numbers[4] < config.jitter else None,
    )


def colour_map(brightness: float, contrast: float, saturation: float, hue: float) -> np.ndarray:
    """(3, 4) affine map of colours 0..255: hue, then saturation, brightness and contrast.

    brightness, contrast, saturation: factors, 1 changes nothing
    hue: share of a full turn about the grey axis; greys stay as they are (Rodrigues' formula)
    """
    angle, axis = 2 * math.pi * hue, np.full(3, 1 / math.sqrt(3))
    cross = np.cross(np.eye(3), axis)
    turned = (
        math.cos(angle) * np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * np.outer(axis, axis)
    )
    saturated = saturation * np.eye(3) + (1 - saturation) * np.tile(_LUMA, (3, 1))
    offset = np.full((3, 1), (1 - contrast) * _MID_GREY)
    return np.concatenate([contrast * brightness * saturated @ turned, offset], axis=1)


def _draw_colour(config: AugmentConfig, numbers: np.ndarray) -> np.ndarray:
    reach = np.array([config.brightness, config.contrast, config.saturation, config.hue])
    change = reach * (2 * numbers - 1)
    return colour_map(1 + change[0], 1 + change[1], 1 + change[2], change[3])
