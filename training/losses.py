"""The terms of the objective: pure functions of maps, each from its equation.

Maps are (N, 1, H, W); images (N, 3, H, W) in [0, 1]; depths and motions share one unknown
scale. `regions` (N, H, W) int64 holds a region per pixel: 0 background, k an instance.
Everything is computed in float32, whatever the networks run in. Means are taken per image
and then over images, so that two processes with half a batch each see the same loss.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from training.chunks import image_by_image
from training.geometry import se3

SSIM_WEIGHT = 0.85
"""g of the photometric term."""


def photometric(target: Tensor, view: Tensor, ssim_weight: float = SSIM_WEIGHT) -> Tensor:
    """Dissimilarity of two images, pixel by pixel; `photometric_at_once` a few images at a time."""
    return image_by_image(partial(photometric_at_once, ssim_weight=ssim_weight), target, view)


def photometric_at_once(target: Tensor, view: Tensor, ssim_weight: float = SSIM_WEIGHT) -> Tensor:
    """Dissimilarity of two images, pixel by pixel.

    Godard et al. 2017:  (1 - g) |I_t - I^| + g (1 - SSIM) / 2.

    Args:
        target, view: (N, 3, H, W) in [0, 1].
        ssim_weight:  g in [0, 1].

    Returns:
        (N, 1, H, W) in [0, 1], mean over the colours.
    """
    absolute = (target - view).abs().mean(1, keepdim=True)
    if not ssim_weight:
        return absolute
    structure = (1 - ssim(target, view)).clamp(0, 2).mean(1, keepdim=True) / 2
    return (1 - ssim_weight) * absolute + ssim_weight * structure


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004) in 3x3 windows, edges replicated.

    Args:
        a, b: (N, C, H, W) in [0, 1].

    Returns:
        (N, C, H, W) in [-1, 1]; 1 where the windows are equal.
    """
    c1, c2 = 0.01**2, 0.03**2
    # All five means in one pass over memory.
    stacked = torch.cat([a, b, a * a, b * b, a * b], 1)
    mean_a, mean_b, mean_aa, mean_bb, mean_ab = _Mean3x3.apply(stacked).chunk(5, 1)
    # A variance that rounding makes negative would turn the ratio's sign.
    var_a = (mean_aa - mean_a * mean_a).clamp(min=0)
    var_b = (mean_bb - mean_b * mean_b).clamp(min=0)
    covariance = mean_ab - mean_a * mean_b
    return ((2 * mean_a * mean_b + c1) * (2 * covariance + c2)) / (
        (mean_a * mean_a + mean_b * mean_b + c1) * (var_a + var_b + c2)
    )


def depth_difference(sampled_depth: Tensor, moved_depth: Tensor) -> Tensor:
    """Relative disagreement of two depths of the same point, in [0, 1) (Bian et al. 2019, Eq. 3).

    Args:
        sampled_depth: (N, 1, H, W) D_iw, the source's depth at the projected position.
        moved_depth:   (N, 1, H, W) D_sc, the target's depth carried into the source frame.

    Returns:
        (N, 1, H, W)  |D_iw - D_sc| / (D_iw + D_sc).
    """
    total = (sampled_depth + moved_depth).clamp(min=1e-6)
    return (sampled_depth - moved_depth).abs() / total


def smoothness(disparity: Tensor, image: Tensor, edge_gain: float = 1.0) -> Tensor:
    """Edge-aware first-order smoothness of mean-normalised disparity (Godard et al. 2019, Eq. 3).

    Args:
        disparity: (N, 1, H, W) inverse depth. Its own mean is divided out, so that shrinking
            it is not rewarded.
        image:     (N, 3, H, W) in [0, 1]; slopes are cheap where it has edges.
        edge_gain: steepness of exp(-gain |dI|); at 1 even a strong edge hardly counts.

    Returns:
        (), mean over images and pixels.
    """
    relative = disparity / disparity.mean((2, 3), keepdim=True).clamp(min=1e-7)
    total = disparity.new_zeros(())
    for dim in (2, 3):
        if disparity.shape[dim] > 1:
            slope = relative.diff(dim=dim).abs()
            edge = image.diff(dim=dim).abs().mean(1, keepdim=True)
            total = total + (slope * torch.exp(-edge_gain * edge)).mean()
    return total


@dataclass(frozen=True)
class RegionSums:
    """Weighted sums of a map over the regions of each image.

    total, weight: (N, R); region r of image n has mean total / weight.
    """

    total: Tensor
    weight: Tensor

    @property
    def mean(self) -> Tensor:
        """(N, R); 0 where a region has no weight."""
        return self.total / self.weight.clamp(min=1e-6)

    @property
    def present(self) -> Tensor:
        """(N, R) bool: regions with any weight."""
        return self.weight > 0

    def without_background(self) -> RegionSums:
        """The same sums of the instances alone."""
        return RegionSums(self.total[:, 1:], self.weight[:, 1:])


def region_sums(values: Tensor, weights: Tensor, regions: Tensor, count: int) -> RegionSums:
    """Sum a map over each region of each image.

    Args:
        values:  (N, 1, H, W).
        weights: (N, 1, H, W), 0 or more; pixels of weight 0 do not count, whatever they hold.
        regions: (N, H, W) int64 in [0, count).
        count:   R.
    """
    N = len(values)
    weights = weights.to(values.dtype)
    code = (regions + torch.arange(N, device=regions.device)[:, None, None] * count).flatten()
    weighted = torch.where(weights > 0, values * weights, 0)
    zeros = values.new_zeros(N * count)
    return RegionSums(
        zeros.index_add(0, code, weighted.flatten()).view(N, count),
        zeros.index_add(0, code, weights.flatten()).view(N, count),
    )


def pixel_mean(sums: RegionSums) -> Tensor:
    """(): each image's mean over all of its pixels, averaged over images."""
    return (sums.total.sum(1) / sums.weight.sum(1).clamp(min=1e-6)).mean()


def region_mean(sums: RegionSums) -> Tensor:
    """(): each image's mean over its regions, a small one like a large one, averaged over images.

    The instance-aware average of the paper: background is one region, each instance another.
    """
    return (sums.mean.sum(1) / sums.present.sum(1).clamp(min=1)).mean()


def instance_mean(cost: Tensor, counts: Tensor, image: Tensor, images: int) -> Tensor:
    """(): mean over the instances of each image, averaged over all images; 0 without instances.

    Args:
        cost: (I,);  counts: (I,) bool, which are taken;  image: (I,) int64 in [0, images).
    """
    zeros = cost.new_zeros(images)
    total = zeros.index_add(0, image, torch.where(counts, cost, 0))
    return (total / zeros.index_add(0, image, counts.to(cost.dtype)).clamp(min=1)).mean()


def scale_excess(disparity: Tensor, slack: float = 2.0) -> Tensor:
    """How far a depth's scale has left the neighbourhood of 1.

    Nothing in the images says how large a scene unit is. What is free drifts, and ends at the
    border of what a network can say.

    Args:
        disparity: (N, 1, H, W) inverse depth.
        slack:     mean inverse depths from 1 / slack to slack cost nothing.

    Returns:
        (), mean over images of the distance of log mean inverse depth from that range.
    """
    scale = disparity.mean((1, 2, 3)).clamp(min=1e-7).log()
    return F.relu(scale.abs() - math.log(slack)).mean()


def size_prior(depth: Tensor, height_px: Tensor, focal_px: Tensor, height: Tensor) -> Tensor:
    """Distance of instances' depths from what their height in the image says.

    struct2depth (Casser et al. 2019):  Z ~ f_y h / height_px, with one learned h per class.
    The logarithm of the ratio makes it relative: shrinking the whole scene gains nothing.

    Args:
        depth:     (I,) depth of each instance.
        height_px: (I,) its height in the image.
        focal_px:  (I,) f_y.
        height:    (I,) learned height of its class, scene units.

    Returns:
        (I,) |log(Z height_px / (f_y h))|.
    """
    return (torch.log(depth) + torch.log(height_px) - torch.log(focal_px) - torch.log(height)).abs()


def contact_prior(depth: Tensor, ground: Tensor, slack: float) -> Tensor:
    """Distance of instances' depths from the ground on which they stand.

    A vehicle stands where its lowest pixels are; its body reaches from there backwards, so
    its median depth lies between that of the ground contact and `slack` beyond it.

    Args:
        depth:  (I,) depth of each instance.
        ground: (I,) depth of the ground just below it.
        slack:  how much deeper than its contact an instance may be without cost, relative.

    Returns:
        (I,) distance of log(Z / Z_ground) from [0, log(1 + slack)].
    """
    ratio = torch.log(depth) - torch.log(ground)
    beyond = ratio - torch.log1p(torch.as_tensor(slack, dtype=ratio.dtype, device=ratio.device))
    return F.relu(-ratio) + F.relu(beyond)


def compactness(depth: Tensor, median: Tensor, slack: float) -> Tensor:
    """Distance of depths from the reach of a body around its median depth.

    Blurred edges and holes lie beyond it, in the background; the near side of a body is flatter
    than its flank is long, so half as much room is left there.

    Args:
        depth, median: any equal shapes;  slack: 0 or more, relative.

    Returns:
        the same shape: distance of log(depth / median) from [-log(1 + slack / 2), log(1 + slack)].
    """
    ratio = depth.log() - median.log()
    return F.relu(ratio - math.log1p(slack)) + F.relu(-ratio - math.log1p(slack / 2))


def motion_difference(proposed: Tensor, aligned: Tensor, centre: Tensor, depth: Tensor) -> Tensor:
    """How far one motion is from another: turn, and displacement of a centre relative to depth.

    Args:
        proposed, aligned: (..., 4, 4).
        centre: (..., 3) in the camera that both start from;  depth: (...) what displacement is relative to.

    Returns:
        (...), sum of the absolute components.
    """
    turn = se3.log(se3.inverse(aligned) @ proposed)[..., 3:]
    change = proposed - aligned
    shift = (change[..., :3, :3] @ centre[..., None])[..., 0] + change[..., :3, 3]
    return turn.abs().sum(-1) + (shift / depth[..., None]).abs().sum(-1)


def motion_consistency(forward: Tensor, backward: Tensor, depth: Tensor) -> Tensor:
    """How far forward motion followed by backward motion is from standing still.

    Gordon et al. 2019, per region instead of per pixel:  |T_fwd T_bwd - 1|, rotation as an
    angle, translation relative to the region's depth.

    Args:
        forward, backward: (..., 4, 4).
        depth: (...) depth of the region, scene units.

    Returns:
        (...).
    """
    round_trip = forward @ backward
    shift = torch.linalg.vector_norm(round_trip[..., :3, 3] + 1e-9, dim=-1)
    return se3.rotation_angle(round_trip) + shift / depth.clamp(min=1e-6)


class _Mean3x3(torch.autograd.Function):
    """Means of 3x3 windows, edges replicated. The operator is its own adjoint: what a border pixel is
    counted more often as a neighbour, it passes on more often. So the gradient is the same filter, where
    slices would be undone one by one in maps full of zeros."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = F.pad(x, (1, 1, 1, 1), mode="replicate")
        rows = (x[:, :, :-2] + x[:, :, 1:-1]).add_(x[:, :, 2:])
        return (rows[..., :-2] + rows[..., 1:-1]).add_(rows[..., 2:]).div_(9)

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> Tensor:
        return _Mean3x3.apply(gradient[0])
