"""Find the clips of a source, whatever kind it is.

Kinds are tried in this order; the first one that fits is taken:

    a file                                                          video
    a folder with <clip>/camera.json beside <clip>/video.mp4        streetworld
    a folder with leftImg8bit_sequence/ (or that folder itself)     cityscapes
    <...>/image_02/data or image_03/data                            kitti-raw
    <...>/image_2 or image_3 beside calib.txt                       kitti-odometry
    [training/]image_2 beside calib_cam_to_cam/                     kitti-scene-flow
    a folder with video files anywhere below it                     video
    a folder with images anywhere below it                          images

Two data sets in one folder, or videos beside images, are an error that asks for the kind.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from pipeline.errors import ConfigError, SourceError
from pipeline.sources.candidate import Candidate
from pipeline.sources.cityscapes import BONNET, cityscapes_clips, cityscapes_root
from pipeline.sources.clip import BadClip, Clip
from pipeline.sources.folders import image_clips, video_clips
from pipeline.sources.images import IMAGE_SUFFIXES
from pipeline.sources.intrinsics import Intrinsics, IntrinsicsError, intrinsics_from
from pipeline.sources.kitti import (
    ODOMETRY_CALIBRATION,
    kitti_odometry_clips,
    kitti_raw_clips,
    odometry_sequences,
    raw_drives,
)
from pipeline.sources.kitti_scene_flow import scene_flow_clips, scene_flow_root
from pipeline.sources.naming import files_below, natural_key, show, unique_names, unreadable
from pipeline.sources.selection import select_clip, select_frames
from pipeline.sources.video import VIDEO_SUFFIXES

Kind = Literal[
    "auto", "video", "images", "kitti-raw", "kitti-odometry", "kitti-scene-flow", "cityscapes", "streetworld"
]


_REFUSALS = 3  # clips whose camera may be refused before the camera itself is blamed


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """What the input is, what its camera is, and which of its frames to take."""

    kind: Kind = "auto"
    """Kind of source; auto looks at the folder (see `pipeline.sources.scan`)."""
    intrinsics: str | None = None
    """The camera: fx,fy,cx,cy in pixels, or a JSON or YAML file. Overrides a data set's own calibration."""
    fov_deg: float | None = None
    """The camera instead by its horizontal field of view, degrees, principal point in the middle."""
    stride: int = 1
    """Take every n-th frame."""
    target_fps: float | None = None
    """Take the frames nearest to the ticks of this rate instead."""
    start_s: float = 0.0
    """Skip the first seconds of every clip."""
    end_s: float | None = None
    """Stop at this time of every clip, seconds."""
    fps: float | None = None
    """Frame rate of images without times (10 unless given; Cityscapes 17)."""
    include: tuple[str, ...] = ()
    """Take only clips whose name fits one of these patterns (* ? [abc]); empty takes all."""
    drop_bottom: float | None = None
    """Share of rows cut from the bottom, such as a bonnet (0 unless given; Cityscapes 0.25)."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ConfigError(f"kind must be one of {', '.join(get_args(Kind))}, got {self.kind!r}")
        if self.stride < 1:
            raise ConfigError(f"stride must be at least 1, got {self.stride}")
        if self.stride != 1 and self.target_fps is not None:
            raise ConfigError("stride and target_fps are both given; give one of them")
        for name in ("target_fps", "fps"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1000:
                raise ConfigError(f"{name} must lie in (0, 1000], got {value}")
        if not self.start_s >= 0 or (self.end_s is not None and not self.end_s > self.start_s):
            raise ConfigError(f"start_s must be >= 0 and end_s after it, got {self.start_s} and {self.end_s}")
        if self.drop_bottom is not None and not 0 <= self.drop_bottom < 1:
            raise ConfigError(f"drop_bottom must lie in [0, 1), got {self.drop_bottom}")


def scan(path: Path, config: SourceConfig) -> list[Clip | BadClip]:
    """All clips of a source in natural order of their names, which are unique.

    A clip that cannot be used becomes a BadClip and the others go on.

    Raises:
        SourceError: nothing there, unknown or ambiguous kind, a camera that fits no clip.
        ConfigError: a pattern of `include` fits no clip.
    """
    if not path.exists():
        raise SourceError(f"{show(path)}: does not exist; give a video, a folder or a data set's root")
    given = intrinsics_from(config.intrinsics, config.fov_deg)
    kind = detect_kind(path) if config.kind == "auto" else config.kind
    if kind == "streetworld":
        return _scan_streetworld(path, config)

    candidates = _candidates(path, kind, given, config)
    if not candidates:
        raise SourceError(
            f"{show(path)}: no clips of kind {kind} found; see `pipeline.sources.scan` for its layout"
        )
    candidates.sort(key=lambda candidate: natural_key(candidate.name))
    names = unique_names([candidate.name for candidate in candidates])
    chosen = _included(names, config)
    drop_bottom = BONNET if kind == "cityscapes" else 0.0
    results: list[Clip | BadClip] = []
    refused: list[IntrinsicsError] = []
    for name, candidate in zip(names, candidates, strict=True):
        if name not in chosen:
            continue
        try:
            results.append(_selected(candidate.open(name), config, drop_bottom))
        except SourceError as error:
            results.append(BadClip(name=name, reason=str(error)))
            refused += [error] if isinstance(error, IntrinsicsError) else []
        except OSError as error:  # it was there a moment ago, or the disk is failing
            results.append(BadClip(name=name, reason=unreadable(name, error)))
        # A camera that fits nothing is one error at once, not one for each of a thousand clips.
        if refused and len(refused) == len(results) and len(refused) in (_REFUSALS, len(chosen)):
            raise refused[0]
    return results


def detect_kind(path: Path) -> Kind:
    """The kind of a source, by the rules above.

    Raises:
        SourceError: nothing or more than one kind fits.
    """
    if not path.is_dir():
        return "video"
    data_sets: dict[Kind, bool] = {
        "streetworld": any(_streetworld_folders(path)),
        "cityscapes": cityscapes_root(path) is not None,
        "kitti-raw": bool(raw_drives(path)),
        "kitti-odometry": any(
            (folder / ODOMETRY_CALIBRATION).exists() for folder in odometry_sequences(path)
        ),
        "kitti-scene-flow": scene_flow_root(path) is not None,
    }
    fitting = [kind for kind, fits in data_sets.items() if fits]
    if not fitting:
        plain: dict[Kind, frozenset[str]] = {"video": VIDEO_SUFFIXES, "images": IMAGE_SUFFIXES}
        fitting = [kind for kind, suffixes in plain.items() if any(files_below(path, suffixes))]
    if len(fitting) > 1:
        raise SourceError(f"{show(path)}: could be {' or '.join(fitting)}; say which with --kind")
    if not fitting:
        raise SourceError(
            f"{show(path)}: no clips found; looked for streetworld (camera.json beside video.mp4), "
            f"Cityscapes (leftImg8bit_sequence), KITTI raw (image_02/data), KITTI odometry (calib.txt beside "
            f"image_2), KITTI 2015 scene flow (image_2 beside calib_cam_to_cam), videos ({' '.join(sorted(VIDEO_SUFFIXES))}) and "
            f"images ({' '.join(sorted(IMAGE_SUFFIXES))})"
        )
    return fitting[0]


def _candidates(path: Path, kind: Kind, given: Intrinsics | None, config: SourceConfig) -> list[Candidate]:
    if not path.is_dir() and kind != "video":
        raise SourceError(f"{show(path)}: is a file, but kind {kind} is a folder; give the data set's root")
    if kind == "video":
        return video_clips(path, given)
    if kind == "images":
        return image_clips(path, given, config.fps)
    if kind == "kitti-raw":
        return kitti_raw_clips(path, given)
    if kind == "kitti-odometry":
        return kitti_odometry_clips(path, given)
    if kind == "kitti-scene-flow":
        return scene_flow_clips(path, given)
    return cityscapes_clips(path, given, config.fps)


def _scan_streetworld(path: Path, config: SourceConfig) -> list[Clip | BadClip]:
    from pipeline.sources import streetworld  # its readers know the truth files, which others need not load

    if config.intrinsics is not None or config.fov_deg is not None:
        raise ConfigError(
            "streetworld clips have their own exact cameras; leave --intrinsics and --fov-deg out"
        )
    found = sorted(streetworld.scan(path), key=lambda clip: natural_key(clip.name))
    chosen = _included([clip.name for clip in found], config)
    results: list[Clip | BadClip] = []
    for clip in found:
        if clip.name not in chosen:
            continue
        try:
            results.append(clip if isinstance(clip, BadClip) else _selected(clip, config, 0.0))
        except SourceError as error:
            results.append(BadClip(name=clip.name, reason=str(error)))
    return results


def _streetworld_folders(path: Path) -> Iterator[Path]:
    for video in files_below(path, frozenset([".mp4"])):
        camera = video.parent / "camera.json"
        # Other people's videos may have a camera.json beside them as well; theirs names no format.
        if video.name == "video.mp4" and camera.is_file() and b'"streetworld' in camera.read_bytes():
            yield video.parent


def _included(names: list[str], config: SourceConfig) -> set[str]:
    """Names that fit the patterns; a pattern that fits none is a spelling mistake."""
    if not config.include:
        return set(names)
    chosen: set[str] = set()
    for pattern in config.include:
        fitting = fnmatch.filter(names, pattern)
        if not fitting:
            raise ConfigError(f"include: {pattern!r} fits none of {len(names)} clips, such as {names[0]!r}")
        chosen.update(fitting)
    return chosen


def _selected(clip: Clip, config: SourceConfig, drop_bottom: float) -> Clip:
    """Apply the configuration's choice of frames and rows."""
    share = drop_bottom if config.drop_bottom is None else config.drop_bottom
    height = clip.camera.size[1]
    picks = select_frames(
        clip.timestamps_s - clip.timestamps_s[0],
        stride=config.stride,
        target_fps=config.target_fps,
        start_s=config.start_s,
        end_s=config.end_s,
    )
    return select_clip(clip, picks, max(1, round(height * (1 - share))))
