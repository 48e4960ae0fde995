"""Pictures of a clip's predictions: what was seen, how deep it is, and, from above, what moves and how.

Each picture has the frame with outlined instances above its depth on the left, and on the right a map in the
current camera: the camera below the middle looking up, its path behind it, every object where it is with an
arrow of its own motion (the camera's is taken out: what is parked has none), and a list of numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from evaluation.object_steps import ObjectStep
from evaluation.predictions import ClipPrediction
from evaluation.trajectories import chain
from pipeline.overlay import put_text, track_colour
from training.pictures import colour_disparity

BACKGROUND, INK, FAINT, PATH = (24, 26, 30), (235, 235, 235), (105, 110, 120), (90, 200, 255)
LEAST_WIDTH = 832
"""Frames are shown at least so wide, pixels."""
MAP_WIDTH = 520
ARROW_S = 0.5
"""Arrows reach where an object gets by itself in so many seconds."""
LINES = 8
"""Objects in the list, nearest first."""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What all pictures of a clip share.

    steps:     by frame
    poses:     (N, 4, 4) world_T_camera, lengths in `unit`
    reach:     how far ahead the map shows, in `unit`
    brightest: inverse depth that is shown brightest
    """

    clip: ClipPrediction
    steps: Sequence[Sequence[ObjectStep]]
    poses: np.ndarray
    reach: float
    brightest: float
    unit: str


def demo_frames(
    clip: ClipPrediction,
    steps: Sequence[ObjectStep],
    image: Callable[[int], np.ndarray],
    scale_m: float | None = None,
) -> Iterator[np.ndarray]:
    """(H, W, 3) uint8 RGB, a picture a frame.

    Args:
        steps:   of `object_steps(clip, scale_m)`.
        image:   frame number -> (h, w, 3) uint8 RGB of the clip's size.
        scale_m: metres a scene unit, None where it is unknown.
    """
    scene = scene_of(clip, steps, scale_m)
    for frame in range(len(clip)):
        yield demo_picture(scene, frame, image(frame))


def scene_of(clip: ClipPrediction, steps: Sequence[ObjectStep], scale_m: float | None) -> Scene:
    """Gather what the pictures share: one range of the map and one brightness for the whole clip."""
    by_frame: list[list[ObjectStep]] = [[] for _ in range(len(clip))]
    for step in steps:
        by_frame[step.frame].append(step)
    poses = chain(clip.later_T_earlier)
    poses[:, :3, 3] *= scale_m or 1.0
    far = np.percentile([step.centre[2] for step in steps], 90) if steps else 0.0
    middle = float(np.median(1 / clip.inverse_depth.astype(np.float32))) * (scale_m or 1.0)
    return Scene(
        clip=clip,
        steps=by_frame,
        poses=poses,
        reach=_round_up(max(1.2 * far, 2 * middle)),
        brightest=float(np.percentile(clip.inverse_depth.astype(np.float32), 97)),
        unit="scene units" if scale_m is None else "m",
    )


def demo_picture(scene: Scene, frame: int, image: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 RGB: one picture. The last frame of a clip has no steps: nothing follows it."""
    factor = max(1, -(-LEAST_WIDTH // image.shape[1]))
    size = (image.shape[1] * factor, image.shape[0] * factor)
    seen = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
    _outline(seen, scene, frame)
    inverse_depth = scene.clip.inverse_depth[frame].astype(np.float32)
    depth = cv2.resize(colour_disparity(inverse_depth, scene.brightest), size, interpolation=cv2.INTER_LINEAR)
    _text(seen, f"{scene.clip.name}  {scene.clip.timestamps_s[frame]:.1f} s", (8, 20))
    _text(depth, "depth (near is bright)", (8, 20))
    left = np.concatenate([seen, depth])
    return np.concatenate([left, _right(scene, frame, left.shape[0])], axis=1)


def _outline(picture: np.ndarray, scene: Scene, frame: int) -> None:
    """Instances with a motion: outline in the colour of the track, thick where it moves."""
    for step in scene.steps[frame]:
        mask = (scene.clip.labels[frame] == step.label).astype(np.uint8)
        mask = cv2.resize(mask, picture.shape[1::-1], interpolation=cv2.INTER_NEAREST_EXACT)
        outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        colour = track_colour(step.track)
        cv2.drawContours(picture, outlines, -1, colour, 2 if step.moving else 1, cv2.LINE_AA)
        x, y, _, _ = cv2.boundingRect(mask)
        _text(picture, f"{step.track}", (x, max(y - 4, 34)), colour)


def _right(scene: Scene, frame: int, height: int) -> np.ndarray:
    """Map above, list below."""
    listed = 24 + 17 * (LINES + 1)
    return np.concatenate([_map(scene, frame, height - listed), _list(scene, frame, listed)])


def _map(scene: Scene, frame: int, height: int) -> np.ndarray:
    """The world from above, in the camera at this time: x right, z up."""
    picture = np.full((height, MAP_WIDTH, 3), BACKGROUND, np.uint8)
    origin = np.array([MAP_WIDTH / 2, height - 34.0])
    pixels = (height - 60) / scene.reach

    def at(x: float, z: float) -> tuple[int, int]:
        u, v = origin + pixels * np.array([x, -z])
        return int(np.clip(u, -9999, 9999).round()), int(np.clip(v, -9999, 9999).round())

    for part in (0.25, 0.5, 0.75, 1.0):
        radius = round(pixels * scene.reach * part)
        cv2.ellipse(picture, at(0, 0), (radius, radius), 0, 180, 360, FAINT, 1, cv2.LINE_AA)
        _text(picture, f"{scene.reach * part:g}", at(0.02 * scene.reach, scene.reach * part), FAINT)
    camera_T_world = np.linalg.inv(scene.poses[frame])
    path = scene.poses[: frame + 1, :3, 3] @ camera_T_world[:3, :3].T + camera_T_world[:3, 3]
    cv2.polylines(picture, [np.array([at(x, z) for x, _, z in path])], False, PATH, 2, cv2.LINE_AA)
    cv2.drawMarker(picture, at(0, 0), PATH, cv2.MARKER_TRIANGLE_UP, 12, 2)
    for step in scene.steps[frame]:
        _object(picture, step, scene, frame, at)
    _path_inset(picture, scene, frame)
    _text(picture, f"from above, {scene.unit}; arrows: own motion of {ARROW_S:g} s", (8, 20))
    return picture


def _object(
    picture: np.ndarray,
    step: ObjectStep,
    scene: Scene,
    frame: int,
    at: Callable[[float, float], tuple[int, int]],
) -> None:
    colour, (x, _, z) = map_colour(step.track), step.centre
    if step.moving:
        dt_s = scene.clip.timestamps_s[frame + 1] - scene.clip.timestamps_s[frame]
        ahead = step.centre + step.move * (ARROW_S / dt_s)
        cv2.arrowedLine(picture, at(x, z), at(ahead[0], ahead[2]), colour, 2, cv2.LINE_AA, tipLength=0.3)
        cv2.circle(picture, at(x, z), 4, colour, -1, cv2.LINE_AA)
    else:
        u, v = at(x, z)
        cv2.rectangle(picture, (u - 3, v - 3), (u + 3, v + 3), colour, 1)
    u, v = at(x, z)
    _text(picture, f"{step.track}", (u + 6, v - 4), colour)


def _path_inset(picture: np.ndarray, scene: Scene, frame: int, side: int = 96) -> None:
    """The camera's whole path in a corner, first camera looking up."""
    x0, y0 = picture.shape[1] - side - 8, picture.shape[0] - side - 8
    positions = scene.poses[:, (0, 2), 3]
    low, high = positions.min(0), positions.max(0)
    pixels = (side - 14) / max(float((high - low).max()), 1e-9)
    offset = np.array([x0 + side / 2, y0 + side / 2])
    points = (offset + (positions - (low + high) / 2) * pixels * [1, -1]).round().astype(int)
    cv2.rectangle(picture, (x0, y0), (x0 + side, y0 + side), FAINT, 1)
    cv2.polylines(picture, [points], False, FAINT, 1, cv2.LINE_AA)
    cv2.polylines(picture, [points[: frame + 1]], False, PATH, 2, cv2.LINE_AA)
    cv2.circle(picture, tuple(map(int, points[frame])), 3, PATH, -1, cv2.LINE_AA)


def _list(scene: Scene, frame: int, height: int) -> np.ndarray:
    """Numbers of the nearest objects."""
    picture = np.full((height, MAP_WIDTH, 3), BACKGROUND, np.uint8)
    short = "m/s" if scene.unit == "m" else "units/s"
    _text(picture, "track", (8, 18), FAINT)
    for x, name in (
        (70, "class"),
        (160, "state"),
        (240, f"speed, {short}"),
        (360, "turn, deg/s"),
        (460, "depth"),
    ):
        _text(picture, name, (x, 18), FAINT)
    nearest = sorted(scene.steps[frame], key=lambda step: step.centre[2])[:LINES]
    for row, step in enumerate(nearest):
        dt_s = scene.clip.timestamps_s[frame + 1] - scene.clip.timestamps_s[frame]
        y, colour = 36 + 17 * row, map_colour(step.track)
        cells = (
            (8, f"{step.track}"),
            (70, step.class_name),
            (160, "moving" if step.moving else "parked"),
            (240, f"{step.speed:.2f}" if step.moving else ""),
            (360, f"{np.linalg.norm(step.turn_deg) / dt_s:.1f}" if step.moving else ""),
            (460, f"{step.centre[2]:.1f}"),
        )
        for x, text in cells:
            _text(picture, text, (x, y), colour)
    more = len(scene.steps[frame]) - len(nearest)
    if more:
        _text(picture, f"and {more} more", (8, 36 + 17 * LINES), FAINT)
    return picture


def _text(picture: np.ndarray, text: str, place: tuple[int, int], colour: tuple[int, int, int] = INK) -> None:
    put_text(picture, text, place, colour, 0.43)


def map_colour(track: int) -> tuple[int, int, int]:
    """The colour of a track, lighter: dark blue cannot be read on a dark ground."""
    red, green, blue = (round(0.65 * part + 0.35 * 255) for part in track_colour(track))
    return red, green, blue


def _round_up(length: float) -> float:
    """The next of some round numbers: rings get readable labels."""
    if not length > 0:
        return 1.0
    power = 10.0 ** np.floor(np.log10(length))
    factors = (1, 1.2, 1.6, 2, 2.4, 3.2, 4, 5, 6, 8, 10)
    return float(next(factor * power for factor in factors if factor * power >= length * (1 - 1e-9)))
