"""Prefiltered patterns: noise octaves, stripes and rectangles that fade instead of aliasing.

An octave of wavelength w seen at a footprint f (metres a ray stands for) counts
clamp(w / (2 f) - 0.5, 0, 1): gone before it would alias.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

TILE = 256
OCTAVES = 5


class Noise:
    """Smooth value noise from one tiled table, fixed for all scenes."""

    def __init__(self, device: torch.device) -> None:
        table = np.random.default_rng(20200601).uniform(-1, 1, (TILE, TILE)).astype(np.float32)
        corners = [table, np.roll(table, -1, 1), np.roll(table, -1, 0), np.roll(table, (-1, -1), (0, 1))]
        self._corners = torch.from_numpy(np.stack(corners, -1).reshape(-1, 4)).to(device)

    def octave(self, u: Tensor, v: Tensor) -> Tensor:
        """(N,) in [-1, 1], one cell a unit."""
        i, j = u.floor(), v.floor()
        fu, fv = u - i, v - j
        cell = (j.remainder(TILE) * TILE + i.remainder(TILE)).to(torch.int32)
        a, b, c, d = self._corners.index_select(0, cell).unbind(-1)
        fu, fv = fu * fu * (3 - 2 * fu), fv * fv * (3 - 2 * fv)
        top = torch.lerp(a, b, fu)
        return torch.lerp(top, torch.lerp(c, d, fu), fv)

    def fractal(
        self, u: Tensor, v: Tensor, wavelength: Tensor, footprint: Tensor, octaves: int = OCTAVES
    ) -> Tensor:
        """(N,) sum of octaves at wavelength, half of it, ...; about [-1, 1], each faded by the footprint."""
        total = torch.zeros_like(u)
        scale = 1 / wavelength
        fade_scale = wavelength / (2 * footprint)
        gain = 0.55
        for k in range(octaves):
            fade = (fade_scale - 0.5).clamp(0, 1)
            live = (fade > 0).nonzero()[:, 0]
            if len(live) == 0:
                break
            if len(live) < 0.7 * len(u):
                part = self.octave(u[live] * scale[live] + 37.3 * k, v[live] * scale[live] + 91.7 * k)
                total.index_add_(0, live, part * fade[live] * gain)
            else:
                total += self.octave(u * scale + 37.3 * k, v * scale + 91.7 * k) * fade * gain
            scale, fade_scale, gain = scale * 2.03, fade_scale / 2.03, gain * 0.72
        return total


def inside(x: Tensor, low: Tensor | float, high: Tensor | float, footprint: Tensor) -> Tensor:
    """Share of a footprint around x that lies in [low, high]."""
    a = torch.maximum(x - footprint / 2, torch.as_tensor(low, dtype=x.dtype, device=x.device))
    b = torch.minimum(x + footprint / 2, torch.as_tensor(high, dtype=x.dtype, device=x.device))
    return ((b - a) / footprint).clamp(0, 1)


def stripes(x: Tensor, period: Tensor | float, width: Tensor | float, footprint: Tensor) -> Tensor:
    """Share of a footprint around x covered by stripes [k period, k period + width]."""
    return (
        _covered(x + footprint / 2, period, width) - _covered(x - footprint / 2, period, width)
    ) / footprint


def _covered(x: Tensor, period: Tensor | float, width: Tensor | float) -> Tensor:
    """Length of stripe between 0 and x."""
    k = torch.floor(x / period)
    return k * width + torch.minimum((x - k * period), torch.as_tensor(width, dtype=x.dtype, device=x.device))
