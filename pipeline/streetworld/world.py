"""What a scene is made of: actors with truth, props without, light, ground, camera.

Actors have an id and a pose for every frame; props never move and are background.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from pipeline.streetworld.roads import Street
from pipeline.streetworld.solids import Solid

SCENARIOS = (
    "following",  # the car ahead keeps the camera's speed: no parallax, the infinite-depth case
    "oncoming",
    "crossing",
    "turning",
    "pedestrians",
    "mixed",
    "overtaking",  # faster and slower cars in the camera's direction
    "parked",  # nothing moves but the camera
    "standing",  # the camera stands for a part or all of the clip
    "empty",  # no objects at all
)

AHEAD_M = 110.0
"""How far ahead of the camera's course objects and street furniture are drawn."""


@dataclass(frozen=True, kw_only=True)
class Actor:
    """A rigid object with an id: its solids in its own frame and its pose in every frame.

    poses: (N, 4, 4) world_T_object, origin on the ground under its middle
    size:  (3,) length, width, height, metres
    """

    id: int
    label: str
    kind: str
    size: np.ndarray
    solids: list[Solid]
    poses: np.ndarray
    moving: bool


@dataclass(frozen=True, kw_only=True)
class Prop:
    """Static background: solids and world_T_prop (4, 4)."""

    solids: list[Solid]
    pose: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Light:
    """Sun direction (towards it, world), its colour, the sky's, and how far one sees."""

    to_sun: np.ndarray
    sun: np.ndarray
    ambient: np.ndarray
    zenith: np.ndarray
    horizon: np.ndarray
    clouds: float
    haze_m: float
    shadows: bool


@dataclass(frozen=True, kw_only=True)
class Ground:
    """Colours and markings of road and pavement."""

    asphalt: np.ndarray
    pavement: np.ndarray
    verge: np.ndarray
    tile: float
    dash: float
    centre_solid: bool
    edge_line: bool
    zebra: bool


@dataclass(frozen=True, kw_only=True)
class Scene:
    """All that a clip shows. world_T_camera (N, 4, 4), camera x right, y down, z forward."""

    seed: int
    scenario: str
    street: Street
    ground: Ground
    light: Light
    K: np.ndarray
    size: tuple[int, int]
    fps: float
    world_T_camera: np.ndarray
    actors: list[Actor] = field(repr=False)
    props: list[Prop] = field(repr=False)
