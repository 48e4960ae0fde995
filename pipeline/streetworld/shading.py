"""What colour a ray sees: paint, decals, windows, markings, light, shadow, haze and sky.

Shading is fixed to the object: a moving object's light is computed once, for its pose in
the middle of the clip, so that its looks move rigidly with it. Only the shadows on the
ground follow the sun.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.streetworld.noise import Noise, inside, stripes
from pipeline.streetworld.raycast import (
    FIRST_FACE,
    KERB,
    ROAD,
    SKY,
    Hits,
    Model,
    Rays,
    RoadMap,
    View,
    project_bounds,
)
from pipeline.streetworld.scene import Ground, Light, Scene

WHITE = (0.86, 0.86, 0.84)
SHADOW_REACH_M = 90.0


@dataclass(frozen=True, kw_only=True)
class Looks:
    """Attributes of every surface (face f is row f; rows below FIRST_FACE are unused).

    colour, second, light: (F, 3);  wavelength: (F,);  curved: (F,) bool;  facade: (F,) bool
    decal_first: (F + 1,) rows of decals (u0, u1, v0, v1, r, g, b, round)
    facades: (F, 13);  uv: (F, 2, 3) body axes of (u, v);  offset: (F, 2) noise offset
    to_sun: (F, 3) sun direction in the body's frame, for curved faces
    """

    colour: Tensor
    second: Tensor
    light: Tensor
    wavelength: Tensor
    curved: Tensor
    facade: Tensor
    decal_first: Tensor
    decals: Tensor
    facades: Tensor
    offset: Tensor
    to_sun: Tensor
    uv: np.ndarray
    sun: Tensor
    ambient: Tensor


def build_looks(scene: Scene, model: Model, device: torch.device) -> Looks:
    """Tables of paint and fixed light for a scene's faces."""
    count = FIRST_FACE + len(model.paints)
    middle = len(scene.world_T_camera) // 2
    poses = model.poses(middle)
    table = {"colour": np.zeros((count, 3)), "second": np.zeros((count, 3)), "light": np.ones((count, 3)),
             "wavelength": np.ones(count), "facades": np.zeros((count, 13)), "to_sun": np.zeros((count, 3))}  # fmt: skip
    uv = np.zeros((count, 2, 3))
    facade = np.zeros(count, bool)
    decals: list[tuple[float, ...]] = []
    decal_first = [0] * (FIRST_FACE + 1)
    sun, ambient = scene.light.sun, scene.light.ambient
    for k, paint in enumerate(model.paints):
        f = FIRST_FACE + k
        table["colour"][f], table["second"][f], table["wavelength"][f] = (
            paint.colour,
            paint.second,
            paint.wavelength,
        )
        normal = model.face_normal[k]
        R = poses[model.face_body[k], :3, :3]
        flat = bool(normal.any())
        table["to_sun"][f] = R.T @ scene.light.to_sun
        if flat:
            world = R @ normal
            table["light"][f] = _lit(world[2], max(0.0, float(world @ scene.light.to_sun)), sun, ambient)
        axes = paint.axes or _axes(normal, flat)
        uv[f] = np.eye(3)[list(axes)]
        if (not flat and paint.axes is None) or (not flat and not paint.decals):
            uv[f] = [
                [0.83, 0.45, 0.33],
                [-0.31, 0.52, 0.80],
            ]  # askew, so that no side of a round thing is stretched out
        if paint.facade is not None:
            a = paint.facade
            facade[f] = True
            table["facades"][f] = [
                a.pitch,
                a.width,
                a.floor,
                a.sill,
                a.height,
                a.first,
                a.top,
                *a.glass,
                *a.frame,
            ]
        decals += [(*d.u, *d.v, *d.colour, float(d.round)) for d in paint.decals]
        decal_first.append(len(decals))
    seeds = np.random.default_rng(7).uniform(0, 200, (int(model.face_body.max(initial=0)) + 1, 2))
    offset = np.zeros((count, 2))
    offset[FIRST_FACE:] = seeds[model.face_body] + np.arange(len(model.paints))[:, None] * 3.7

    def tensor(a: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(a, dtype=np.float32)).to(device)

    return Looks(
        **{name: tensor(value) for name, value in table.items()},
        curved=torch.from_numpy(np.concatenate([np.zeros(FIRST_FACE, bool), ~model.face_normal.any(1)])).to(
            device
        ),
        facade=torch.from_numpy(facade).to(device),
        decal_first=torch.tensor(decal_first, device=device),
        decals=tensor(np.array(decals).reshape(-1, 8)),
        offset=tensor(offset),
        uv=uv,
        sun=tensor(sun),
        ambient=tensor(ambient),
    )


def shade(
    scene: Scene, model: Model, looks: Looks, view: View, rays: Rays, hits: Hits, roads: RoadMap, noise: Noise
) -> Tensor:
    """(H, W, 3) float32 colour in [0, 1], the mean over the colour samples."""
    samples = hits.q.shape[0] - 1
    q, surface = hits.q[:samples], hits.surface[:samples]
    shape = q.shape
    x, y = rays.x[:samples].expand(shape).reshape(-1), rays.y[:samples].expand(shape).reshape(-1)
    f = float(scene.K[0, 0])
    shadow = _shadows(scene, model, view, rays, Hits(q=q, surface=surface))
    q, surface = q.reshape(-1), surface.reshape(-1).long()
    z = 1 / q.clamp(min=1e-6)
    colour = torch.empty((len(q), 3), device=q.device)

    sky = (surface == SKY).nonzero()[:, 0]
    colour[sky] = _sky(scene.light, view, x[sky], y[sky], f, noise)
    floor = ((surface > SKY) & (surface < FIRST_FACE)).nonzero()[:, 0]
    colour[floor] = _floor(scene, view, x[floor], y[floor], z[floor], surface[floor], f, roads, noise,
                           shadow.reshape(-1)[floor])  # fmt: skip
    solid = (surface >= FIRST_FACE).nonzero()[:, 0]
    if len(solid):
        colour[solid] = _faces(model, looks, view, x[solid], y[solid], z[solid], surface[solid], f, noise)
    haze = torch.exp(-z / scene.light.haze_m)[:, None]
    horizon = _like(scene.light.horizon, colour)
    lit = surface[:, None] > SKY
    colour = torch.where(lit, horizon + (colour - horizon) * haze, colour)
    return colour.reshape(*shape, 3).mean(0).clamp(0, 1)


def _faces(
    model: Model,
    looks: Looks,
    view: View,
    x: Tensor,
    y: Tensor,
    z: Tensor,
    face: Tensor,
    f: float,
    noise: Noise,
) -> Tensor:
    """Colour of solids: paint, windows, decals, light."""
    rows, normals = _face_rows(model, looks, view)
    X = torch.stack([x, y, torch.ones_like(x)], -1) * z[:, None]
    T = torch.from_numpy(rows).to(x.device).index_select(0, face)
    u = (X * T[:, 0:3]).sum(-1) + T[:, 3]
    v = (X * T[:, 4:7]).sum(-1) + T[:, 7]
    normal = torch.from_numpy(normals).to(x.device).index_select(0, face)
    cosine = (normal * torch.stack([x, y, torch.ones_like(x)], -1)).sum(-1).abs()
    light = looks.light.index_select(0, face)
    curved = looks.curved[face].nonzero()[:, 0]
    if len(curved):
        light[curved], cosine[curved] = _curved_light(model, looks, view, X[curved], face[curved])
    near = z / f
    far = near / cosine.clamp(0.12, 1)
    wavelength = looks.wavelength.index_select(0, face)
    offset = looks.offset.index_select(0, face)
    # Samples lie half a pixel apart, so the long side of a footprint counts half.
    n = noise.fractal(u + offset[:, 0], v + offset[:, 1], wavelength, torch.maximum(near, 0.5 * far))
    mix = (0.5 + 0.5 * n).clamp(0, 1)[:, None]
    colour = torch.lerp(looks.colour.index_select(0, face), looks.second.index_select(0, face), mix)
    windows = looks.facade[face].nonzero()[:, 0]
    if len(windows):
        colour[windows] = _windows(colour[windows], looks.facades[face[windows]], u[windows], v[windows], near[windows],
                                   far[windows], offset[windows], noise)  # fmt: skip
    _paint_decals(colour, looks, face, u, v, far)
    return colour * light


def _face_rows(model: Model, looks: Looks, view: View) -> tuple[np.ndarray, np.ndarray]:
    """(F, 8) affine maps camera point -> (u, v) and (F, 3) normals in the camera."""
    T = view.camera_T_body[model.face_body]
    R = T[:, :3, :3]
    rows = np.zeros((FIRST_FACE + len(model.paints), 8), np.float32)
    normals = np.zeros((len(rows), 3), np.float32)
    axes = np.einsum("fij,fkj->fki", R, looks.uv[FIRST_FACE:])  # u and v axes in camera coordinates
    shift = -np.einsum("fki,fi->fk", axes, T[:, :3, 3])
    rows[FIRST_FACE:, 0:3], rows[FIRST_FACE:, 3] = axes[:, 0], shift[:, 0]
    rows[FIRST_FACE:, 4:7], rows[FIRST_FACE:, 7] = axes[:, 1], shift[:, 1]
    normals[FIRST_FACE:] = np.einsum("fij,fj->fi", R, model.face_normal)
    return rows, normals


def _curved_light(model: Model, looks: Looks, view: View, X: Tensor, face: Tensor) -> tuple[Tensor, Tensor]:
    """Light and cosine to the view of curved faces, from the normal at each point."""
    k = face - FIRST_FACE
    device = X.device
    T = view.camera_T_body[model.body]
    to_body = np.concatenate(
        [T[:, :3, :3].swapaxes(1, 2), -np.einsum("sji,sj->si", T[:, :3, :3], T[:, :3, 3])[:, :, None]], 2
    )
    solid = torch.from_numpy(model.face_solid).to(device)[k]
    M = torch.from_numpy(to_body.astype(np.float32)).to(device)[solid]
    centre = torch.from_numpy(model.centre.astype(np.float32)).to(device)[solid]
    scale = torch.from_numpy(model.scale.astype(np.float32)).to(device)[solid]
    point = torch.einsum("nij,nj->ni", M[:, :, :3], X) + M[:, :, 3]
    normal = torch.nn.functional.normalize((point - centre) * scale * scale, dim=-1)
    ray = torch.einsum("nij,nj->ni", M[:, :, :3], X)
    cosine = (normal * ray).sum(-1).abs() / ray.norm(dim=-1)
    lambert = (normal * looks.to_sun[face]).sum(-1).clamp(min=0)[:, None]
    return _lit(normal[:, 2:], lambert, looks.sun, looks.ambient), cosine


def _windows(
    colour: Tensor, a: Tensor, u: Tensor, v: Tensor, near: Tensor, far: Tensor, offset: Tensor, noise: Noise
) -> Tensor:
    """Rows of framed windows; each pane has its own brightness."""
    pitch, width, floor, sill, height, first, top = a[:, :7].unbind(-1)
    row = torch.floor((v - first) / floor)
    complete = (row >= 0) & (first + (row + 1) * floor <= top + 0.4)
    base = first + row * floor + sill
    margin = 0.09

    def rows(grow: float) -> Tensor:
        return inside(v, base - grow, base + height + grow, near) * complete

    def columns(grow: float) -> Tensor:
        return stripes(u - (pitch - width) / 2 + grow, pitch, width + 2 * grow, far)

    frame = (rows(margin) * columns(margin))[:, None]
    pane = (rows(0.0) * columns(0.0))[:, None]
    bar = (1 - 0.7 * inside(torch.remainder(u, pitch) - pitch / 2, -0.04, 0.04, far))[:, None]
    cell = noise.octave(
        torch.floor(u / pitch) * 7.0 + offset[:, 0].floor(), row * 11.0 + offset[:, 1].floor()
    )[:, None]
    glass = a[:, 7:10] * (1.15 + 0.6 * cell) + (cell > 0.62) * 0.35  # some curtains
    colour = torch.lerp(colour, a[:, 10:13], frame)
    return torch.lerp(colour, glass, pane * bar)


def _paint_decals(
    colour: Tensor, looks: Looks, face: Tensor, u: Tensor, v: Tensor, footprint: Tensor
) -> None:
    """Paint each face's decals over its colour (in place), in order."""
    first = looks.decal_first[face]
    count = looks.decal_first[face + 1] - first
    k = 0
    while True:
        live = (count > k).nonzero()[:, 0]
        if len(live) == 0:
            return
        d = looks.decals.index_select(0, first[live] + k)
        du, dv, width = u[live], v[live], footprint[live]
        square = inside(du, d[:, 0], d[:, 1], width) * inside(dv, d[:, 2], d[:, 3], width)
        ru, rv = (d[:, 1] - d[:, 0]) / 2, (d[:, 3] - d[:, 2]) / 2
        radius = torch.hypot((du - d[:, 0] - ru) / ru, (dv - d[:, 2] - rv) / rv)
        disc = ((1 - radius) * torch.minimum(ru, rv) / width + 0.5).clamp(0, 1)
        cover = torch.where(d[:, 7] > 0, disc, square)[:, None]
        colour[live] = torch.lerp(colour[live], d[:, 4:7], cover)
        k += 1


def _floor(scene: Scene, view: View, x: Tensor, y: Tensor, z: Tensor, surface: Tensor, f: float, roads: RoadMap, noise: Noise,
           shadow: Tensor) -> Tensor:  # fmt: skip
    """Colour of road, kerb, pavement and verge with their markings."""
    street, ground = scene.street, scene.ground
    R, t = view.world_T_camera[:3, :3], view.world_T_camera[:3, 3]
    X, Y = ((float(R[k, 0]) * x + float(R[k, 1]) * y + float(R[k, 2])) * z + float(t[k]) for k in (0, 1))
    s, d = roads.coordinates(X, Y)
    near = z / f
    height = float(t[2]) - street.hill.height(float(t[0]))
    far = near * (z / height).clamp(min=1.0)
    n = noise.fractal(X, Y, torch.full_like(x, 3.1), torch.maximum(near, 0.3 * far), octaves=7)
    outside = torch.maximum(d - street.left, -d - street.right)
    if street.junction_s is not None:
        outside = torch.minimum(outside, (s - street.junction_s).abs() - street.junction_half)

    road = _like(ground.asphalt, x) * (1 + 0.30 * n)[:, None]
    road = torch.lerp(road, _like(np.array(WHITE), x) * (1 + 0.15 * n)[:, None],
                      (_markings(scene, ground, s, d, near, far) * (0.92 + 0.25 * n).clamp(0, 1))[:, None])  # fmt: skip
    joint = torch.maximum(stripes(s, ground.tile, 0.035, far), stripes(d, ground.tile, 0.035, near))
    edge = inside(outside, -0.3, 0.22, near)
    paved = _like(ground.pavement, x) * ((1 + 0.28 * n) * (1 - 0.35 * joint))[:, None]
    paved = torch.lerp(
        paved, _like(np.clip(ground.pavement * 1.15, 0, 1), x) * (1 + 0.2 * n)[:, None], edge[:, None]
    )
    verge = _like(ground.verge, x) * (1 + 0.5 * n)[:, None]
    paved = torch.where((outside > street.pavement)[:, None], verge, paved)
    kerb = _like(ground.pavement * 0.8, x) * (1 + 0.25 * n)[:, None]
    is_road, is_kerb = (surface == ROAD)[:, None], (surface == KERB)[:, None]
    colour = torch.where(is_road, road, torch.where(is_kerb, kerb, paved))
    lambert = float(scene.light.to_sun[2])
    sun, ambient = _like(scene.light.sun, x), _like(scene.light.ambient, x)
    contact = _contact_shade(scene, view, x, y, z)
    return colour * (ambient + sun * (lambert * shadow)[:, None]) * contact[:, None]


def _markings(scene: Scene, ground: Ground, s: Tensor, d: Tensor, near: Tensor, far: Tensor) -> Tensor:
    """Cover of white paint: centre line, lane lines, parking lines, stop lines, zebra crossings."""
    street = scene.street
    width = street.lanes * street.lane
    dashes = stripes(s, 3 * ground.dash, ground.dash, far)
    centre = inside(d, -0.07, 0.07, near) * (1.0 if ground.centre_solid else dashes)
    paint = centre
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
        within = ((d < street.left) & (d > -street.right)).float()
        if ground.zebra:
            paint = torch.maximum(paint, inside(gap, 0.8, 3.4, far) * stripes(d, 1.0, 0.5, near) * within)
        else:
            paint = torch.maximum(paint, inside(gap, 1.0, 1.4, far) * within)
    return paint


def _contact_shade(scene: Scene, view: View, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """Darkening of the ground under and beside objects, 1 where there is none."""
    shade = torch.ones_like(x)
    for b, actor in enumerate(scene.actors):
        T = view.camera_T_body[b]
        if T[2, 3] < -4 or T[2, 3] > SHADOW_REACH_M:
            continue
        half, wide = actor.size[0] / 2, actor.size[1] / 2
        soft = 0.28 if actor.label == "car" else 0.2
        # Only rays near the object on screen: a coarse test in camera coordinates first.
        reach = float(np.hypot(half, wide)) + soft
        close = (((x * z - float(T[0, 3])).abs() < reach) & ((z - float(T[2, 3])).abs() < reach)).nonzero()[
            :, 0
        ]
        if len(close) == 0:
            continue
        R = T[:3, :3]
        X = torch.stack([x[close], y[close], torch.ones_like(x[close])], -1) * z[close, None] - _like(
            T[:3, 3], x
        )
        local = X @ torch.from_numpy(np.ascontiguousarray(R[:, :2]).astype(np.float32)).to(x.device)
        cover = ((half - local[:, 0].abs()) / soft + 0.75).clamp(0, 1) * (
            (wide - local[:, 1].abs()) / soft + 0.75
        ).clamp(0, 1)
        strength = 0.75 if actor.label == "car" else 0.5
        shade[close] *= 1 - strength * cover * cover * (3 - 2 * cover)
    return shade


def _shadows(scene: Scene, model: Model, view: View, rays: Rays, hits: Hits) -> Tensor:
    """(S, H, W) share of sunlight that reaches the ground; 1 elsewhere.

    From a ground point X the ray X + t S to the sun meets a half-space at a t that is
    affine in X, so a shadow costs as little as a view ray.
    """
    lit = torch.ones_like(hits.q)
    if not scene.light.shadows:
        return lit
    to_sun = scene.light.to_sun
    corners = np.einsum(
        "sij,skj->ski", (view.world_T_camera @ view.camera_T_body)[model.body][:, :3, :3], model.corners
    )
    corners = corners + (view.world_T_camera @ view.camera_T_body)[model.body][:, None, :3, 3]
    height = np.maximum(corners[:, :, 2] - scene.street.hill.height(corners[:, :, 0]), 0)
    landed = corners - (height / to_sun[2])[:, :, None] * to_sun
    landed[:, :, 2] = scene.street.hill.height(landed[:, :, 0])
    base = corners.copy()
    base[:, :, 2] = np.minimum(base[:, :, 2], scene.street.hill.height(base[:, :, 0]))
    spread = np.concatenate([landed, landed + [0, 0, scene.street.kerb + 0.05], landed - [0, 0, 0.3]], 1)
    R, t = view.world_T_camera[:3, :3], view.world_T_camera[:3, 3]
    in_camera = (spread - t) @ R
    rects = project_bounds(in_camera, scene.K, scene.size)
    close = (in_camera[:, :, 2].min(1) < SHADOW_REACH_M) & model.shades
    sun = R.T @ to_sun
    for i in np.flatnonzero(close & (rects[:, 2] > rects[:, 0]) & (rects[:, 3] > rects[:, 1])):
        u0, v0, u1, v1 = rects[i]
        q, surface = hits.q[:, v0:v1, u0:u1], hits.surface[:, v0:v1, u0:u1]
        on = ((surface > SKY) & (surface < FIRST_FACE)).flatten().nonzero()[:, 0]
        if len(on) == 0:
            continue
        samples = q.shape[0]
        z = 1 / q.flatten()[on]
        X = torch.stack([
            rays.x[:samples, :, u0:u1].expand_as(q).flatten()[on] * z,
            rays.y[:samples, v0:v1].expand_as(q).flatten()[on] * z,
            z,
        ])  # fmt: skip
        dark = _meets(model, view, int(i), X, sun)
        window = lit[:, v0:v1, u0:u1]
        flat = window.flatten()
        flat[on] = torch.where(dark, 0.0, flat[on])
        window.copy_(flat.reshape(window.shape))
    return lit


def _meets(model: Model, view: View, i: int, X: Tensor, sun: np.ndarray) -> Tensor:
    """(n,) whether rays from X (3, n) towards the sun meet solid i."""
    planes = view.planes[model.first[i] : model.first[i + 1]]
    low = torch.full_like(X[0], 0.02)
    high = torch.full_like(X[0], 1e6)
    for n, c in ((p[:3], p[3]) for p in planes):
        fall = float(n @ sun)
        fall = fall if abs(fall) > 1e-6 else -1e-6
        a = -n / fall
        t = float(a[0]) * X[0] + float(a[1]) * X[1] + (float(a[2]) * X[2] - c / fall)
        if fall < 0:
            low = torch.maximum(low, t)
        else:
            high = torch.minimum(high, t)
    if model.curved[i]:
        T = view.camera_T_body[model.body[i]]
        A = T[:3, :3].T * model.scale[i][:, None]
        shift = -A @ T[:3, 3] - model.scale[i] * model.centre[i]
        o = (
            torch.from_numpy(A.astype(np.float32)).to(X.device) @ X
            + torch.from_numpy(shift.astype(np.float32)).to(X.device)[:, None]
        )
        d = A @ sun
        dd = max(float(d @ d), 1e-9)
        B = float(d[0]) * o[0] + float(d[1]) * o[1] + float(d[2]) * o[2]
        root = B * B - dd * ((o * o).sum(0) - 1)
        reach = root.clamp(min=0).sqrt()
        low, high = torch.maximum(low, (-B - reach) / dd), torch.minimum(high, (reach - B) / dd)
        return (high > low) & (root > 0)
    return high > low


def _sky(light: Light, view: View, x: Tensor, y: Tensor, f: float, noise: Noise) -> Tensor:
    """Sky with clouds, infinitely far: it turns with the camera but never shifts."""
    R = view.world_T_camera[:3, :3].astype(np.float32)
    d = torch.stack([x, y, torch.ones_like(x)], -1) @ torch.from_numpy(np.ascontiguousarray(R.T)).to(x.device)
    d = torch.nn.functional.normalize(d, dim=-1)
    rise = d[:, 2].clamp(min=0)
    colour = torch.lerp(
        _like(light.horizon, x), _like(light.zenith, x), (1 - torch.exp(-3.5 * rise))[:, None]
    )
    turn = torch.atan2(d[:, 1], d[:, 0])
    n = noise.fractal(turn * 3.0, rise * 9.0, torch.full_like(x, 1.3), torch.full_like(x, 6.0 / f), octaves=5)
    cloud = (light.clouds * (0.15 + 1.3 * n) * (rise * 6).clamp(0, 1)).clamp(0, 1)[:, None]
    colour = torch.lerp(
        colour, torch.full_like(colour, 0.95) * _like(np.clip(light.horizon * 1.1, 0, 1), x), cloud
    )
    return colour


def _lit(up, lambert, sun, ambient):
    """Light on a surface: the sky from above counts more than from below."""
    return ambient * (0.72 + 0.28 * up) + sun * lambert


def _axes(normal: np.ndarray, flat: bool) -> tuple[int, int]:
    """The two body axes that a face runs along."""
    if not flat:
        return 0, 2
    return [(1, 2), (0, 2), (0, 1)][int(np.abs(normal).argmax())]


def _like(a: np.ndarray, x: Tensor) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(a, dtype=np.float32)).to(x.device)
