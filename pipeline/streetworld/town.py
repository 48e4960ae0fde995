"""The static town along a street: houses, gardens, lamps, signs and trees."""

from __future__ import annotations

import numpy as np

from pipeline.streetworld.roads import Hill, Path, Street, stand
from pipeline.streetworld.scenery import draw_frontage, draw_furniture, draw_house, draw_tree
from pipeline.streetworld.traffic import Footprints, Route
from pipeline.streetworld.world import AHEAD_M, Prop


def draw_furniture_rows(
    rng: np.random.Generator, street: Street, s: np.ndarray, frames: int, taken: Footprints
) -> list[Prop]:
    """Lamps, signs and trees along both kerbs."""
    props = []
    green = rng.choice([0.0, 0.35, 0.75])
    for side, width in ((1, street.left), (-1, street.right)):
        at = s[0] - 5 + rng.uniform(0, 8)
        while at < s[-1] + AHEAD_M:
            beside = street.junction_s is not None and abs(at - street.junction_s) < street.junction_half + 2
            tree = rng.random() < green
            solids, radius = (draw_tree(rng), 0.3) if tree else draw_furniture(rng)
            d = side * (width + 0.55 + rng.uniform(0, 0.25))
            route = Route.along(street.path, np.full(frames, at), d)
            if not beside and taken.admit(route, 2 * radius, 2 * radius, margin=0.1):
                props.append(Prop(solids=solids, pose=_upright(street, route, side)))
            at += rng.uniform(6, 16)
    return props


def _upright(street: Street, route: Route, side: int) -> np.ndarray:
    """Pose of a prop on the pavement, its -y towards the road."""
    x, y, heading = route.x[0], route.y[0], route.heading[0] + (0 if side > 0 else np.pi)
    pose = stand(Hill(bend=0, slope=0), x, y, heading)
    pose[2, 3] = street.hill.height(x) + street.kerb
    return pose


def draw_houses(rng: np.random.Generator, street: Street, s: np.ndarray, style: str) -> list[Prop]:
    """Houses, hedges and garden trees along the street and its side street."""
    end = s[-1] + 190
    rows = [
        (street.path, 1, street.left, s[0] - 12, end, False),
        (street.path, -1, street.right, s[0] - 12, end, False),
    ]
    if street.junction_s is not None:
        x, y, heading = (float(a) for a in street.path.pose(np.array(street.junction_s)))
        for turn in (np.pi / 2, -np.pi / 2):
            side_path = Path.build(x, y, heading + turn, [(1.0, 0.0)])
            first = (street.left if turn > 0 else street.right) + street.pavement + 3
            rows += [(side_path, side, street.junction_half, first, 75.0, True) for side in (1, -1)]
    near_s = np.arange(s[0] - 20, end, 2.0)
    clear = np.stack(street.path.pose(near_s)[:2], -1)
    blocks = Footprints(1)
    props: list[Prop] = []
    for path, side, half, begin, stop, side_street in rows:
        setback = half + street.pavement + (0.0 if style == "city" else rng.uniform(1.5, 5.0))
        at = begin
        while at < stop:
            kind = style if style != "mixed" else str(rng.choice(["city", "suburb"]))
            length, depth = rng.uniform(7, 20) if kind == "city" else rng.uniform(7, 13), rng.uniform(8, 13)
            middle = at + length / 2
            at += length + (
                rng.uniform(0.0, 0.6) if kind == "city" and rng.random() < 0.85 else rng.uniform(2, 9)
            )
            blocked = (
                not side_street
                and street.junction_s is not None
                and abs(middle - street.junction_s) < length / 2 + street.junction_half + street.pavement
            )
            if blocked:
                continue
            front = setback + rng.uniform(0, 0.5)
            centre = Route.along(path, np.array([middle]), side * (front + depth / 2))
            keep_off = max(street.left, street.right) + 1.2 if side_street else half + street.pavement - 0.4
            if _on_road(clear, centre, length, depth, keep_off):
                continue
            if not blocks.admit(centre, length, depth, margin=-0.6):
                continue
            wall = Route.along(path, np.array([middle]), side * front)
            pose = _upright(street, wall, side)
            pose[2, 3] = min(pose[2, 3], float(street.hill.height(centre.x[0])) + street.kerb)
            props.append(Prop(solids=draw_house(rng, length, depth, kind), pose=pose))
            if kind == "suburb" and not side_street:
                props += _garden(rng, street, path, side, half + street.pavement, front, middle, length)
    return props


def _garden(
    rng, street: Street, path: Path, side: int, low: float, front: float, middle: float, length: float
) -> list[Prop]:
    props = []
    if front - low > 1.4 and rng.random() < 0.6:
        edge = Route.along(path, np.array([middle]), side * (low + 0.1))
        props.append(
            Prop(
                solids=draw_frontage(rng, length * rng.uniform(0.5, 0.95)), pose=_upright(street, edge, side)
            )
        )
    if rng.random() < 0.5:
        spot = Route.along(path, np.array([middle + length / 2 + 1.5]), side * (front + rng.uniform(-0.3, 4)))
        props.append(Prop(solids=draw_tree(rng), pose=_upright(street, spot, side)))
    return props


def _on_road(clear: np.ndarray, centre: Route, length: float, depth: float, margin: float) -> bool:
    """Whether a house would stand within margin of the street's centre line."""
    c, sn = np.cos(centre.heading[0]), np.sin(centre.heading[0])
    delta = clear - np.array([centre.x[0], centre.y[0]])
    u, v = np.abs(delta @ np.array([c, sn])), np.abs(delta @ np.array([-sn, c]))
    return bool(np.any((u < length / 2 + margin) & (v < depth / 2 + margin)))
