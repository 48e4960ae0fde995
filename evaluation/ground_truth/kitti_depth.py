"""KITTI's true depth: LiDAR scans projected into the image ("raw"), and depth PNGs ("improved").

    raw        <root>/<date>/calib_velo_to_cam.txt                          R, T
               <root>/<date>/calib_cam_to_cam.txt                           R_rect_00, P_rect_02, S_rect_02
               <root>/<date>/<drive>/velodyne_points/data/NNNNNNNNNN.bin    float32 x, y, z, reflectance
    improved   <root>/[train/ or val/ or <date>/]<drive>/proj_depth/groundtruth/image_02/NNNNNNNNNN.png

LiDAR points: x forward, y left, z up, metres. Depth maps are (H, W) float32 metres in the size of the
frame, 0 where there is no truth.

The raw truth is made as the field has made it since Eigen et al. 2014, so that numbers compare, and
hence has its quirks: depth is the LiDAR's forward x, some 27 cm more than the camera's z; and a point
at (u, v) counts for pixel (round(u) - 1, round(v) - 1), as in KITTI's MATLAB code, which counts from 1.
One is not kept: the usual code mixes up collisions in the image's first and last columns, which no crop
in use with this truth looks at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, UnidentifiedImageError

from evaluation.ground_truth.errors import GroundTruthError, MissingTruthError
from evaluation.ground_truth.split_lists import KittiFrame

Axis = Literal["x", "z"]

PNG_UNIT_M = 1 / 256
"""Metres a step of KITTI's depth PNGs."""
MAX_PIXELS = 1 << 26
"""Of a PNG; a few bytes may claim any number."""
_POINT_BYTES = 16
_CALIBRATION = "it comes with KITTI raw's calibration archive, <date>_calib.zip"
_SCAN = "it comes with KITTI raw's <drive>.zip (synced and rectified data), folder velodyne_points"
_IMPROVED = "it comes with KITTI's depth benchmark, data_depth_annotated.zip"


@dataclass(frozen=True, kw_only=True)
class LidarCamera:
    """A rectified camera, as the LiDAR sees it.

    projection: (3, 4) float64, P_rect R_rect_00 camera_T_lidar: homogeneous LiDAR points (metres) to
                homogeneous pixels; its third row gives the camera's z
    K:          (3, 3) float64 intrinsics of the camera, pixels
    size:       (width, height) of its frames
    """

    projection: np.ndarray
    K: np.ndarray
    size: tuple[int, int]


def raw_depth(root: Path, frame: KittiFrame, axis: Axis = "x") -> np.ndarray:
    """(H, W) float32 true depth of an image from its LiDAR scan; 0 = none. See `project_scan`.

    Args:
        root: folder of KITTI raw that holds <date>/.

    Raises:
        GroundTruthError: calibration or scan is missing (where it comes from) or damaged.
    """
    camera = read_lidar_camera(root / frame.date, frame.camera)
    scan = root / frame.date / frame.drive / "velodyne_points" / "data" / f"{frame.frame:010d}.bin"
    return project_scan(read_scan(scan), camera, axis)


def improved_depth(root: Path, frame: KittiFrame) -> np.ndarray:
    """(H, W) float32 true depth of an image out of KITTI's annotated depth PNGs; 0 = none.

    Args:
        root: folder that holds train/ and val/ as the archive unpacks, or <date>/<drive> or <drive>.

    Raises:
        GroundTruthError: the PNG is missing (where it comes from), damaged or no 16-bit grey PNG.
    """
    below = Path("proj_depth", "groundtruth", f"image_{frame.camera:02d}", f"{frame.frame:010d}.png")
    places = [root / part / frame.drive / below for part in ("train", "val", frame.date, "")]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise MissingTruthError(f"{root}: holds no {frame.drive}/{below} in train or val; {_IMPROVED}")
    return read_depth_png(path, _IMPROVED)


def project_scan(scan: np.ndarray, camera: LidarCamera, axis: Axis = "x") -> np.ndarray:
    """LiDAR points as a sparse depth map.

    (u, v, 1) ~ projection @ (x, y, z, 1), pixel = (round(u) - 1, round(v) - 1). Points with x < 0 or
    behind the camera are left out; where points share a pixel, the nearest wins.

    Args:
        scan: (N, 3 or more) LiDAR points, metres; columns after x, y, z are not read.
        axis: x, depth is the LiDAR's forward distance, as published numbers have it; or z, the camera's.

    Returns:
        (H, W) float32, metres, 0 where no point lies.
    """
    points = scan[scan[:, 0] >= 0, :3].astype(np.float64)
    uvz = points @ camera.projection[:, :3].T + camera.projection[:, 3]
    # The usual code keeps points between the LiDAR and the camera ahead of it, mirrored; none that the
    # scanner can see (from 0.9 m, elevation -25 to 2 degrees) would lie within an image.
    ahead = uvz[:, 2] > 0
    points, uvz = points[ahead], uvz[ahead]
    pixels = np.round(uvz[:, :2] / uvz[:, 2:]) - 1
    inside = ((pixels >= 0) & (pixels < camera.size)).all(axis=1)
    columns, rows = pixels[inside].astype(np.intp).T
    values = points[inside, 0] if axis == "x" else uvz[inside, 2]
    depth = np.full(camera.size[::-1], np.inf)
    np.minimum.at(depth, (rows, columns), values)
    return np.where(np.isfinite(depth), depth, 0).astype(np.float32)


def read_lidar_camera(date_folder: Path, camera: int = 2) -> LidarCamera:
    """The calibration of one day and camera (2 left, 3 right).

    Raises:
        GroundTruthError: a file or an entry is missing (where it comes from), or damaged.
    """
    cameras, lidar = date_folder / "calib_cam_to_cam.txt", date_folder / "calib_velo_to_cam.txt"
    P = _entry(cameras, f"P_rect_{camera:02d}", (3, 4))
    rectify, camera_T_lidar = np.eye(4), np.eye(4)
    rectify[:3, :3] = _entry(cameras, "R_rect_00", (3, 3))
    camera_T_lidar[:3, :3] = _entry(lidar, "R", (3, 3))
    camera_T_lidar[:3, 3] = _entry(lidar, "T", (3,))
    width, height = _entry(cameras, f"S_rect_{camera:02d}", (2,))
    if not (0 < width <= 16384 and 0 < height <= 16384):
        raise GroundTruthError(f"{cameras}: frames of {width:g}x{height:g}; unpack it again")
    return LidarCamera(
        projection=P @ rectify @ camera_T_lidar, K=P[:, :3].copy(), size=(int(width), int(height))
    )


def read_scan(path: Path) -> np.ndarray:
    """(N, 4) float32 LiDAR points of a Velodyne file: x, y, z in metres, reflectance.

    Raises:
        GroundTruthError: missing (where it comes from), cut, or holds values that are not finite.
    """
    data = _bytes(path, _SCAN)
    if not data or len(data) % _POINT_BYTES:
        raise GroundTruthError(
            f"{path}: {len(data)} bytes are no whole points of {_POINT_BYTES}; unpack it again"
        )
    scan = np.frombuffer(data, "<f4").reshape(-1, 4)
    if not np.isfinite(scan).all():
        raise GroundTruthError(f"{path}: holds points that are not finite; unpack it again")
    return scan


def read_depth_png(path: Path, origin: str) -> np.ndarray:
    """(H, W) float32 metres of a KITTI depth PNG (uint16, 1/256 m a step), 0 = none."""
    return read_uint16_png(path, origin).astype(np.float32) * np.float32(PNG_UNIT_M)


def read_uint16_png(path: Path, origin: str) -> np.ndarray:
    """(H, W) uint16 values of a grey PNG of 16 bits.

    Args:
        origin: what to say where the file is missing: where it comes from.

    Raises:
        GroundTruthError: missing, damaged, cut, or another kind of image.
    """
    if not path.is_file():
        raise MissingTruthError(f"{path}: missing; {origin}")
    try:
        with Image.open(path, formats=["PNG"]) as image:
            if not image.mode.startswith("I;16"):
                raise GroundTruthError(
                    f"{path}: pixels of kind {image.mode}, expected 16-bit grey; a picture to look at is no data"
                )
            if image.width * image.height > MAX_PIXELS:
                raise GroundTruthError(
                    f"{path}: {image.width}x{image.height} pixels, more than any camera's; {origin}"
                )
            return np.asarray(image).astype(np.uint16)
    except (
        OSError,
        SyntaxError,
        ValueError,
        UnidentifiedImageError,
        Image.DecompressionBombError,
    ) as error:
        if isinstance(error, GroundTruthError):
            raise
        raise GroundTruthError(f"{path}: no PNG, damaged or cut; {origin}") from None


def _entry(path: Path, key: str, shape: Sequence[int]) -> np.ndarray:
    """The numbers of one "KEY: numbers" line of a calibration file."""
    # `pipeline.sources.kitti` reads the same files, but evaluation does not depend on the pipeline's tools.
    for line in _bytes(path, _CALIBRATION).decode("utf-8", "replace").splitlines():
        found, colon, numbers = line.partition(":")
        if colon and found.strip() == key:
            try:
                values = np.array(numbers.split(), np.float64).reshape(shape)
            except ValueError:
                break
            if np.isfinite(values).all():
                return values
    raise GroundTruthError(f"{path}: holds no {key} of {np.prod(shape)} numbers; {_CALIBRATION}")


def _bytes(path: Path, origin: str) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise MissingTruthError(f"{path}: missing; {origin}") from None
    except OSError as error:
        raise GroundTruthError(f"{path}: cannot be read ({error.strerror}); {origin}") from None
