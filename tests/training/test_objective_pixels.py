"""Which pixels count in a training step, and what the truth costs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tests.training.objectives import (
    FULL,
    GEO,
    LATE,
    TABLE_2,
    fixed_view,
    flat_pairs,
    gradients,
    input_of,
)
from tests.training.scenes import made_batch, made_motions, stub_networks, texture, true_pair
from training import losses
from training.anchors import AnchorConfig
from training.geometry.warp import inverse_warp
from training.motion import MotionConfig
from training.objective import (
    fits_better_warped,
    nearest_source,
    training_step,
    usable_pixels,
    view_terms,
)
from training.pairs import Pairs, direct


def test_background_that_lands_on_an_instance_of_the_source_is_left_out() -> None:
    """Frames one pixel apart, by a camera that explains it: the instance in the source hides a strip."""
    pairs = flat_pairs((1, 1))
    _, view = fixed_view(pairs, shift=8.0 / 40)  # f d / Z = one pixel
    usable = usable_pixels(view, pairs)[:, 0]
    # Target earlier: instance in columns 5..18 there, 7..20 in the source, read one pixel to the right.
    row = usable[0, 10]
    hidden = [6, *range(6, 20)]
    for u in range(47):
        own = 5 <= u < 19
        lands_on_instance = 7 <= u + 1 < 21
        assert bool(row[u]) == (own or not lands_on_instance), u
    assert not row[47]  # leaves the source
    assert bool(usable[0, 2, :47].all())
    assert bool(row[hidden[0]])  # the instance's own pixels count, wherever they land


@pytest.mark.parametrize("side", ["target", "source"])
def test_an_unmatched_instance_is_neither_target_nor_background_of_the_source(side: str) -> None:
    pairs = flat_pairs((1, 1))
    labels = pairs.labels_t if side == "target" else pairs.labels_s
    labels[:, 4:30, 12:40] = -1  # over a part of the instance, too
    _, view = fixed_view(pairs)
    usable = usable_pixels(view, pairs)
    assert not usable[:, 0, 4:30, 12:40].any()
    assert bool(usable[:, 0, :, :5].all())


@pytest.mark.parametrize("name", ["full", "inst+geo+inverse", "frame input", "geo"])
def test_pixels_of_unmatched_instances_influence_nothing(name: str) -> None:
    """Their inner pixels, that is: windows of 3x3 and readings between pixels reach one pixel in."""
    config = replace(TABLE_2[name], smoothness=0.0)
    batch = made_batch(F=2)
    batch.labels[:, :, :, 20:32, 0:20] = -1
    images = batch.images.clone()
    images[:, :, :, 23:32, 0:17] = torch.rand(2, 2, 3, 9, 17)
    painted = replace(batch, images=images)
    networks = stub_networks(object_input=input_of(config))
    networks.depth = FixedDepth(2 * 2)
    found, again = (training_step(networks, each, config, LATE) for each in (batch, painted))
    if name == "geo":  # which knows no instances: this is the check that the paint would show
        assert abs(found.total.item() - again.total.item()) > 1e-3
        return
    assert len(found.terms) > 4
    del found.terms["smoothness"]  # which reads every image whole
    for term, value in found.terms.items():
        assert_close(
            again.terms[term], value, rtol=0, atol=1e-7, msg=lambda text, term=term: f"{term}: {text}"
        )
    before, after = gradients(found, networks), gradients(again, networks)
    for weight, value in before.items():
        assert_close(after[weight], value, rtol=1e-4, atol=1e-6)


class FixedDepth(torch.nn.Module):
    """A learned depth map per frame that does not look at the images."""

    def __init__(self, frames: int) -> None:
        super().__init__()
        self.maps = torch.nn.Parameter(0.1 + 0.05 * texture((frames, 1, 32, 48), 7))

    def forward(self, images: Tensor) -> tuple[Tensor]:
        return (self.maps,)


def test_what_fits_better_unwarped_does_not_count_but_on_instances() -> None:
    pairs = flat_pairs((1, 1))
    unwarped = losses.photometric(pairs.I_t, pairs.I_s)
    own = (pairs.labels_t > 0)[:, None]
    worse, better = (fits_better_warped(unwarped + d, pairs, 0.85) for d in (1e-3, -1e-3))
    assert_close(worse, own.float())
    assert_close(better, torch.ones_like(better))
    # Equal is no better: nothing is learned from a scene at rest.
    assert_close(fits_better_warped(unwarped, pairs, 0.85), own.float())


def test_auto_mask_takes_effect_in_the_photometric_term() -> None:
    pairs = flat_pairs((0, 0))
    motions, _ = fixed_view(pairs, shift=0.32)  # 1.6 pixels, where one would be right
    terms, view, error = view_terms(pairs, motions, replace(GEO, occlusion_weight=False), LATE, 2)
    counts = view.visible & (error < losses.photometric(pairs.I_t, pairs.I_s))
    assert 0.1 < float(counts.float().mean()) < 0.9
    expected = torch.stack([e[c].mean() for e, c in zip(error, counts, strict=True)]).mean()
    assert_close(terms["photometric"], expected)


def test_each_target_with_two_sources_learns_from_the_cheaper_one() -> None:
    """Windows of 3: frame 1 is target of frame 2 (earlier half) and of frame 0 (later half)."""
    B, F = 2, 3
    cost = torch.ones(2 * B * (F - 1), 1, 1, 2)
    later_half = B * (F - 1)

    def row(window: int, pair: int, backward: bool) -> int:
        return backward * later_half + window * (F - 1) + pair

    cost[row(0, 1, False)] = torch.tensor([0.2, 0.9])  # frame 1 of window 0, seen from frame 2
    cost[row(0, 0, True)] = torch.tensor([0.5, 0.4])  # the same, seen from frame 0
    cost[row(1, 1, False)] = torch.tensor([torch.inf, 0.3])  # hidden in frame 2
    cost[row(1, 0, True)] = torch.tensor([0.8, torch.inf])
    keep = nearest_source(cost, F)[:, 0, 0]
    assert keep[row(0, 1, False)].tolist() == [1, 0]
    assert keep[row(0, 0, True)].tolist() == [0, 1]
    assert keep[row(1, 1, False)].tolist() == [0, 1]
    assert keep[row(1, 0, True)].tolist() == [1, 0]
    for window in range(B):  # first and last frames have one source
        assert keep[row(window, 0, False)].tolist() == [1, 1]
        assert keep[row(window, 1, True)].tolist() == [1, 1]
    assert nearest_source(cost[: 2 * B], 2).all()


def test_a_source_that_does_not_show_a_pixel_does_not_win_it() -> None:
    """A camera that moves by 8 pixels: at the edges of the middle frame one source is beyond its border."""
    pairs = direct(made_batch(B=1, F=3, instances=(0,)), torch.full((1, 3, 1, 32, 48), 8.0))
    motions, view = fixed_view(pairs, shift=1.6)
    config = replace(GEO, auto_mask=False, occlusion_weight=False, reprojection="min")
    terms, _, error = view_terms(pairs, motions, config, LATE, 3)
    # Rows: frame 0 from 1, frame 1 from 2, frame 1 from 0, frame 2 from 1.
    shown, hidden = view.visible[:, 0], ~view.visible[:, 0]
    cost = error[:, 0].masked_fill(hidden, torch.inf)
    counts = shown.clone()
    counts[1] &= cost[1] < cost[2]
    counts[2] &= cost[2] <= cost[1]
    assert bool(((counts[1] | counts[2]) == (shown[1] | shown[2])).all())
    assert bool((hidden[1] & shown[2] & (error[1, 0] < error[2, 0])).any())  # or the test shows nothing
    expected = torch.stack([e[0][c].mean() for e, c in zip(error, counts, strict=True)]).mean()
    assert_close(terms["photometric"], expected)


def test_the_frames_that_share_a_target_are_the_ones_compared() -> None:
    batch = made_batch(F=4)
    pairs = direct(batch, torch.ones(2, 4, 1, 32, 48))
    first, second = (each.unflatten(0, (2, 3)) for each in pairs.I_t.chunk(2))
    assert_close(first[:, 1:], second[:, :-1])  # the same targets
    assert_close(first, batch.images[:, :-1])
    sources_of_first, sources_of_second = (each.unflatten(0, (2, 3)) for each in pairs.I_s.chunk(2))
    assert_close(sources_of_first, batch.images[:, 1:])
    assert_close(sources_of_second, batch.images[:, :-1])
    assert pairs.backward.tolist() == [False] * 6 + [True] * 6


def test_occluded_pixels_count_less_and_do_not_learn_to_be_occluded() -> None:
    pairs = flat_pairs((0, 0))
    D_s = pairs.D_s.clone()
    D_s[:, :, :16] = 4.0  # something twice as near in the source: difference 1/3
    pairs = replace(pairs, D_s=D_s.requires_grad_())
    motions, _ = fixed_view(pairs)
    config = replace(GEO, auto_mask=False)
    terms, _, error = view_terms(pairs, motions, config, LATE, 2)
    weight = torch.ones_like(error)
    weight[:, :, :16] = 1 - 1 / 3
    expected = ((error * weight).sum((1, 2, 3)) / weight.sum((1, 2, 3))).mean()
    assert_close(terms["photometric"], expected)
    assert not terms["photometric"].requires_grad
    assert_close(terms["geometric"], torch.tensor(0.5 / 3))


def test_where_objects_depth_is_detached_their_pixels_teach_motion_only() -> None:
    networks, batch = stub_networks(), made_batch(F=2)
    networks.depth = FixedDepth(4)
    config = replace(
        FULL, smoothness=0.0, object_depth="detached", anchors=AnchorConfig(size=0, contact=0, consistency=0)
    )
    config = replace(config, motion=MotionConfig(detach_intermediate=True))
    for mode in ("joint", "detached"):
        outcome = training_step(networks, batch, replace(config, object_depth=mode), LATE)
        found = torch.autograd.grad(outcome.total, [networks.depth.maps, networks.objects.layer.weight])
        own = (batch.labels > 0)[:, 0].flatten(0, 1)
        # One pixel in: readings between pixels of the background reach across the border.
        inner = -torch.nn.functional.max_pool2d(-own.float()[:, None], 7, 1, 3) > 0
        assert bool(found[0][inner].any()) == (mode == "joint")
        assert found[0][~own[:, None]].any()
        assert found[1].any()


# --- truth

MOVING_CLIPS = [("test_0001", 0), ("test_0001", 3), ("test_0002", 2), ("test_0002", 4)]


def errors_on_moving_objects(
    streets: Path, name: str, first: int
) -> tuple[float, float, float, float, float]:
    """Mean photometric error of moving objects: composite, camera alone, unwarped; of background warped, unwarped."""
    pairs, camera, regions, moving = true_pair(streets / name, first, least_px=20)
    view = inverse_warp(pairs.I_s, pairs.D_s, pairs.D_t, pairs.K, regions, pairs.regions)
    rigid = inverse_warp(pairs.I_s, pairs.D_s, pairs.D_t, pairs.K, camera[:, None], None)
    seen = usable_pixels(view, pairs)
    seen &= losses.depth_difference(view.sampled_depth, view.moved_depth) < 0.05
    objects = seen & torch.isin(pairs.labels_t, torch.tensor(moving))[:, None]
    background = seen & (pairs.labels_t == 0)[:, None]
    assert int(objects.sum()) > 300
    composite, ego, still = (
        losses.photometric(pairs.I_t, each) for each in (view.image, rigid.image, pairs.I_s)
    )
    return (
        *(float(each[objects].mean()) for each in (composite, ego, still)),
        *(float(each[background].mean()) for each in (composite, still)),
    )  # type: ignore[return-value]


@pytest.mark.parametrize(("name", "first"), MOVING_CLIPS)
def test_with_the_truth_composite_motions_explain_moving_objects(
    streets: Path, name: str, first: int
) -> None:
    """TRIALS, 'Check first': far below ego-motion only, and below not warping at all."""
    composite, ego, still, background, background_still = errors_on_moving_objects(streets, name, first)
    assert composite < 0.45 * ego
    assert composite < 0.45 * still
    assert background < 0.45 * background_still


@pytest.mark.parametrize("first", [1, 6, 10])
def test_with_the_truth_a_car_at_the_cameras_speed_is_explained_too(streets: Path, first: int) -> None:
    """Unwarped it fits well by itself: so well that the camera's motion alone would push it away."""
    composite, ego, still, *_ = errors_on_moving_objects(streets, "test_0000", first)
    assert composite < 0.3 * ego
    assert still < 0.35 * ego


@pytest.mark.parametrize(("name", "first"), [*MOVING_CLIPS, ("test_0000", 3)])
def test_the_truth_is_better_than_what_is_near_it(streets: Path, name: str, first: int) -> None:
    """Photometric and geometric terms: depth of everything scaled, objects scaled, camera still."""
    pairs, camera, regions, _ = true_pair(streets / name, first, least_px=20)

    def terms(regions: Tensor, pairs: Pairs = pairs) -> dict[str, float]:
        motions = made_motions(pairs, camera, regions)
        found, _, _ = view_terms(pairs, motions, replace(FULL, auto_mask=False), LATE, 2)
        return {name: value.item() for name, value in found.items()}

    truth = terms(regions)
    only_camera = terms(camera[:, None].expand_as(regions))
    assert truth["instance_photometric"] < 0.9 * only_camera["instance_photometric"]
    still = terms(torch.eye(4).expand_as(regions))
    assert truth["photometric"] < 0.5 * still["photometric"]
    assert truth["geometric"] < 0.75 * still["geometric"]
    scaled = replace(pairs, D_t=1.3 * pairs.D_t, D_s=1.3 * pairs.D_s)
    assert truth["photometric"] < 0.95 * terms(regions, scaled)["photometric"]
    own_t, own_s = (each[:, None] > 0 for each in (pairs.labels_t, pairs.labels_s))
    melted = replace(
        pairs,
        D_t=torch.where(own_t, 2 * pairs.D_t, pairs.D_t),
        D_s=torch.where(own_s, 2 * pairs.D_s, pairs.D_s),
    )
    assert truth["instance_photometric"] < 0.9 * terms(regions, melted)["instance_photometric"]
