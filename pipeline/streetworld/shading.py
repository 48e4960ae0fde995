"""What colour a ray sees: paint, decals, windows, light, haze and sky.

Shading is fixed to the object: a moving object's light is computed once, for its pose in
the middle of the clip, so that its looks move rigidly with it. Only the shadows on the
ground follow the sun.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.streetworld.ground import ground_colour
from pipeline.streetworld.noise import Noise, inside, stripes
from pipeline.streetworld.raycast import FIRST_FACE, SKY, Hits, Model, Rays, RoadMap, View
from pipeline.streetworld.shadows import light_ground
from pipeline.streetworld.solids import Paint
from pipeline.streetworld.world import Light, Scene

COLOUR, SECOND, LIGHT, WAVELENGTH, OFFSET, SUN = (
    slice(0, 3),
    slice(3, 6),
    slice(6, 9),
    9,
    slice(10, 12),
    slice(12, 15),
)
"""Columns of `Looks.table`."""


@dataclass(frozen=True, kw_only=True)
class Looks:
    """Attributes of every surface (face f is row f; rows below FIRST_FACE are unused).

    table:       (F, 15) colour, second colour, fixed light, wavelength (m), noise offset, and
                 the direction to the sun in the body's frame (for curved faces)
    uv:          (F, 2, 3) body axes of (u, v)
    curved:      (F,) bool;  facade: (F,) bool;  facades: (F, 13)
    decal_first: (F + 1,) into decals (D, 8): u0, u1, v0, v1, r, g, b, round
    solids:      (F, 6) centre and scale of the curved surface of each face's solid
    """

    table: Tensor
    uv: np.ndarray
    curved: Tensor
    facade: Tensor
    facades: Tensor
    decal_first: Tensor
    decals: Tensor
    solids: Tensor


def build_looks(scene: Scene, model: Model, device: torch.device) -> Looks:
    """Tables of paint and fixed light for a scene's faces."""
    count = FIRST_FACE + len(model.paints)
    poses = model.poses(len(scene.world_T_camera) // 2)
    table = np.zeros((count, 15))
    table[:, WAVELENGTH] = 1
    uv, solids = np.zeros((count, 2, 3)), np.zeros((count, 6))
    facades, facade = np.zeros((count, 13)), np.zeros(count, bool)
    decals: list[tuple[float, ...]] = []
    decal_first = [0] * (FIRST_FACE + 1)
    seeds = np.random.default_rng(7).uniform(0, 200, (len(poses), 2))
    for k, paint in enumerate(model.paints):
        f = FIRST_FACE + k
        normal, R = model.face_normal[k], poses[model.face_body[k], :3, :3]
        up, facing = (R @ normal)[2], float((R @ normal) @ scene.light.to_sun)
        table[f, COLOUR], table[f, SECOND], table[f, WAVELENGTH] = (
            paint.colour,
            paint.second,
            paint.wavelength,
        )
        table[f, LIGHT] = _lit(up, max(0.0, facing), scene.light.sun, scene.light.ambient)
        table[f, OFFSET] = seeds[model.face_body[k]] + 3.7 * k
        table[f, SUN] = R.T @ scene.light.to_sun
        solids[f] = *model.centre[model.face_solid[k]], *model.scale[model.face_solid[k]]
        uv[f] = _axes(normal, paint)
        if (a := paint.facade) is not None:
            facade[f] = True
            facades[f] = (a.pitch, a.width, a.floor, a.sill, a.height, a.first, a.top, *a.glass, *a.frame)
        decals += [(*d.u, *d.v, *d.colour, float(d.round)) for d in paint.decals]
        decal_first.append(len(decals))
    return Looks(
        table=_tensor(table, device),
        uv=uv,
        curved=torch.from_numpy(np.r_[np.zeros(FIRST_FACE, bool), ~model.face_normal.any(1)]).to(device),
        facade=torch.from_numpy(facade).to(device),
        facades=_tensor(facades, device),
        decal_first=torch.tensor(decal_first, device=device),
        decals=_tensor(np.array(decals).reshape(-1, 8), device),
        solids=_tensor(solids, device),
    )


def shade(
    scene: Scene, model: Model, looks: Looks, view: View, rays: Rays, hits: Hits, roads: RoadMap, noise: Noise
) -> Tensor:
    """(H, W, 3) float32 colour in [0, 1], the mean over the four colour samples.

    Where all four see one surface, two of them (the highest and the lowest) stand for all.
    """
    q, surface = hits.q[:4], hits.surface[:4]
    shape = q.shape
    pixels = shape[1] * shape[2]
    uniform = (surface == surface[0]).all(0)
    wanted = torch.ones(shape, dtype=torch.bool, device=q.device)
    wanted[1:3] = ~uniform
    at = wanted.flatten().nonzero()[:, 0]
    q, surface = q.flatten()[at], surface.flatten()[at]
    x, y = (a[:4].expand(shape).flatten()[at] for a in (rays.x, rays.y))
    colour = torch.empty((len(q), 3), device=q.device)

    sky = (surface == SKY).nonzero()[:, 0]
    colour[sky] = _sky(scene.light, view, x[sky], y[sky], float(scene.K[0, 0]), noise)
    floor = ((surface > SKY) & (surface < FIRST_FACE)).nonzero()[:, 0]
    if len(floor):
        unlit = ground_colour(scene, view, x[floor], y[floor], q[floor], surface[floor], roads, noise)
        arrives = light_ground(scene, model, view, rays, hits)
        pixel = at[floor] % pixels
        sun = _tensor(scene.light.sun * scene.light.to_sun[2], q.device)
        light = _tensor(scene.light.ambient, q.device) + arrives.sun[pixel, None] * sun
        colour[floor] = unlit * light * arrives.open[pixel, None]
    solid = (surface >= FIRST_FACE).nonzero()[:, 0]
    if len(solid):
        colour[solid] = _faces(
            scene, model, looks, view, x[solid], y[solid], 1 / q[solid], surface[solid], noise
        )
    clear = torch.where(surface > SKY, torch.exp(-1 / (q.clamp(min=1e-6) * scene.light.haze_m)), 1.0)
    colour = torch.lerp(_tensor(scene.light.horizon, q.device).expand_as(colour), colour, clear[:, None])

    samples = torch.zeros((4 * pixels, 3), device=q.device)
    samples[at] = colour
    first, second, third, fourth = samples.reshape(4, *shape[1:], 3)
    outer = first + fourth
    mean = torch.where(uniform[..., None], outer / 2, (outer + second + third) / 4)
    return mean.clamp(0, 1)


def _faces(
    scene: Scene,
    model: Model,
    looks: Looks,
    view: View,
    x: Tensor,
    y: Tensor,
    z: Tensor,
    face: Tensor,
    noise: Noise,
) -> Tensor:
    """(n, 3) lit colour of solids: paint, windows, decals."""
    rows = (
        torch.from_numpy(_face_rows(model, looks, view)).to(x.device).index_select(0, face).t().contiguous()
    )
    u = (rows[0] * x + rows[1] * y + rows[2]) * z + rows[3]
    v = (rows[4] * x + rows[5] * y + rows[6]) * z + rows[7]
    cosine = (rows[8] * x + rows[9] * y + rows[10]).abs() / torch.sqrt(x * x + y * y + 1)
    table = looks.table.index_select(0, face)
    light = table[:, LIGHT]
    curved = looks.curved[face].nonzero()[:, 0]
    if len(curved):
        X = torch.stack([x[curved], y[curved], torch.ones_like(curved, dtype=x.dtype)], -1) * z[curved, None]
        light[curved], cosine[curved] = _curved_light(scene, model, looks, view, X, face[curved])
    near = z / float(scene.K[0, 0])
    far = near / cosine.clamp(0.12, 1)
    # Samples lie half a pixel apart, so the long side of a footprint counts half.
    blur = torch.maximum(near, 0.5 * far)
    offset_u, offset_v = table[:, OFFSET].unbind(-1)
    n = noise.fractal(u + offset_u, v + offset_v, table[:, WAVELENGTH].contiguous(), blur)
    mix = (0.5 + 0.5 * n).clamp(0, 1)[:, None]
    colour = torch.lerp(table[:, COLOUR], table[:, SECOND], mix)
    at = looks.facade[face].nonzero()[:, 0]
    if len(at):
        colour[at] = _windows(
            colour[at], looks.facades[face[at]], u[at], v[at], near[at], far[at], table[at, OFFSET], noise
        )
    _paint_decals(colour, looks, face, u, v, far)
    return colour * light


def _face_rows(model: Model, looks: Looks, view: View) -> np.ndarray:
    """(F, 11) float32: affine maps camera point -> u, v (4 each) and the normal in the camera."""
    T = view.camera_T_body[model.face_body]
    R = T[:, :3, :3]
    rows = np.zeros((FIRST_FACE + len(model.paints), 11), np.float32)
    axes = np.einsum("fij,fkj->fki", R, looks.uv[FIRST_FACE:])  # u and v axes in camera coordinates
    shift = -np.einsum("fki,fi->fk", axes, T[:, :3, 3])
    rows[FIRST_FACE:, 0:3], rows[FIRST_FACE:, 3] = axes[:, 0], shift[:, 0]
    rows[FIRST_FACE:, 4:7], rows[FIRST_FACE:, 7] = axes[:, 1], shift[:, 1]
    rows[FIRST_FACE:, 8:] = np.einsum("fij,fj->fi", R, model.face_normal)
    return rows


def _curved_light(
    scene: Scene, model: Model, looks: Looks, view: View, X: Tensor, face: Tensor
) -> tuple[Tensor, Tensor]:
    """Light and cosine to the view of curved faces, from the normal at each point X (n, 3)."""
    T = view.camera_T_body[model.face_body]
    R = T[:, :3, :3].swapaxes(1, 2)
    to_body = np.concatenate([R, -np.einsum("fij,fj->fi", R, T[:, :3, 3])[:, :, None]], 2)
    M = _tensor(to_body, X.device).index_select(0, face - FIRST_FACE)
    centre, scale = looks.solids.index_select(0, face).split(3, -1)
    ray = (M[:, :, :3] * X[:, None, :]).sum(-1)
    normal = torch.nn.functional.normalize((ray + M[:, :, 3] - centre) * scale * scale, dim=-1)
    cosine = (normal * ray).sum(-1).abs() / ray.norm(dim=-1)
    lambert = (normal * looks.table.index_select(0, face)[:, SUN]).sum(-1).clamp(min=0)[:, None]
    sun, ambient = _tensor(scene.light.sun, X.device), _tensor(scene.light.ambient, X.device)
    return _lit(normal[:, 2:], lambert, sun, ambient), cosine


def _windows(
    colour: Tensor, a: Tensor, u: Tensor, v: Tensor, near: Tensor, far: Tensor, offset: Tensor, noise: Noise
) -> Tensor:
    """Rows of framed windows over colour (n, 3); a: (n, 13) facades. Each pane has its own brightness."""
    pitch, width, floor, sill, height, first, top = a[:, :7].unbind(-1)
    row = torch.floor((v - first) / floor)
    complete = (row >= 0) & (first + (row + 1) * floor <= top + 0.4)
    base = first + row * floor + sill

    def cover(grow: float) -> Tensor:
        columns = stripes(u - (pitch - width) / 2 + grow, pitch, width + 2 * grow, far)
        return (inside(v, base - grow, base + height + grow, near) * complete * columns)[:, None]

    bar = 1 - 0.7 * inside(torch.remainder(u, pitch) - pitch / 2, -0.04, 0.04, far)[:, None]
    pane_u = torch.floor(u / pitch) * 7.0 + offset[:, 0].floor()
    pane = noise.octave(pane_u, row * 11.0 + offset[:, 1].floor())[:, None]
    glass = a[:, 7:10] * (1.15 + 0.6 * pane) + (pane > 0.62) * 0.35  # some have curtains
    colour = torch.lerp(colour, a[:, 10:13], cover(0.09))
    return torch.lerp(colour, glass, cover(0.0) * bar)


def _paint_decals(
    colour: Tensor, looks: Looks, face: Tensor, u: Tensor, v: Tensor, footprint: Tensor
) -> None:
    """Paint each face's decals over its colour (in place), in order."""
    first = looks.decal_first[face]
    count = looks.decal_first[face + 1] - first
    at = (count > 0).nonzero()[:, 0]
    if len(at) == 0:
        return
    first, count, u, v, footprint = first[at], count[at], u[at], v[at], footprint[at]
    for k in range(int(count.max())):
        live = (count > k).nonzero()[:, 0]
        d = looks.decals.index_select(0, first[live] + k)
        u0, u1, v0, v1 = d[:, :4].t().contiguous()
        du, dv, width = u[live], v[live], footprint[live]
        cover = inside(du, u0, u1, width) * inside(dv, v0, v1, width)
        disc = (d[:, 7] > 0).nonzero()[:, 0]
        if len(disc):
            cu, cv = (u0 + u1)[disc] / 2, (v0 + v1)[disc] / 2
            ru, rv = (u1 - u0)[disc] / 2, (v1 - v0)[disc] / 2
            radius = torch.hypot((du[disc] - cu) / ru, (dv[disc] - cv) / rv)
            cover[disc] = ((1 - radius) * torch.minimum(ru, rv) / width[disc] + 0.5).clamp(0, 1)
        colour[at[live]] = torch.lerp(colour[at[live]], d[:, 4:7], cover[:, None])


def _sky(light: Light, view: View, x: Tensor, y: Tensor, f: float, noise: Noise) -> Tensor:
    """Sky with clouds, infinitely far: it turns with the camera but never shifts."""
    R = _tensor(view.world_T_camera[:3, :3].T, x.device)
    d = torch.nn.functional.normalize(torch.stack([x, y, torch.ones_like(x)], -1) @ R, dim=-1)
    rise = d[:, 2].clamp(min=0)
    horizon, zenith = _tensor(light.horizon, x.device), _tensor(light.zenith, x.device)
    colour = torch.lerp(horizon, zenith, (1 - torch.exp(-3.5 * rise))[:, None])
    turn = torch.atan2(d[:, 1], d[:, 0])
    n = noise.fractal(turn * 3.0, rise * 9.0, torch.full_like(x, 1.3), torch.full_like(x, 6.0 / f))
    cloud = (light.clouds * (0.15 + 1.3 * n) * (rise * 6).clamp(0, 1)).clamp(0, 1)[:, None]
    white = _tensor(0.95 * np.clip(light.horizon * 1.1, 0, 1), x.device)
    return torch.lerp(colour, white.expand_as(colour), cloud)


def _lit(up, lambert, sun, ambient):
    """Light on a surface: the sky from above counts more than from below."""
    return ambient * (0.72 + 0.28 * up) + sun * lambert


def _axes(normal: np.ndarray, paint: Paint) -> np.ndarray:
    """(2, 3) body axes of (u, v): those the paint names, else those that the face runs along."""
    if paint.axes is not None:
        return np.eye(3)[list(paint.axes)]
    if not normal.any():  # askew, so that no side of a round thing is stretched out
        return np.array([[0.83, 0.45, 0.33], [-0.31, 0.52, 0.80]])
    return np.eye(3)[[(1, 2), (0, 2), (0, 1)][int(np.abs(normal).argmax())]]


def _tensor(a: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(a, dtype=np.float32)).to(device)
