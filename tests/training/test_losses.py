"""The terms of the objective against their equations, on paper and in plain loops."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck
from torch.testing import assert_close

from tests.training.scenes import texture
from training import losses
from training.geometry import se3

seeds = st.integers(0, 10_000)


def images(seed: int, N: int = 2, H: int = 7, W: int = 9) -> Tensor:
    return torch.rand(N, 3, H, W, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def ssim_by_loops(a: Tensor, b: Tensor) -> Tensor:
    """Wang et al. 2004, Eq. 13, window by window, with population moments."""
    N, C, H, W = a.shape
    c1, c2 = 0.01**2, 0.03**2
    out = torch.zeros_like(a)
    for n in range(N):
        for c in range(C):
            for v in range(H):
                for u in range(W):
                    near = [
                        (min(max(v + dv, 0), H - 1), min(max(u + du, 0), W - 1))
                        for dv in (-1, 0, 1)
                        for du in (-1, 0, 1)
                    ]
                    x = [float(a[n, c, i, j]) for i, j in near]
                    y = [float(b[n, c, i, j]) for i, j in near]
                    mx, my = sum(x) / 9, sum(y) / 9
                    vx = sum((each - mx) ** 2 for each in x) / 9
                    vy = sum((each - my) ** 2 for each in y) / 9
                    vxy = sum((i - mx) * (j - my) for i, j in zip(x, y, strict=True)) / 9
                    out[n, c, v, u] = ((2 * mx * my + c1) * (2 * vxy + c2)) / (
                        (mx * mx + my * my + c1) * (vx + vy + c2)
                    )
    return out


def test_ssim_equals_plain_loops() -> None:
    a, b = images(0, N=1), images(1, N=1)
    assert_close(losses.ssim(a, b), ssim_by_loops(a, b), rtol=1e-9, atol=1e-9)


def test_ssim_equals_the_formula_with_population_covariance() -> None:
    """As scikit-image writes it (`use_sample_covariance=False`), inside the image."""
    a, b = images(2), images(3)

    def filtered(x: Tensor) -> Tensor:
        return x.unfold(2, 3, 1).unfold(3, 3, 1).mean((-1, -2))

    ux, uy = filtered(a), filtered(b)
    vx, vy, vxy = filtered(a * a) - ux * ux, filtered(b * b) - uy * uy, filtered(a * b) - ux * uy
    A1, A2, B1, B2 = 2 * ux * uy + 1e-4, 2 * vxy + 9e-4, ux**2 + uy**2 + 1e-4, vx + vy + 9e-4
    assert_close(losses.ssim(a, b)[:, :, 1:-1, 1:-1], (A1 * A2) / (B1 * B2), rtol=1e-9, atol=1e-9)


@settings(max_examples=20, deadline=None)
@given(seed=seeds, weight=st.sampled_from([0.0, 0.5, 0.85, 1.0]))
def test_equal_images_cost_nothing_and_order_does_not_matter(seed: int, weight: float) -> None:
    a, b = images(seed), images(seed + 1)
    assert_close(losses.photometric(a, a, weight), torch.zeros(2, 1, 7, 9, dtype=torch.float64))
    there, back = losses.photometric(a, b, weight), losses.photometric(b, a, weight)
    assert_close(there, back)
    assert float(there.min()) > 0
    assert float(there.max()) <= 1
    assert_close(losses.ssim(a, a), torch.ones_like(a))


@pytest.mark.parametrize("weight", [0.0, 0.85])
def test_photometric_of_two_flat_images_is_known_on_paper(weight: float) -> None:
    a = torch.full((1, 3, 5, 5), 0.25, dtype=torch.float64)
    b = torch.full_like(a, 0.75)
    structure = (2 * 0.25 * 0.75 + 1e-4) / (0.25**2 + 0.75**2 + 1e-4)
    expected = (1 - weight) * 0.5 + weight * (1 - structure) / 2
    assert_close(losses.photometric(a, b, weight), torch.full((1, 1, 5, 5), expected, dtype=torch.float64))


@pytest.mark.parametrize("weight", [0.0, 0.85])
def test_images_pull_hardest_where_they_differ_most(weight: float) -> None:
    """Fault 9: images in [-1, 1] with differences clamped at 1 had no gradient at black against white."""
    target = torch.zeros(1, 3, 6, 6, dtype=torch.float64)
    pulls = {}
    for value in (0.5, 0.9, 1.0):
        view = torch.full_like(target, value, requires_grad=True)
        losses.photometric(target, view, weight).mean().backward()
        assert view.grad is not None
        pulls[value] = float(view.grad.sum())
    # The absolute part pulls alike at any distance: (1 - g) per unit of brightness.
    assert pulls[1.0] >= 1 - weight
    assert pulls[1.0] == pytest.approx(pulls[0.9], rel=0.01)
    white = torch.ones_like(target)
    assert float(losses.photometric(target, white, weight).min()) > 0.5


def test_gradients_of_photometric_and_smoothness_are_right() -> None:
    a, b = images(5, N=1, H=4, W=5), images(6, N=1, H=4, W=5)
    assert gradcheck(losses.photometric, (a.requires_grad_(), b.requires_grad_()))
    disparity = (0.1 + images(7, N=1, H=4, W=5)[:, :1]).requires_grad_()
    assert gradcheck(losses.smoothness, (disparity, b))


@pytest.mark.parametrize("shape", [(5, 7), (1, 6), (4, 1), (1, 1), (2, 2)])
def test_window_means_and_their_gradients_equal_poolings(shape: tuple[int, int]) -> None:
    x = torch.rand(2, 3, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    plain, ours = x.clone().requires_grad_(), x.clone().requires_grad_()
    expected = F.avg_pool2d(F.pad(plain, (1, 1, 1, 1), mode="replicate"), 3, 1)
    found = losses._Mean3x3.apply(ours)
    assert_close(found, expected)
    weight = torch.rand(expected.shape, dtype=torch.float64)
    gradients = [torch.autograd.grad(*each, weight)[0] for each in ((found, ours), (expected, plain))]
    assert_close(*gradients)
    assert torch.autograd.gradcheck(losses._Mean3x3.apply, (ours,))
    assert torch.autograd.gradgradcheck(losses._Mean3x3.apply, (ours,))


@settings(max_examples=50, deadline=None)
@given(a=st.floats(1e-3, 1e3), b=st.floats(1e-3, 1e3), scale=st.floats(1e-2, 1e2))
def test_depth_difference_lies_in_0_1_and_does_not_see_scale(a: float, b: float, scale: float) -> None:
    x, y = torch.tensor([[[[a]]]], dtype=torch.float64), torch.tensor([[[[b]]]], dtype=torch.float64)
    d = losses.depth_difference(x, y)
    assert 0 <= float(d) < 1
    assert_close(d, losses.depth_difference(y, x))
    assert_close(d, losses.depth_difference(scale * x, scale * y))
    assert float(losses.depth_difference(x, x)) == 0


def test_depth_difference_is_known_on_paper() -> None:
    x, y = torch.tensor([[[[1.0]]]], dtype=torch.float64), torch.tensor([[[[3.0]]]], dtype=torch.float64)
    assert float(losses.depth_difference(x, y)) == 0.5
    assert gradcheck(losses.depth_difference, (x.requires_grad_(), y.requires_grad_()))


@settings(max_examples=20, deadline=None)
@given(seed=seeds, scale=st.floats(1e-3, 1e3))
def test_smoothness_does_not_see_scale(seed: int, scale: float) -> None:
    disparity, image = 0.1 + images(seed)[:, :1], images(seed + 1)
    assert_close(losses.smoothness(scale * disparity, image), losses.smoothness(disparity, image))
    # Each image has its own scale.
    own = torch.tensor([1.0, scale], dtype=torch.float64)[:, None, None, None]
    assert_close(losses.smoothness(own * disparity, image), losses.smoothness(disparity, image))


def test_smoothness_is_known_on_paper() -> None:
    """A step of disparity from 1 to 3, on a flat image and across an edge of height 1."""
    disparity = torch.ones(1, 1, 2, 4, dtype=torch.float64)
    disparity[..., 2:] = 3
    flat = torch.full((1, 3, 2, 4), 0.5, dtype=torch.float64)
    # Mean 2: slopes 0, 1, 0 along each row, none along columns.
    assert float(losses.smoothness(disparity, flat)) == pytest.approx(1 / 3)
    edge = torch.zeros_like(flat)
    edge[..., 2:] = 1
    assert float(losses.smoothness(disparity, edge)) == pytest.approx(math.exp(-1) / 3)
    assert float(losses.smoothness(disparity, edge, edge_gain=10)) == pytest.approx(math.exp(-10) / 3)
    assert float(losses.smoothness(torch.ones_like(disparity), flat)) == 0


def test_a_plane_is_smooth_in_disparity_not_in_depth() -> None:
    """Fault 11: the ground's depth is curved in the image, its disparity is straight.

    Straight means that the slope is the same everywhere; on depth the far ground would pay most.
    """
    rows = torch.arange(1.0, 13.0, dtype=torch.float64)[:, None].expand(12, 4)[None, None]
    disparity = (rows * 0.01).requires_grad_()
    losses.smoothness(disparity, torch.full((1, 3, 12, 4), 0.5, dtype=torch.float64)).backward()
    assert disparity.grad is not None
    inner = disparity.grad[0, 0, 1:-1, 1]
    # Equal slopes pull equally on both sides of a pixel: what is left is the division by the mean.
    assert_close(inner, inner[:1].expand_as(inner))
    assert float(losses.smoothness(disparity.detach(), torch.zeros(1, 3, 12, 4, dtype=torch.float64))) == (
        pytest.approx(0.01 / (0.01 * 6.5))
    )


def test_one_row_or_column_has_no_slope_across_it() -> None:
    disparity, image = 0.1 + images(1, H=1)[:, :1], images(2, H=1)
    assert math.isfinite(float(losses.smoothness(disparity, image)))


def region_case(H: int = 6, W: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    """Background 1, a large instance 2 of cost 2, a small one of two pixels of cost 8; second image empty."""
    regions = torch.zeros(2, H, W, dtype=torch.int64)
    regions[0, 1:5, 0:6] = 1
    regions[0, 5, 6:8] = 2
    values = torch.ones(2, 1, H, W, dtype=torch.float64)
    values[0, 0][regions[0] == 1] = 2
    values[0, 0][regions[0] == 2] = 8
    return values, torch.ones_like(values), regions


def test_a_small_instance_weighs_as_much_as_a_large_one() -> None:
    values, weights, regions = region_case()
    sums = losses.region_sums(values, weights, regions, 3)
    assert_close(sums.weight[0], torch.tensor([22.0, 24.0, 2.0], dtype=torch.float64))
    assert_close(sums.mean, torch.tensor([[1.0, 2.0, 8.0], [1.0, 0.0, 0.0]], dtype=torch.float64))
    assert float(losses.region_mean(sums)) == pytest.approx(((1 + 2 + 8) / 3 + 1) / 2)
    assert float(losses.pixel_mean(sums)) == pytest.approx(((22 + 48 + 16) / 48 + 1) / 2)
    assert float(losses.region_mean(sums.without_background())) == pytest.approx(((2 + 8) / 2 + 0) / 2)


def test_region_sums_equal_masks_one_by_one() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(3, 1, 5, 7, dtype=torch.float64, generator=generator)
    weights = torch.rand(3, 1, 5, 7, dtype=torch.float64, generator=generator) * (values > 0.3)
    regions = torch.randint(0, 4, (3, 5, 7), generator=generator)
    sums = losses.region_sums(values, weights, regions, 4)
    for n in range(3):
        for r in range(4):
            chosen = regions[n] == r
            assert_close(sums.total[n, r], (values * weights)[n, 0][chosen].sum())
            assert_close(sums.weight[n, r], weights[n, 0][chosen].sum())
            assert bool(sums.present[n, r]) == bool((weights[n, 0][chosen] > 0).any())


def test_pixels_of_no_weight_do_not_count_whatever_they_hold() -> None:
    values, weights, regions = region_case()
    weights[0, 0, 0] = 0
    expected = losses.region_sums(values, weights, regions, 3)
    values[0, 0, 0] = torch.tensor([torch.inf, torch.nan] * 4)
    values.requires_grad_()
    sums = losses.region_sums(values, weights, regions, 3)
    assert_close(sums.total, expected.total)
    losses.region_mean(sums).backward()
    assert values.grad is not None
    assert torch.isfinite(values.grad).all()
    assert not values.grad[0, 0, 0].any()


@pytest.mark.parametrize("case", ["no instance", "no foreground", "no background", "nothing", "no slots"])
def test_means_are_finite_where_a_region_is_empty(case: str) -> None:
    """Fault 7, values and gradients."""
    values, weights, regions = region_case()
    count = 3
    if case == "no instance":
        regions = torch.zeros_like(regions)
    elif case == "no foreground":
        weights = weights * (regions == 0)[:, None]
    elif case == "no background":
        regions = torch.ones_like(regions)
    elif case == "nothing":
        weights = torch.zeros_like(weights)
    else:
        regions, count = torch.zeros_like(regions), 1
    values.requires_grad_()
    sums = losses.region_sums(values, weights, regions, count)
    for mean in (
        losses.region_mean(sums),
        losses.pixel_mean(sums),
        losses.region_mean(sums.without_background()),
    ):
        assert torch.isfinite(mean)
        (gradient,) = torch.autograd.grad(mean, values, retain_graph=True)
        assert torch.isfinite(gradient).all()


def test_means_are_of_images_so_that_halves_average_to_the_whole() -> None:
    values, weights, regions = region_case()
    weights[1, 0, :3] = 0

    def means(part: slice) -> Tensor:
        sums = losses.region_sums(values[part], weights[part], regions[part], 3)
        return torch.stack([losses.pixel_mean(sums), losses.region_mean(sums)])

    assert_close((means(slice(0, 1)) + means(slice(1, 2))) / 2, means(slice(0, 2)))


def test_size_prior_is_nothing_at_the_right_depth_and_relative_elsewhere() -> None:
    f, h = torch.tensor([700.0, 700.0], dtype=torch.float64), torch.tensor([1.5, 3.0], dtype=torch.float64)
    depth = torch.tensor([10.0, 20.0], dtype=torch.float64, requires_grad=True)
    height_px = f * h / torch.tensor([10.0, 20.0], dtype=torch.float64)
    assert_close(losses.size_prior(depth, height_px, f, h), torch.zeros(2, dtype=torch.float64))
    twice = losses.size_prior(2 * depth, height_px, f, h)
    assert_close(twice, torch.full((2,), math.log(2), dtype=torch.float64))
    # One unit for the whole scene gains nothing.
    assert_close(losses.size_prior(6 * depth, height_px, f, 3 * h), twice)
    assert gradcheck(lambda z, k: losses.size_prior(z, height_px, f, k), (1.3 * depth, h.requires_grad_()))


def test_contact_prior_leaves_room_for_the_body_and_costs_beyond_it() -> None:
    ground = torch.full((4,), 10.0, dtype=torch.float64)
    depth = torch.tensor([10.0, 11.9, 5.0, 24.0], dtype=torch.float64, requires_grad=True)
    cost = losses.contact_prior(depth, ground, 0.2)
    assert_close(cost, torch.tensor([0, 0, math.log(2), math.log(2)], dtype=torch.float64))
    (gradient,) = torch.autograd.grad(cost.sum(), depth)
    assert_close(gradient, torch.tensor([0, 0, -1 / 5, 1 / 24], dtype=torch.float64))


def test_there_and_back_again_costs_nothing_and_what_is_left_over_costs_its_size() -> None:
    generator = torch.Generator().manual_seed(0)
    xi = torch.randn(5, 6, dtype=torch.float64, generator=generator) * 0.2
    T, depth = se3.exp(xi), torch.linspace(2, 8, 5, dtype=torch.float64)
    nothing = losses.motion_consistency(T, se3.inverse(T), depth)
    assert_close(nothing, torch.zeros(5, dtype=torch.float64), rtol=0, atol=1e-8)

    angles = torch.tensor([[0.0, 0.05, 0.0]], dtype=torch.float64)
    shift = torch.tensor([[0.3, 0.0, 0.4]], dtype=torch.float64)
    turned = se3.from_euler(angles, shift)
    still = torch.eye(4, dtype=torch.float64)[None]
    cost = losses.motion_consistency(turned, still, torch.tensor([5.0], dtype=torch.float64))
    assert_close(cost, torch.tensor([0.05 + 0.5 / 5], dtype=torch.float64), rtol=0, atol=1e-8)


def test_motion_consistency_has_a_finite_gradient_at_standing_still() -> None:
    still = torch.eye(4).repeat(2, 1, 1).requires_grad_()
    losses.motion_consistency(still, torch.eye(4).repeat(2, 1, 1), torch.ones(2)).sum().backward()
    assert still.grad is not None
    assert torch.isfinite(still.grad).all()
    assert gradcheck(
        lambda xi: losses.motion_consistency(se3.exp(xi), se3.exp(xi), torch.full((2,), 3.0).double()),
        torch.tensor([[0.1, 0.2, -0.1, 0.05, -0.1, 0.02]] * 2, dtype=torch.float64, requires_grad=True),
    )


def test_a_blurred_image_costs_by_ssim_what_its_brightness_does_not() -> None:
    sharp = texture((1, 3, 24, 32), seed=3, cells=2).double()
    blurred = torch.nn.functional.avg_pool2d(sharp, 5, stride=1, padding=2, count_include_pad=False)
    assert float(losses.ssim(sharp, blurred).mean()) < 0.8
    assert float((1 - losses.ssim(sharp, 0.9 * sharp)).mean()) < 0.1


def test_scale_costs_nothing_near_one_and_its_logarithm_beyond() -> None:
    disparity = torch.tensor([0.1, 0.5, 1.0, 2.0, 8.0]).view(5, 1, 1, 1).repeat(1, 1, 3, 4)
    costs = [losses.scale_excess(each[None]).item() for each in disparity]
    assert costs == pytest.approx([math.log(5), 0, 0, 0, math.log(4)], abs=1e-6)
    assert losses.scale_excess(disparity).item() == pytest.approx(sum(costs) / 5)
    disparity.requires_grad_()
    losses.scale_excess(disparity).backward()
    assert disparity.grad is not None
    assert (disparity.grad[0] < 0).all()
    assert (disparity.grad[4] > 0).all()
    assert not disparity.grad[2].any()


def test_motions_differ_by_their_turn_and_by_where_they_take_the_centre() -> None:
    centre, depth = torch.tensor([[1.0, 2.0, 10.0]]).double(), torch.tensor([10.0]).double()
    still = torch.eye(4).double()[None]
    assert losses.motion_difference(still, still, centre, depth).item() == 0
    shifted = se3.from_euler(torch.zeros(1, 3).double(), torch.tensor([[0.5, -1.0, 2.0]]).double())
    assert losses.motion_difference(shifted, still, centre, depth).item() == pytest.approx(0.35)
    turn = se3.from_euler(torch.tensor([[0.0, 0.1, 0.0]]).double(), torch.zeros(1, 3).double())
    # About its own centre a turn moves nothing.
    about = se3.about(turn, centre)
    assert losses.motion_difference(about, still, centre, depth).item() == pytest.approx(0.1)
    assert losses.motion_difference(turn, still, centre, depth).item() > 0.15


def test_the_difference_of_motions_has_right_and_finite_gradients() -> None:
    centre, depth = torch.tensor([[1.0, 2.0, 10.0]]).double(), torch.tensor([10.0]).double()
    goal = se3.exp(torch.tensor([[0.3, 0.1, 0.2, 0.1, -0.1, 0.2]]).double())
    xi = torch.tensor([[0.1, 0.2, -0.1, 0.05, 0.1, 0.02]]).double().requires_grad_()
    assert gradcheck(lambda xi: losses.motion_difference(se3.exp(xi), goal, centre, depth), xi)
    zero = torch.zeros(1, 6).double().requires_grad_()
    losses.motion_difference(se3.exp(zero), torch.eye(4).double()[None], centre, depth).sum().backward()
    assert zero.grad is not None
    assert torch.isfinite(zero.grad).all()


def test_the_mean_over_instances_is_taken_image_by_image() -> None:
    cost = torch.tensor([1.0, 3.0, 10.0, 7.0])
    image, counts = torch.tensor([0, 0, 2, 2]), torch.tensor([True, True, True, False])
    assert losses.instance_mean(cost, counts, image, 3).item() == pytest.approx((2 + 0 + 10) / 3)
    assert losses.instance_mean(cost[:0], counts[:0], image[:0], 3).item() == 0


def test_a_body_may_reach_back_and_half_as_far_forward() -> None:
    median = torch.full((5,), 10.0, dtype=torch.float64)
    depth = torch.tensor([10.0, 13.9, 8.4, 28.0, 5.0], dtype=torch.float64)
    expected = [0, 0, 0, math.log(2.8 / 1.4), math.log(2 / 1.2)]
    assert_close(losses.compactness(depth, median, 0.4), torch.tensor(expected, dtype=torch.float64))
