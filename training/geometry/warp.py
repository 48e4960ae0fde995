"""The two warps: a source image seen in the target view.

Inverse: each target pixel is carried, by the target's depth and the motion of its region, to
where it is in the source, and the source is read there. Forward: each source pixel is carried
by its own depth into the target view; the nearest wins.

`s_T_t` carries points from target to source camera, `t_T_s` the other way. In homogeneous pixels
a motion is an affine function of the ray times depth,  p_s ~ D (K R K^-1) p_t + K t,  so each
region needs twelve numbers, not a matrix per pixel (`_homography`). Float32 or float64: half
precision cannot tell neighbouring pixels of a wide image apart. On a GPU values are deterministic
and gradients are up to the order of sums (gathering and `grid_sample` add atomically there).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from training.geometry import se3
from training.geometry.camera import NEAR, divide, inverse_intrinsics, require_shape
from training.geometry.sampling import inside, sample
from training.geometry.splat import nearest_patches, planar_patches

FAR = 1e6
"""Scene units beyond which a ray counts as parallel to a surface."""


@dataclass(frozen=True)
class InverseWarp:
    """The source seen in the target view through the target's depth.

    image:         (B, C, H, W) source, read where each target pixel came from; beyond the border
                   the nearest pixel is repeated.
    sampled_depth: (B, 1, H, W) D_iw, the source's depth at that place.
    moved_depth:   (B, 1, H, W) D_sc, the target's depth carried into the source frame (z).
    visible:       (B, 1, H, W) bool, in front of the source camera and inside its image.
    uv:            (B, H, W, 2) that place, source pixels; without meaning behind the camera.
    """

    image: Tensor
    sampled_depth: Tensor
    moved_depth: Tensor
    visible: Tensor
    uv: Tensor


@dataclass(frozen=True)
class ForwardWarp:
    """The source carried into the target view by its own depth; 0 in the holes everywhere.

    image:     (B, C, H, W).
    depth:     (B, 1, H, W) z in the target camera.
    labels:    (B, H, W) of the source's type, or None if none were given.
    filled:    (B, 1, H, W) bool, False in the holes.
    source_uv: (B, H, W, 2) source pixels that the filled pixels came from.
    """

    image: Tensor
    depth: Tensor
    labels: Tensor | None
    filled: Tensor
    source_uv: Tensor


def inverse_warp(
    image_s: Tensor, depth_s: Tensor, depth_t: Tensor, K: Tensor, motions: Tensor, regions: Tensor | None
) -> InverseWarp:
    """Reconstruct the target view from the source, every region by its own rigid motion.

    Zhou et al. 2017, Eq. 2, per region r:  p_s ~ K s_T_t^r D_t(p_t) K^-1 p_t.
    Differentiable in both depths, the motions, K and the image.

    Args:
        image_s: (B, C, H, W) source.
        depth_s: (B, 1, H, W) its depth, scene units.
        depth_t: (B, 1, H, W) the target's depth, > 0.
        K: (B, 3, 3) pixels, of both views.
        motions: (B, R, 4, 4) s_T_t of each region, R >= 1.
        regions: (B, H, W) integers in [0, R), region of each target pixel; None means 0.

    Raises:
        ValueError: a shape is not as above, or a region has no motion.
    """
    B, _, H, W = image_s.shape
    R = motions.shape[1]
    require_shape("depth_s", depth_s, (B, 1, H, W))
    require_shape("depth_t", depth_t, (B, 1, H, W))
    require_shape("K", K, (B, 3, 3))
    require_shape("motions", motions, (B, max(R, 1), 4, 4))

    A, b = _homography(K[:, None], motions)
    moved = torch.addcmul(b[:, 0, :, None, None], _rays(A[:, 0], H, W), depth_t)
    if regions is not None:
        require_shape("regions", regions, (B, H, W))
        moved = _move_regions(moved, depth_t, A, b, regions)
    uv, moved_depth = divide(moved)
    return InverseWarp(
        image=sample(image_s, uv, padding="border"),
        sampled_depth=sample(depth_s, uv, padding="border"),
        moved_depth=moved_depth,
        visible=(moved_depth > NEAR) & inside(uv, H, W)[:, None],
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
    """Carry the source into the target view by its own depth; the nearest surface wins.

    Each source pixel is a small plane in space: inverse depth is linear in pixels on a plane,
    and its slopes are limited at depth edges (`planar_patches`). Upsampled alpha times, every
    patch drops alpha^2 points on the nearest target pixels, and a z-buffer keeps the nearest
    patch, without gradient (`nearest_patches`). What is seen is then computed with gradient, for
    the winners only: the target pixel's ray p meets the patch n, 1/D_s = n . q on it, at depth

        D_t = (1 - n . K t) / (n . K R K^-1 p)       with R, t of s_T_t,

    so that values sit at the pixel's centre and not at where a point happened to land, and
    image and depth carry true gradients to depth, motion and image: exact on planes.

    Args:
        image_s: (B, C, H, W) source.
        depth_s: (B, 1, H, W) its depth, > 0, scene units.
        K: (B, 3, 3) pixels, of both views.
        t_T_s: (B, 4, 4) motion from source to target camera.
        labels_s: (B, H, W) integers, carried along with the winning pixels.
        alpha: Points a side that a source pixel is cut into, against holes.
        detach: Compute everything without gradient.

    Raises:
        ValueError: a shape is not as above, or alpha is less than 1.
    """
    B, _, H, W = image_s.shape
    require_shape("depth_s", depth_s, (B, 1, H, W))
    require_shape("K", K, (B, 3, 3))
    require_shape("t_T_s", t_T_s, (B, 4, 4))
    if alpha < 1:
        raise ValueError(f"alpha is {alpha}, expected a whole number of at least 1")
    if labels_s is not None:
        require_shape("labels_s", labels_s, (B, H, W))

    with torch.set_grad_enabled(torch.is_grad_enabled() and not detach):
        A, b = _homography(K, se3.inverse(t_T_s))
        planes = planar_patches(depth_s, b)
        winner, hit = nearest_patches(planes, *_homography(K, t_T_s), alpha=alpha)
        rays = _rays(A, H, W)
        depth, filled = _meet(rays, b, planes, winner, hit)
        uv, _ = divide(torch.addcmul(b[..., None, None], rays, depth))
        image = sample(image_s, uv, padding="border")
        labels = None if labels_s is None else labels_s.flatten(1).gather(1, winner).view(B, H, W)
        return ForwardWarp(
            image=image * filled,
            depth=depth * filled,
            labels=None if labels is None else labels * filled[:, 0],
            filled=filled,
            source_uv=uv * filled[:, 0, ..., None],
        )


def region_rays(K: Tensor, motions: Tensor, regions: Tensor, H: int, W: int) -> tuple[Tensor, Tensor]:
    """What maps each target pixel's depth to homogeneous source pixels: rays * depth + shift.

    For trying many depths under the same motions.

    Args:
        K: (B, 3, 3);  motions: (B, R, 4, 4) s_T_t;  regions: (B, H, W) in [0, R).

    Returns:
        (B, 3, H, W) rays, (B, 3, H, W) shift.
    """
    A, b = _homography(K[:, None], motions)
    one = torch.ones_like(regions[:, None], dtype=K.dtype)
    rays = _move_regions(_rays(A[:, 0], H, W), one, A, torch.zeros_like(b), regions)
    shift = b.gather(1, regions.flatten(1)[..., None].expand(-1, -1, 3))
    return rays, shift.mT.unflatten(2, (H, W))


def _homography(K: Tensor, motions: Tensor) -> tuple[Tensor, Tensor]:
    """(..., 3, 3) K R K^-1 and (..., 3) K t: from ray times depth to homogeneous pixels."""
    A = _product(_product(K, motions[..., :3, :3]), inverse_intrinsics(K))
    return A, _product(K, motions[..., :3, 3:])[..., 0]


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Small matrices' product by sums: where TF32 is allowed, `@` rounds pixels to a few tenths."""
    return (a[..., None] * b[..., None, :, :]).sum(-2)


def _rays(A: Tensor, H: int, W: int) -> Tensor:
    """(B, 3, H, W) A (u, v, 1) of each pixel."""
    u = torch.arange(W, dtype=A.dtype, device=A.device)
    v = torch.arange(H, dtype=A.dtype, device=A.device)
    A = A[..., None, None]
    return A[:, :, 0] * u + (A[:, :, 1] * v[:, None] + A[:, :, 2])


def _move_regions(moved: Tensor, depth: Tensor, A: Tensor, b: Tensor, regions: Tensor) -> Tensor:
    """Homogeneous pixels (B, 3, H, W), those of regions 1 and above replaced by their own motion's.

    The background has been moved whole, as most pixels are background; what a region needs is
    gathered for the pixels of regions alone.
    """
    B, R = b.shape[:2]
    image, v, u = torch.nonzero(regions, as_tuple=True)
    if not len(image):
        return moved
    region = regions[image, v, u].long()
    low, high = torch.stack(region.aminmax()).tolist()
    if low < 0 or high >= R:
        raise ValueError(f"regions holds {low if low < 0 else high}, expected 0 to {R - 1} (motions of {R})")
    # `embedding` sums the gradient of a table's rows in parallel and in a fixed order.
    table = torch.cat([A.flatten(-2), b], dim=-1).view(B * R, 12)
    own = F.embedding(image * R + region, table)
    p = torch.stack([u, v, torch.ones_like(u)], dim=-1).to(depth)
    X = (own[:, :9].unflatten(1, (3, 3)) * p[:, None]).sum(-1) * depth[image, 0, v, u, None] + own[:, 9:]
    return moved.permute(0, 2, 3, 1).index_put((image, v, u), X).permute(0, 3, 1, 2)


def _meet(rays: Tensor, b: Tensor, planes: Tensor, winner: Tensor, hit: Tensor) -> tuple[Tensor, Tensor]:
    """Where target rays meet the planes of the patches that won.

    Args:
        rays: (B, 3, H, W) K R K^-1 p of the target pixels, in the source.
        b: (B, 3) K t.
        planes: (B, 3, H, W) of the source.
        winner: (B, H*W) source pixel of the nearest patch, 0 in holes.
        hit: (B, 1, H, W) bool, False in holes.

    Returns:
        (B, 1, H, W) depth in the target, finite everywhere, and where it means something.
    """
    n = planes.flatten(2).gather(2, winner[:, None].expand(-1, 3, -1)).view_as(planes)
    along = (n * rays).sum(1, keepdim=True)
    facing = 1 - (n * b[..., None, None]).sum(1, keepdim=True)
    with torch.no_grad():
        depth = facing / along
        filled = hit & (depth > NEAR) & (depth < FAR)
    # In the holes 1, as 0 times infinity would be NaN in the gradient.
    return torch.where(filled, facing, 1) / torch.where(filled, along, 1), filled
