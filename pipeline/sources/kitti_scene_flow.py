"""KITTI 2015 scene flow, as it unpacks: pairs of frames, each a clip of two.

    [<root>/training/]image_2/NNNNNN_10.png, NNNNNN_11.png     first and second frame of a pair, left camera
    [<root>/training/]calib_cam_to_cam/NNNNNN.txt              P_rect_02, S_rect_02 of the pair

Clips are called by their pair, 000000 to 000199, as `evaluate scene-flow` looks for them. Of a root with
training/ and testing/ only training/ is read: the other has no truth.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import numpy as np

from pipeline.camera import Camera
from pipeline.errors import SourceError
from pipeline.sources.candidate import Candidate, image_clip
from pipeline.sources.clip import Clip
from pipeline.sources.intrinsics import Intrinsics
from pipeline.sources.kitti import raw_camera
from pipeline.sources.naming import show

CALIBRATION = "calib_cam_to_cam"
_FIRST = re.compile(r"(\d{6})_10\.png")
_STEP_S = 0.1


def scene_flow_root(path: Path) -> Path | None:
    """The folder that holds image_2 and calib_cam_to_cam, at a path or in its training/; None: neither."""
    for folder in (path / "training", path):
        if (folder / "image_2").is_dir() and (folder / CALIBRATION).is_dir():
            return folder
    return None


def scene_flow_clips(path: Path, given: Intrinsics | None) -> list[Candidate]:
    """A clip a pair.

    Raises:
        SourceError: this is no such folder.
    """
    root = scene_flow_root(path)
    if root is None:
        raise SourceError(
            f"{show(path)}: holds no image_2 beside {CALIBRATION}; unpack data_scene_flow.zip and "
            "data_scene_flow_calib.zip into one folder"
        )
    pairs = sorted(
        match[1] for each in (root / "image_2").iterdir() if (match := _FIRST.fullmatch(each.name))
    )
    return [Candidate(name=pair, open=partial(_open, root=root, pair=pair, given=given)) for pair in pairs]


def _open(name: str, root: Path, pair: str, given: Intrinsics | None) -> Clip:
    paths = [root / "image_2" / f"{pair}_{frame}.png" for frame in (10, 11)]
    if not paths[1].is_file():
        raise SourceError(f"{show(paths[1])}: missing; unpack data_scene_flow.zip again")

    def camera(size: tuple[int, int]) -> Camera:
        if given is not None:
            return given.camera(size)
        return raw_camera(root / CALIBRATION / f"{pair}.txt", "02", size, name)

    return image_clip(name, paths, camera, np.array([0.0, _STEP_S]))
