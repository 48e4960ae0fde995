"""Pinhole intrinsics, lens distortion, and what resizing and cropping do to them.

Pixels are (u, v), u right, v down, and (0, 0) is the CENTRE of the top-left pixel, so a
W x H image reaches from -0.5 to W - 0.5. Cameras look along +z, x right, y down.
OpenCV's calibration and distortion functions put (0, 0) there as well.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.errors import SourceError

_FOCAL_RANGE = (0.2, 5.0)  # of the longer side: 136 down to 11 degrees across it
_MAX_STRETCH = 4.0  # between the middle and the border of an undistorted frame
_MAX_RESIZED = 1 << 27  # pixels; a portrait frame cut to a 4K one passes through 2.6e7
_GIVE = "give the camera with --intrinsics (file or fx,fy,cx,cy) or --fov-deg"


@dataclass(frozen=True, kw_only=True)
class Distortion:
    """Lens distortion in OpenCV's models.

    radtan:  k1 k2 p1 p2 [k3 [k4 k5 k6]]   (4, 5 or 8 numbers)
    fisheye: k1 k2 k3 k4                   (equidistant)
    """

    model: Literal["radtan", "fisheye"]
    coefficients: tuple[float, ...]

    def __post_init__(self) -> None:
        counts = {"radtan": (4, 5, 8), "fisheye": (4,)}.get(self.model)
        if counts is None:
            raise SourceError(f"lens distortion model {self.model!r} is unknown; use radtan or fisheye")
        if len(self.coefficients) not in counts or not np.all(np.isfinite(self.coefficients)):
            raise SourceError(
                f"{self.model} distortion takes {' or '.join(map(str, counts))} finite numbers, "
                f"got {list(self.coefficients)}"
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class Camera:
    """Intrinsics of one camera for frames of one size.

    K:    (3, 3) float64, pixels, not writable
    size: (width, height), pixels
    """

    K: np.ndarray
    size: tuple[int, int]
    distortion: Distortion | None = None

    def __post_init__(self) -> None:
        check_plausible(self.K, self.size)
        K = np.array(self.K, np.float64)
        K.setflags(write=False)
        object.__setattr__(self, "K", K)
        object.__setattr__(self, "size", (int(self.size[0]), int(self.size[1])))


def check_plausible(K: np.ndarray, size: tuple[int, int]) -> None:
    """Refuse intrinsics that no driving camera has, saying what to give instead.

    The principal point may lie up to half an image outside: a crop moves it. For frames as
    the camera gave them see `check_source`.

    Raises:
        SourceError: not finite, wrong shape, skewed, focal length out of range or lopsided.
    """
    K = np.asarray(K)
    width, height = size
    if width < 1 or height < 1:
        raise SourceError(f"frames of {width}x{height} pixels are no images")
    if K.shape != (3, 3) or not np.issubdtype(K.dtype, np.number) or not np.all(np.isfinite(K)):
        raise SourceError(f"intrinsics must be a finite 3x3 matrix, got {K.tolist()}; {_GIVE}")
    fx, fy, cx, cy = (float(value) for value in (K[0, 0], K[1, 1], K[0, 2], K[1, 2]))
    seen = f"fx={fx:.6g} fy={fy:.6g} cx={cx:.6g} cy={cy:.6g} for {width}x{height} frames"
    if K[1, 0] != 0 or abs(K[0, 1]) > 1e-9 * abs(fx) or not np.array_equal(K[2], [0, 0, 1]):
        raise SourceError(f"intrinsics must be [[fx 0 cx] [0 fy cy] [0 0 1]], got {K.tolist()}; {_GIVE}")
    low, high = (share * max(width, height) for share in _FOCAL_RANGE)
    if not (low <= fx <= high and low <= fy <= high):
        raise SourceError(
            f"implausible intrinsics: {seen}; fx and fy must lie in {low:.0f}..{high:.0f}; {_GIVE}"
        )
    if not 0.5 <= fx / fy <= 2:
        raise SourceError(
            f"implausible intrinsics: {seen}; fx and fy differ by more than a factor 2; {_GIVE}"
        )
    if not (-0.5 * width <= cx <= 1.5 * width and -0.5 * height <= cy <= 1.5 * height):
        raise SourceError(f"implausible intrinsics: {seen}; the principal point is far outside; {_GIVE}")


def check_source(camera: Camera) -> None:
    """Refuse a camera whose principal point is not within the middle 90 % of its own frames.

    That is what intrinsics look like that were measured at another resolution.
    """
    (width, height), cx, cy = camera.size, camera.K[0, 2], camera.K[1, 2]
    if not (0.05 <= cx / width <= 0.95 and 0.05 <= cy / height <= 0.95):
        raise SourceError(
            f"implausible intrinsics: principal point ({cx:.6g}, {cy:.6g}) at the edge of "
            f"{width}x{height} frames; were they measured at another size? "
            f"then state width and height in the --intrinsics file"
        )


def pinhole(fx: float, fy: float, cx: float, cy: float) -> np.ndarray:
    """(3, 3) float64 matrix of these intrinsics."""
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], np.float64)


@dataclass(frozen=True, kw_only=True)
class FrameTransform:
    """Aspect-keeping resize and crop from source frames to stored frames; make it with `cover`.

    source_size:  (width, height) of source frames
    stored_size:  (width, height) of stored frames
    resized_size: (width, height) between resize and crop, >= stored
    offset:       (x0, y0), the stored frame's top-left pixel within the resized frame

    Rounding the resized size makes the two axes' scales differ by up to half a pixel over
    the image; every method uses the exact scale of its axis.
    """

    source_size: tuple[int, int]
    stored_size: tuple[int, int]
    resized_size: tuple[int, int]
    offset: tuple[int, int]

    @staticmethod
    def cover(source: tuple[int, int], stored: tuple[int, int], crop_anchor: float = 0.5) -> FrameTransform:
        """Scale until the stored size is covered, then crop to it.

        Args:
            crop_anchor: where a vertical crop keeps rows: 0 the top, 1 the bottom, 0.5 the middle;
                         a horizontal crop is always centred, so that the view stays ahead
        """
        (w, h), (W, H) = source, stored
        if min(w, h, W, H) < 1:
            raise SourceError(f"cannot turn {w}x{h} frames into {W}x{H}: sizes must be at least 1")
        if not 0 <= crop_anchor <= 1:
            raise SourceError(f"crop_anchor must lie in 0..1, got {crop_anchor}")
        if W * h >= H * w:
            resized = W, max(H, (2 * h * W + w) // (2 * w))  # the width fits, rows are cropped
        else:
            resized = max(W, (2 * w * H + h) // (2 * h)), H
        offset = (resized[0] - W) // 2, round(crop_anchor * (resized[1] - H))
        return FrameTransform(source_size=source, stored_size=stored, resized_size=resized, offset=offset)

    @property
    def scale(self) -> np.ndarray:
        """(2,) exact scale of u and v."""
        return np.array(self.resized_size) / np.array(self.source_size)

    def apply(self, image: np.ndarray) -> np.ndarray:
        """(h, w[, C]) source image -> (H, W[, C]) stored image of the same dtype, contiguous.

        Shrinking averages the covered area, growing interpolates bilinearly.

        Raises:
            SourceError: the frame is a strip that would have to become gigantic.
        """
        if image.shape[1::-1] != self.source_size:
            raise ValueError(f"image of {image.shape[1]}x{image.shape[0]} given, expected {self.source_size}")
        if self.resized_size[0] * self.resized_size[1] > _MAX_RESIZED:
            (w, h), (W, H) = self.source_size, self.stored_size
            raise SourceError(f"frames of {w}x{h} are strips that cannot fill {W}x{H}; give another --size")
        if self.resized_size != self.source_size:
            shrinks = (
                self.resized_size[0] <= self.source_size[0] and self.resized_size[1] <= self.source_size[1]
            )
            image = cv2.resize(
                image, self.resized_size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
            )
        (x0, y0), (W, H) = self.offset, self.stored_size
        return np.ascontiguousarray(image[y0 : y0 + H, x0 : x0 + W])

    def points(self, uv: npt.ArrayLike) -> np.ndarray:
        """(..., 2) source pixels -> stored pixels, float64: u' = (u + 0.5) s - 0.5 - x0."""
        return (np.asarray(uv, np.float64) + 0.5) * self.scale - 0.5 - np.array(self.offset)

    def boxes(self, boxes: np.ndarray) -> np.ndarray:
        """(..., 4) boxes (u0, v0, u1, v1), source -> stored pixels; edges move like points, unclipped."""
        corners = np.asarray(boxes, np.float64)
        return self.points(corners.reshape(*corners.shape[:-1], 2, 2)).reshape(corners.shape)

    def camera(self, camera: Camera) -> Camera:
        """The camera of the stored frames: K' projects where `points` moves what K projects.

        Distortion acts on the rays, before K, and stays as it is.
        """
        if camera.size != self.source_size:
            raise ValueError(f"camera for {camera.size} given, expected {self.source_size}")
        shift = self.points(np.zeros(2))
        move = np.array([[self.scale[0], 0, shift[0]], [0, self.scale[1], shift[1]], [0, 0, 1]])
        return Camera(K=move @ camera.K, size=self.stored_size, distortion=camera.distortion)


class Undistorter:
    """Removes lens distortion from frames of one camera; its maps are computed once.

    The undistorted camera keeps principal point, aspect ratio and frame size. Its focal
    length is the shortest (the view the widest) at which every pixel of the result is seen
    by the source frame (no black borders) and none is stretched more than fourfold against the
    middle. Without distortion, frames pass unchanged.

    camera: the camera of the results, without distortion
    """

    def __init__(self, camera: Camera) -> None:
        self._maps: tuple[np.ndarray, np.ndarray] | None = None
        self.camera = camera
        if camera.distortion is None:
            return
        K = camera.K.copy()
        K[:2, :2] *= _shortest_focal_scale(camera)
        self.camera = Camera(K=K, size=camera.size)
        coefficients = np.array(camera.distortion.coefficients)
        make_maps: Callable[..., tuple[np.ndarray, np.ndarray]] = (
            cv2.fisheye.initUndistortRectifyMap
            if camera.distortion.model == "fisheye"
            else cv2.initUndistortRectifyMap
        )
        self._maps = make_maps(camera.K, coefficients, np.eye(3), K, camera.size, cv2.CV_32FC1)

    def image(self, image: np.ndarray) -> np.ndarray:
        """(H, W[, C]) distorted -> undistorted, bilinear."""
        return self._remap(image, cv2.INTER_LINEAR)

    def labels(self, labels: np.ndarray) -> np.ndarray:
        """(H, W) distorted -> undistorted, nearest pixel: no label is invented."""
        return self._remap(labels, cv2.INTER_NEAREST)

    def _remap(self, image: np.ndarray, interpolation: int) -> np.ndarray:
        if image.shape[1::-1] != self.camera.size:
            raise ValueError(f"image of {image.shape[1]}x{image.shape[0]} given, expected {self.camera.size}")
        if self._maps is None:
            return image
        # Replicated borders matter for the last 1/32 pixel only, where OpenCV rounds the map.
        return cv2.remap(image, *self._maps, interpolation, borderMode=cv2.BORDER_REPLICATE)


def distort(camera: Camera, rays: np.ndarray) -> np.ndarray:
    """Project rays (..., 2), x/z and y/z, into the distorted source frame: (..., 2) pixels."""
    points = np.asarray(rays, np.float64).reshape(-1, 1, 2)
    if camera.distortion is not None and camera.distortion.model == "fisheye":
        pixels = cv2.fisheye.distortPoints(points, camera.K, np.array(camera.distortion.coefficients))
    else:
        coefficients = np.array(camera.distortion.coefficients) if camera.distortion else None
        solid = cv2.convertPointsToHomogeneous(points)
        pixels, _ = cv2.projectPoints(solid, np.zeros(3), np.zeros(3), camera.K, coefficients)
    return pixels.reshape(np.shape(rays))


def _shortest_focal_scale(camera: Camera) -> float:
    """Least factor on the focal length at which the undistorted frame lies within the source frame."""
    width, height = camera.size
    u, v = np.linspace(0, width - 1, 65), np.linspace(0, height - 1, 65)
    pixels = np.stack(np.meshgrid(u, v), axis=-1)
    spacing = u[1], v[1]
    rays = (pixels - camera.K[:2, 2]) / np.diag(camera.K)[:2]

    def covered(scale: float) -> bool:
        seen = distort(camera, rays / scale)
        inside = (seen >= 0).all() and (seen <= [width - 1, height - 1]).all()
        # Towards the end of its reach a distortion polynomial flattens, turns back and folds the image.
        steps = [np.diff(seen[..., axis], axis=1 - axis) / (spacing[axis] / scale) for axis in (0, 1)]
        return bool(inside and min(step.min() for step in steps) >= 1 / _MAX_STRETCH)

    low, high = 0.2, 4.0
    if not covered(high):
        assert camera.distortion is not None
        raise SourceError(
            f"lens distortion {camera.distortion.model} {list(camera.distortion.coefficients)} bends "
            f"{width}x{height} frames beyond repair; check the coefficients in the --intrinsics file"
        )
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (low, middle) if covered(middle) else (middle, high)
    return high
