"""Forward warping by z-buffer. Faults of METHOD.md: 3 and 4, and the released warp's gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck
from torch.testing import assert_close

from tests.training.geometry.scenes import (
    drawn,
    motion,
    pinhole,
    plane_depth,
    ramp,
    random_scene,
    rays,
    tensor,
)
from training.geometry import se3, splat
from training.geometry.camera import pixel_grid
from training.geometry.warp import ForwardWarp, forward_warp, inverse_warp

H, W, F = 24, 40, 60.0
K = pinhole(F, H, W)
WALL = torch.full((1, 1, H, W), 4.0, dtype=torch.float64)


def warp(depth: Tensor, t_T_s: Tensor, alpha: int = 3, labels: Tensor | None = None) -> ForwardWarp:
    """The ramp, an image of its own coordinates, carried into the target view."""
    return forward_warp(ramp(H, W), depth, K, t_T_s, labels, alpha)


@pytest.mark.parametrize("alpha", [1, 2, 3])
def test_the_identity_leaves_everything_as_it_is_and_no_holes(alpha: int) -> None:
    depth = 1 + 9 * torch.rand(1, 1, H, W, dtype=torch.float64)
    labels = torch.randint(0, 9, (1, H, W))
    seen = warp(depth, motion(), 1, labels)
    assert seen.filled.all()
    assert_close(seen.image, ramp(H, W))
    assert_close(seen.depth, depth)
    assert seen.labels is not None
    assert torch.equal(seen.labels, labels)
    assert_close(seen.source_uv[0], pixel_grid(H, W, like=K))
    assert warp(depth, motion(), alpha).filled.all()


def test_camera_moving_right_shifts_a_plane_left_by_f_t_over_z() -> None:
    seen = warp(WALL, motion(shift=(-0.25, 0, 0)))  # by 3.75 px
    # The last column's points reach a third of a pixel further, and fill the pixel they round to.
    new = torch.arange(W) > W - 1 + 1 / 3 - 3.75 + 0.5
    assert torch.equal(seen.filled[0, 0], ~new.expand(H, W))
    filled = seen.filled[0, 0]
    assert_close(seen.source_uv[0][filled], (pixel_grid(H, W, like=K) + tensor(3.75, 0.0))[filled])
    inner = filled & (pixel_grid(H, W, like=K)[..., 0] + 3.75 <= W - 1)
    assert_close(seen.image[0, 0][inner], (pixel_grid(H, W, like=K)[..., 0] + 3.75)[inner])
    assert_close(seen.depth[seen.filled], WALL[seen.filled])


def test_pure_rotation_is_a_homography_whatever_the_depth() -> None:
    # Fault 3: angles inverted in the wrong order put it 17 px off at these.
    T = motion((0.1, 0.2, 0.3))
    seen = warp(plane_depth(K, tensor(0.05, 0.1, 0.3), H, W), T)
    homography = K[0] @ torch.linalg.inv(T[0, :3, :3]) @ torch.linalg.inv(K[0])
    p = torch.cat([pixel_grid(H, W, like=K), torch.ones(H, W, 1, dtype=K.dtype)], dim=-1) @ homography.mT
    filled = seen.filled[0, 0]
    assert filled.float().mean() > 0.4
    assert_close(seen.source_uv[0][filled], (p[..., :2] / p[..., 2:])[filled])


def test_forward_and_inverse_warp_agree_on_what_both_see() -> None:
    # Fault 3 again, with translation: one takes t_T_s, the other its inverse.
    T = motion((0.1, 0.2, 0.3), (0.3, -0.2, 0.5))
    depth_s = plane_depth(K, tensor(0.02, -0.05, 0.2), H, W)
    forward = forward_warp(drawn(H, W), depth_s, K, T)
    inverse = inverse_warp(
        drawn(H, W), depth_s, forward.depth + (~forward.filled), K, se3.inverse(T)[:, None], None
    )
    both = forward.filled & inverse.visible
    assert both.float().mean() > 0.3
    assert_close(forward.source_uv[both[:, 0]], inverse.uv[both[:, 0]])
    assert_close(forward.image[both.expand(1, 2, H, W)], inverse.image[both.expand(1, 2, H, W)])
    # Each depth is the other's: on a plane the geometric term is zero.
    assert_close(inverse.sampled_depth[both], inverse.moved_depth[both], atol=0.02, rtol=0)


def test_points_land_on_the_nearest_pixel_and_not_towards_zero() -> None:
    # Fault 4: by -0.6 px, column 0 lands outside; cut off towards zero it would be column 0 still.
    columns = torch.arange(W).expand(1, H, W) + 1
    seen = warp(WALL, motion(shift=(-0.6 * 4 / F, 0, 0)), 1, columns)
    assert seen.labels is not None
    assert seen.labels[0, 5].tolist() == [*range(2, W + 1), 0]
    assert seen.filled[0, 0, 5].tolist() == [True] * (W - 1) + [False]
    up = warp(WALL, motion(shift=(0, -0.6 * 4 / F, 0)), 1, torch.arange(H).expand(W, H).T[None] + 1)
    assert up.labels is not None
    assert up.labels[0, :, 7].tolist() == [*range(2, H + 1), 0]
    # By -0.4 px everything stays, seen 0.4 px further to the right.
    seen = warp(WALL, motion(shift=(-0.4 * 4 / F, 0, 0)), 1, columns)
    assert seen.filled.all()
    assert_close(seen.source_uv[0, ..., 0], torch.arange(W).double().expand(H, W) + 0.4)


def test_points_behind_the_camera_are_dropped() -> None:
    # Fault 4: they turned into depth 0.001 and won the z-buffer.
    depth = WALL.clone()
    depth[..., W // 2 :] = 1.0
    seen = warp(depth, motion(shift=(0, 0, -2.0)))
    assert_close(seen.depth[seen.filled], torch.full_like(seen.depth[seen.filled], 2.0))
    # The left half, twice as large, fills the left half; what is behind hides nothing of it.
    assert torch.equal(seen.filled[0, 0], torch.arange(W).expand(H, W) < W // 2)
    nothing = warp(WALL, motion(shift=(0, 0, -5.0)), 3, torch.ones(1, H, W, dtype=torch.int64))
    assert not nothing.filled.any()
    for value in (nothing.image, nothing.depth, nothing.labels, nothing.source_uv):
        assert value is not None
        assert not value.any()


def test_points_outside_the_image_are_dropped() -> None:
    for shift in ((9.0, 0, 0), (-9.0, 0, 0), (0, 9.0, 0), (0, -9.0, 0)):
        assert not warp(WALL, motion(shift=shift)).filled.any()
    assert not warp(WALL, motion((0, 3.1, 0))).filled.any()  # looks backwards


def test_the_nearest_surface_wins() -> None:
    depth = torch.full((1, 1, H, W), 8.0, dtype=torch.float64)
    depth[..., 8:16, 10:20] = 2.0
    labels = (depth[:, 0] == 2.0).long()
    seen = warp(depth, motion(shift=(0.4, 0, 0)), 3, labels)  # box by 12 px, wall by 3
    assert seen.labels is not None
    expected = torch.zeros(H, W, dtype=torch.int64)
    expected[8:16, 22:32] = 1
    assert torch.equal(seen.labels[0], expected)
    assert_close(seen.depth[0, 0][expected == 1], torch.full((80,), 2.0, dtype=torch.float64))


def test_nothing_hangs_in_the_air_at_depth_edges() -> None:
    depth = torch.full((1, 1, H, W), 8.0, dtype=torch.float64)
    depth[..., 8:16, 10:20] = 2.0
    seen = warp(depth, motion(shift=(0.4, 0, 0)))
    found = seen.depth[seen.filled]
    assert (((found - 8).abs() < 1e-9) | ((found - 2).abs() < 1e-9)).all()
    # What the box uncovers is a hole: nobody knows what is there. 12 - 3 columns, 8 rows.
    uncovered = (~seen.filled[0, 0, :, 4:]).sum()
    assert uncovered == 9 * 8


def test_holes_become_fewer_with_alpha() -> None:
    shares = [
        (~warp(WALL, motion(shift=(0, 0, -2.4)), alpha).filled).double().mean().item() for alpha in (1, 2, 3)
    ]  # 2.5 times as large
    assert shares[0] > 0.7
    assert 0.1 < shares[1] < shares[0]
    assert shares[2] == 0


def test_values_sit_at_the_pixels_centre() -> None:
    # Not where a point happened to land: the ramp is read to the digit under any motion.
    T = motion((0.03, -0.02, 0.04), (0.11, -0.07, -0.9))
    N = tensor(0.03, -0.06, 0.25)
    seen = warp(plane_depth(K, N, H, W), T)
    N_t = T[0, :3, :3] @ N / (1 + T[0, :3, 3] @ T[0, :3, :3] @ N)
    filled = seen.filled[0, 0]
    assert filled.float().mean() > 0.9
    assert_close(seen.depth[0, 0][filled], plane_depth(K, N_t, H, W)[0, 0][filled])
    X_s = (rays(K, H, W) * plane_depth(K, N_t, H, W)[0, 0, ..., None] - T[0, :3, 3]) @ T[0, :3, :3]
    p = X_s @ K[0].mT
    assert_close(seen.source_uv[0][filled], (p[..., :2] / p[..., 2:])[filled])


def test_depth_of_a_slanted_plane_has_its_true_gradient_to_translation() -> None:
    # The released warp cuts positions off to integers: 0 where these are not.
    N = tensor(0.03, -0.05, 0.2)
    shift = tensor([[0.05, -0.02, -0.3]]).requires_grad_()
    T = se3.from_euler(torch.zeros(1, 3, dtype=torch.float64), shift)
    seen = warp(plane_depth(K, N, H, W), T)
    assert seen.filled[0, 0, 12, 20]
    (gradient,) = torch.autograd.grad(seen.depth[0, 0, 12, 20], shift)
    # N . (z ray - t) = 1, so z = (1 + N . t) / (N . ray).
    assert_close(gradient[0], N / (N @ rays(K, H, W)[12, 20]))
    assert gradient[0, 0] > 0.1
    assert gradient[0, 1] < -0.2


def test_image_has_its_true_gradient_to_translation_and_depth() -> None:
    # On a wall the ramp moves by -f t / z.
    shift = tensor([[0.05, -0.02, 0.0]]).requires_grad_()
    depth = WALL.clone().requires_grad_()
    seen = warp(depth, se3.from_euler(torch.zeros(1, 3, dtype=torch.float64), shift))
    to_shift, to_depth = torch.autograd.grad(seen.image[0, 0, 12, 20], (shift, depth))
    assert_close(to_shift[0, :2], tensor(-F / 4, 0.0))
    assert_close(to_depth.sum(), tensor(F * 0.05 / 16))


@pytest.mark.parametrize("alpha", [1, 3])
def test_gradients_are_true_in_image_depth_motion_and_intrinsics(alpha: int) -> None:
    image, depth, K, twist = random_scene(4, 1, 4, 5, C=1)

    def seen(*x: Tensor) -> tuple[Tensor, ...]:
        view = forward_warp(x[0], x[1], x[2], se3.exp(x[3]), None, alpha)
        return view.image, view.depth, view.source_uv

    assert forward_warp(image, depth, K, se3.exp(twist)).filled.float().mean() > 0.5
    assert gradcheck(seen, [x.requires_grad_() for x in (image, depth, K, twist)])


def test_detached_it_has_the_same_values_and_no_gradient() -> None:
    image, depth, K, twist = random_scene(5, 2, 12, 20)
    T = se3.exp(twist.requires_grad_())
    with_gradient = forward_warp(image, depth.requires_grad_(), K, T)
    without = forward_warp(image, depth, K, T, detach=True)
    assert with_gradient.image.requires_grad
    for value in (without.image, without.depth, without.source_uv):
        assert not value.requires_grad
    assert torch.equal(with_gradient.image, without.image)
    assert torch.equal(with_gradient.depth, without.depth)


def test_it_is_deterministic_however_the_work_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    image, depth, K, twist = random_scene(6, 3, 24, 40)
    labels = torch.randint(0, 5, (3, 24, 40))

    def run(some: slice) -> list[Tensor]:
        d, x = depth[some].clone().requires_grad_(), twist[some].clone().requires_grad_()
        seen = forward_warp(image[some], d, K[some], se3.exp(x), labels[some])
        assert seen.labels is not None
        (seen.image.sum() + seen.depth.sum()).backward()
        assert d.grad is not None
        assert x.grad is not None
        return [seen.image, seen.depth, seen.filled, seen.labels, seen.source_uv, d.grad, x.grad]

    first = run(slice(None))
    for a, b in zip(first, run(slice(None)), strict=True):
        assert torch.equal(a, b)
    monkeypatch.setitem(splat.POINTS_AT_ONCE, "cpu", 1)
    for a, b in zip(first, run(slice(None)), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(first, run(slice(1, 2)), strict=True):
        assert_close(a[1:2], b)


def test_of_equal_depths_the_first_pixel_wins() -> None:
    # Half a pixel: a wall at a power of two, so that no rounding tells the depths apart.
    size = (4, 8)
    K = tensor([[8, 0, 0], [0, 8, 0], [0, 0, 1]])[None]
    depth = torch.full((1, 1, *size), 2.0, dtype=torch.float64)
    columns = torch.arange(8).expand(1, *size) + 1
    # At a quarter of the size four columns share a pixel.
    seen = forward_warp(depth, depth, K, motion(shift=(0, 0, 6.0)), columns, alpha=1)
    assert seen.labels is not None
    # Columns at 0, .25, .5, .75, 1, ...: nearest pixel 0, 0, 1 (half goes up), 1, 1, 1, 2, 2.
    assert seen.labels[0, 0].tolist() == [1, 3, 7, 0, 0, 0, 0, 0]


def test_a_depth_that_is_not_a_number_harms_its_neighbourhood_only() -> None:
    for bad in (float("nan"), float("inf"), 0.0, -1.0):
        depth = WALL.clone()
        depth[..., 12, 20] = bad
        seen = warp(depth, motion(shift=(0.1, 0, 0)))
        clean = warp(WALL, motion(shift=(0.1, 0, 0)))
        near = (pixel_grid(H, W, like=K) - tensor(20.0, 12.0)).abs().amax(-1) <= 4
        assert torch.equal(seen.filled[0, 0][~near], clean.filled[0, 0][~near])
        assert_close(seen.depth[0, 0][~near], clean.depth[0, 0][~near])
    assert not warp(WALL, motion() * float("nan")).filled.any()


def test_steep_and_grazing_surfaces_stay_finite() -> None:
    image, _, K, _ = random_scene(7, 1, H, W)
    depth = torch.exp(4 * torch.rand(1, 1, H, W, dtype=torch.float64) - 2).requires_grad_()
    twist = tensor([[0.6, -0.3, 0.5, 0.3, -0.6, 0.2]]).requires_grad_()
    seen = forward_warp(image, depth, K, se3.exp(twist))
    assert (seen.depth[seen.filled] > 0).all()
    assert (~seen.filled).any()
    (seen.image.sum() + seen.depth.sum() + seen.source_uv.sum()).backward()
    for gradient in (depth.grad, twist.grad):
        assert gradient is not None
        assert gradient.isfinite().all()


def test_rays_along_the_wall_are_holes_with_finite_gradients() -> None:
    # Turned by exactly 90 deg, the middle column's rays never meet a wall that faces the source.
    depth = torch.full((1, 1, 5, 7), 4.0, dtype=torch.float64, requires_grad=True)
    turn = tensor([[0.0, 0, 1, 0], [0, 1, 0, 0], [-1, 0, 0, 0], [0, 0, 0, 1]])[None].requires_grad_()
    seen = forward_warp(drawn(5, 7), depth, pinhole(6.0, 5, 7), turn)
    assert not seen.filled[..., 3].any()
    total = seen.image.sum() + seen.depth.sum() + seen.source_uv.sum()
    for gradient in torch.autograd.grad(total, (depth, turn)):
        assert gradient.isfinite().all()


@pytest.mark.parametrize(("B", "h", "w"), [(0, 4, 5), (2, 1, 5), (2, 5, 1), (2, 1, 1), (2, 2, 2)])
def test_empty_batches_and_single_rows_are_ordinary(B: int, h: int, w: int) -> None:
    image = torch.rand(B, 3, h, w, dtype=torch.float64)
    depth = (1 + torch.rand(B, 1, h, w, dtype=torch.float64)).requires_grad_()
    T = se3.identity(B, like=image).requires_grad_()
    seen = forward_warp(image, depth, pinhole(5.0, h, w, B), T, torch.ones(B, h, w, dtype=torch.int16))
    assert seen.filled.all()
    assert_close(seen.image, image)
    assert_close(seen.depth, depth)
    assert seen.labels is not None
    assert seen.labels.dtype == torch.int16
    (seen.image.sum() + seen.depth.sum()).backward()
    for gradient in (depth.grad, T.grad):
        assert gradient is not None
        assert gradient.isfinite().all()


def test_single_precision_agrees_with_double() -> None:
    image, depth = drawn(96, 128), plane_depth(pinhole(150.0, 96, 128), tensor(0.02, -0.03, 0.1), 96, 128)
    K, T = pinhole(150.0, 96, 128), motion((0.02, 0.03, 0.01), (0.2, 0.1, -0.5))
    exact = forward_warp(image, depth, K, T)
    single = forward_warp(image.float(), depth.float(), K.float(), T.float())
    assert single.image.dtype == torch.float32
    both = exact.filled & single.filled
    assert (exact.filled != single.filled).double().mean() < 1e-3
    assert (exact.source_uv - single.source_uv)[both[:, 0]].abs().max() < 1e-2
    assert ((exact.depth - single.depth)[both] / exact.depth[both]).abs().max() < 1e-4


def test_wrong_input_is_named() -> None:
    image, depth, K, _ = random_scene(0, 1, 4, 5)
    T = se3.identity(1, like=image)
    with pytest.raises(ValueError, match="alpha is 0, expected a whole number of at least 1"):
        forward_warp(image, depth, K, T, alpha=0)
    with pytest.raises(ValueError, match=r"t_T_s has shape \(4, 4\), expected \(1, 4, 4\)"):
        forward_warp(image, depth, K, T[0])
    with pytest.raises(ValueError, match="labels_s has shape"):
        forward_warp(image, depth, K, T, torch.ones(1, 4, 4, dtype=torch.int64))
