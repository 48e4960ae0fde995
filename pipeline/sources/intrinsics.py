"""Intrinsics that the user gives: a field of view, four numbers, or a file.

A file is JSON or YAML with either fx, fy, cx, cy or K (3x3) in pixels, where (0, 0) is the
centre of the top-left pixel as in OpenCV, and optionally

    width, height   frames that were calibrated; other sizes of the same shape are rescaled
    distortion      {model: radtan | fisheye, coefficients: [k1, k2, ...]} in OpenCV's order

Without any of the options, a file `camera.json` or `camera.yaml` of that form in the clip's
own folder, or in the nearest folder above it within the source, describes its camera.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from pipeline.camera import Camera, Distortion, check_source, pinhole
from pipeline.errors import SourceError
from pipeline.sources.naming import show

CAMERA_FILES = ("camera.json", "camera.yaml", "camera.yml")

_KEYS = {"fx", "fy", "cx", "cy", "K", "width", "height", "distortion"}
_EXAMPLE = '{"fx": 721.5, "fy": 721.5, "cx": 609.6, "cy": 172.9, "width": 1242, "height": 375}'
_MISSING = (
    "the camera is unknown: give --intrinsics fx,fy,cx,cy (pixels), --intrinsics FILE (JSON or YAML "
    f"such as {_EXAMPLE}), --fov-deg DEGREES (horizontal), or put such a file as camera.json beside the clips"
)


class IntrinsicsError(SourceError):
    """The user's description of a camera is missing, unreadable or implausible."""


@dataclass(frozen=True, kw_only=True)
class Intrinsics:
    """A camera described for any frame size: either K, or a field of view.

    K:          (3, 3) pixels, or None
    fov_deg:    horizontal field of view from edge to edge, or None
    calibrated: (width, height) at which K holds, None if it holds at any
    origin:     option or file, for error messages
    """

    K: np.ndarray | None = None
    fov_deg: float | None = None
    calibrated: tuple[int, int] | None = None
    distortion: Distortion | None = None
    origin: str = "intrinsics"

    def camera(self, size: tuple[int, int], pixel_aspect: Fraction = Fraction(1)) -> Camera:
        """The camera of frames of this size.

        Args:
            pixel_aspect: width of a pixel over its height; makes fy differ from fx under `fov_deg`

        Raises:
            IntrinsicsError: implausible, or calibrated for frames of another shape.
        """
        try:
            if self.K is None:
                assert self.fov_deg is not None
                fx = 0.5 * size[0] / math.tan(math.radians(self.fov_deg) / 2)
                K = pinhole(fx, fx * float(pixel_aspect), (size[0] - 1) / 2, (size[1] - 1) / 2)
            else:
                K = self.K if self.calibrated is None else _rescaled(self.K, self.calibrated, size)
            camera = Camera(K=K, size=size, distortion=self.distortion)
            check_source(camera)
        except SourceError as error:
            raise IntrinsicsError(f"{self.origin}: {error}") from error
        return camera


def intrinsics_from(text: str | None, fov_deg: float | None) -> Intrinsics | None:
    """What the options --intrinsics ("fx,fy,cx,cy" or a path) and --fov-deg say; None if neither is given.

    Raises:
        IntrinsicsError: both given, not readable, impossible field of view.
    """
    if text is not None and fov_deg is not None:
        raise IntrinsicsError("--intrinsics and --fov-deg are both given; give one of them")
    if fov_deg is not None:
        if not 1 <= fov_deg < 170:
            raise IntrinsicsError(f"--fov-deg {fov_deg}: a pinhole camera sees 1..170 degrees across")
        return Intrinsics(fov_deg=fov_deg, origin=f"--fov-deg {fov_deg:g}")
    if text is None:
        return None
    try:
        numbers = [float(part) for part in text.replace(",", " ").split()]
    except ValueError:
        return read_intrinsics(Path(text))
    if len(numbers) != 4:
        raise IntrinsicsError(f"--intrinsics {text!r}: {len(numbers)} numbers, expected 4: fx,fy,cx,cy")
    return Intrinsics(K=pinhole(*numbers), origin=f"--intrinsics {text}")


def read_intrinsics(path: Path) -> Intrinsics:
    """Read a camera file as described above."""
    try:
        return _parsed(path, _load(path))
    except IntrinsicsError:
        raise
    except SourceError as error:
        raise IntrinsicsError(f"{show(path)}: {error}") from error


def require_intrinsics(given: Intrinsics | None, folder: Path, root: Path) -> Intrinsics:
    """The given intrinsics, else those of the camera file nearest above a clip's folder, up to root."""
    if given is not None:
        return given
    for level in (folder, *folder.parents):
        for name in CAMERA_FILES:
            if (level / name).is_file():
                return read_intrinsics(level / name)
        if level == root:
            break
    raise IntrinsicsError(_MISSING)


def _parsed(path: Path, values: dict[str, Any]) -> Intrinsics:
    unknown = sorted(set(values) - _KEYS)
    if unknown:
        raise IntrinsicsError(f"{show(path)}: unknown entries {unknown}; known are {sorted(_KEYS)}")
    if "K" in values and not {"fx", "fy", "cx", "cy"} & set(values):
        K = _numbers(path, "K", values["K"], 9).reshape(3, 3)
    elif {"fx", "fy", "cx", "cy"} <= set(values) and "K" not in values:
        K = pinhole(*(_numbers(path, key, values[key], 1)[0] for key in ("fx", "fy", "cx", "cy")))
    else:
        raise IntrinsicsError(f"{show(path)}: needs either fx, fy, cx, cy or K (3x3), such as {_EXAMPLE}")
    if ("width" in values) != ("height" in values):
        raise IntrinsicsError(f"{show(path)}: states one of width and height; state both or none")
    calibrated = None
    if "width" in values:
        width, height = (int(_numbers(path, key, values[key], 1)[0]) for key in ("width", "height"))
        calibrated = width, height
    distortion = _distortion(path, values.get("distortion"))
    return Intrinsics(K=K, calibrated=calibrated, distortion=distortion, origin=show(path))


def _load(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text("utf-8")
        values = json.loads(text) if path.suffix.lower() == ".json" else yaml.safe_load(text)
    except OSError as error:
        raise IntrinsicsError(f"--intrinsics {show(path)}: cannot be read ({error.strerror})") from error
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise IntrinsicsError(
            f"{show(path)}: neither JSON nor YAML ({reason}); expected {_EXAMPLE}"
        ) from error
    if not isinstance(values, dict):
        raise IntrinsicsError(f"{show(path)}: holds no named values; expected {_EXAMPLE}")
    return {str(key): value for key, value in values.items()}


def _numbers(path: Path, key: str, value: object, count: int) -> np.ndarray:
    """`count` finite numbers, however they are nested."""
    try:
        array = np.asarray(value, np.float64).ravel()
    except (TypeError, ValueError):
        array = np.zeros(0)
    if len(array) != count or not np.all(np.isfinite(array)) or isinstance(value, bool):
        raise IntrinsicsError(f"{show(path)}: {key} must be {count} finite number(s), got {value!r}")
    return array


def _rescaled(K: np.ndarray, calibrated: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """K measured at one size, for frames of another size that show the same view."""
    (width, height), (w, h) = calibrated, size
    # Rounding a side by half a pixel is no other shape.
    if min(calibrated) < 1 or abs(width * h - w * height) > max(width, height, w, h):
        raise SourceError(
            f"measured for {width}x{height} frames, these are {w}x{h}, of another shape (cropped?); "
            f"give intrinsics for {w}x{h}"
        )
    scale = np.array([w / width, h / height, 1.0])
    shift = 0.5 * scale - 0.5  # pixel centres: u' = (u + 0.5) s - 0.5
    return scale[:, None] * K + shift[:, None] * K[2]


def _distortion(path: Path, value: object) -> Distortion | None:
    if value is None:
        return None
    if not isinstance(value, dict) or set(value) != {"model", "coefficients"}:
        raise IntrinsicsError(
            f"{show(path)}: distortion must be {{model: radtan | fisheye, coefficients: [...]}}, "
            f"got {value!r}"
        )
    coefficients = value["coefficients"]
    count = len(coefficients) if isinstance(coefficients, list) else 0
    numbers = _numbers(path, "distortion coefficients", coefficients, count)
    model = value["model"]
    if model != "radtan" and model != "fisheye":
        raise IntrinsicsError(f"{show(path)}: distortion model {model!r} is unknown; use radtan or fisheye")
    return Distortion(model=model, coefficients=tuple(float(number) for number in numbers))
