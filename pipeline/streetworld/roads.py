"""The course of a street, the hill that it runs over, and where things stand on it.

World frame: X along the street's first stretch, Y to its left, Z up, metres. Along a
street, s is the distance along its centre line and d the offset to the left of it.
Body frame of everything that stands on the ground: x forward, y left, z up, origin on
the ground under its middle.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Path:
    """A centre line of straight stretches and arcs; its ends go on straight.

    starts:     (K, 3) float64, x, y, heading where each stretch begins
    lengths:    (K,) float64, metres
    curvatures: (K,) float64, 1 / metres, positive turns left, 0 is straight
    """

    starts: np.ndarray
    lengths: np.ndarray
    curvatures: np.ndarray

    @staticmethod
    def build(x: float, y: float, heading: float, stretches: list[tuple[float, float]]) -> Path:
        """A path from its first pose and (length, curvature) of each stretch."""
        starts = []
        for length, curvature in stretches:
            starts.append((x, y, heading))
            dx, dy = _along(length, curvature)
            x, y = (
                x + np.cos(heading) * dx - np.sin(heading) * dy,
                y + np.sin(heading) * dx + np.cos(heading) * dy,
            )
            heading += curvature * length
        lengths, curvatures = zip(*stretches, strict=True)
        return Path(
            starts=np.array(starts), lengths=np.array(lengths, float), curvatures=np.array(curvatures, float)
        )

    def pose(self, s: np.ndarray, d: np.ndarray | float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """x, y and heading at distance s and offset d, each of s's shape."""
        s = np.asarray(s, float)
        begins = np.concatenate([[0.0], np.cumsum(self.lengths)[:-1]])
        k = np.clip(np.searchsorted(begins, s, side="right") - 1, 0, len(begins) - 1)
        local = s - begins[k]
        # Before the first and after the last stretch the path is straight.
        end = np.where(k == len(begins) - 1, self.lengths[k], np.inf)
        on = np.clip(local, 0.0, end)
        curvature = self.curvatures[k]
        dx, dy = _along(on, curvature)
        turn = curvature * on
        beyond = local - on
        dx, dy = dx + beyond * np.cos(turn) - d * np.sin(turn), dy + beyond * np.sin(turn) + d * np.cos(turn)
        x0, y0, heading = self.starts[k].T if self.starts[k].ndim > 1 else self.starts[k]
        c, sn = np.cos(heading), np.sin(heading)
        return x0 + c * dx - sn * dy, y0 + sn * dx + c * dy, heading + turn

    def coordinates(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(s, d) of points, by the nearest stretch; exact inverse of `pose` near the path."""
        best_s = np.zeros(x.shape)
        best_d = np.full(x.shape, np.inf)
        begin = 0.0
        last = len(self.lengths) - 1
        for k, ((x0, y0, heading), length, curvature) in enumerate(
            zip(self.starts, self.lengths, self.curvatures, strict=True)
        ):
            c, sn = np.cos(heading), np.sin(heading)
            u, v = c * (x - x0) + sn * (y - y0), -sn * (x - x0) + c * (y - y0)
            if curvature == 0:
                s, d = u, v
            else:
                radius = 1 / curvature
                s = np.arctan2(u, (radius - v) * np.sign(curvature)) * abs(radius)
                d = radius - np.sign(curvature) * np.hypot(u, radius - v)
            inside = (s >= (-np.inf if k == 0 else 0)) & (s <= (np.inf if k == last else length))
            better = inside & (np.abs(d) < np.abs(best_d))
            best_s = np.where(better, begin + s, best_s)
            best_d = np.where(better, d, best_d)
            begin += length
        return best_s, best_d


@dataclass(frozen=True, kw_only=True)
class Hill:
    """Ground height z = bend / 2 * x^2 + slope * x, a crest (bend < 0) or a valley."""

    bend: float
    slope: float

    def height(self, x: np.ndarray) -> np.ndarray:
        return 0.5 * self.bend * x * x + self.slope * x

    def gradient(self, x: np.ndarray) -> np.ndarray:
        return self.bend * x + self.slope


@dataclass(frozen=True, kw_only=True)
class Street:
    """A street: its course, its hill, its cross-section and an optional junction.

    Road lies where -right < d < left, or |s - junction_s| < junction_half; elsewhere the
    ground is a pavement raised by `kerb` metres.
    """

    path: Path
    hill: Hill
    lane: float
    lanes: int
    left: float
    right: float
    pavement: float
    kerb: float
    junction_s: float | None
    junction_half: float

    def beyond_kerb(self, s: np.ndarray, d: np.ndarray) -> np.ndarray:
        """Metres that (s, d) lies outside the road; negative on it."""
        out = np.maximum(d - self.left, -d - self.right)
        if self.junction_s is not None:
            out = np.minimum(out, np.abs(s - self.junction_s) - self.junction_half)
        return out

    def road_map(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """(len(y), len(x), 2) float32: s and d on a grid of world positions."""
        s, d = self.path.coordinates(*np.meshgrid(x, y))
        return np.stack([s, np.clip(d, -500, 500)], -1).astype(np.float32)


def stand(
    hill: Hill, x: np.ndarray, y: np.ndarray, heading: np.ndarray, lift: np.ndarray | float = 0.0
) -> np.ndarray:
    """(..., 4, 4) world_T_body of bodies whose z axis is the ground's normal."""
    x, y, heading = np.broadcast_arrays(*(np.asarray(a, float) for a in (x, y, heading)))
    g = hill.gradient(x)
    up = np.stack([-g, np.zeros_like(g), np.ones_like(g)], -1)
    up /= np.linalg.norm(up, axis=-1, keepdims=True)
    forward = np.stack([np.cos(heading), np.sin(heading), g * np.cos(heading)], -1)  # tangent to the ground
    forward /= np.linalg.norm(forward, axis=-1, keepdims=True)
    pose = np.zeros((*x.shape, 4, 4))
    pose[..., :3, 0], pose[..., :3, 1], pose[..., :3, 2] = forward, np.cross(up, forward), up
    pose[..., :3, 3] = np.stack([x, y, hill.height(x)], -1) + np.asarray(lift, float)[..., None] * np.array(
        [0, 0, 1.0]
    )
    pose[..., 3, 3] = 1
    return pose


def _along(length, curvature):
    """Where a stretch of this length leads, in the frame of its start."""
    turn = np.asarray(curvature * length, float)
    return length * np.sinc(turn / np.pi), length * _versine_ratio(turn)


def _versine_ratio(turn: np.ndarray) -> np.ndarray:
    """(1 - cos turn) / turn, 0 at 0."""
    small = np.abs(turn) < 1e-6
    safe = np.where(small, 1.0, turn)
    return np.where(small, turn / 2, (1 - np.cos(safe)) / safe)
