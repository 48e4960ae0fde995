"""Plain versions of both warps, for tests and benchmarks: same arguments, same results.

Written from the definitions, in 3-D and per pixel: a 4x4 matrix for every pixel, every point of
the upsampled source held with its gradient, a z-buffer by sorting, bilinear sampling by its four
neighbours. Nothing of `warp`, `splat`, `camera` or `sampling` is used but the results' types and
the constants that belong to the definition.
"""

from __future__ import annotations

import torch
from torch import Tensor

from training.geometry.camera import NEAR
from training.geometry.splat import MIN_FACING
from training.geometry.warp import FAR, ForwardWarp, InverseWarp


def inverse_warp(
    image_s: Tensor, depth_s: Tensor, depth_t: Tensor, K: Tensor, motions: Tensor, regions: Tensor | None
) -> InverseWarp:
    """As `warp.inverse_warp`, by a field of matrices (B, H, W, 4, 4)."""
    B, _, H, W = image_s.shape
    if regions is None:
        regions = torch.zeros(B, H, W, dtype=torch.int64, device=image_s.device)
    motion = motions[torch.arange(B, device=K.device)[:, None, None], regions.long()]
    X_t = _rays(K, H, W) * depth_t[:, 0, ..., None]
    X_s = _transform(motion, X_t)
    uv, z = _project(K, X_s)
    return InverseWarp(
        image=_bilinear(image_s, uv),
        sampled_depth=_bilinear(depth_s, uv),
        moved_depth=z[:, None],
        visible=((z > NEAR) & (uv >= 0).all(-1) & (uv[..., 0] <= W - 1) & (uv[..., 1] <= H - 1))[:, None],
        uv=uv,
    )


def forward_warp(
    image_s: Tensor,
    depth_s: Tensor,
    K: Tensor,
    t_T_s: Tensor,
    labels_s: Tensor | None = None,
    alpha: int = 3,
    detach: bool = False,
) -> ForwardWarp:
    """As `warp.forward_warp`, by all points of the upsampled source at once."""
    if detach:
        with torch.no_grad():
            return forward_warp(image_s, depth_s, K, t_T_s, labels_s, alpha)
    B, _, H, W = image_s.shape
    s_T_t = torch.linalg.inv(t_T_s)
    N = _planes(depth_s[:, 0], K, s_T_t)

    # All points: rays through the sub-pixels, cut with the planes, moved, dropped on pixels.
    X_s = _rays(K, H, W, alpha)
    X_s = X_s / (X_s * N.repeat_interleave(alpha, 1).repeat_interleave(alpha, 2)).sum(-1, keepdim=True)
    uv, z = _project(K, _transform(t_T_s[:, None, None], X_s))
    winner = _z_buffer(uv, z, alpha)

    # What the target's rays see of the winning planes: N . (R z r + t) = 1.
    hole = winner < 0
    N = N.flatten(1, 2)[torch.arange(B, device=K.device)[:, None, None], winner.clamp(min=0)]
    R, t = s_T_t[:, None, None, :3, :3], s_T_t[:, None, None, :3, 3]
    rays = _rays(K, H, W)
    along = (N * (R @ rays[..., None])[..., 0]).sum(-1)
    facing = 1 - (N * t).sum(-1)
    filled = ~hole & (facing / along > NEAR) & (facing / along < FAR)
    depth = torch.where(filled, facing, 1) / torch.where(filled, along, 1)
    source_uv, _ = _project(K, _transform(s_T_t[:, None, None], rays * depth[..., None]))
    labels = None
    if labels_s is not None:
        labels = torch.where(
            filled, labels_s.flatten(1).gather(1, winner.clamp(min=0).flatten(1)).view(B, H, W), 0
        )
    return ForwardWarp(
        image=torch.where(filled[:, None], _bilinear(image_s, source_uv), 0),
        depth=torch.where(filled, depth, 0)[:, None],
        labels=labels,
        filled=filled[:, None],
        source_uv=torch.where(filled[..., None], source_uv, 0),
    )


def _planes(depth: Tensor, K: Tensor, s_T_t: Tensor) -> Tensor:
    """(B, H, W, 3) N of the plane N . X = 1 through each pixel's point, tilted by the limited slopes.

    Inverse depth 1/D = n . (u, v, 1) and (u, v, 1) D = K X make N = K^T n.
    """
    _, H, W = depth.shape
    d = 1 / depth
    slopes = []
    for dim, n in ((2, W), (1, H)):
        if n == 1:
            slopes.append(torch.zeros_like(d))
            continue
        # Neighbours, those beyond the border by continuing the line through the last two pixels.
        first, second, last_but_one, last = (d.narrow(dim, i, 1) for i in (0, 1, n - 2, n - 1))
        line = torch.cat([2 * first - second, d, 2 * last - last_but_one], dim)
        before = d - line.narrow(dim, 0, n)
        after = line.narrow(dim, 2, n) - d
        smaller = torch.where(before.abs() <= after.abs(), before, after)
        slopes.append(torch.where((before * after > 0) & (smaller.abs() <= d), smaller, 0))
    u, v = torch.arange(W).to(d), torch.arange(H).to(d)[:, None]

    def plane(slope_u: Tensor, slope_v: Tensor) -> Tensor:
        n = torch.stack([slope_u, slope_v, d - slope_u * u - slope_v * v], dim=-1)
        return n @ K[:, None]

    t = s_T_t[:, None, None, :3, 3]
    flat, tilted = plane(0 * d, 0 * d), plane(*slopes)
    turned_away = 1 - (tilted * t).sum(-1) <= MIN_FACING * (1 - (flat * t).sum(-1))
    return torch.where(turned_away[..., None], flat, tilted)


def _z_buffer(uv: Tensor, z: Tensor, alpha: int) -> Tensor:
    """(B, H, W) source pixel of the nearest point on each target pixel, -1 where there is none.

    Args:
        uv: (B, alpha H, alpha W, 2) pixels of all points.
        z: (B, alpha H, alpha W) their depths.
    """
    B, h, w = z.shape
    H, W = h // alpha, w // alpha
    winners = torch.full((B, H * W), -1, dtype=torch.int64, device=z.device)
    source = (torch.arange(h)[:, None] // alpha * W + torch.arange(w) // alpha).to(z.device).flatten()
    for b in range(B):
        column, row = (uv[b].detach() + 0.5).floor().flatten(0, 1).unbind(-1)
        kept = (z[b].flatten() > NEAR) & (column >= 0) & (column < W) & (row >= 0) & (row < H)
        cell = (row[kept] * W + column[kept]).long()
        # Sorted by the least important key first: the stable sorts leave the nearest point of each
        # pixel, and of equals the lowest source pixel, in front.
        order = source[kept].argsort(stable=True)
        order = order[z[b].detach().float().flatten()[kept][order].argsort(stable=True)]
        order = order[cell[order].argsort(stable=True)]
        cell = cell[order]
        first = torch.ones_like(cell, dtype=torch.bool)
        first[1:] = cell[1:] != cell[:-1]
        winners[b, cell[first]] = source[kept][order][first]
    return winners.view(B, H, W)


def _rays(K: Tensor, H: int, W: int, alpha: int = 1) -> Tensor:
    """(B, alpha H, alpha W, 3) K^-1 (u, v, 1) of the pixels, each cut into alpha x alpha."""
    u = (torch.arange(alpha * W) + 0.5).to(K) / alpha - 0.5
    v = (torch.arange(alpha * H) + 0.5).to(K) / alpha - 0.5
    p = torch.stack([u.expand(len(v), len(u)), v[:, None].expand(len(v), len(u))], dim=-1)
    p = torch.cat([p, torch.ones_like(p[..., :1])], dim=-1)
    return (torch.linalg.inv(K)[:, None, None] @ p[..., None])[..., 0]


def _transform(motion: Tensor, X: Tensor) -> Tensor:
    """Points (B, H, W, 3), each moved by its own matrix of (B, H, W, 4, 4)."""
    X = torch.cat([X, torch.ones_like(X[..., :1])], dim=-1)
    return (motion @ X[..., None])[..., :3, 0]


def _project(K: Tensor, X: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels (B, H, W, 2) and depths (B, H, W) of points (B, H, W, 3)."""
    p = (K[:, None, None] @ X[..., None])[..., 0]
    return p[..., :2] / p[..., 2:].clamp(min=NEAR), p[..., 2]


def _bilinear(image: Tensor, uv: Tensor) -> Tensor:
    """(B, C, h, w) image (B, C, H, W) at (B, h, w, 2), what lies outside like the nearest of the border."""
    B, _, H, W = image.shape
    u, v = uv[..., 0].clamp(0, W - 1), uv[..., 1].clamp(0, H - 1)
    left, top = u.detach().floor(), v.detach().floor()
    b = torch.arange(B, device=image.device)[:, None, None]
    total = torch.zeros((), dtype=image.dtype, device=image.device)
    for dx in (0, 1):
        for dy in (0, 1):
            weight = (1 - (u - left - dx).abs()) * (1 - (v - top - dy).abs())
            column = (left + dx).clamp(max=W - 1).long()
            row = (top + dy).clamp(max=H - 1).long()
            total = total + weight[..., None] * image[b, :, row, column]
    return total.permute(0, 3, 1, 2)
