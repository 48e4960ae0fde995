"""People, houses, trees and street furniture as convex solids."""

from __future__ import annotations

import colorsys

import numpy as np

from pipeline.streetworld.solids import (
    Colour,
    Decal,
    Facade,
    Paint,
    Solid,
    box,
    cylinder,
    ellipsoid,
    plain,
    plane,
    rgb,
)

SKIN: tuple[Colour, ...] = ((0.86, 0.68, 0.56), (0.72, 0.52, 0.40), (0.52, 0.36, 0.26), (0.36, 0.24, 0.18))


def draw_person(rng: np.random.Generator, walking: bool) -> tuple[list[Solid], np.ndarray]:
    """(solids, (length, width, height)) of a person facing +x, feet on z = 0, as one rigid body."""
    H = rng.uniform(1.1, 1.4) if rng.random() < 0.12 else rng.uniform(1.55, 1.92)
    wide = rng.uniform(0.9, 1.15)
    skin = plain(SKIN[rng.integers(len(SKIN))], 0.1, 0.2)
    top = plain(_cloth(rng), 0.25, 0.25)
    legs = plain(_cloth(rng, dark=True), 0.25, 0.3)
    shoe = Decal(u=(-2, 2), v=(-1, 0.05 * H), colour=(0.1, 0.09, 0.09))
    hair = rgb(np.array([0.3, 0.2, 0.12]) * rng.uniform(0.2, 1.8))
    stride = rng.uniform(0.12, 0.2) * H if walking else 0.02
    hip, shoulder = 0.49 * H, 0.82 * H
    solids = []
    for side in (1, -1):
        leg = Paint(colour=legs.colour, second=legs.second, wavelength=0.3, decals=(shoe,))
        solids.append(_limb(side * 0.09 * wide, 0.075 * wide, 0.085, hip, 0.0, 0.0, side * stride, leg))
    if rng.random() < 0.25:  # a coat or a skirt
        solids.append(
            cylinder(2, (-0.17, -0.20 * wide, 0.27 * H), (0.17, 0.20 * wide, hip + 0.02), top, shades=False)
        )
    bag = (Decal(u=(-0.2, 0.2), v=(0.55 * H, 0.75 * H), colour=_cloth(rng)),) if rng.random() < 0.3 else ()
    torso = Paint(colour=top.colour, second=top.second, wavelength=0.25, decals=bag, axes=(1, 2))
    solids.append(
        cylinder(2, (-0.13 * wide, -0.21 * wide, hip - 0.03), (0.13 * wide, 0.21 * wide, shoulder), torso)
    )
    for side in (1, -1):
        hand = Decal(u=(-2, 2), v=(-1, 0.46 * H), colour=skin.colour)
        arm = Paint(colour=top.colour, second=top.second, wavelength=0.25, decals=(hand,))
        solids.append(
            _limb(side * 0.245 * wide, 0.05, 0.06, shoulder - 0.01, 0.40 * H, 0.0, -side * 0.7 * stride, arm)
        )
    cap = Decal(u=(-1, 1), v=(0.945 * H, 2 * H), colour=hair)
    solids.append(
        ellipsoid(
            (0.01, 0, 0.915 * H),
            (0.10, 0.085, 0.087 * H),
            Paint(colour=skin.colour, second=skin.second, wavelength=0.2, decals=(cap,), axes=(1, 2)),
        )
    )
    length = max(0.36, 2 * stride + 0.17)
    return solids, np.array([length, 0.6 * wide, 1.002 * H])


def draw_house(rng: np.random.Generator, length: float, depth: float, style: str) -> list[Solid]:
    """A house along x, its front at y = 0 towards -y, its ground at z = 0 (it reaches below)."""
    height = rng.uniform(7.0, 20.0) if style == "city" else rng.uniform(3.2, 7.0)
    wall = _wall(rng)
    floor = rng.uniform(2.8, 3.6)
    pitch = rng.uniform(1.9, 3.6)
    first = rng.uniform(0.0, 0.4) if style != "city" or rng.random() < 0.4 else floor * 1.15
    glass = rgb(np.array([0.12, 0.15, 0.19]) * rng.uniform(0.6, 1.8))
    light = rng.random() < 0.6
    frame = rgb(rng.uniform(0.75, 0.92) * np.ones(3)) if light else rgb(np.array(wall) * 0.55)
    facade = Facade(
        pitch=pitch,
        width=pitch * rng.uniform(0.32, 0.66),
        floor=floor,
        sill=rng.uniform(0.7, 1.0),
        height=rng.uniform(1.2, 1.8),
        first=first,
        top=height - 0.3,
        glass=glass,
        frame=frame,
    )
    decals = _ground_floor(rng, length, first, wall)
    if rng.random() < 0.7:  # cornice
        decals.append(Decal(u=(-99, 99), v=(height - 0.45, height), colour=frame))
    if rng.random() < 0.5:  # plinth
        decals.insert(0, Decal(u=(-99, 99), v=(-5, 0.5), colour=rgb(np.array(wall) * 0.6)))
    vary, wave = rng.uniform(0.12, 0.32), rng.uniform(0.3, 1.3)
    front = plain(wall, vary, wave, decals=tuple(decals), facade=facade, axes=(0, 2))
    gable = plain(wall, vary, wave, facade=facade if rng.random() < 0.5 else None, axes=(1, 2))
    roof = plain(_roof(rng), 0.35, 0.8)
    low, high = (-length / 2, 0.0, -4.0), (length / 2, depth, height)
    if style == "city" and rng.random() < 0.6:
        solids = [box(low, high, gable, sides=[gable, gable, gable, front], top=roof)]
    else:
        rise = rng.uniform(0.35, 0.8) * depth / 2
        high = (length / 2, depth, height + rise)
        slopes = [
            (plane((0, -rise, depth / 2), (0, 0, height)), roof),
            (plane((0, rise, depth / 2), (0, depth, height)), roof),
        ]
        solids = [box(low, high, gable, sides=[gable, gable, gable, front], top=roof, extra=slopes)]
        if rng.random() < 0.6:
            x = rng.uniform(-0.3, 0.3) * length
            top = height + rise + rng.uniform(0.4, 0.9)
            solids.append(
                box(
                    (x - 0.35, depth * 0.5, height),
                    (x + 0.35, depth * 0.5 + 0.6, top),
                    plain((0.5, 0.28, 0.22)),
                    shades=False,
                )
            )
    if style == "city" and rng.random() < 0.4:  # an awning over the pavement
        a, b = sorted(rng.uniform(-0.45, 0.45, 2) * length)
        if b - a > 2:
            solids.append(
                box(
                    (a, -1.1, 2.6),
                    (b, 0.0, 3.1),
                    plain(_cloth(rng), 0.2),
                    extra=[(plane((0, -0.45, 1), (0, 0, 3.1)), plain(_cloth(rng), 0.2))],
                    shades=False,
                )
            )
    return solids


def draw_tree(rng: np.random.Generator) -> list[Solid]:
    """A tree at the origin; its trunk reaches a little below the ground."""
    leaf = np.array(
        colorsys.hsv_to_rgb(rng.uniform(0.16, 0.36), rng.uniform(0.35, 0.7), rng.uniform(0.28, 0.5))
    )
    bark = plain(rgb(np.array([0.30, 0.24, 0.19]) * rng.uniform(0.7, 1.4)), 0.4, 0.4)
    solids = []
    if rng.random() < 0.2:  # conifer: shrinking tiers
        height, radius = rng.uniform(5, 9), rng.uniform(1.0, 1.7)
        solids.append(cylinder(2, (-0.14, -0.14, -1), (0.14, 0.14, 2.0), bark, shades=False))
        for k in range(5):
            f = k / 4
            r = radius * (1 - 0.8 * f)
            solids.append(
                ellipsoid(
                    (0, 0, 1.6 + f * (height - 2.4)),
                    (r, r, 0.17 * height * (1 - 0.45 * f)),
                    _leaves(leaf * (0.8 + 0.4 * f)),
                )
            )
        return solids
    trunk = rng.uniform(1.9, 3.2)
    r0 = rng.uniform(0.10, 0.24)
    size = rng.uniform(1.0, 2.0)
    solids.append(cylinder(2, (-r0, -r0, -1), (r0, r0, trunk + 0.8 * size), bark))
    for k in range(int(rng.integers(5, 8))):
        turn = rng.uniform(0, 2 * np.pi) if k else 0.0
        out = 0.0 if k == 0 else rng.uniform(0.45, 0.85) * size
        centre = (
            out * np.cos(turn),
            out * np.sin(turn),
            trunk + size * (0.9 + (rng.uniform(-0.25, 0.9) if k else 0.2)),
        )
        radii = size * rng.uniform(0.5, 0.8, 3) * (1.25 if k == 0 else 1.0)
        solids.append(ellipsoid(centre, radii, _leaves(leaf * rng.uniform(0.75, 1.25))))
    return solids


def draw_furniture(rng: np.random.Generator) -> tuple[list[Solid], float]:
    """(solids, radius on the ground) of a lamp, sign, bin or bollard; the road is towards -y."""
    grey = plain(rgb(rng.uniform(0.2, 0.6) * np.ones(3)), 0.2)
    kind = rng.choice(["lamp", "sign", "bin", "bollard", "pole"], p=[0.35, 0.22, 0.15, 0.1, 0.18])
    if kind == "lamp":
        h = rng.uniform(5, 8)
        return [
            cylinder(2, (-0.09, -0.09, -1), (0.09, 0.09, h), grey),
            box((-0.1, -1.5, h - 0.12), (0.1, 0.05, h), grey, shades=False),
        ], 0.15
    if kind == "sign":
        h = rng.uniform(2.4, 3.1)
        colour = [(0.1, 0.2, 0.65), (0.78, 0.1, 0.1), (0.9, 0.75, 0.1), (0.1, 0.45, 0.2)][rng.integers(4)]
        inner = Decal(
            u=(-0.22, 0.22), v=(h - 0.62, h - 0.18), colour=(0.92, 0.92, 0.9), round=bool(rng.random() < 0.5)
        )
        plate = plain(colour, 0.05, decals=(inner,), axes=(1, 2))
        return [
            cylinder(2, (-0.04, -0.04, -1), (0.04, 0.04, h), grey),
            box((-0.03, -0.35, h - 0.75), (0.03, 0.35, h), plate, shades=False),
        ], 0.35
    if kind == "bin":
        return [box((-0.3, -0.3, -1), (0.3, 0.3, rng.uniform(0.9, 1.2)), plain(_cloth(rng), 0.25, 0.5))], 0.4
    if kind == "bollard":
        stripe = Decal(u=(-1, 1), v=(0.65, 0.8), colour=(0.9, 0.9, 0.9))
        return [
            cylinder(
                2,
                (-0.09, -0.09, -1),
                (0.09, 0.09, 0.95),
                plain((0.2, 0.2, 0.22), 0.2, decals=(stripe,), axes=(1, 2)),
            )
        ], 0.15
    wood = plain((0.42, 0.32, 0.24), 0.35, 0.5)
    return [cylinder(2, (-0.12, -0.12, -1), (0.12, 0.12, rng.uniform(6, 9)), wood)], 0.2


def draw_frontage(rng: np.random.Generator, length: float) -> list[Solid]:
    """A hedge, wall or fence along x, its front at y = 0."""
    kind = rng.choice(["hedge", "wall", "fence"])
    h = rng.uniform(0.8, 1.8)
    if kind == "hedge":
        leaf = np.array(
            colorsys.hsv_to_rgb(rng.uniform(0.2, 0.36), rng.uniform(0.4, 0.7), rng.uniform(0.25, 0.42))
        )
        return [box((-length / 2, 0, -3), (length / 2, 0.8, h), _leaves(leaf))]
    if kind == "wall":
        return [box((-length / 2, 0, -3), (length / 2, 0.3, h), plain(_wall(rng), 0.35, 0.7))]
    boards = plain(rgb(np.array([0.5, 0.38, 0.27]) * rng.uniform(0.6, 1.5)), 0.35, 0.35)
    return [box((-length / 2, 0, -3), (length / 2, 0.12, h), boards)]


def _limb(
    y: float,
    half: float,
    thick: float,
    top: float,
    bottom: float,
    x_top: float,
    x_bottom: float,
    paint: Paint,
) -> Solid:
    """A slanted bar from (x_top, top) to (x_bottom, bottom) at offset y."""
    low = (min(x_top, x_bottom) - thick, y - half, bottom)
    high = (max(x_top, x_bottom) + thick, y + half, top)
    rise, run = top - bottom, x_top - x_bottom
    fore = plane((rise, 0, -run), (x_bottom + thick, 0, bottom))
    back = plane((-rise, 0, run), (x_bottom - thick, 0, bottom))
    return box(low, high, paint, extra=[(fore, paint), (back, paint)], shades=False)


def _ground_floor(rng: np.random.Generator, length: float, first: float, wall: Colour) -> list[Decal]:
    """Shop windows or doors."""
    decals: list[Decal] = []
    if first > 2:
        band = _cloth(rng)
        decals.append(
            Decal(u=(-length / 2 + 0.2, length / 2 - 0.2), v=(first - 0.75, first - 0.1), colour=band)
        )
        u = -length / 2 + 0.5
        while u < length / 2 - 2 and len(decals) < 7:
            w = rng.uniform(1.2, 3.2)
            door = rng.random() < 0.3
            colour = rgb(np.array(_cloth(rng)) * 0.6) if door else rgb(rng.uniform(0.12, 0.35, 3))
            end = u + (1.1 if door else w)
            decals.append(
                Decal(
                    u=(u, min(end, length / 2 - 0.3)), v=(0.05 if door else 0.5, first - 0.95), colour=colour
                )
            )
            u += (1.1 if door else w) + rng.uniform(0.25, 0.6)
    else:
        u = rng.uniform(-0.3, 0.3) * length
        decals.append(Decal(u=(u - 0.65, u + 0.65), v=(0, 2.35), colour=rgb(np.array(wall) * 1.15)))
        decals.append(Decal(u=(u - 0.5, u + 0.5), v=(0, 2.2), colour=rgb(np.array(_cloth(rng)) * 0.7)))
    return decals


def _leaves(colour: np.ndarray) -> Paint:
    return Paint(colour=rgb(colour * 0.45), second=rgb(np.clip(colour * 1.55, 0, 1)), wavelength=0.42)


def _wall(rng: np.random.Generator) -> Colour:
    if rng.random() < 0.35:  # brick
        return rgb(np.array([0.52, 0.30, 0.23]) * rng.uniform(0.75, 1.35) + rng.normal(0, 0.02, 3))
    hue = rng.choice([0.06, 0.10, 0.13, 0.55, 0.33, 0.0]) + rng.normal(0, 0.015)
    return colorsys.hsv_to_rgb(hue % 1, rng.uniform(0.03, 0.32), rng.uniform(0.45, 0.88))


def _roof(rng: np.random.Generator) -> Colour:
    return [(0.48, 0.24, 0.18), (0.28, 0.27, 0.28), (0.36, 0.30, 0.26), (0.22, 0.24, 0.28)][rng.integers(4)]


def _cloth(rng: np.random.Generator, dark: bool = False) -> Colour:
    top = 0.45 if dark else 0.9
    return colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.1, 0.85), rng.uniform(0.12, top))
