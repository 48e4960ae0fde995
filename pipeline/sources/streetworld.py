"""Streetworld clips as a source: any folder with camera.json beside video.mp4.

Truth, where it lies beside them, is not read here but for its number of frames, which must
be the video's: training and building never see it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pipeline.camera import Camera, check_source, pinhole
from pipeline.errors import SourceError
from pipeline.sources.clip import BadClip, Clip
from pipeline.sources.naming import (
    edge_digest,
    files_below,
    fingerprint,
    safe_clip_name,
    show,
    unique_names,
    unreadable,
)
from pipeline.sources.video import VideoReader, probe
from pipeline.streetworld.truth import (
    CAMERA_FILE,
    CAMERA_FORMAT,
    CAMERA_VERSION,
    TRUTH_FILE,
    VIDEO_FILE,
    count_frames,
)  # fmt: skip


def scan(path: Path) -> Iterator[Clip | BadClip]:
    """Every streetworld clip at or below a folder, named by its folder relative to path.

    A clip with a damaged or missing part becomes a BadClip.
    """
    folders = [
        video.parent
        for video in files_below(path, frozenset([".mp4"]))
        if video.name == VIDEO_FILE and (video.parent / CAMERA_FILE).is_file()
    ]
    names = [safe_clip_name(f.relative_to(path) if f != path else f.absolute().name) for f in folders]
    for folder, name in zip(folders, unique_names(names), strict=True):
        try:
            yield _open(folder, name)
        except SourceError as error:
            yield BadClip(name=name, reason=str(error))
        except OSError as error:  # it was there a moment ago, or the disk is failing
            yield BadClip(name=name, reason=unreadable(name, error))


def read_camera(path: Path) -> Camera:
    """The pinhole camera of a streetworld clip's camera.json.

    Raises:
        SourceError: not such a file, another version, a value missing or implausible.
    """
    try:
        values = json.loads(path.read_text("utf-8"))
        found = values["format"], values["version"]
        if found != (CAMERA_FORMAT, CAMERA_VERSION):
            raise SourceError(
                f"{show(path)} is {found[0]} version {found[1]}, not {CAMERA_FORMAT} version "
                f"{CAMERA_VERSION}; render the clip again with `instance-motion streetworld`"
            )
        K = pinhole(*(float(values[key]) for key in ("fx", "fy", "cx", "cy")))
        camera = Camera(K=K, size=(int(values["width"]), int(values["height"])))
        check_source(camera)
    except SourceError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SourceError(
            f"{show(path)} is no streetworld camera ({type(error).__name__}: {error}); render the clip again"
        ) from error
    return camera


def _open(folder: Path, name: str) -> Clip:
    video = folder / VIDEO_FILE
    camera = read_camera(folder / CAMERA_FILE)
    index = probe(video)
    count = len(index.pts)
    if index.size != camera.size:
        raise SourceError(
            f"{show(video)} has frames of {index.size}, its {CAMERA_FILE} says {camera.size}; "
            "render the clip again"
        )
    truth = folder / TRUTH_FILE
    if truth.exists() and (expected := count_frames(truth)) != count:
        raise SourceError(
            f"{show(video)} has {count} frames, its {TRUTH_FILE} {expected}; render the clip again"
        )
    frame_names = tuple(f"{n:06d}" for n in range(count))
    files = [(VIDEO_FILE, video.stat().st_size, edge_digest(video))]
    return Clip(
        name=name,
        timestamps_s=index.timestamps_s,
        frame_names=frame_names,
        camera=camera,
        reader=VideoReader(path=video, index=index, picks=np.arange(count)),
        fingerprint=fingerprint(name, camera, frame_names, files),
    )
