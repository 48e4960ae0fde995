"""Intrinsics that the user gives: a field of view, four numbers, or a file.

A file is JSON or YAML with either fx, fy, cx, cy or K (3x3) in pixels, where (0, 0) is the
centre of the top-left pixel as in OpenCV, and optionally

    width, height   frames that were calibrated; other sizes of the same shape are rescaled
    distortion      {model: radtan | fisheye, coefficients: [k1, k2, ...]} in OpenCV's order
"""

from __future__ import annotations

import json
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from pipeline.camera import Camera, Distortion, check_source, pinhole
from pipeline.errors import SourceError
from pipeline.sources.naming import show

_KEYS = {"fx", "fy", "cx", "cy", "K", "width", "height", "distortion"}
_EXAMPLE = '{"fx": 721.5, "fy": 721.5, "cx": 609.6, "cy": 172.9, "width": 1242, "height": 375}'


def intrinsics_from(
    size: tuple[int, int],
    *,
    intrinsics: str | None = None,
    fov_deg: float | None = None,
    pixel_aspect: Fraction = Fraction(1),
) -> Camera:
    """The camera of frames of the given size, as the user described it.

    Args:
        size:         (width, height) of the frames, pixels
        intrinsics:   "fx,fy,cx,cy" in pixels of these frames, or the path of a file (see above)
        fov_deg:      horizontal field of view, edge to edge, principal point in the middle
        pixel_aspect: width of a pixel over its height; makes fy differ from fx for `fov_deg`

    Raises:
        SourceError: nothing given, both given, not readable, for another shape, implausible.
    """
    if intrinsics is not None and fov_deg is not None:
        raise SourceError("--intrinsics and --fov-deg are both given; give one of them")
    if fov_deg is not None:
        camera = from_fov(size, fov_deg, pixel_aspect)
    elif intrinsics is None:
        raise SourceError(
            "the camera is unknown: give --intrinsics fx,fy,cx,cy (pixels), --intrinsics FILE (JSON or YAML "
            f"such as {_EXAMPLE}) or --fov-deg DEGREES (horizontal)"
        )
    else:
        camera = _from_numbers(size, intrinsics) or from_file(size, Path(intrinsics))
    check_source(camera)
    return camera


def from_fov(size: tuple[int, int], fov_deg: float, pixel_aspect: Fraction = Fraction(1)) -> Camera:
    """Pinhole in the middle of the frame that sees fov_deg from its left to its right edge."""
    if not 1 <= fov_deg < 170:
        raise SourceError(
            f"a pinhole camera cannot see {fov_deg} degrees; --fov-deg takes 1..170 (horizontal)"
        )
    width, height = size
    fx = 0.5 * width / math.tan(math.radians(fov_deg) / 2)
    return Camera(K=pinhole(fx, fx * float(pixel_aspect), (width - 1) / 2, (height - 1) / 2), size=size)


def from_file(size: tuple[int, int], path: Path) -> Camera:
    """Read a camera file as described above, rescaled where it states another size."""
    values = _load(path)
    unknown = sorted(set(values) - _KEYS)
    if unknown:
        raise SourceError(f"{show(path)}: unknown entries {unknown}; known are {sorted(_KEYS)}")
    if "K" in values and not {"fx", "fy", "cx", "cy"} & set(values):
        K = _array(path, "K", values["K"], 9).reshape(3, 3)
    elif {"fx", "fy", "cx", "cy"} <= set(values) and "K" not in values:
        K = pinhole(*(_array(path, key, values[key], 1)[0] for key in ("fx", "fy", "cx", "cy")))
    else:
        raise SourceError(f"{show(path)}: needs either fx, fy, cx, cy or K (3x3), such as {_EXAMPLE}")
    if ("width" in values) != ("height" in values):
        raise SourceError(f"{show(path)}: states one of width and height; state both or none")
    if "width" in values:
        stated = (
            int(_array(path, "width", values["width"], 1)[0]),
            int(_array(path, "height", values["height"], 1)[0]),
        )
        K = _rescaled(path, K, stated, size)
    try:
        return Camera(K=K, size=size, distortion=_distortion(path, values.get("distortion")))
    except SourceError as error:
        raise SourceError(f"{show(path)}: {error}") from error


def _from_numbers(size: tuple[int, int], text: str) -> Camera | None:
    """Four numbers separated by commas or spaces, or None where the text is something else."""
    try:
        numbers = [float(part) for part in text.replace(",", " ").split()]
    except ValueError:
        return None
    if len(numbers) != 4:
        raise SourceError(f"--intrinsics {text!r}: {len(numbers)} numbers given, expected 4: fx,fy,cx,cy")
    return Camera(K=pinhole(*numbers), size=size)


def _load(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text("utf-8")
        values = json.loads(text) if path.suffix.lower() == ".json" else yaml.safe_load(text)
    except OSError as error:
        raise SourceError(f"--intrinsics {show(path)}: cannot be read ({error.strerror})") from error
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise SourceError(f"{show(path)}: neither JSON nor YAML ({reason}); expected {_EXAMPLE}") from error
    if not isinstance(values, dict):
        raise SourceError(f"{show(path)}: holds no named values; expected {_EXAMPLE}")
    return {str(key): value for key, value in values.items()}


def _array(path: Path, key: str, value: object, count: int) -> np.ndarray:
    """`count` finite numbers, however they are nested."""
    try:
        array = np.asarray(value, np.float64).ravel()
    except (TypeError, ValueError):
        array = np.zeros(0)
    if len(array) != count or not np.all(np.isfinite(array)) or isinstance(value, bool):
        raise SourceError(f"{show(path)}: {key} must be {count} finite number(s), got {value!r}")
    return array


def _rescaled(path: Path, K: np.ndarray, stated: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """K measured at the stated size, for frames of another size that show the same view."""
    if min(stated) < 1 or abs(stated[0] * size[1] - size[0] * stated[1]) > max(*stated, *size):
        raise SourceError(
            f"{show(path)}: measured for {stated[0]}x{stated[1]} frames, these are {size[0]}x{size[1]}, "
            f"of another shape (cropped?); give intrinsics for {size[0]}x{size[1]}"
        )
    scale = np.array([size[0] / stated[0], size[1] / stated[1], 1.0])
    shift = 0.5 * scale - 0.5  # pixel centres: u' = (u + 0.5) s - 0.5
    return scale[:, None] * K + shift[:, None] * K[2]


def _distortion(path: Path, value: object) -> Distortion | None:
    if value is None:
        return None
    if not isinstance(value, dict) or set(value) != {"model", "coefficients"}:
        raise SourceError(
            f"{show(path)}: distortion must be {{model: radtan | fisheye, coefficients: [...]}}, "
            f"got {value!r}"
        )
    coefficients = value["coefficients"]
    count = len(coefficients) if isinstance(coefficients, list) else 0
    numbers = _array(path, "distortion coefficients", coefficients, count)
    return Distortion(model=value["model"], coefficients=tuple(float(number) for number in numbers))
