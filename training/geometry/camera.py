"""The pinhole camera: pixels and depths to points, and back.

Pixels are (u, v), u right, v down, (0, 0) the CENTRE of the top-left pixel; x right, y down,
z forward. K is (B, 3, 3) in pixels, upper triangular with last row 0 0 1. Depth is z-depth in
scene units.
"""

from __future__ import annotations

import torch
from torch import Tensor

NEAR = 1e-3
"""Least depth, in scene units, that counts as in front of a camera."""


def pixel_grid(H: int, W: int, like: Tensor) -> Tensor:
    """(H, W, 2) pixel centres (u, v), of the type and on the device of `like`."""
    u = torch.arange(W, dtype=like.dtype, device=like.device)
    v = torch.arange(H, dtype=like.dtype, device=like.device)
    return torch.stack([u.expand(H, W), v[:, None].expand(H, W)], dim=-1)


def inverse_intrinsics(K: Tensor) -> Tensor:
    """(..., 3, 3) K^-1 in closed form: exact for the identity K, and no solver waits for a GPU."""
    fx, skew, cx = K[..., 0, 0], K[..., 0, 1], K[..., 0, 2]
    fy, cy = K[..., 1, 1], K[..., 1, 2]
    o, one = torch.zeros_like(fx), torch.ones_like(fx)
    rows = [1 / fx, -skew / (fx * fy), (skew * cy - cx * fy) / (fx * fy), o, 1 / fy, -cy / fy, o, o, one]
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))


def unproject(depth: Tensor, K: Tensor) -> Tensor:
    """Points of a depth map: X = D K^-1 (u, v, 1).

    Args:
        depth: (B, 1, H, W) z-depth, scene units.
        K: (B, 3, 3) pixels.

    Returns:
        (B, 3, H, W) in the camera's frame.

    Raises:
        ValueError: a shape is not as above.
    """
    B, _, H, W = depth.shape
    require_shape("depth", depth, (B, 1, H, W))
    require_shape("K", K, (B, 3, 3))
    uv = pixel_grid(H, W, like=depth)
    p = torch.cat([uv, torch.ones_like(uv[..., :1])], dim=-1).view(-1, 3).mT
    return (inverse_intrinsics(K) @ p).unflatten(2, (H, W)) * depth


def project(points: Tensor, K: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels of points: (u, v, 1) ~ K X.

    Args:
        points: (B, 3, H, W) in the camera's frame, scene units.
        K: (B, 3, 3) pixels.

    Returns:
        (B, H, W, 2) pixels (u, v), maybe outside the image, and (B, 1, H, W) z. A point behind
        the camera keeps its z <= 0 and has finite pixels without meaning: the caller drops it.

    Raises:
        ValueError: a shape is not as above.
    """
    B, _, H, W = points.shape
    require_shape("points", points, (B, 3, H, W))
    require_shape("K", K, (B, 3, 3))
    return divide((K @ points.flatten(2)).unflatten(2, (H, W)))


def divide(homogeneous: Tensor) -> tuple[Tensor, Tensor]:
    """(B, 3, H, W) K X to (B, H, W, 2) pixels and (B, 1, H, W) z; z is bounded for dividing only."""
    z = homogeneous[:, 2:]
    uv = homogeneous[:, :2] / z.clamp(min=NEAR)
    return uv.permute(0, 2, 3, 1), z


def resize_intrinsics(K: Tensor, sx: float, sy: float) -> Tensor:
    """K (..., 3, 3) of an image made sx times as wide and sy times as high.

    Pixel edges go to pixel edges, u' = (u + 0.5) s - 0.5, so c' = (c + 0.5) s - 0.5.
    """
    row = K.new_tensor([sx, sy, 1.0])[:, None]
    shift = K.new_tensor([[0, 0, (sx - 1) / 2], [0, 0, (sy - 1) / 2], [0, 0, 0]])
    return K * row + shift


def require_shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    """Raise ValueError unless `tensor` has this shape."""
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {shape}")
