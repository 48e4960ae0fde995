"""Reading images between pixels: the only place where coordinates meet torch's conventions.

Pixels (0, 0) is the CENTRE of the top-left pixel, so coordinates from -1 to 1 between the
centres of the outer pixels, `align_corners=True`, are the ones that agree. Resizing maps pixel
EDGES to pixel edges, u' = (u + 0.5) s - 0.5, which is `align_corners=False`. Nothing else in
`training` calls `grid_sample`, or `interpolate` on images and maps (pipeline/CONVENTIONS.md; a
test looks); inside the networks features are doubled, pixel by pixel.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


def sample(
    image: Tensor,
    uv: Tensor,
    mode: Literal["bilinear", "nearest"] = "bilinear",
    padding: Literal["zeros", "border"] = "zeros",
) -> Tensor:
    """Image values at pixel positions.

    Differentiable in the image and, bilinear, in the positions. On a GPU the gradient to the
    image is summed in no fixed order, by torch; everything else is deterministic.

    Args:
        image: (B, C, H, W) floating point.
        uv: (B, h, w, 2) positions (u, v) in pixels of `image`; one that is no number lies outside.
        mode: Interpolation.
        padding: What lies outside: 0 (fading over one pixel), or the nearest pixel of the border.

    Returns:
        (B, C, h, w).
    """
    H, W = image.shape[-2:]
    if H == 1 or W == 1:
        # One pixel has no distance to divide by: give it neighbours like what lies outside.
        how = "replicate" if padding == "border" else "constant"
        return sample(F.pad(image, (1, 1, 1, 1), mode=how), uv + 1, mode, padding)
    grid = torch.addcmul(uv.new_tensor(-1.0), uv, uv.new_tensor([2 / (W - 1), 2 / (H - 1)]))
    # On the CPU torch's backward pass crashes the process at positions that are no number.
    grid = grid.nan_to_num(nan=-2.0)
    return F.grid_sample(image, grid, mode=mode, padding_mode=padding, align_corners=True)


def inside(uv: Tensor, H: int, W: int) -> Tensor:
    """(...) bool for (..., 2) positions: between the centres of the outer pixels."""
    u, v = uv.unbind(-1)
    return (u >= 0) & (u <= W - 1) & (v >= 0) & (v <= H - 1)


def resize(
    image: Tensor, size: tuple[int, int], mode: Literal["bilinear", "nearest", "area"] = "bilinear"
) -> Tensor:
    """Image of another size, edges to edges.

    Args:
        image: (B, C, H, W); any type for "nearest" (label maps), floating point otherwise.
        size: (H, W) of the result.
        mode: "bilinear" to enlarge, "area" (mean of what is covered) to reduce.
    """
    if mode == "nearest":
        rows, columns = (
            ((torch.arange(n, device=image.device) + 0.5) * (m / n)).long().clamp(max=m - 1)
            for n, m in zip(size, image.shape[-2:], strict=True)
        )
        return image[..., rows[:, None], columns]
    if mode == "area":
        return F.interpolate(image, size, mode="area")
    return F.interpolate(image, size, mode="bilinear", align_corners=False)


def sample_points(image: Tensor, index: Tensor, uv: Tensor) -> Tensor:
    """Bilinear image values at loose points, each of one image of a batch.

    Args:
        image: (B, H, W, C), channels last: a point reads whole rows of them.
        index: (P,) int64 in [0, B).
        uv: (P, 2) positions in pixels; outside, the nearest pixel of the border.

    Returns:
        (P, C). Differentiable in the image and the positions.
    """
    H, W = image.shape[1:3]
    u, v = uv[:, 0].clamp(0, W - 1), uv[:, 1].clamp(0, H - 1)
    u0, v0 = u.detach().floor().clamp(max=max(W - 2, 0)), v.detach().floor().clamp(max=max(H - 2, 0))
    du, dv = (u - u0)[:, None], (v - v0)[:, None]
    left, top = u0.long(), v0.long()
    right, bottom = (left + 1).clamp(max=W - 1), (top + 1).clamp(max=H - 1)
    above = image[index, top, left] * (1 - du) + image[index, top, right] * du
    below = image[index, bottom, left] * (1 - du) + image[index, bottom, right] * du
    return above * (1 - dv) + below * dv
