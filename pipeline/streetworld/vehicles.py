"""Cars, vans and trucks as a few convex solids each; wheels reach the ground."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.streetworld.solids import Colour, Decal, Paint, Solid, box, cylinder, plain, plane, rgb

GLASS = Paint(colour=(0.07, 0.09, 0.12), second=(0.26, 0.31, 0.37), wavelength=1.1)
TYRE = plain((0.06, 0.06, 0.065), 0.3)
BLACK: Colour = (0.05, 0.05, 0.055)

PAINTS: tuple[tuple[Colour, float], ...] = (
    ((0.88, 0.88, 0.87), 3.0),
    ((0.66, 0.68, 0.70), 2.5),
    ((0.40, 0.42, 0.44), 2.0),
    ((0.10, 0.10, 0.12), 2.5),
    ((0.12, 0.22, 0.48), 1.5),
    ((0.22, 0.42, 0.70), 1.0),
    ((0.62, 0.10, 0.10), 1.5),
    ((0.80, 0.20, 0.12), 0.7),
    ((0.12, 0.34, 0.22), 0.8),
    ((0.76, 0.68, 0.50), 0.8),
    ((0.88, 0.70, 0.12), 0.6),
    ((0.36, 0.20, 0.14), 0.5),
    ((0.40, 0.62, 0.55), 0.4),
    ((0.85, 0.50, 0.20), 0.4),
)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Proportions of a car. x_* are fractions of the length, forward positive; heights of the height.

    Windscreen from x_base up to x_front; rear window from x_rear down to x_tail.
    """

    length: tuple[float, float]
    width: tuple[float, float]
    height: tuple[float, float]
    belt: float
    nose: float
    tail: float
    x_base: float
    x_front: float
    x_rear: float
    x_tail: float
    clearance: float = 0.20


SEDAN = Shape(
    length=(4.3, 4.9),
    width=(1.74, 1.88),
    height=(1.40, 1.50),
    belt=0.63,
    nose=0.50,
    tail=0.60,
    x_base=0.21,
    x_front=0.05,
    x_rear=-0.20,
    x_tail=-0.35,
)
HATCH = Shape(
    length=(3.6, 4.2),
    width=(1.65, 1.80),
    height=(1.44, 1.58),
    belt=0.62,
    nose=0.50,
    tail=0.62,
    x_base=0.25,
    x_front=0.08,
    x_rear=-0.36,
    x_tail=-0.49,
)
ESTATE = Shape(
    length=(4.4, 4.9),
    width=(1.75, 1.88),
    height=(1.43, 1.55),
    belt=0.63,
    nose=0.51,
    tail=0.62,
    x_base=0.22,
    x_front=0.06,
    x_rear=-0.40,
    x_tail=-0.48,
)
SUV = Shape(
    length=(4.2, 4.8),
    width=(1.80, 1.95),
    height=(1.62, 1.85),
    belt=0.60,
    nose=0.54,
    tail=0.60,
    x_base=0.24,
    x_front=0.12,
    x_rear=-0.41,
    x_tail=-0.48,
    clearance=0.26,
)
VAN = Shape(
    length=(4.7, 5.9),
    width=(1.90, 2.05),
    height=(1.90, 2.60),
    belt=0.52,
    nose=0.42,
    tail=0.52,
    x_base=0.40,
    x_front=0.28,
    x_rear=-0.475,
    x_tail=-0.495,
    clearance=0.24,
)


def draw_vehicle(rng: np.random.Generator, kind: str | None = None) -> tuple[str, list[Solid], np.ndarray]:
    """(kind, solids, (length, width, height)) of a random car, van or truck."""
    kind = kind or str(rng.choice(["car", "van", "truck"], p=[0.80, 0.13, 0.07]))
    weights = np.array([w for _, w in PAINTS])
    base = np.array(PAINTS[rng.choice(len(PAINTS), p=weights / weights.sum())][0])
    colour = rgb(np.clip(base * rng.uniform(0.85, 1.15) + rng.normal(0, 0.015, 3), 0.03, 0.95))
    if kind == "truck":
        return kind, *_truck(rng, colour)
    shape = VAN if kind == "van" else [SEDAN, HATCH, ESTATE, SUV][rng.choice(4, p=[0.34, 0.28, 0.16, 0.22])]
    return kind, *_car(rng, shape, colour, van=kind == "van")


def _car(rng: np.random.Generator, shape: Shape, colour: Colour, van: bool) -> tuple[list[Solid], np.ndarray]:
    L, W, H = (rng.uniform(*r) for r in (shape.length, shape.width, shape.height))
    belt, nose, tail, low = shape.belt * H, shape.nose * H, shape.tail * H, shape.clearance
    xa, xb, xc, xd = (f * L for f in (shape.x_base, shape.x_front, shape.x_rear, shape.x_tail))
    radius = rng.uniform(0.30, 0.34) * (1.1 if shape.clearance > 0.22 else 1.0)
    front_axle, rear_axle = 0.31 * L, -0.29 * L
    trim = rgb(0.35 * np.array(colour))
    bumper: Colour = BLACK if rng.random() < 0.35 else trim

    arches = tuple(
        Decal(
            u=(x - 1.2 * radius, x + 1.2 * radius), v=(-radius * 0.2, 2.2 * radius), colour=BLACK, round=True
        )
        for x in (front_axle, rear_axle)
    )
    seams = tuple(
        Decal(u=(x - 0.02, x + 0.02), v=(low + 0.08, belt), colour=trim)
        for x in (xa - 0.05, 0.5 * (xa + xc) - 0.02 * L, xc + 0.14 * L)
    )
    sill = Decal(u=(-L, L), v=(low, low + 0.09), colour=bumper)
    handle = Decal(u=(-0.02 * L, 0.03 * L), v=(belt - 0.16, belt - 0.11), colour=trim)
    side = plain(colour, 0.2, 0.7, decals=(sill, *seams, handle, *arches), axes=(0, 2))
    body = plain(colour, 0.2, 0.7)
    front = plain(colour, 0.15, 0.5, decals=_front(rng, W, low, nose, bumper, trim), axes=(1, 2))
    rear = plain(colour, 0.15, 0.5, decals=_rear(rng, W, low, tail, bumper), axes=(1, 2))

    lean = 0.05
    cut = 0.16  # bevel of the four upright edges
    shell = box(
        (-L / 2, -W / 2, low),
        (L / 2, W / 2, belt),
        body,
        sides=[front, rear, side, side],
        extra=[
            (plane((0, 1, lean), (0, W / 2, low + 0.35)), side),
            (plane((0, -1, lean), (0, -W / 2, low + 0.35)), side),
            (plane((belt - nose, 0, L / 2 - xa), (xa, 0, belt)), body),
            (plane((tail - belt, 0, min(xd, -0.3 * L) + L / 2 + 0.02), (min(xd, -0.3 * L), 0, belt)), body),
            *(
                (plane((sx, sy, 0), (sx * (L / 2 - cut), sy * W / 2, 0)), front if sx > 0 else rear)
                for sx in (1, -1)
                for sy in (1, -1)
            ),
        ],
    )
    roof_low = H - 0.07
    rail = Decal(u=(-L, L), v=(roof_low, H + 0.1), colour=colour)
    pillars = [
        Decal(u=(x - 0.05, x + 0.05), v=(belt, H), colour=trim)
        for x in ((xb + xa) / 2 - 0.09 * L, 0.45 * xb + 0.55 * xc, xc + 0.06 * L)
    ]
    if van and rng.random() < 0.65:  # closed panels behind the driver
        pillars = [Decal(u=(-L, xb - 0.12 * L), v=(0, H + 0.1), colour=colour)]
    window = Paint(
        colour=GLASS.colour, second=GLASS.second, wavelength=1.1, decals=(*pillars, rail), axes=(0, 2)
    )
    frame = tuple(
        Decal(
            u=(s * W / 2 - 0.30, s * W / 2 - 0.0) if s > 0 else (-W / 2, -W / 2 + 0.30),
            v=(belt, belt + 0.02),
            colour=colour,
        )
        for s in (1, -1)
    )
    screen = Paint(
        colour=GLASS.colour, second=GLASS.second, wavelength=1.1, decals=(*frame, rail), axes=(1, 2)
    )
    back = screen
    if van and rng.random() < 0.5:
        back = rear
    inset = 0.06 if van else 0.16
    cabin = box(
        (xd, -W / 2, belt - 0.03),
        (xa, W / 2, H),
        body,
        sides=[screen, back, window, window],
        extra=[
            (plane((H - belt, 0, xa - xb), (xa, 0, belt)), screen),
            (plane((belt - H, 0, xc - xd), (xd, 0, belt)), back),
            (plane((0, H - belt, inset), (0, W / 2 - 0.04, belt)), window),
            (plane((0, belt - H, inset), (0, -W / 2 + 0.04, belt)), window),
            (plane((1, 0, 2.5), (xb, 0, H - 0.03)), body),
        ],
    )
    wheels = _wheels((front_axle, rear_axle), W, radius, rng)
    return [shell, cabin, *wheels], np.array([L, W, H])


def _front(rng, W: float, low: float, nose: float, bumper: Colour, trim: Colour) -> tuple[Decal, ...]:
    """Bumper, grille, head lamps and number plate of a front face."""
    lamp = rng.choice([0.16, 0.22, 0.28]) * W
    top = nose - 0.05
    depth = rng.uniform(0.11, 0.17)
    round_lamps = bool(rng.random() < 0.25)
    lamps = tuple(
        Decal(
            u=(s * W / 2 - (lamp if s > 0 else 0), s * W / 2 + (lamp if s < 0 else 0)),
            v=(top - depth, top),
            colour=(0.93, 0.94, 0.88),
            round=round_lamps,
        )
        for s in (1, -1)
    )
    return (
        Decal(u=(-W, W), v=(low, low + 0.13), colour=bumper),
        Decal(u=(-0.25 * W, 0.25 * W), v=(top - depth, top - 0.02), colour=trim),
        *lamps,
        Decal(u=(-0.26, 0.26), v=(low + 0.14, low + 0.26), colour=(0.9, 0.9, 0.86)),
    )


def _rear(rng, W: float, low: float, tail: float, bumper: Colour) -> tuple[Decal, ...]:
    """Bumper, tail lamps and number plate of a rear face."""
    lamp = rng.choice([0.12, 0.18, 0.26]) * W
    top = tail - 0.06
    depth = rng.uniform(0.12, 0.26)
    red = (rng.uniform(0.6, 0.85), 0.05, 0.06)
    lamps = tuple(
        Decal(
            u=(s * W / 2 - (lamp if s > 0 else 0), s * W / 2 + (lamp if s < 0 else 0)),
            v=(top - depth, top),
            colour=red,
        )
        for s in (1, -1)
    )
    plate = rng.choice([low + 0.16, top - 0.22])
    return (
        Decal(u=(-W, W), v=(low, low + 0.14), colour=bumper),
        *lamps,
        Decal(u=(-0.26, 0.26), v=(plate, plate + 0.12), colour=(0.9, 0.88, 0.6)),
    )


def _wheels(axles, W: float, radius: float, rng) -> list[Solid]:
    rim = rgb(rng.uniform(0.35, 0.75) * np.array([1, 1, 1.03]))
    cap = Paint(colour=TYRE.colour, second=TYRE.second, axes=(0, 2))
    wheels = []
    for x in axles:
        decals = (
            Decal(
                u=(x - 0.66 * radius, x + 0.66 * radius),
                v=(0.34 * radius, 1.66 * radius),
                colour=rim,
                round=True,
            ),
            Decal(
                u=(x - 0.2 * radius, x + 0.2 * radius),
                v=(0.8 * radius, 1.2 * radius),
                colour=BLACK,
                round=True,
            ),
        )
        face = Paint(colour=cap.colour, second=cap.second, decals=decals, axes=(0, 2))
        for y0, y1 in ((W / 2 - 0.22, W / 2 + 0.012), (-W / 2 - 0.012, -W / 2 + 0.22)):
            wheels.append(
                cylinder(1, (x - radius, y0, 0.0), (x + radius, y1, 2 * radius), TYRE, face, shades=False)
            )
    return wheels


def _truck(rng: np.random.Generator, colour: Colour) -> tuple[list[Solid], np.ndarray]:
    L, W, H = rng.uniform(5.8, 8.6), rng.uniform(2.15, 2.5), rng.uniform(2.7, 3.6)
    cab = min(rng.uniform(2.2, 2.8), H - 0.1)
    nose = rng.uniform(1.7, 2.1)
    radius = rng.uniform(0.40, 0.50)
    x0 = L / 2 - nose
    trim = rgb(0.35 * np.array(colour))
    front = plain(
        colour,
        0.15,
        0.7,
        axes=(1, 2),
        decals=(
            Decal(u=(-0.44 * W, 0.44 * W), v=(0.52 * cab, 0.88 * cab), colour=GLASS.colour),
            *_front(rng, W, 0.45, 0.45 * cab, BLACK, trim),
        ),
    )
    door = plain(
        colour,
        0.15,
        0.7,
        axes=(0, 2),
        decals=(
            Decal(u=(x0 + 0.35 * nose, x0 + 0.85 * nose), v=(0.56 * cab, 0.86 * cab), colour=GLASS.colour),
            Decal(u=(x0 + 0.30 * nose, x0 + 0.32 * nose), v=(0.4, 0.9 * cab), colour=trim),
            Decal(
                u=(x0 + 0.5 * nose - 1.15 * radius, x0 + 0.5 * nose + 1.15 * radius),
                v=(-0.3, 2.2 * radius),
                colour=BLACK,
                round=True,
            ),
        ),
    )
    head = box(
        (x0, -W / 2, 0.4),
        (L / 2, W / 2, cab),
        plain(colour),
        sides=[front, plain(colour), door, door],
        extra=[(plane((1, 0, 0.18), (L / 2, 0, 0.5 * cab)), front)],
    )
    grey = rng.random() < 0.6
    load = rgb(rng.uniform(0.6, 0.9) * np.ones(3)) if grey else rgb(rng.uniform(0.15, 0.75, 3))
    stripe = rgb(rng.uniform(0.1, 0.9, 3))
    v = rng.uniform(0.45, 0.7) * H
    panel = plain(
        load,
        0.2,
        1.2,
        axes=(0, 2),
        decals=(Decal(u=(-L, L), v=(v, v + rng.uniform(0.2, 0.6)), colour=stripe),),
    )
    rear = plain(
        load,
        0.2,
        1.2,
        axes=(1, 2),
        decals=(
            Decal(u=(-0.02, 0.02), v=(0.9, H), colour=BLACK),
            Decal(u=(-W / 2, -W / 2 + 0.25), v=(0.95, 1.12), colour=(0.75, 0.06, 0.06)),
            Decal(u=(W / 2 - 0.25, W / 2), v=(0.95, 1.12), colour=(0.75, 0.06, 0.06)),
        ),
    )
    cargo = box(
        (-L / 2, -W / 2, 0.9), (x0 - 0.12, W / 2, H), plain(load, 0.2, 1.2), sides=[panel, rear, panel, panel]
    )
    chassis = box(
        (-L / 2 + 0.1, -W / 2 + 0.15, 0.42), (L / 2 - 0.2, W / 2 - 0.15, 0.95), plain((0.10, 0.10, 0.11), 0.4)
    )
    wheels = _wheels((x0 + 0.5 * nose, -L / 2 + 0.2 * L), W, radius, rng)
    return [head, cargo, chassis, *wheels], np.array([L, W, H])
