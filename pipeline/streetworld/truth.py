"""Exact truth of a streetworld clip: the format (see TRUTH.md), its writer and its reader.

Imports numpy and h5py only, so that evaluation can read truth without a renderer.
"""

from __future__ import annotations

import io
import json
import struct
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np

from pipeline.errors import SourceError
from pipeline.shards.hdf5 import publish

FORMAT, VERSION = "streetworld-truth", 1
CAMERA_FORMAT, CAMERA_VERSION = "streetworld-camera", 1
TRUTH_FILE, VIDEO_FILE, CAMERA_FILE = "truth.h5", "video.mp4", "camera.json"

FLOW_DEFINED, FLOW_INSIDE, FLOW_VISIBLE = 1, 2, 4
"""Bits of `flow_state`: lands in front of the camera, inside the next image, unoccluded there."""

DEPTH_BITS = 14
"""Bits of depth's mantissa that are kept: right to 1 part in 32768."""
FLOW_STEP_PX = 1 / 256
"""Flow is stored to the nearest multiple of this."""
MAX_FRAMES, MAX_VALUES = 1 << 20, 1 << 26
"""Longest clip, and most values a frame, that a reader allocates for."""


@dataclass(frozen=True, kw_only=True)
class Objects:
    """O objects; row o of every table is one object.

    id:      (O,) uint16, value in the id maps, 1 or more, constant over the clip
    label:   O class names (`pipeline.classes.CLASSES`): "car" for all with four wheels, "person"
    kind:    O finer names: car, van, truck, pedestrian
    size_m:  (O, 3) float64 length, width, height
    moving:  (O,) bool, whether its pose changes during the clip
    world_T_object: (N, O, 4, 4) float64
    visible_px:     (N, O) int32, pixels of the object in each frame
    """

    id: np.ndarray
    label: tuple[str, ...]
    kind: tuple[str, ...]
    size_m: np.ndarray
    moving: np.ndarray
    world_T_object: np.ndarray
    visible_px: np.ndarray

    def __len__(self) -> int:
        return len(self.id)


@dataclass(frozen=True, kw_only=True)
class Truth:
    """Truth of N frames of W x H pixels.

    depth_m:  (N, H, W) float32 z-depth through pixel centres, inf is sky
    ids:      (N, H, W) uint16, 0 is background
    flow_px:  (N - 1, H, W, 2) float32 (u, v) motion from frame t to t + 1, 0 where undefined
    flow_state: (N - 1, H, W) uint8, bits FLOW_*
    K:        (3, 3) float64 pixels;  world_T_camera: (N, 4, 4) float64;  timestamps_s: (N,)
    config:   what it was rendered with (frames, size, fps, jitter), as JSON values
    """

    depth_m: np.ndarray
    ids: np.ndarray
    flow_px: np.ndarray
    flow_state: np.ndarray
    K: np.ndarray
    world_T_camera: np.ndarray
    timestamps_s: np.ndarray
    objects: Objects = field(repr=False)
    scenario: str
    seed: int
    config: dict

    def __post_init__(self) -> None:
        count, height, width = self.depth_m.shape
        objects = len(self.objects)
        expected = {
            "ids": (self.ids, (count, height, width)),
            "flow_px": (self.flow_px, (count - 1, height, width, 2)),
            "flow_state": (self.flow_state, (count - 1, height, width)),
            "K": (self.K, (3, 3)),
            "world_T_camera": (self.world_T_camera, (count, 4, 4)),
            "timestamps_s": (self.timestamps_s, (count,)),
            "size_m": (self.objects.size_m, (objects, 3)),
            "world_T_object": (self.objects.world_T_object, (count, objects, 4, 4)),
            "visible_px": (self.objects.visible_px, (count, objects)),
        }
        for name, (array, shape) in expected.items():
            if array.shape != shape:
                raise ValueError(f"truth disagrees: {name} is {array.shape}, not {shape}")

    def __len__(self) -> int:
        return len(self.depth_m)


def write_truth(path: Path, truth: Truth) -> None:
    """Write truth whole or not at all; depth and flow are rounded as TRUTH.md states."""
    # Built in memory: h5py crashes the process when a disk fills while it writes.
    memory = io.BytesIO()
    with h5py.File(memory, "w", driver="fileobj") as file:
        file.attrs.update(
            format=FORMAT,
            version=VERSION,
            scenario=truth.scenario,
            seed=truth.seed,
            config=json.dumps(truth.config, sort_keys=True),
        )
        _put_frames(file, "depth_m", _round_mantissa(truth.depth_m.astype(np.float32)))
        _put_frames(file, "ids", truth.ids.astype(np.uint16))
        _put_frames(
            file, "flow_px", (np.round(truth.flow_px / FLOW_STEP_PX) * FLOW_STEP_PX).astype(np.float32)
        )
        _put_frames(file, "flow_state", truth.flow_state.astype(np.uint8))
        for name in ("K", "world_T_camera", "timestamps_s"):
            file.create_dataset(name, data=getattr(truth, name), dtype=np.float64)
        group = file.create_group("objects")
        group.create_dataset("id", data=truth.objects.id, dtype=np.uint16)
        for name in ("label", "kind"):
            group.create_dataset(name, data=np.array(getattr(truth.objects, name), dtype="S16"))
        group.create_dataset("size_m", data=truth.objects.size_m, dtype=np.float64)
        group.create_dataset("moving", data=truth.objects.moving, dtype=bool)
        group.create_dataset("world_T_object", data=truth.objects.world_T_object, dtype=np.float64)
        group.create_dataset("visible_px", data=truth.objects.visible_px, dtype=np.int32)
    publish(path, memory.getvalue())


def read_truth(path: Path) -> Truth:
    """Read truth of this version.

    Raises:
        SourceError: not such a file, another version, damaged, or with links out of itself.
    """
    if not path.is_file():
        raise SourceError(f"{path} does not exist; render it with `instance-motion streetworld`")
    try:
        with h5py.File(path, "r") as file:
            _check_header(file, path)
            if not isinstance(file.get("objects", getlink=True), h5py.HardLink):
                raise SourceError(f"{path}: objects is not a plain group; render the clip again")
            group = file["objects"]
            objects = Objects(
                id=_get(group, "id", path, 1),
                label=tuple(x.decode() for x in _get(group, "label", path, 1)),
                kind=tuple(x.decode() for x in _get(group, "kind", path, 1)),
                size_m=_get(group, "size_m", path, 2),
                moving=_get(group, "moving", path, 1),
                world_T_object=_get(group, "world_T_object", path, 4),
                visible_px=_get(group, "visible_px", path, 2),
            )
            return Truth(
                depth_m=_get(file, "depth_m", path, 3),
                ids=_get(file, "ids", path, 3),
                flow_px=_get(file, "flow_px", path, 4),
                flow_state=_get(file, "flow_state", path, 3),
                K=_get(file, "K", path, 2),
                world_T_camera=_get(file, "world_T_camera", path, 3),
                timestamps_s=_get(file, "timestamps_s", path, 1),
                objects=objects,
                scenario=str(file.attrs["scenario"]),
                seed=int(file.attrs["seed"]),
                config=json.loads(file.attrs["config"]),
            )
    except (OSError, KeyError, ValueError) as error:
        raise _damaged(path, error) from error


def read_made_with(path: Path) -> tuple[int, dict] | None:
    """(seed, config) that a truth file was rendered with, or None if it is not one of this version."""
    try:
        with h5py.File(path, "r") as file:
            _check_header(file, path)
            return int(file.attrs["seed"]), json.loads(file.attrs["config"])
    except (OSError, KeyError, ValueError):
        return None


def count_frames(path: Path) -> int:
    """Number of frames of a truth file, read from its header alone."""
    try:
        with h5py.File(path, "r") as file:
            _check_header(file, path)
            return len(_plain(file, "world_T_camera", path, 3))
    except (OSError, KeyError, ValueError) as error:
        raise _damaged(path, error) from error


def write_label_images(clip_dir: Path, out_dir: Path) -> None:
    """Export a clip's id maps as 16-bit grey PNGs, NNNNNN.png, value = id, 0 = background.

    Beside them `classes.json` maps each id to its class name, so that a build can run on true masks.
    """
    truth = read_truth(clip_dir / TRUTH_FILE)
    out_dir.mkdir(parents=True, exist_ok=True)
    for k, ids in enumerate(truth.ids):
        publish(out_dir / f"{k:06d}.png", _png16(ids))
    labels = {str(i): label for i, label in zip(truth.objects.id, truth.objects.label, strict=True)}
    publish(out_dir / "classes.json", json.dumps(labels, indent=1).encode())


def _put_frames(file: h5py.File, name: str, data: np.ndarray) -> None:
    file.create_dataset(
        name, data=data, chunks=(1, *data.shape[1:]), shuffle=True, compression="gzip", compression_opts=4
    )


def _round_mantissa(depth: np.ndarray) -> np.ndarray:
    """Round float32 to DEPTH_BITS of mantissa (inf stays inf): the zero bits compress."""
    drop = 23 - DEPTH_BITS
    bits = np.ascontiguousarray(depth).view(np.uint32)
    rounded = ((bits + np.uint32(1 << (drop - 1))) >> np.uint32(drop)) << np.uint32(drop)
    return np.where(np.isfinite(depth), rounded.view(np.float32), depth)


def _check_header(file: h5py.File, path: Path) -> None:
    found = file.attrs.get("format"), file.attrs.get("version")
    if found != (FORMAT, VERSION):
        raise SourceError(
            f"{path} is {found[0]} version {found[1]}, not {FORMAT} version {VERSION}; "
            "render it again with `instance-motion streetworld`"
        )


def _damaged(path: Path, error: Exception) -> SourceError:
    if isinstance(error, SourceError):
        return error
    return SourceError(f"{path} is damaged ({error}); delete its folder and render it again")


def _get(group: h5py.Group, name: str, path: Path, dimensions: int) -> np.ndarray:
    return _plain(group, name, path, dimensions)[()]


def _plain(group: h5py.Group, name: str, path: Path, dimensions: int) -> h5py.Dataset:
    """A dataset of this file, refusing links, virtual or external storage and absurd shapes."""
    linked = not isinstance(group.get(name, getlink=True), h5py.HardLink)
    data = None if linked else group[name]
    if not isinstance(data, h5py.Dataset):
        raise SourceError(f"{path}: {name} is not a plain dataset; render the clip again")
    if data.is_virtual or data.external or data.ndim != dimensions:
        raise SourceError(f"{path}: {name} {data.shape} is stored as truth never is; render the clip again")
    if data.shape[0] > MAX_FRAMES or np.prod(data.shape[1:], dtype=float) > MAX_VALUES:
        raise SourceError(f"{path}: {name} claims the shape {data.shape}; render the clip again")
    return data


def _png16(image: np.ndarray) -> bytes:
    """A 16-bit grey PNG of a (H, W) uint16 image."""
    height, width = image.shape
    rows = np.concatenate(
        [np.zeros((height, 1), np.uint8), image.astype(">u2").view(np.uint8).reshape(height, -1)], 1
    )

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 16, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows.tobytes(), 6))
        + chunk(b"IEND", b"")
    )
