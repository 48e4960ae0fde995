"""Predicted depth in the formats of the field, as one inverse-depth map an image, in a split's order.

    array        FILE.npy or FILE.npz       floating (N, H, W), (N, 1, H, W) or (N, H, W, 1), in the
                                            order of the split: what most methods save
    arrays       FOLDER/<name>.npy or .npz  one floating (H, W) an image, axes of length 1 left out
    PNGs         FOLDER/<name>.png          one uint16 an image, depth in 1/256, 0 = none: KITTI's format
    predictions  FOLDER/predictions.json    those of this project (PREDICTIONS.md)

<name> is one of the names in `evaluation.ground_truth.split_lists`, or the image's position in the
split, from 0, with up to ten leading zeros (0000000000, 000000, 0, ...): the same for all images.

Arrays do not say whether they hold depth or disparity (any multiple of 1 / depth), so the caller must.
Pickled objects are refused: loading them would run what they hold.
"""

from __future__ import annotations

import tokenize
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from evaluation.ground_truth.errors import GroundTruthError
from evaluation.ground_truth.kitti_depth import read_depth_png
from evaluation.ground_truth.split_lists import CityscapesFrame, KittiFrame
from evaluation.predictions import INDEX, ClipPrediction, PredictionError, read_clip, read_index
from pipeline.errors import ConfigError

Kind = Literal["depth", "disparity"]
Frame = KittiFrame | CityscapesFrame

MAX_BYTES = 1 << 32
"""Of an array in an .npz file, unpacked: the 697 images of Eigen's split at full size are a third of it."""
SUFFIXES = (".npy", ".npz", ".png")
_DIGITS = (10, 6, 5, 4, 3, 1)
_REMEDY = "save floating numbers with numpy.save or numpy.savez"


@dataclass(frozen=True, kw_only=True)
class PredictedMap:
    """One image's prediction.

    inverse_depth: (h, w) floating, 1 / z-depth in any unit, 0 where nothing is predicted
    K:             (3, 3) intrinsics in the map's pixels where the format has them, else None: then the
                   map shows the whole of what the protocol shows to networks
    """

    inverse_depth: np.ndarray
    K: np.ndarray | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)"""
        return self.inverse_depth.shape[1], self.inverse_depth.shape[0]


def read_maps(
    path: Path, frames: Sequence[Frame], kind: Kind | None = None, key: str = ""
) -> Iterator[PredictedMap]:
    """The predictions for a split's images, in its order; the format is found by looking.

    Args:
        path: file or folder, see the module.
        kind: whether arrays hold depth or disparity; must be given for arrays. Other formats say so.
        key:  which array of an .npz file; needed where there are several.

    Raises:
        PredictionError: something is missing, damaged, of another format or for another split.
        ConfigError: kind is missing, or contradicts the format.
        ValueError: the split has no image.
    """
    if not frames:
        raise ValueError("a split without images")
    if not path.is_dir():
        return read_stack(path, len(frames), _required(kind, path), key)
    if (path / INDEX).is_file():
        _unused(kind, path, "predictions of this project say what they hold")
        return read_own(path, own_frames(read_index(path).clips, frames))
    stems, suffix = _naming(path, frames)
    if suffix == ".png":
        _unused(kind, path, "depth PNGs hold depth")
        return read_pngs(path, stems)
    return read_arrays(path, stems, suffix, _required(kind, path), key)


def read_stack(path: Path, count: int, kind: Kind, key: str = "") -> Iterator[PredictedMap]:
    """One array with the predictions for all `count` images; .npy files are read image by image.

    Raises:
        PredictionError: missing, no array of numbers, or not one map an image.
    """
    array = _array(path, key)
    if array.ndim not in (3, 4) or len(array) != count:
        raise PredictionError(
            f"{path}: holds an array {array.shape}, expected (N, H, W) with N = {count}, the split's images"
        )
    # A generator would begin to look only when the first map is asked for.
    return map(partial(_map_of, path=path, kind=kind), array)


def read_arrays(
    folder: Path, stems: Sequence[str], suffix: str, kind: Kind, key: str = ""
) -> Iterator[PredictedMap]:
    """One .npy or .npz file an image, FOLDER/<stem><suffix>.

    Raises:
        PredictionError: a file is missing, or holds no map.
    """
    for stem in stems:
        path = folder / f"{stem}{suffix}"
        yield _map_of(_array(path, key), path=path, kind=kind)


def read_pngs(folder: Path, stems: Sequence[str]) -> Iterator[PredictedMap]:
    """One KITTI depth PNG an image, FOLDER/<stem>.png: uint16, 1/256 m a step, 0 = nothing predicted.

    Raises:
        PredictionError: a file is missing, damaged or another kind of image.
    """
    for stem in stems:
        path = folder / f"{stem}.png"
        try:
            depth = read_depth_png(path, "write every image's depth as uint16 in 1/256 m")
        except GroundTruthError as error:
            raise PredictionError(str(error)) from None
        yield _map_of(depth, path=path, kind="depth")


def read_own(folder: Path, frames: Sequence[tuple[str, int]]) -> Iterator[PredictedMap]:
    """Frames out of a folder of this project's predictions.

    Args:
        frames: (clip name, index of the frame in the clip), see `own_frames`. A clip is read again each
            time it is returned to, so frames of a clip had better follow each other, as in the splits.

    Raises:
        PredictionError: a clip is missing or damaged, or has no such frame.
    """
    index = read_index(folder)
    clip: ClipPrediction | None = None
    for name, frame in frames:
        if clip is None or clip.name != name:
            clip = read_clip(folder, name, index)
        if not 0 <= frame < len(clip):
            raise PredictionError(
                f"{folder}: {name} has {len(clip)} frames, but the split asks for number {frame} of it; "
                "predict the whole recording"
            )
        yield PredictedMap(inverse_depth=clip.inverse_depth[frame], K=clip.K)


def own_frames(clips: Sequence[str], frames: Sequence[Frame]) -> list[tuple[str, int]]:
    """Where a split's images are in this project's clips: (clip name, index of the frame in the clip).

    Clips are told by their names, as `pipeline` gives them. A KITTI clip whose name ends with the camera
    is taken to begin with the drive's image 0, as published drives do.

    Raises:
        PredictionError: no clip can hold an image.
    """
    starts: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for clip in clips:
        recording, first = frames[0].clip_start(clip)
        starts[recording].append((first, clip))
    found = []
    for frame in frames:
        before = [start for start in starts[frame.recording] if start[0] <= frame.frame]
        if not before:
            raise PredictionError(
                f"the predictions hold no clip with {frame.file_names[0]}; predict the split's recordings"
            )
        first, clip = max(before)
        found.append((clip, frame.frame - first))
    return found


def _naming(folder: Path, frames: Sequence[Frame]) -> tuple[list[str], str]:
    """The names of a folder's files without suffix, and the suffix: the first way that fits image 0."""
    spellings = [[frame.file_names[n] for frame in frames] for n in range(len(frames[0].file_names))]
    numbers = [[f"{n:0{digits}d}" for n in range(len(frames))] for digits in _DIGITS]
    for stems in [*spellings, *numbers]:
        for suffix in SUFFIXES:
            if (folder / f"{stems[0]}{suffix}").is_file():
                return stems, suffix
    raise PredictionError(
        f"{folder}: holds no prediction for the split's first image; expected {spellings[0][0]} or "
        f"{numbers[0][0]} with {', '.join(SUFFIXES)}, or {INDEX}"
    )


def _map_of(array: np.ndarray, *, path: Path, kind: Kind) -> PredictedMap:
    """A map out of what a file holds for one image."""
    shape = array.shape
    if len(shape) > 2:  # networks give (1, H, W), (1, 1, H, W) or (H, W, 1)
        shape = tuple(length for length in shape if length != 1)
    if len(shape) != 2 or not array.size or array.dtype.kind != "f":
        raise PredictionError(
            f"{path}: holds {array.dtype} {array.shape} for an image, expected floating (H, W); {_REMEDY}"
        )
    values = np.asarray(array).reshape(shape)
    values = values.astype(np.result_type(values.dtype, np.float32), copy=False)
    if np.isinf(values).any() or (values < 0).any():
        raise PredictionError(f"{path}: holds a {kind} below 0 or infinite; check what wrote it")
    if kind == "depth":
        values = np.divide(1, values, out=np.zeros_like(values), where=values > 0)
    return PredictedMap(inverse_depth=np.where(values > 0, values, 0))


def _array(path: Path, key: str) -> np.ndarray:
    """The array of an .npy file, mapped, or one of an .npz file, read."""
    if not path.is_file():
        raise PredictionError(f"{path}: missing; give the file or the folder that the method wrote")
    try:
        if not zipfile.is_zipfile(path):
            if key:
                raise PredictionError(f"{path}: is one array, and has no {key!r}; leave the key out")
            return np.load(path, mmap_mode="r", allow_pickle=False)
        with np.load(path, allow_pickle=False) as arrays:
            names = arrays.files
            if large := [each.filename for each in arrays.zip.infolist() if each.file_size > MAX_BYTES]:
                raise PredictionError(
                    f"{path}: {large[0]!r} claims more than {MAX_BYTES >> 30} GiB; save it as .npy"
                )
            if not key and len(names) == 1:
                return arrays[names[0]]
            if key not in names:
                raise PredictionError(f"{path}: holds {', '.join(names)}; choose one of them as the key")
            return arrays[key]
    except PredictionError:
        raise
    except (
        OSError,
        ValueError,
        EOFError,
        RuntimeError,
        MemoryError,
        NotImplementedError,
        tokenize.TokenError,
        zlib.error,
        zipfile.BadZipFile,
    ) as error:
        reason = " ".join(str(error).split())[:120]
        raise PredictionError(f"{path}: no array of numbers, or damaged ({reason}); {_REMEDY}") from None


def _required(kind: Kind | None, path: Path) -> Kind:
    if kind is None or kind not in get_args(Kind):
        raise ConfigError(f"{path}: arrays do not say what they hold; state the kind: depth or disparity")
    return kind


def _unused(kind: Kind | None, path: Path, reason: str) -> None:
    if kind == "disparity":
        raise ConfigError(f"{path}: {reason}, and are not disparity; leave the kind out")
