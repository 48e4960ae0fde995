"""Small scenes whose views are known on paper; float64 throughout."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from training.geometry import se3
from training.geometry.camera import inverse_intrinsics, pixel_grid


def tensor(*values: object) -> Tensor:
    return torch.tensor(values if len(values) > 1 else values[0], dtype=torch.float64)


def pinhole(f: float, H: int, W: int, B: int = 1) -> Tensor:
    """(B, 3, 3) with the principal point in the middle of the image."""
    return tensor([[f, 0, (W - 1) / 2], [0, f, (H - 1) / 2], [0, 0, 1]]).expand(B, 3, 3).clone()


def motion(
    angles: tuple[float, float, float] = (0, 0, 0), shift: tuple[float, float, float] = (0, 0, 0), B: int = 1
) -> Tensor:
    """(B, 4, 4)."""
    return se3.from_euler(tensor(angles).expand(B, 3), tensor(shift).expand(B, 3))


def picture(uv: Tensor) -> Tensor:
    """(..., 2) pixels to (..., 2) smooth values: an image that can be evaluated anywhere."""
    u, v = uv.unbind(-1)
    return torch.stack([(u / 7).sin() + v / 20, (v / 5).cos() + u / 30], dim=-1)


def drawn(H: int, W: int, B: int = 1) -> Tensor:
    """(B, 2, H, W) the picture at the pixel centres."""
    return picture(pixel_grid(H, W, like=tensor(0.0))).permute(2, 0, 1).expand(B, 2, H, W).clone()


def ramp(H: int, W: int, B: int = 1) -> Tensor:
    """(B, 2, H, W) image of its own pixel coordinates: bilinear sampling is exact on it."""
    return pixel_grid(H, W, like=tensor(0.0)).permute(2, 0, 1).expand(B, 2, H, W).clone()


def rays(K: Tensor, H: int, W: int) -> Tensor:
    """(H, W, 3) K^-1 (u, v, 1) of one camera."""
    p = pixel_grid(H, W, like=K)
    p = torch.cat([p, torch.ones_like(p[..., :1])], dim=-1)
    return p @ inverse_intrinsics(K).squeeze(0).mT


def plane_depth(K: Tensor, N: Tensor, H: int, W: int) -> Tensor:
    """(1, 1, H, W) z-depth of the plane N . X = 1."""
    return (1 / (rays(K, H, W) @ N))[None, None]


def random_scene(seed: int, B: int, H: int, W: int, C: int = 2) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Image, rough depth, K and twist of a moderate random motion."""
    g = torch.Generator().manual_seed(seed)
    image = torch.rand(B, C, H, W, generator=g, dtype=torch.float64)
    depth = 4 + 2 * torch.rand(B, 1, H, W, generator=g, dtype=torch.float64)
    twist = 0.1 * torch.randn(B, 6, generator=g, dtype=torch.float64)
    return image, depth, pinhole(1.2 * W, H, W, B), twist


def degrees(value: float) -> float:
    return value * math.pi / 180
