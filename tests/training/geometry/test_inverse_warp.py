"""Inverse warping with a motion per region. Faults of METHOD.md: 1 and 5."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck
from torch.testing import assert_close

from tests.training.geometry.scenes import (
    degrees,
    drawn,
    motion,
    picture,
    pinhole,
    plane_depth,
    ramp,
    random_scene,
    rays,
    tensor,
)
from training.geometry import se3
from training.geometry.camera import pixel_grid
from training.geometry.warp import InverseWarp, inverse_warp

H, W, F = 24, 40, 60.0
K = pinhole(F, H, W)


def warp(
    depth_t: Tensor, motions: Tensor, regions: Tensor | None = None, depth_s: Tensor | None = None
) -> InverseWarp:
    """The ramp, an image of its own coordinates, in the target view."""
    return inverse_warp(ramp(H, W), depth_t if depth_s is None else depth_s, depth_t, K, motions, regions)


def pixels_of(X: Tensor) -> Tensor:
    """(..., 2) pixels of points (..., 3)."""
    p = X @ K[0].mT
    return p[..., :2] / p[..., 2:]


def test_identity_motion_leaves_the_image_as_it_is_up_to_the_border() -> None:
    # Fault 1: half a pixel at both edges, L1 0.023.
    image = drawn(256, 832).float() / 30  # 0 to 1
    depth = torch.linspace(1, 80, 256 * 832).view(1, 1, 256, 832)
    seen = inverse_warp(image, depth, depth, pinhole(700.0, 256, 832).float(), se3.identity(1, 1), None)
    assert (seen.image - image).abs().mean() < 1e-6
    assert (seen.image - image)[..., [0, -1]].abs().max() < 1e-5
    assert_close(seen.sampled_depth, depth)
    assert_close(seen.moved_depth, depth)


def test_camera_moving_right_shifts_a_plane_left_by_f_t_over_z() -> None:
    t, z = 0.5, 4.0
    depth = torch.full((1, 1, H, W), z, dtype=torch.float64)
    seen = warp(depth, motion(shift=(-t, 0, 0))[:, None])  # camera goes right, so points go left
    assert_close(seen.uv[0], pixel_grid(H, W, like=K) - tensor(F * t / z, 0.0))
    assert_close(seen.moved_depth, depth)
    assert torch.equal(seen.visible[0, 0], pixel_grid(H, W, like=K)[..., 0] >= F * t / z)
    right = seen.visible.expand(1, 2, H, W)
    assert_close(seen.image[right], seen.uv.permute(0, 3, 1, 2)[right])


def test_pure_rotation_is_a_homography_whatever_the_depth() -> None:
    T = motion((0.05, -0.1, 0.2))
    depth = 1 + 9 * torch.rand(1, 1, H, W, dtype=torch.float64)
    seen = warp(depth, T[:, None])
    homography = K[0] @ T[0, :3, :3] @ torch.linalg.inv(K[0])
    p = torch.cat([pixel_grid(H, W, like=K), torch.ones(H, W, 1, dtype=K.dtype)], dim=-1) @ homography.mT
    assert_close(seen.uv[0], p[..., :2] / p[..., 2:])


def test_true_depth_and_motion_reproduce_the_target_view_of_a_plane() -> None:
    N = tensor(0.02, -0.05, 0.2)  # in the target
    T = motion((0.02, -0.03, 0.05), (0.2, -0.1, 0.3))
    depth_t = plane_depth(K, N, H, W)
    N_s = T[0, :3, :3] @ N / (1 + T[0, :3, 3] @ T[0, :3, :3] @ N)
    depth_s = plane_depth(K, N_s, H, W)
    seen = inverse_warp(picture_on_plane(N_s, T), depth_s, depth_t, K, T[:, None], None)
    p = pixel_grid(H, W, like=K)
    ok = seen.visible[0, 0]
    assert ok.float().mean() > 0.6
    assert_close(seen.image[0].permute(1, 2, 0)[ok], picture(p)[ok], atol=0.02, rtol=0)  # bilinear
    # The geometric term is zero where both views know the plane.
    assert_close(seen.sampled_depth[seen.visible], seen.moved_depth[seen.visible], atol=0.02, rtol=0)


def picture_on_plane(N_s: Tensor, s_T_t: Tensor) -> Tensor:
    """What the source sees of a plane on which the target sees the picture."""
    X_s = rays(K, H, W) * plane_depth(K, N_s, H, W)[0, 0, ..., None]
    t_T_s = se3.inverse(s_T_t)[0]
    return picture(pixels_of(X_s @ t_T_s[:3, :3].mT + t_T_s[:3, 3])).permute(2, 0, 1)[None]


def test_object_motion_is_composed_with_the_cameras() -> None:
    # Fault 5: a car 10 m away drives 1 m ahead while the camera turns by 3 deg. Translations
    # that are added instead of composed put it 2.5 px off at this focal length.
    f, size = 480.0, (64, 128)
    K = pinhole(f, *size)
    camera = motion((0, degrees(3), 0), (0.1, 0, -0.5))
    car = motion(shift=(0, 0, 1.0))
    depth = torch.full((1, 1, *size), 10.0, dtype=torch.float64)
    regions = torch.zeros(1, *size, dtype=torch.int64)
    regions[0, 20:40, 50:80] = 1
    seen = inverse_warp(drawn(*size), depth, depth, K, torch.stack([camera, camera @ car], dim=1), regions)

    X = torch.cat([10 * rays(K, *size), torch.ones(*size, 1, dtype=K.dtype)], dim=-1)
    X = torch.where(regions[0, ..., None] == 1, X + tensor(0.0, 0, 1, 0), X) @ camera[0].mT
    p = X[..., :3] @ K[0].mT
    assert_close(seen.uv[0], p[..., :2] / p[..., 2:])

    added = camera.clone()
    added[:, :3, 3] += car[:, :3, 3]
    wrong = inverse_warp(drawn(*size), depth, depth, K, torch.stack([camera, added], dim=1), regions)
    off = (wrong.uv - seen.uv).norm(dim=-1)
    assert (off[regions == 0] == 0).all()
    assert 2 < off[regions == 1].mean() < 3


def test_a_turning_box_turns_about_its_own_centre() -> None:
    # Fault 5: 4 m long, 12 m away, turning by 5 deg: without rotation its ends are pixels off.
    f, size = 700.0, (80, 320)
    K = pinhole(f, *size)
    centre = tensor([[0.0, 0.0, 12.0]])
    turn = se3.about(motion((0, degrees(5), 0)), centre)
    camera = motion((0.01, 0, 0), (0, 0, -0.3))
    X = rays(K, *size) * 12
    box = (X[..., 0].abs() < 2) & (X[..., 1].abs() < 0.6)
    depth = torch.full((1, 1, *size), 12.0, dtype=torch.float64)
    motions = torch.stack([camera, camera @ turn], dim=1)
    seen = inverse_warp(drawn(*size), depth, depth, K, motions, box[None].long())

    c, s = torch.cos(tensor(degrees(5))), torch.sin(tensor(degrees(5)))
    x, y, z = X.unbind(-1)
    turned = torch.stack([c * x + s * (z - 12), y, -s * x + c * (z - 12) + 12], dim=-1)
    X_s = torch.where(box[..., None], turned, X) @ camera[0, :3, :3].mT + camera[0, :3, 3]
    p = X_s @ K[0].mT
    assert_close(seen.uv[0], p[..., :2] / p[..., 2:])
    assert_close(seen.moved_depth[0, 0], X_s[..., 2])
    still = inverse_warp(drawn(*size), depth, depth, K, camera[:, None], None)
    off = (still.uv - seen.uv)[0].norm(dim=-1)
    assert off[box].max() > 1
    assert (off[~box] == 0).all()


def test_points_behind_the_camera_and_outside_are_not_visible() -> None:
    depth = torch.full((1, 1, H, W), 1.0, dtype=torch.float64, requires_grad=True)
    behind = warp(depth, motion(shift=(0, 0, -2.0))[:, None])
    assert not behind.visible.any()
    assert (behind.moved_depth == -1).all()
    ahead = warp(depth, motion(shift=(100.0, 0, 0))[:, None])
    assert not ahead.visible.any()
    for seen in (behind, ahead):
        total = seen.image.sum() + seen.sampled_depth.sum() + seen.moved_depth.sum() + seen.uv.sum()
        (gradient,) = torch.autograd.grad(total, depth)
        assert total.isfinite()
        assert gradient.isfinite().all()


def test_every_region_has_its_own_motion_and_image() -> None:
    motions = torch.stack([motion(shift=(0.1 * i, 0.05 * i, 0)) for i in range(6)]).view(2, 3, 4, 4)
    regions = torch.randint(0, 3, (2, H, W))
    depth = torch.full((2, 1, H, W), 2.0, dtype=torch.float64)
    seen = inverse_warp(ramp(H, W, 2), depth, depth, pinhole(F, H, W, 2), motions, regions)
    number = regions + 3 * torch.arange(2)[:, None, None]
    moved = seen.uv - pixel_grid(H, W, like=K)
    assert_close(moved, number[..., None] * tensor(0.1, 0.05) * F / 2)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_regions_of_any_integer_type(dtype: torch.dtype) -> None:
    depth = torch.full((1, 1, H, W), 2.0, dtype=torch.float64)
    motions = torch.stack([motion(), motion(shift=(0.1, 0, 0))], dim=1)
    regions = torch.zeros(1, H, W, dtype=dtype)
    regions[:, :4] = 1
    assert_close(warp(depth, motions, regions).uv[0, 0, 0], tensor(3.0, 0.0))


def test_no_instances_is_one_motion() -> None:
    depth = 1 + torch.rand(1, 1, H, W, dtype=torch.float64)
    T = motion((0, 0.05, 0), (0.1, 0, 0.1))[:, None]
    plain, labelled = warp(depth, T), warp(depth, T, torch.zeros(1, H, W, dtype=torch.int64))
    unused = warp(depth, torch.cat([T, T @ T], dim=1), torch.zeros(1, H, W, dtype=torch.int64))
    for other in (labelled, unused):
        assert torch.equal(plain.uv, other.uv)
        assert torch.equal(plain.image, other.image)


@pytest.mark.parametrize(("B", "h", "w"), [(0, 4, 5), (2, 1, 5), (2, 5, 1), (2, 1, 1)])
def test_empty_batches_and_single_rows_are_ordinary(B: int, h: int, w: int) -> None:
    image = torch.rand(B, 3, h, w, dtype=torch.float64)
    depth = (1 + torch.rand(B, 1, h, w, dtype=torch.float64)).requires_grad_()
    motions = se3.identity(B, 2, like=image).requires_grad_()
    seen = inverse_warp(
        image, depth, depth, pinhole(5.0, h, w, B), motions, torch.ones(B, h, w, dtype=torch.int64)
    )
    assert_close(seen.image, image)
    assert seen.visible.all()
    (seen.image.sum() + seen.sampled_depth.sum() + seen.moved_depth.sum()).backward()
    for gradient in (depth.grad, motions.grad):
        assert gradient is not None
        assert gradient.isfinite().all()


def test_gradients_are_true_in_image_depths_motions_and_intrinsics() -> None:
    image, depth_s, K, twist = random_scene(1, 2, 3, 4, C=1)
    depth_t = depth_s.flip(2)
    twists = torch.stack([twist, 0.5 * twist.flip(1), -twist], dim=1)
    regions = torch.arange(24).view(2, 3, 4) % 3

    def seen(*x: Tensor) -> tuple[Tensor, ...]:
        view = inverse_warp(x[0], x[1], x[2], x[3], se3.exp(x[4]), regions)
        return view.image, view.sampled_depth, view.moved_depth, view.uv

    assert gradcheck(seen, [x.requires_grad_() for x in (image, depth_s, depth_t, K, twists)])


def test_single_precision_is_a_thousandth_of_a_pixel() -> None:
    image, depth, K, twist = random_scene(2, 1, 256, 832)
    exact = inverse_warp(image, depth, depth, K, se3.exp(twist)[:, None], None)
    single = inverse_warp(
        image.float(), depth.float(), depth.float(), K.float(), se3.exp(twist)[:, None].float(), None
    )
    assert single.uv.dtype == torch.float32
    assert (single.uv - exact.uv)[exact.visible[:, 0]].abs().max() < 1e-3


def test_wrong_input_is_named() -> None:
    image, depth, K, _ = random_scene(0, 1, 4, 5)
    one = se3.identity(1, 1, like=image)
    with pytest.raises(ValueError, match=r"regions holds 1, expected 0 to 0"):
        inverse_warp(image, depth, depth, K, one, torch.ones(1, 4, 5, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"regions holds -1"):
        inverse_warp(image, depth, depth, K, one, -torch.ones(1, 4, 5, dtype=torch.int16))
    with pytest.raises(ValueError, match=r"motions has shape \(1, 0, 4, 4\), expected \(1, 1, 4, 4\)"):
        inverse_warp(image, depth, depth, K, one[:, :0], None)
    with pytest.raises(ValueError, match="depth_t has shape"):
        inverse_warp(image, depth, depth[..., :3], K, one, None)
