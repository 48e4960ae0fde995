"""KITTI 2015 scene flow, training truth: 200 pairs of frames with disparities, flow and object maps.

    <root>/training/image_2/NNNNNN_10.png         first left image; only its size is read
    <root>/training/disp_occ_0/NNNNNN_10.png      uint16, 256 d, 0 = none: disparity in the first frame
    <root>/training/disp_occ_1/NNNNNN_10.png      the same in the second frame
    <root>/training/flow_occ/NNNNNN_10.png        3 x uint16: 64 u + 2^15, 64 v + 2^15, 1 where there is truth
    <root>/training/obj_map/NNNNNN_10.png         uint8, 0 = background, above 0 one number a moving car
    <root>/training/calib_cam_to_cam/NNNNNN.txt   P_rect_02, P_rect_03

All maps lie at the pixels of the FIRST left image: disp_occ_1 holds, where the first image shows a point,
the disparity that this point has in the second pair. "occ" is every pixel that has truth, "noc" (folders
disp_noc_0, disp_noc_1, flow_noc) only those whose match lies inside the other image.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from evaluation.ground_truth.errors import GroundTruthError

Extent = Literal["occ", "noc"]

PAIRS = 200
DISPARITY_STEPS_PER_PX = 256
FLOW_STEPS_PER_PX = 64
FLOW_ZERO = 1 << 15
_PAGE = "http://www.cvlibs.net/datasets/kitti/eval_scene_flow.php"
_TRUTH = f"it comes with data_scene_flow.zip, {_PAGE}"
_CALIBRATION = f"it comes with data_scene_flow_calib.zip, {_PAGE}"
_PNG_START = b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR"
_PNG_COLOURS = {0: "grey", 2: "RGB", 3: "palette", 4: "grey and opacity", 6: "RGB and opacity"}
_HEADER_BYTES = 26
_MAX_CALIBRATION_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class SceneFlowTruth:
    """The truth of one pair, at the pixels of its first left image.

    pair:           its number, from 0
    disparity_0_px: (H, W) float32, in the first frame, 0 = none
    disparity_1_px: (H, W) float32, of the same points in the second frame, 0 = none
    flow_px:        (H, W, 2) float32 (u, v), from the first frame to the second; 0 where not valid
    flow_valid:     (H, W) bool
    object_map:     (H, W) uint8, 0 = background, above 0 a moving car
    K:              (3, 3) float64 intrinsics of the left camera, pixels of the image
    baseline_m:     distance of the two cameras, metres

    Raises:
        GroundTruthError: shapes disagree, or baseline and focal length are no camera's.
    """

    pair: int
    disparity_0_px: np.ndarray
    disparity_1_px: np.ndarray
    flow_px: np.ndarray
    flow_valid: np.ndarray
    object_map: np.ndarray
    K: np.ndarray
    baseline_m: float

    def __post_init__(self) -> None:
        shape = self.disparity_0_px.shape
        expected = {
            "disparity_1_px": shape,
            "flow_px": (*shape, 2),
            "flow_valid": shape,
            "object_map": shape,
            "K": (3, 3),
        }
        for name, each in expected.items():
            if getattr(self, name).shape != each:
                raise GroundTruthError(
                    f"pair {self.name}: {name} is {getattr(self, name).shape}, expected {each}"
                )
        if len(shape) != 2:
            raise GroundTruthError(f"pair {self.name}: disparity_0_px is {shape}, expected (H, W)")
        if not (self.K[0, 0] > 0 and 0 < self.baseline_m < np.inf):
            raise GroundTruthError(
                f"pair {self.name}: baseline {self.baseline_m:g} m, focal length {self.K[0, 0]:g} px; "
                "expected both above 0"
            )

    @property
    def name(self) -> str:
        """Six digits, as in the file names."""
        return f"{self.pair:06d}"

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)"""
        return self.disparity_0_px.shape[1], self.disparity_0_px.shape[0]

    @property
    def valid_0(self) -> np.ndarray:
        """(H, W) bool, where the first disparity is known."""
        return self.disparity_0_px > 0

    @property
    def valid_1(self) -> np.ndarray:
        """(H, W) bool, where the second disparity is known."""
        return self.disparity_1_px > 0

    @property
    def foreground(self) -> np.ndarray:
        """(H, W) bool, moving cars."""
        return self.object_map > 0

    @property
    def depth_m(self) -> np.ndarray:
        """(H, W) float64 z-depth of the first frame, f b / d, metres; 0 = none."""
        depth_m = np.zeros(self.disparity_0_px.shape)
        np.divide(self.K[0, 0] * self.baseline_m, self.disparity_0_px, out=depth_m, where=self.valid_0)
        return depth_m


def read_pairs(
    root: Path, extent: Extent = "occ", pairs: Iterable[int] = range(PAIRS)
) -> Iterator[SceneFlowTruth]:
    """The truth of all 200 pairs, or of those that are asked for, one after the other.

    Args:
        root:   folder that holds training/, or training/ itself.
        extent: occ, all pixels with truth, as published numbers have it; or noc.

    Raises:
        GroundTruthError: see `read_pair`.
    """
    for pair in pairs:
        yield read_pair(root, pair, extent)


def read_pair(root: Path, pair: int, extent: Extent = "occ") -> SceneFlowTruth:
    """The truth of one pair.

    Args:
        root:   folder that holds training/, or training/ itself.
        pair:   its number, 0 to 199.
        extent: occ or noc, see the module.

    Raises:
        GroundTruthError: a folder or file is missing (where it comes from), damaged, of another kind of
            image or of another size than the image.
    """
    folder = _training(root, extent)
    name = f"{pair:06d}_10.png"
    size = _size(folder / "image_2" / name)
    flow, flow_valid = read_flow_png(folder / f"flow_{extent}" / name, size)
    K, baseline_m = read_stereo_calibration(folder / "calib_cam_to_cam" / f"{pair:06d}.txt")
    return SceneFlowTruth(
        pair=pair,
        disparity_0_px=read_disparity_png(folder / f"disp_{extent}_0" / name, size),
        disparity_1_px=read_disparity_png(folder / f"disp_{extent}_1" / name, size),
        flow_px=flow,
        flow_valid=flow_valid,
        object_map=_read_png(folder / "obj_map" / name, size, _TRUTH, bits=8, colour=0),
        K=K,
        baseline_m=baseline_m,
    )


def read_disparity_png(path: Path, size: tuple[int, int], origin: str = _TRUTH) -> np.ndarray:
    """(H, W) float32 disparity of a PNG in the benchmark's format, pixels, 0 = none.

    Args:
        size:   (width, height) that it must have.
        origin: what to say where it is missing or wrong: where it comes from.

    Raises:
        GroundTruthError: missing, damaged, of another kind of image or of another size.
    """
    return _read_png(path, size, origin, bits=16, colour=0).astype(np.float32) / DISPARITY_STEPS_PER_PX


def read_flow_png(path: Path, size: tuple[int, int], origin: str = _TRUTH) -> tuple[np.ndarray, np.ndarray]:
    """Optical flow of a PNG in the benchmark's format; arguments and errors as of `read_disparity_png`.

    Returns:
        (H, W, 2) float32 (u, v), pixels, 0 where there is none, and (H, W) bool where there is.
    """
    stored = _read_png(path, size, origin, bits=16, colour=2)
    valid = stored[..., 0] > 0
    # OpenCV turns R, G, B = u, v, valid into B, G, R.
    flow = (stored[..., 2:0:-1].astype(np.float32) - FLOW_ZERO) / FLOW_STEPS_PER_PX
    return np.where(valid[..., None], flow, np.float32(0)), valid


def read_stereo_calibration(path: Path) -> tuple[np.ndarray, float]:
    """Intrinsics of the left colour camera and the baseline to the right one.

    f = P_rect_02[0, 0] and b = (P_rect_02[0, 3] - P_rect_03[0, 3]) / f: the projections have the same
    intrinsics and differ by how far their cameras lie to the right of camera 0.

    Returns:
        (3, 3) float64 K, pixels, and the baseline, metres.

    Raises:
        GroundTruthError: missing (where it comes from), or holds no projections of such cameras.
    """
    text = _bytes(path, _CALIBRATION, _MAX_CALIBRATION_BYTES).decode("utf-8", "replace")
    left, right = (_projection(path, text, key) for key in ("P_rect_02", "P_rect_03"))
    K = left[:, :3].copy()
    if not (K[0, 0] > 0 and K[1, 1] > 0 and (K[2] == (0, 0, 1)).all()):
        raise GroundTruthError(f"{path}: P_rect_02 is no camera's; {_CALIBRATION}")
    baseline_m = float((left[0, 3] - right[0, 3]) / K[0, 0])
    if not baseline_m > 0:
        raise GroundTruthError(
            f"{path}: baseline {baseline_m:g} m, expected camera 3 to the right of camera 2; {_CALIBRATION}"
        )
    return K, baseline_m


def _training(root: Path, extent: Extent) -> Path:
    """The folder that holds all folders that are read."""
    folder = root / "training" if (root / "training").is_dir() else root
    needed = ("image_2", f"disp_{extent}_0", f"disp_{extent}_1", f"flow_{extent}", "obj_map")
    for name, origin in (*((each, _TRUTH) for each in needed), ("calib_cam_to_cam", _CALIBRATION)):
        if not (folder / name).is_dir():
            raise GroundTruthError(f"{folder}: holds no folder {name}; {origin}")
    return folder


def _size(path: Path) -> tuple[int, int]:
    """(width, height) of a PNG, from its header."""
    width, height, _, _ = _header(path, _bytes(path, _TRUTH, _HEADER_BYTES), _TRUTH)
    if not (0 < width <= 16384 and 0 < height <= 16384):
        raise GroundTruthError(f"{path}: {width}x{height} pixels, expected sides in [1, 16384]; {_TRUTH}")
    return width, height


def _read_png(path: Path, size: tuple[int, int], origin: str, *, bits: int, colour: int) -> np.ndarray:
    """A PNG of a kind and size as OpenCV reads it: (H, W) or (H, W, 3) B, G, R; uint8 or uint16."""
    data = _bytes(path, origin)
    width, height, *kind = _header(path, data, origin)
    if kind != [bits, colour]:
        found = f"{kind[0]}-bit {_PNG_COLOURS.get(kind[1], 'unknown')}"
        raise GroundTruthError(f"{path}: {found} PNG, expected {bits}-bit {_PNG_COLOURS[colour]}; {origin}")
    if (width, height) != size:
        raise GroundTruthError(
            f"{path}: {width}x{height} pixels, expected {size[0]}x{size[1]} as the image has; {origin}"
        )
    try:
        # Pillow compares all checksums but cuts 16-bit colours to 8 bits; OpenCV does it the other way.
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            image.verify()
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except (OSError, SyntaxError, ValueError, struct.error, UnidentifiedImageError, cv2.error):
        pixels = None
    shape = (height, width) if colour == 0 else (height, width, 3)
    if pixels is None or pixels.shape != shape or pixels.dtype.itemsize * 8 != bits:
        raise GroundTruthError(f"{path}: a damaged or cut PNG; {origin}")
    return pixels


def _header(path: Path, data: bytes, origin: str) -> tuple[int, int, int, int]:
    """Width, height, bits a channel and colour type of a PNG."""
    if len(data) < _HEADER_BYTES or not data.startswith(_PNG_START):
        raise GroundTruthError(f"{path}: no PNG; {origin}")
    width, height, bits, colour = struct.unpack(">IIBB", data[len(_PNG_START) : _HEADER_BYTES])
    return width, height, bits, colour


def _projection(path: Path, text: str, key: str) -> np.ndarray:
    """(3, 4) float64 of one "KEY: numbers" line."""
    for line in text.splitlines():
        found, colon, numbers = line.partition(":")
        if colon and found.strip() == key:
            try:
                values = np.array(numbers.split(), np.float64).reshape(3, 4)
            except ValueError:
                break
            if np.isfinite(values).all():
                return values
    raise GroundTruthError(f"{path}: holds no {key} of 12 numbers; {_CALIBRATION}")


def _bytes(path: Path, origin: str, count: int = -1) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(count)
    except FileNotFoundError:
        raise GroundTruthError(f"{path}: missing; {origin}") from None
    except OSError as error:
        raise GroundTruthError(f"{path}: cannot be read ({error.strerror}); {origin}") from None
