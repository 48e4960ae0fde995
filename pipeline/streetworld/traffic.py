"""Who moves where: speed profiles, routes, and the check that nobody ever touches anybody.

A route gives a pose on the ground for every frame. Footprints are rectangles
(centre x, y, heading, half length, half width); two may not overlap in any frame.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.streetworld.roads import Path


@dataclass(frozen=True, kw_only=True)
class Route:
    """x, y, heading: (N,) world position and heading in every frame."""

    x: np.ndarray
    y: np.ndarray
    heading: np.ndarray

    @staticmethod
    def along(path: Path, s: np.ndarray, d: np.ndarray | float, reverse: bool = False) -> Route:
        """Follow a path at offset d, or against its direction."""
        x, y, heading = path.pose(s, d)
        return Route(x=x, y=y, heading=heading + (np.pi if reverse else 0.0))


class Footprints:
    """Rectangles taken in every frame; `admit` takes another one if it is free."""

    def __init__(self, frames: int) -> None:
        self._frames = frames
        self._taken = np.zeros((0, frames, 5))

    def admit(self, route: Route, length: float, width: float, margin: float = 0.25) -> bool:
        """Take the rectangle of a body on this route unless it comes within margin of another."""
        new = np.stack(
            np.broadcast_arrays(route.x, route.y, route.heading, length / 2 + margin, width / 2 + margin), -1
        )
        new = np.broadcast_to(new, (self._frames, 5))
        if len(self._taken) and np.any(overlap(self._taken, new[None])):
            return False
        self._taken = np.concatenate([self._taken, new[None]])
        return True


def overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Whether oriented rectangles (..., 5) overlap, by the separating axis theorem."""
    delta = b[..., :2] - a[..., :2]
    apart = np.zeros(np.broadcast_shapes(a.shape, b.shape)[:-1], bool)
    for heading in (a[..., 2], b[..., 2]):
        for axis in (
            np.stack([np.cos(heading), np.sin(heading)], -1),
            np.stack([-np.sin(heading), np.cos(heading)], -1),
        ):
            reach = _reach(a, axis) + _reach(b, axis)
            apart |= np.abs((delta * axis).sum(-1)) > reach
    return ~apart


def _reach(r: np.ndarray, axis: np.ndarray) -> np.ndarray:
    c, s = np.cos(r[..., 2]), np.sin(r[..., 2])
    along = np.abs(c * axis[..., 0] + s * axis[..., 1])
    across = np.abs(-s * axis[..., 0] + c * axis[..., 1])
    return r[..., 3] * along + r[..., 4] * across


def distance(speed: np.ndarray, fps: float) -> np.ndarray:
    """(N,) metres driven at each frame, 0 at the first; speed (N,) in m/s."""
    return np.concatenate([[0.0], np.cumsum((speed[1:] + speed[:-1]) / 2) / fps])


def draw_speed(
    rng: np.random.Generator, frames: int, fps: float, mean: float, stand: bool = False
) -> np.ndarray:
    """(N,) m/s: steady, speeding up, slowing down, or (stand) stopping or pulling away."""
    t = np.arange(frames) / fps
    if stand:
        moment = rng.uniform(0.25, 0.75) * t[-1]
        rate = rng.uniform(2.0, 4.0)
        if rng.random() < 0.5:
            return np.clip((moment - t) * rate, 0, mean)
        return np.clip((t - moment) * rate, 0, mean)
    rate = rng.choice([0.0, 1.0]) * rng.uniform(-2.5, 2.5)
    return np.clip(mean + rate * (t - t[-1] / 2), 0.5 * mean, 1.3 * mean + 1)
