"""How much light reaches the ground: sun shadows, and the darkness under and beside objects.

Worked out at pixel centres and then smoothed over 3 x 3 pixels of ground, which stands for
the sun's width and costs a quarter of doing it for every colour sample.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from pipeline.streetworld.raycast import FIRST_FACE, SKY, Hits, Model, Rays, View, project_bounds
from pipeline.streetworld.world import Scene

REACH_M = 90.0
"""Shadows are drawn up to this depth."""


@dataclass(frozen=True, kw_only=True)
class GroundLight:
    """sun: (H * W,) share of sunlight that arrives; open: (H * W,) share of all light."""

    sun: Tensor
    open: Tensor


def light_ground(scene: Scene, model: Model, view: View, rays: Rays, hits: Hits) -> GroundLight:
    """Light on the ground seen by each pixel; 1 where a pixel sees none."""
    q, surface = hits.q[-1], hits.surface[-1]
    height, width = q.shape
    ground = ((surface > SKY) & (surface < FIRST_FACE)).flatten()
    at = ground.nonzero()[:, 0]
    z = 1 / q.flatten()[at]
    x, y = (a[-1].expand(height, width).flatten()[at] for a in (rays.x, rays.y))
    X = torch.stack([x * z, y * z, z])
    sun, open_ = torch.ones_like(q).flatten(), torch.ones_like(q).flatten()
    open_[at] = _contact(scene, view, X)
    if scene.light.shadows and len(at):
        number = torch.full((height * width,), -1, device=at.device)
        number[at] = torch.arange(len(at), device=at.device)
        sun[at] = _shadows(scene, model, view, X, number.reshape(height, width))
    mask = ground.float()
    weight = avg_pool2d(mask.reshape(1, 1, height, width), 3, 1, 1).clamp(min=1e-6)
    layers = torch.stack([sun * mask, open_ * mask]).reshape(1, 2, height, width)
    smooth = (avg_pool2d(layers, 3, 1, 1) / weight).reshape(2, -1)
    return GroundLight(sun=smooth[0], open=smooth[1])


def _contact(scene: Scene, view: View, X: Tensor) -> Tensor:
    """(n,) share of light that reaches ground points X (3, n) past the objects around them."""
    shade = torch.ones_like(X[0])
    for b, actor in enumerate(scene.actors):
        T = view.camera_T_body[b]
        if T[2, 3] < -4 or T[2, 3] > REACH_M:
            continue
        half, wide = float(actor.size[0]) / 2, float(actor.size[1]) / 2
        soft, strength = (0.28, 0.75) if actor.label == "car" else (0.2, 0.5)
        reach = float(np.hypot(half, wide)) + soft
        close = ((X[0] - float(T[0, 3])).abs() < reach) & ((X[2] - float(T[2, 3])).abs() < reach)
        close_at = close.nonzero()[:, 0]
        if len(close_at) == 0:
            continue
        local = _tensor(T[:3, :2].T, X) @ X[:, close_at] - _tensor(T[:3, :2].T @ T[:3, 3], X)[:, None]
        cover = ((half - local[0].abs()) / soft + 0.75).clamp(0, 1)
        cover = cover * ((wide - local[1].abs()) / soft + 0.75).clamp(0, 1)
        shade[close_at] *= 1 - strength * cover * cover * (3 - 2 * cover)
    return shade


def _shadows(scene: Scene, model: Model, view: View, X: Tensor, number: Tensor) -> Tensor:
    """(n,) share of sunlight at ground points X (3, n); number (H, W) is each pixel's n, -1 for none.

    From a ground point X the ray X + t S to the sun meets a half-space at a t that is
    affine in X, so a shadow costs as little as a view ray.
    """
    to_sun, hill = scene.light.to_sun, scene.street.hill
    world_T_solid = (view.world_T_camera @ view.camera_T_body)[model.body]
    corners = np.einsum("sij,skj->ski", world_T_solid[:, :3, :3], model.corners)
    corners = corners + world_T_solid[:, None, :3, 3]
    fall = np.maximum(corners[:, :, 2] - hill.height(corners[:, :, 0]), 0) / to_sun[2]
    landed = corners - fall[:, :, None] * to_sun
    landed[:, :, 2] = hill.height(landed[:, :, 0])
    # The pavement is higher than the road, and the hill is not flat between the corners.
    spread = np.concatenate(
        [landed + np.array([0, 0, scene.street.kerb + 0.05]), landed - np.array([0, 0, 0.3])], 1
    )
    R, t = view.world_T_camera[:3, :3], view.world_T_camera[:3, 3]
    in_camera = (spread - t) @ R
    rects = project_bounds(in_camera, scene.K, scene.size)
    casts = model.shades & (in_camera[:, :, 2].min(1, initial=np.inf) < REACH_M)
    casts &= (rects[:, 2] > rects[:, 0]) & (rects[:, 3] > rects[:, 1])
    lit = torch.ones_like(X[0])
    sun = R.T @ to_sun
    for i in np.flatnonzero(casts):
        u0, v0, u1, v1 = rects[i]
        at = number[v0:v1, u0:u1].flatten()
        at = at[(at >= 0).nonzero()[:, 0]]
        at = at[lit[at].nonzero()[:, 0]]
        if len(at):
            lit[at[_meets(model, view, int(i), X[:, at], sun)]] = 0.0
    return lit


def _meets(model: Model, view: View, i: int, X: Tensor, sun: np.ndarray) -> Tensor:
    """(n,) whether rays from X (3, n) towards the sun meet solid i."""
    count = X.shape[1]
    low, high = torch.full_like(X[0], 0.02), torch.full_like(X[0], 1e6)
    live = None
    for k, (*n, c) in enumerate(view.planes[model.first[i] : model.first[i + 1]].tolist()):
        fall = float(n[0] * sun[0] + n[1] * sun[1] + n[2] * sun[2])
        fall = fall if abs(fall) > 1e-6 else -1e-6
        t = X[0] * (-n[0] / fall) + X[1] * (-n[1] / fall) + X[2].mul(-n[2] / fall).sub_(c / fall)
        if fall < 0:
            low = torch.maximum(low, t)
        else:
            high = torch.minimum(high, t)
        if k == 1 and count > 2000:  # most rays miss: go on with the others
            live = (high > low).nonzero()[:, 0]
            X, low, high = X[:, live], low[live], high[live]
    dark = _meets_curved(model, view, i, X, sun, low, high) if model.curved[i] else high > low
    if live is None:
        return dark
    return torch.zeros(count, dtype=torch.bool, device=X.device).index_put_((live,), dark)


def _meets_curved(
    model: Model, view: View, i: int, X: Tensor, sun: np.ndarray, low: Tensor, high: Tensor
) -> Tensor:
    """(n,) whether the pieces low..high of these rays meet solid i's curved surface."""
    T = view.camera_T_body[model.body[i]]
    A = T[:3, :3].T * model.scale[i][:, None]
    o = _tensor(A, X) @ X - _tensor(A @ T[:3, 3] + model.scale[i] * model.centre[i], X)[:, None]
    d = A @ sun
    dd = max(float(d @ d), 1e-9)
    B = float(d[0]) * o[0] + float(d[1]) * o[1] + float(d[2]) * o[2]
    reach = (B * B - dd * ((o * o).sum(0) - 1)).sqrt()  # NaN where the ray misses
    return torch.minimum(high, (reach - B) / dd) > torch.maximum(low, (-B - reach) / dd)


def _tensor(a: np.ndarray, like: Tensor) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(a, dtype=np.float32)).to(like.device)
