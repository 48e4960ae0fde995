"""Plane sweep: per pixel, the depth at which target and source agree best.

The gradient of a photometric loss sees as far as a pixel or two of the image; a wrong depth
whose parallax is longer does not learn from it. Watson et al. 2019 let a stereo matcher say where the
better depth lies (*depth hints*), and the network follows it where it explains the images better
than the network's own depth. Here the matcher is a sweep of depths around the prediction, with the
motions of this very step: no other data, no other sensor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.errors import ConfigError
from training.geometry.camera import NEAR, divide
from training.geometry.sampling import inside, sample
from training.geometry.warp import region_rays

OCCLUDED = 0.15
"""What a pixel costs where the source does not show it: more than a fit, less than a misfit."""
WORST = 0.25
"""Differences of brightness beyond this cost no more."""
LEAST = 0.002
"""Costs nearer to each other than this, half a grey level, differ by chance."""
APART = 2
"""A rival depth is one more than so many steps from the best."""


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """Which depths are tried, and which are believed."""

    steps: int = 20
    """Depths that are tried."""
    span: float = 1.2
    """They reach from exp(-span) to exp(span) of the predicted depth."""
    window_px: int = 7
    """Side of the window over which images are compared, odd."""
    unique: float = 0.85
    """The best depth is believed if it costs less than this share of any rival."""

    def __post_init__(self) -> None:
        if self.steps < 4 or self.window_px < 1 or self.window_px % 2 == 0:
            raise ConfigError(
                f"steps must be 4 or more and window_px odd, got {self.steps} and {self.window_px}"
            )
        if not 0 < self.span < math.inf or not 0 < self.unique <= 1:
            raise ConfigError(
                f"span must be positive and unique lie in (0, 1], got {self.span} and {self.unique}"
            )


@dataclass(frozen=True)
class Hints:
    """depth: (N, 1, H, W) best depth;  believed: (N, 1, H, W) bool, where it is to be followed."""

    depth: Tensor
    believed: Tensor


@torch.no_grad()
def sweep(
    I_t: Tensor,
    I_s: Tensor,
    D_t: Tensor,
    K: Tensor,
    motions: Tensor,
    labels_t: Tensor,
    labels_s: Tensor,
    config: SweepConfig,
) -> Hints:
    """Try depths around the predicted one.

    Args:
        I_t, I_s: (N, 3, H, W) in [0, 1];  D_t: (N, 1, H, W) prediction;  K: (N, 3, 3).
        motions:  (N, R, 4, 4) s_T_t of each region.
        labels_t, labels_s: (N, H, W) int64 in [-1, R): 0 background, k region k, -1 neither.

    Returns:
        Hints without gradient. What is believed agrees better than the prediction and than any
        rival, is not at the ends of the sweep, and shows the same region in both images. Where one
        of the depths would lie outside the source nothing is believed: it might be the right one,
        and what remains are depths too far.
    """
    rays, shift = region_rays(K, motions, labels_t.clamp(min=0), *D_t.shape[-2:])
    target = I_t.mean(1, keepdim=True)
    # Brightness and label read in one go; a label between two others is neither.
    source = torch.cat([I_s.mean(1, keepdim=True), (labels_s[:, None] > 0).to(I_s.dtype)], 1)
    mask = (labels_t[:, None] > 0).to(I_s.dtype)
    offsets = torch.linspace(-config.span, config.span, config.steps, device=D_t.device)
    step = 2 * config.span / (config.steps - 1)

    def cost(depth: Tensor) -> tuple[Tensor, Tensor]:
        uv, z = divide(torch.addcmul(shift, rays, depth))
        found, label = sample(source, uv, padding="border").chunk(2, 1)
        within = (z > NEAR) & inside(uv, *depth.shape[-2:])[:, None]
        shown = within & ((label - mask).abs() < 0.5)
        difference = (found - target).abs().clamp(max=WORST)
        return _box(torch.where(shown, difference, OCCLUDED), config.window_px), within

    tried = [cost(D_t * factor) for factor in offsets.exp()]
    costs = torch.cat([each for each, _ in tried], 1)
    everywhere = torch.cat([within for _, within in tried], 1).all(1, keepdim=True)
    best, at = costs.min(1, keepdim=True)
    inner = at.clamp(1, config.steps - 2)
    # A parabola through the best and its neighbours.
    before, here, after = (costs.gather(1, inner + k) for k in (-1, 0, 1))
    bend = (before - 2 * here + after).clamp(min=1e-6)
    offset = offsets[inner] + step * (0.5 * (before - after) / bend).clamp(-1, 1)
    distance = (torch.arange(config.steps, device=D_t.device)[:, None, None] - at).abs()
    rival = costs.masked_fill(distance <= APART, math.inf).amin(1, keepdim=True)
    clear = rival - best > torch.clamp((1 - config.unique) * rival, min=LEAST)
    believed = (at == inner) & (best < cost(D_t)[0]) & clear & everywhere
    believed &= labels_t[:, None] >= 0
    return Hints(D_t * offset.exp(), believed)


def _box(maps: Tensor, side: int) -> Tensor:
    """Means over side x side windows, of what lies inside the image."""
    half = side // 2
    across = F.avg_pool2d(maps, (1, side), 1, (0, half), count_include_pad=False)
    return F.avg_pool2d(across, (side, 1), 1, (half, 0), count_include_pad=False)
