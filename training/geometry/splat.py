"""Forward warping's discrete half: source pixels as planes, and which of them a target pixel sees.

Nothing per sub-pixel is kept or differentiated: points are made, dropped and forgotten a few
rows at a time, and what remains is one winning source pixel for each target pixel.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from training.geometry.camera import NEAR

MIN_FACING = 0.1
"""Least area, against a patch that faces the source, that a tilted patch covers in the target."""

POINTS_AT_ONCE = {"cpu": 1 << 17, "cuda": 1 << 22}
"""Points held at a time: what fits the cache, or keeps a GPU busy."""

INFINITE = 0x7F800000
"""Bits of the float32 infinity; those of positive numbers order as the numbers do."""


def planar_patches(depth: Tensor, b: Tensor) -> Tensor:
    """A plane through each pixel, with slopes that do not bridge depth edges.

    On a plane in space inverse depth is linear in pixels, 1/D = n . (u, v, 1), so both one-sided
    differences agree; of two that differ the smaller is taken, of two of opposite sign none
    (minmod), so that no point hangs in the air between an object and what is behind it. A patch
    that would turn its back on the target camera, or nearly, faces the source instead.

    Args:
        depth: (B, 1, H, W) scene units, > 0.
        b: (B, 3) K t of s_T_t.

    Returns:
        (B, 3, H, W) n of each pixel's plane.
    """
    H, W = depth.shape[-2:]
    u, v = _axes(H, W, like=depth)
    d = 1 / depth
    slope_u, slope_v = _limited_slope(d, 3), _limited_slope(d, 2)
    with torch.no_grad():
        # How much of a patch the target sees, 1 - n . K t (the determinant of its homography),
        # against the same patch facing the source.
        bu, bv, bz = b[..., None, None, None].unbind(1)
        flat = 1 - d * bz
        tilted = torch.addcmul(flat, slope_u, u * bz - bu).addcmul_(slope_v, v * bz - bv)
        kept = tilted > MIN_FACING * flat
    slope_u, slope_v = slope_u * kept, slope_v * kept
    return torch.cat([slope_u, slope_v, d - slope_u * u - slope_v * v], dim=1)


@torch.no_grad()
def nearest_patches(planes: Tensor, A: Tensor, b: Tensor, alpha: int) -> tuple[Tensor, Tensor]:
    """The patch that each target pixel sees: a z-buffer over alpha^2 points a patch.

    Depths are compared in float32; of equal depths the lowest source index wins, so the result
    does not depend on the order of points. A depth that is not a number may win, but meets no ray.

    Args:
        planes: (B, 3, H, W) of `planar_patches`.
        A, b: (B, 3, 3) K R K^-1 and (B, 3) K t of t_T_s.
        alpha: Points a side.

    Returns:
        (B, H*W) int64 flat source pixel, 0 where none, and (B, 1, H, W) bool, False where none.
    """
    planes, A, b = planes.detach().float(), A.detach().float().clone(), b.detach().float().clone()
    B, _, H, W = planes.shape
    # Cells have a margin of one pixel that collects what lands outside. Rounding is cutting off
    # u + 1.5, margin included, and the 1.5 hides in the matrix: (x + 1.5 z) / z.
    A[:, :2] += 1.5 * A[:, 2:]
    b[:, :2] += 1.5 * b[:, 2:]
    u, v = _axes(H, W, like=planes)
    index = torch.arange(H * W, device=planes.device).view(H, W)
    nearest = torch.full((B, (H + 2) * (W + 2)), INFINITE << 32, device=planes.device)
    offsets = [(k + 0.5) / alpha - 0.5 for k in range(alpha)]
    rows = max(1, POINTS_AT_ONCE.get(planes.device.type, 1 << 20) // max(1, B * W))
    for top in range(0, H, rows):
        slope_u, slope_v, d = planes[:, :, top : top + rows].unbind(1)
        for y in offsets:
            v_point = v[top : top + rows] + y
            column = torch.addcmul(A[:, :, 2, None, None], A[:, :, 1, None, None], v_point)
            d_column = torch.addcmul(d, slope_v, v_point)
            for x in offsets:
                inverse_depth = torch.addcmul(d_column, slope_u, u + x)
                point = torch.addcmul(column, b[..., None, None], inverse_depth[:, None])
                point += A[:, :, 0, None, None] * (u + x)
                cell, z = _land(point, inverse_depth, H, W)
                key = torch.add(index[top : top + rows], z.view(torch.int32).long(), alpha=1 << 32)
                nearest.scatter_reduce_(1, cell.flatten(1), key.flatten(1), "amin")
    nearest = nearest.view(B, H + 2, W + 2)[:, 1:-1, 1:-1]
    hit = (nearest >> 32) < INFINITE
    return ((nearest & 0xFFFFFFFF) * hit).flatten(1), hit[:, None]


def _axes(H: int, W: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Pixel centres u (W) and v (H, 1), to broadcast over (..., H, W)."""
    u = torch.arange(W, dtype=like.dtype, device=like.device)
    return u, torch.arange(H, dtype=like.dtype, device=like.device)[:, None]


def _land(point: Tensor, inverse_depth: Tensor, H: int, W: int) -> tuple[Tensor, Tensor]:
    """Cells (B, h, w) int64 of homogeneous points (B, 3, h, w), and depths, infinite to drop them."""
    scale = point[:, 2]
    z = F.threshold(scale / inverse_depth, NEAR, torch.inf)
    # Whatever a huge number or a NaN becomes as an integer, clamping brings it to the margin.
    u, v = (point[:, :2] / scale[:, None]).int().unbind(1)
    return torch.add(u.clamp_(0, W + 1), v.clamp_(0, H + 1), alpha=W + 2).long(), z


def _limited_slope(d: Tensor, dim: int) -> Tensor:
    """Slope of (B, 1, H, W) along a dimension, per pixel: minmod of the one-sided differences.

    The border has one difference, which is taken as it is unless so steep that half a pixel
    further inverse depth might not be positive; inside that cannot be.
    """
    n = d.shape[dim]
    if n == 1:
        return torch.zeros_like(d)
    step = d.diff(dim=dim)
    before = torch.cat([step.narrow(dim, 0, 1), step], dim=dim)
    after = torch.cat([step, step.narrow(dim, n - 2, 1)], dim=dim)
    with torch.no_grad():
        agree = before * after > 0
        for end in (0, n - 1):
            agree.narrow(dim, end, 1).logical_and_(before.narrow(dim, end, 1).abs() <= d.narrow(dim, end, 1))
        nearer = before.abs() <= after.abs()
    return torch.where(nearer, before, after) * agree
