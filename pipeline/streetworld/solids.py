"""Convex solids, the only thing that a street is built from, and how they are painted.

A solid is the intersection of half-spaces n.x + c <= 0 and at most one ellipsoid or
elliptic cylinder |scale * (x - centre)| <= 1, in the frame of the body it belongs to.
Each half-space gives one face; the curved surface is the last face.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

Colour = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Decal:
    """A rectangle (or the ellipse in it) painted on a face, in the face's (u, v), metres."""

    u: tuple[float, float]
    v: tuple[float, float]
    colour: Colour
    round: bool = False


@dataclass(frozen=True, kw_only=True)
class Facade:
    """Rows of windows over a face: widths and heights in metres, v measured from the ground."""

    pitch: float
    width: float
    floor: float
    sill: float
    height: float
    first: float
    top: float
    glass: Colour
    frame: Colour


@dataclass(frozen=True, kw_only=True)
class Paint:
    """Looks of a face: two colours mixed by noise, then decals on top.

    wavelength: of the coarsest noise octave, metres
    axes:       body axes that (u, v) run along; None takes those the face faces least
    """

    colour: Colour
    second: Colour
    wavelength: float = 0.6
    decals: tuple[Decal, ...] = ()
    facade: Facade | None = None
    axes: tuple[int, int] | None = None


@dataclass(frozen=True, kw_only=True)
class Solid:
    """One convex piece of a body.

    planes: (P, 4) float64, unit outward normal n and c, body frame
    paints: P paints, and one more if there is a curved surface
    low, high: (3,) bounds, body frame
    """

    planes: np.ndarray
    paints: tuple[Paint, ...]
    low: np.ndarray
    high: np.ndarray
    centre: np.ndarray | None = None
    scale: np.ndarray | None = None
    shades: bool = field(default=True)


def rgb(colour: np.ndarray) -> Colour:
    """A colour from an array of three."""
    red, green, blue = (float(c) for c in colour)
    return red, green, blue


def plain(colour: Colour, vary: float = 0.18, wavelength: float = 0.6, **more) -> Paint:
    """A paint that varies around one colour by a fraction."""
    base = np.array(colour)
    dark, light = rgb(base * (1 - vary)), rgb(np.minimum(base * (1 + vary), 1))
    return Paint(colour=dark, second=light, wavelength=wavelength, **more)


def plane(normal: tuple[float, float, float], point: tuple[float, float, float]) -> np.ndarray:
    """(4,) half-space with this outward normal (any length) through a point."""
    n = np.asarray(normal, float)
    n = n / np.linalg.norm(n)
    return np.append(n, -n @ np.asarray(point, float))


def box(
    low, high, paint: Paint, *, top: Paint | None = None, extra=(), shades: bool = True, sides=None
) -> Solid:
    """A box cut by further half-spaces `extra` of (plane, paint); `sides` paints +x -x +y -y."""
    low, high = np.asarray(low, float), np.asarray(high, float)
    planes = [
        np.append(sign * np.eye(3)[axis], -sign * (high if sign > 0 else low)[axis])
        for axis in range(3)
        for sign in (1.0, -1.0)
    ]
    paints = [*(sides or [paint] * 4), top or paint, paint]
    for cut, cut_paint in extra:
        planes.append(cut)
        paints.append(cut_paint)
    return Solid(planes=np.stack(planes), paints=tuple(paints), low=low, high=high, shades=shades)


def ellipsoid(centre, radii, paint: Paint, shades: bool = True) -> Solid:
    centre, radii = np.asarray(centre, float), np.asarray(radii, float)
    return Solid(
        planes=np.zeros((0, 4)),
        paints=(paint,),
        low=centre - radii,
        high=centre + radii,
        centre=centre,
        scale=1 / radii,
        shades=shades,
    )


def cylinder(axis: int, low, high, paint: Paint, cap: Paint | None = None, shades: bool = True) -> Solid:
    """The elliptic cylinder that fills a box, along one of its axes."""
    low, high = np.asarray(low, float), np.asarray(high, float)
    scale = 2 / (high - low)
    scale[axis] = 0
    normal = np.eye(3)[axis]
    planes = np.stack([np.append(normal, -high[axis]), np.append(-normal, low[axis])])
    cap = cap or paint
    return Solid(
        planes=planes,
        paints=(cap, cap, paint),
        low=low,
        high=high,
        centre=(low + high) / 2,
        scale=scale,
        shades=shades,
    )
