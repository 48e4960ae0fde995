"""Cityscapes video snippets, as they unpack.

    leftImg8bit_sequence/<split>/<city>/<city>_<sequence>_<frame>_leftImg8bit.png
    camera/<split>/<city>/<city>_<sequence>_<frame>_camera.json

One clip is one run of consecutive frame numbers, 30 as published, at 17 frames a second.
Camera files exist for the annotated frame of a snippet only (the 20th); a run takes the one
nearest to its middle. The car's own bonnet fills the bottom quarter: see `drop_bottom` in
`pipeline.sources.scan`.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from functools import partial
from pathlib import Path

import numpy as np

from pipeline.camera import Camera, check_source, pinhole
from pipeline.errors import SourceError
from pipeline.sources.candidate import Candidate, image_clip, read_text
from pipeline.sources.clip import Clip
from pipeline.sources.intrinsics import Intrinsics
from pipeline.sources.kitti import consecutive_runs
from pipeline.sources.naming import safe_clip_name, show

IMAGES, CAMERAS = "leftImg8bit_sequence", "camera"
DEFAULT_FPS = 17.0
BONNET = 0.25  # share of the rows at the bottom

_IMAGE_NAME = re.compile(r"(?P<stem>.+_\d+)_(?P<frame>\d+)_leftImg8bit\.png")


def cityscapes_root(root: Path) -> Path | None:
    """The folder that holds `leftImg8bit_sequence`: root, or root's parent if root is that folder."""
    if (root / IMAGES).is_dir():
        return root
    return root.absolute().parent if root.absolute().name == IMAGES else None


def cityscapes_clips(root: Path, given: Intrinsics | None, fps: float | None) -> list[Candidate]:
    """Clips "<split>/<city>/<city>_<sequence>_<first frame>"."""
    base = cityscapes_root(root)
    if base is None:
        return []
    found = []
    for city in sorted((base / IMAGES).glob("*/*")):
        sequences: dict[str, list[Path]] = defaultdict(list)
        for path in city.iterdir() if city.is_dir() else []:
            if match := _IMAGE_NAME.fullmatch(path.name):
                sequences[match["stem"]].append(path)
        for paths in sequences.values():
            for run in consecutive_runs(sorted(paths, key=_frame), number_at=-2):
                first = run[0].name.removesuffix("_leftImg8bit.png")
                found.append(
                    Candidate(
                        name=safe_clip_name(f"{city.parent.name}/{city.name}/{first}"),
                        open=partial(_open, paths=run, base=base, given=given, fps=fps),
                    )
                )
    return found


def _open(name: str, paths: list[Path], base: Path, given: Intrinsics | None, fps: float | None) -> Clip:
    def camera(size: tuple[int, int]) -> Camera:
        return given.camera(size) if given is not None else _read_camera(_camera_file(base, paths), size)

    times = np.array([_frame(path) for path in paths]) / (fps or DEFAULT_FPS)
    return image_clip(name, paths, camera, times)


def _camera_file(base: Path, run: list[Path]) -> Path:
    """The camera file of the run's own sequence that is nearest to the run's middle."""
    city = run[0].parent
    folder = base / CAMERAS / city.parent.name / city.name
    stem = run[0].name.rsplit("_", 2)[0]
    files = [path for path in folder.glob("*_camera.json") if path.name.rsplit("_", 2)[0] == stem]
    if not files:
        raise SourceError(
            f"{show(folder)}: holds no {stem}_<frame>_camera.json; unpack Cityscapes' "
            f"camera_trainvaltest.zip beside {IMAGES}"
        )
    middle = (_frame(run[0]) + _frame(run[-1])) / 2
    return min(files, key=lambda path: (abs(_frame(path) - middle), path.name))


def _read_camera(path: Path, size: tuple[int, int]) -> Camera:
    try:
        intrinsic = json.loads(read_text(path))["intrinsic"]
        values = [float(intrinsic[key]) for key in ("fx", "fy", "u0", "v0")]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise SourceError(f"{show(path)}: holds no intrinsic fx, fy, u0, v0; unpack it again") from error
    camera = Camera(K=pinhole(*values), size=size)
    check_source(camera)
    return camera


def _frame(path: Path) -> int:
    return int(path.name.rsplit("_", 2)[1])
