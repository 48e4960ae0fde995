"""Colour of the ground: asphalt and its markings, kerb, paving stones, verge."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pipeline.streetworld.noise import Noise, inside, stripes
from pipeline.streetworld.raycast import KERB, ROAD, RoadMap, View, world_xy
from pipeline.streetworld.world import Scene

WHITE = 0.85


def ground_colour(
    scene: Scene, view: View, x: Tensor, y: Tensor, q: Tensor, surface: Tensor, roads: RoadMap, noise: Noise
) -> Tensor:
    """(n, 3) unlit colour of ground at inverse depth q (n,) on rays (x, y, 1)."""
    street, ground = scene.street, scene.ground
    X, Y = world_xy(view, x, y, q)
    s, d = roads.coordinates(X, Y)
    camera = view.world_T_camera[:3, 3]
    height = float(camera[2] - street.hill.height(camera[0]))
    near = 1 / (q * float(scene.K[0, 0]))
    far = near / (q * height).clamp(max=1.0)  # the long side of a footprint on flat ground
    n = noise.fractal(X, Y, torch.full_like(x, 3.1), torch.maximum(near, 0.3 * far), octaves=7)
    outside = torch.maximum(d - street.left, -d - street.right)
    if street.junction_s is not None:
        outside = torch.minimum(outside, (s - street.junction_s).abs() - street.junction_half)
    road, kerb = surface == ROAD, surface == KERB
    verge = (outside > street.pavement) & ~road & ~kerb
    paved = ~(road | kerb | verge)

    kinds = np.stack([ground.pavement, ground.asphalt, 0.8 * ground.pavement, ground.verge]).astype(
        np.float32
    )
    grain = torch.tensor([0.28, 0.30, 0.25, 0.50], device=x.device)
    kind = road * 1 + kerb * 2 + verge * 3
    joint = torch.maximum(stripes(s, ground.tile, 0.035, far), stripes(d, ground.tile, 0.035, near))
    gain = (1 + grain[kind] * n) * (1 - 0.35 * joint * paved)
    colour = torch.from_numpy(kinds).to(x.device)[kind] * gain[:, None]
    edge = inside(outside, -0.3, 0.22, near) * paved
    stone = torch.from_numpy(np.clip(1.15 * ground.pavement, 0, 1).astype(np.float32)).to(x.device)
    colour = torch.lerp(colour, stone * (1 + 0.2 * n)[:, None], edge[:, None])
    worn = (0.92 + 0.25 * n).clamp(0, 1)
    paint = _markings(scene, s, d, near, far) * worn * road
    return torch.lerp(colour, (WHITE * (1 + 0.15 * n))[:, None].expand_as(colour), paint[:, None])


def _markings(scene: Scene, s: Tensor, d: Tensor, near: Tensor, far: Tensor) -> Tensor:
    """Cover of white paint: centre, lane and parking lines, stop lines, zebra crossings."""
    street, ground = scene.street, scene.ground
    width = street.lanes * street.lane
    dashes = stripes(s, 3 * ground.dash, ground.dash, far)
    paint = inside(d, -0.07, 0.07, near)
    if not ground.centre_solid:
        paint = paint * dashes
    if street.lanes == 2:
        paint = torch.maximum(paint, inside(d.abs(), street.lane - 0.06, street.lane + 0.06, near) * dashes)
    for side, edge in ((1, street.left), (-1, street.right)):
        if edge > width + 2:
            line = inside(side * d, width - 0.05, width + 0.05, near)
            paint = torch.maximum(paint, line * stripes(s, 1.2, 0.6, far))
        elif ground.edge_line:
            paint = torch.maximum(paint, inside(side * d, edge - 0.35, edge - 0.23, near))
    if street.junction_s is not None:
        gap = (s - street.junction_s).abs() - street.junction_half
        paint = paint * inside(gap, 4.5, 1e9, far)
        within = (d < street.left) & (d > -street.right)
        if ground.zebra:
            bars = inside(gap, 0.8, 3.4, far) * stripes(d, 1.0, 0.5, near)
        else:
            bars = inside(gap, 1.0, 1.4, far)
        paint = torch.maximum(paint, bars * within)
    return paint
