"""Forward warping's discrete half: source pixels as planes, and which of them a target pixel sees.

Nothing per sub-pixel is kept or differentiated: points are made, dropped and forgotten a few
rows at a time, and what remains is one winning source pixel for each target pixel.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from training.geometry.camera import NEAR, pixel_grid

MIN_FACING = 0.1
"""Least area, against a patch that faces the source, that a tilted patch covers in the target."""

POINTS_AT_ONCE = {"cpu": 1 << 17, "cuda": 1 << 22}
"""Points held at a time: what fits the cache, or keeps a GPU busy."""

INFINITE = 0x7F800000
"""Bits of the float32 infinity; those of positive numbers order as the numbers do."""


@dataclass(frozen=True)
class Patches:
    """Every source pixel as a small plane.

    planes: (B, 3, H, W) slopes of inverse depth along u and v, per pixel, and inverse depth.
    """

    planes: Tensor


def planar_patches(depth: Tensor, b: Tensor) -> Patches:
    """A plane through each pixel, with slopes that do not bridge depth edges.

    On a plane in space inverse depth is linear in pixels, so both one-sided differences agree;
    of two that differ the smaller is taken, of two of opposite sign none (van Leer's minmod), so
    that no point hangs in the air between an object and what is behind it. A patch that would
    turn its back on the target camera, or nearly, faces the source instead.

    Args:
        depth: (B, 1, H, W) scene units, > 0.
        b: (B, 3) K t of s_T_t.
    """
    H, W = depth.shape[-2:]
    d = 1 / depth
    slopes = torch.cat([_limited_slope(d, 3), _limited_slope(d, 2)], dim=1)
    with torch.no_grad():
        # How much of a patch the target sees, against the source: the determinant of its
        # homography, 1 - n . K t, against that of the same pixel facing the source.
        x = b[..., None, None]
        flat = 1 - d * x[:, 2:]
        parallax = x[:, :2] - pixel_grid(H, W, like=depth).permute(2, 0, 1) * x[:, 2:]
        tilted = flat - (slopes * parallax).sum(1, keepdim=True)
        kept = tilted > MIN_FACING * flat
    return Patches(torch.cat([slopes * kept, d], dim=1))


@torch.no_grad()
def nearest_patches(patches: Patches, A: Tensor, b: Tensor, alpha: int) -> tuple[Tensor, Tensor]:
    """The patch that each target pixel sees: a z-buffer over alpha^2 points a patch.

    Depths are compared in float32; of equal depths the lowest source index wins, so the result
    depends neither on the order of points nor on the device.

    Args:
        patches: Of the source.
        A, b: (B, 3, 3) K R K^-1 and (B, 3) K t of t_T_s.
        alpha: Points a side.

    Returns:
        (B, H*W) int64 flat source pixel, 0 where none, and (B, 1, H, W) bool, False where none.
    """
    planes = patches.planes.detach().float()
    B, _, H, W = planes.shape
    # Cells have a margin of one pixel that collects what lands outside. Rounding is cutting off
    # u + 1.5, margin included, and the 1.5 hides in the matrix: (x + 1.5 z) / z.
    A, b = A.detach().float().clone(), b.detach().float().clone()
    A[:, :2] += 1.5 * A[:, 2:]
    b[:, :2] += 1.5 * b[:, 2:]
    nearest = torch.full((B, (H + 2) * (W + 2)), INFINITE << 32, device=planes.device)
    u = torch.arange(W, dtype=torch.float32, device=planes.device)
    v = torch.arange(H, dtype=torch.float32, device=planes.device)
    index = torch.arange(H * W, device=planes.device).view(H, W)
    offsets = [(k + 0.5) / alpha - 0.5 for k in range(alpha)]
    rows = max(1, POINTS_AT_ONCE.get(planes.device.type, 1 << 20) // max(1, B * W))
    for top in range(0, H, rows):
        some = slice(top, top + rows)
        slope_u, slope_v, d = planes[:, :, some].unbind(1)
        for y in offsets:
            column = A[:, :, 1:2] * (v[some] + y) + A[:, :, 2:]
            for x in offsets:
                row = A[:, :, :1] * (u + x)
                inverse_depth = torch.add(d, slope_v, alpha=y).add_(slope_u, alpha=x)
                point = torch.addcmul(column[..., None], b[..., None, None], inverse_depth[:, None])
                point += row[:, :, None]
                cell, z = _land(point, inverse_depth, H, W)
                key = torch.add(index[some], z.view(torch.int32).long(), alpha=1 << 32)
                nearest.scatter_reduce_(1, cell.flatten(1), key.flatten(1), "amin")
    nearest = nearest.view(B, H + 2, W + 2)[:, 1:-1, 1:-1]
    hit = (nearest >> 32) < INFINITE
    winner = (nearest & 0xFFFFFFFF) * hit
    return winner.flatten(1), hit[:, None]


def _land(point: Tensor, inverse_depth: Tensor, H: int, W: int) -> tuple[Tensor, Tensor]:
    """Cells (B, h, w) int64 of homogeneous points (B, 3, h, w), and depths, infinite to drop them."""
    scale = point[:, 2]
    z = scale / inverse_depth
    z = torch.where(z > NEAR, z, torch.inf)
    # Whatever a huge number or a NaN becomes as an integer, clamping brings it to the margin.
    cell = (point[:, :2] / scale[:, None]).int()
    u, v = cell.unbind(1)
    return torch.add(u.clamp_(0, W + 1), v.clamp_(0, H + 1), alpha=W + 2).long(), z


def _limited_slope(d: Tensor, dim: int) -> Tensor:
    """Slope of (B, 1, H, W) along a dimension, per pixel: minmod of the one-sided differences.

    The only difference there is at the border is taken as it is, but never steeper than reaching
    0 at the next pixel: inverse depth stays positive within half a pixel.
    """
    n = d.shape[dim]
    if n == 1:
        return torch.zeros_like(d)
    step = d.diff(dim=dim)
    before = torch.cat([step.narrow(dim, 0, 1), step], dim=dim)
    after = torch.cat([step, step.narrow(dim, n - 2, 1)], dim=dim)
    slope = before.clamp(min=after.clamp(max=0), max=after.clamp(min=0))
    return slope.clamp(min=-d, max=d)
