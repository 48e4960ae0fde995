"""Plain folders: of videos, one clip per file, and of images, one clip per folder that holds some."""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from pathlib import Path

import numpy as np

from pipeline.sources.candidate import Candidate, image_clip, read_timestamps
from pipeline.sources.clip import Clip
from pipeline.sources.images import IMAGE_SUFFIXES
from pipeline.sources.intrinsics import Intrinsics, require_intrinsics
from pipeline.sources.naming import edge_digest, files_below, fingerprint, safe_clip_name
from pipeline.sources.video import VIDEO_SUFFIXES, VideoReader, probe

DEFAULT_IMAGE_FPS = 10.0
TIMES_FILE = "timestamps.txt"


def video_clips(root: Path, given: Intrinsics | None) -> list[Candidate]:
    """Every video below a folder, or the one video file that root is; suffix left off the name."""
    paths = list(files_below(root, VIDEO_SUFFIXES)) if root.is_dir() else [root]
    base = root if root.is_dir() else root.parent
    return [
        Candidate(
            name=safe_clip_name(path.relative_to(base).with_suffix("")),
            open=partial(_open_video, path=path, base=base, given=given),
        )
        for path in paths
    ]


def image_clips(root: Path, given: Intrinsics | None, fps: float | None) -> list[Candidate]:
    """Every folder at or below root that directly holds images, frames in natural order.

    Times come from `timestamps.txt` in the same folder (one line per image), else from fps.
    """
    folders: dict[Path, list[Path]] = defaultdict(list)
    for path in files_below(root, IMAGE_SUFFIXES):
        folders[path.parent].append(path)
    return [
        Candidate(
            name=safe_clip_name(folder.relative_to(root) if folder != root else Path(root.absolute().name)),
            open=partial(_open_images, paths=paths, root=root, given=given, fps=fps),
        )
        for folder, paths in folders.items()
    ]


def _open_video(name: str, path: Path, base: Path, given: Intrinsics | None) -> Clip:
    intrinsics = require_intrinsics(given, path.parent, base)
    index = probe(path)
    camera = intrinsics.camera(index.size, index.pixel_aspect)
    frames = tuple(f"{number:06d}" for number in range(len(index.pts)))
    file = str(path.relative_to(base)), path.stat().st_size, edge_digest(path)
    return Clip(
        name=name,
        timestamps_s=index.timestamps_s,
        frame_names=frames,
        camera=camera,
        reader=VideoReader(path=path, index=index, picks=np.arange(len(index.pts))),
        fingerprint=fingerprint(name, camera, frames, [file]),
    )


def _open_images(
    name: str, paths: list[Path], root: Path, given: Intrinsics | None, fps: float | None
) -> Clip:
    folder = paths[0].parent
    intrinsics = require_intrinsics(given, folder, root)
    if (folder / TIMES_FILE).is_file():
        times = read_timestamps(folder / TIMES_FILE, len(paths))
    else:
        times = np.arange(len(paths)) / (fps or DEFAULT_IMAGE_FPS)
    return image_clip(name, paths, intrinsics.camera, times)
