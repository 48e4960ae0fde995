"""What fixes the scale of an instance's depth: scenes in which the right answer is known."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from pipeline.classes import CLASSES
from pipeline.errors import ConfigError
from tests.training.scenes import (
    CAR,
    PERSON,
    SKY,
    made_batch,
    made_motions,
    pinhole,
    stub_networks,
    true_pair,
)
from training.anchors import (
    HEIGHTS_M,
    AnchorConfig,
    anchor_terms,
    heights_from_ground,
    initial_log_heights,
    seen_both_ways,
)
from training.data import Batch
from training.geometry import se3
from training.instances import about_centre, centres, list_instances, median_depth
from training.motion import MotionConfig, Motions, compose, find_motions
from training.networks.build import Networks
from training.pairs import Pairs, direct

EVERY = AnchorConfig(size=1.0, contact=1.0, consistency=1.0)
CAMERA_HEIGHT, F = 1.5, 100.0


def scene(*, car_height: float = 1.5, car_depth: float = 6.0) -> tuple[Tensor, Tensor]:
    """Depth (H, W) and labels of a plane with a car 1.5 high and a person, both upright and in full view.

    Slot 1 is a car at depth 6, slot 2 a person 1.8 high at depth 10.
    """
    H, W = 64, 96
    v, u = torch.meshgrid(torch.arange(H).float(), torch.arange(W).float(), indexing="ij")
    cy = (H - 1) / 2
    depth = torch.where(v > cy + 1, F * CAMERA_HEIGHT / (v - cy).clamp(min=1), SKY)
    labels = torch.zeros(H, W, dtype=torch.int64)
    for slot, Z, height, left in ((1, car_depth, car_height, 10), (2, 10.0, 1.8, 70)):
        y = (v - cy) * Z / F
        own = (y <= CAMERA_HEIGHT) & (y >= CAMERA_HEIGHT - height) & (u >= left) & (u < left + 20)
        depth[own], labels[own] = Z, slot
    return depth, labels


def pairs_of(depth: Tensor, labels: Tensor) -> Pairs:
    """Both directions of a pair of frames that are the same."""
    H, W = depth.shape
    image, D, own = torch.rand(2, 3, H, W), depth.expand(2, 1, H, W), labels.expand(2, H, W)
    return Pairs(
        I_t=image,
        I_s=image,
        D_t=D,
        D_s=D,
        K=pinhole(F, H, W, torch.float32).expand(2, 3, 3),
        labels_t=own,
        labels_s=own,
        classes=torch.tensor([[CAR, PERSON]]).expand(2, 2),
        backward=torch.tensor([False, True]),
    )


def motions_of(pairs: Pairs, objects: Tensor | None = None) -> Motions:
    instances = list_instances(pairs.labels_t, pairs.classes)
    camera = torch.eye(4).repeat(len(pairs), 1, 1)
    own = torch.eye(4).repeat(len(instances), 1, 1) if objects is None else objects
    shown = find_motions(stub_networks().ego, stub_networks().objects, pairs, MotionConfig(refinements=0))
    regions = compose(camera, own, instances, pairs.region_count)
    return made_motions(pairs, camera, regions, own, intermediate=shown.intermediate)


def log_heights(car: float = 1.5, person: float = 1.8) -> Tensor:
    heights = torch.zeros(len(CLASSES))
    heights[CAR], heights[PERSON] = math.log(car), math.log(person)
    return heights


# At depth 6 a metre is 16.7 rows, so heights in whole rows are off by up to 4 %.
ROUNDING = 0.04


def test_the_truth_costs_nothing() -> None:
    pairs = pairs_of(*scene())
    terms = anchor_terms(pairs, motions_of(pairs), log_heights(), EVERY)
    assert set(terms) == {"size", "contact", "consistency"}
    assert terms["size"].item() < ROUNDING
    assert terms["contact"].item() < ROUNDING
    assert terms["consistency"].item() < 1e-6


@pytest.mark.parametrize("factor", [0.5, 2.0, 4.0])
def test_an_instance_at_the_wrong_depth_costs_the_logarithm_of_its_ratio(factor: float) -> None:
    depth, labels = scene()
    depth[labels == 1] *= factor
    pairs = pairs_of(depth, labels)
    terms = anchor_terms(pairs, motions_of(pairs), log_heights(), EVERY)
    # One of two instances is wrong; the slack of a fifth is free beyond the contact.
    assert float(terms["size"]) == pytest.approx(abs(math.log(factor)) / 2, abs=ROUNDING)
    free = math.log(1.2) if factor > 1 else 0
    assert float(terms["contact"]) == pytest.approx((abs(math.log(factor)) - free) / 2, abs=ROUNDING)


def test_anchors_pull_depth_and_heights_the_right_way() -> None:
    depth, labels = scene()
    depth[labels == 1] *= 3
    depth.requires_grad_()
    heights = log_heights().requires_grad_()
    pairs = pairs_of(depth, labels)
    terms = anchor_terms(pairs, motions_of(pairs), heights, EVERY)
    for name in ("size", "contact"):
        (found,) = torch.autograd.grad(terms[name], depth, retain_graph=True)
        assert float(found[labels == 1].sum()) > 0, name  # descending makes it nearer
        assert not found[labels == 0].any(), name  # the ground stays
    (found,) = torch.autograd.grad(terms["size"], heights)
    assert float(found[CAR]) < 0
    assert not found[[k for k in range(len(CLASSES)) if k not in (CAR, PERSON)]].any()


def test_instances_that_the_image_cuts_are_left_out() -> None:
    depth, labels = scene(car_height=20.0)  # out of the top
    depth[labels == 1] *= 5
    pairs = pairs_of(depth, labels)
    assert not bool(list_instances(pairs.labels_t, pairs.classes).whole().all())
    terms = anchor_terms(pairs, motions_of(pairs), log_heights(), EVERY)
    assert float(terms["size"]) < ROUNDING
    assert float(terms["contact"]) < ROUNDING


def test_each_anchor_can_be_switched_off() -> None:
    pairs = pairs_of(*scene())
    motions = motions_of(pairs)
    assert anchor_terms(pairs, motions, log_heights(), AnchorConfig(size=0, contact=0, consistency=0)) == {}
    for name in ("size", "contact", "consistency"):
        only = replace(AnchorConfig(size=0, contact=0, consistency=0), **{name: 0.1})
        assert set(anchor_terms(pairs, motions, log_heights(), only)) == {name}


def test_without_instances_anchors_are_zero_with_finite_gradients() -> None:
    """Fault 7."""
    depth, labels = scene()
    depth.requires_grad_()
    pairs = replace(pairs_of(depth, torch.zeros_like(labels)))
    instances = list_instances(pairs.labels_t, pairs.classes)
    assert len(instances) == 0
    camera = torch.eye(4).repeat(2, 1, 1)
    motions = made_motions(pairs, camera, camera[:, None].repeat(1, 3, 1, 1))
    heights = log_heights().requires_grad_()
    for name, term in anchor_terms(pairs, motions, heights, EVERY).items():
        assert term.item() == 0, name
        if term.requires_grad:
            for found in torch.autograd.grad(term, [depth, heights], retain_graph=True, allow_unused=True):
                assert found is None or not found.any()


def test_compactness_pulls_holes_to_the_body_and_leaves_the_rest() -> None:
    depth, labels = scene()
    own = labels == 1
    hole = own & (torch.arange(depth.shape[1]) % 4 == 0)
    depth = torch.where(hole, depth * 5, depth).requires_grad_()
    pairs = pairs_of(depth, labels)
    only = AnchorConfig(size=0, consistency=0, compact=1.0, compact_slack=0.35)
    term = anchor_terms(pairs, motions_of(pairs), log_heights(), only)["compact"]
    # One of the two instances has holes in a quarter of its pixels.
    share = float(hole.sum() / own.sum())
    assert float(term.detach()) == pytest.approx(share * math.log(5 / 1.35) / 2, rel=1e-4)
    (found,) = torch.autograd.grad(term, depth)
    assert (found[hole] > 0).all()
    assert not found[~hole].any()


def test_where_most_of_a_body_is_a_hole_it_is_pulled_to_where_it_stands() -> None:
    """Its median lies in the hole; only the ground below says how near the body is."""
    depth, labels = scene()
    own = labels == 2
    hole = own & (torch.arange(depth.shape[0])[:, None] < 40)
    assert hole.sum() > own.sum() / 2
    depth = torch.where(hole, depth * 5, depth).requires_grad_()
    pairs = pairs_of(depth, labels)
    compact = AnchorConfig(size=0, consistency=0, compact=1.0)
    standing = replace(compact, contact=1.0)
    for config, taught in ((compact, False), (standing, True)):
        term = anchor_terms(pairs, motions_of(pairs), log_heights(), config)["compact"]
        (found,) = torch.autograd.grad(term, depth)
        assert bool((found[hole] > 0).all()) == taught


def test_what_the_lower_edge_cuts_is_held_nearer_than_the_ground_there_and_may_have_any_shape() -> None:
    depth, labels = scene(car_depth=3.0)
    only = AnchorConfig(size=0, consistency=0, contact=1.0, compact=1.0)
    costs = {}
    for wrong in (0.5, 1.0, 3.0):
        pairs = pairs_of(torch.where(labels == 1, depth * wrong, depth), labels)
        assert not list_instances(pairs.labels_t, pairs.classes).whole()[0]
        costs[wrong] = anchor_terms(pairs, motions_of(pairs), log_heights(), only)
    # The person beside it stands right: half of the mean is the car's.
    assert float(costs[0.5]["contact"]) < ROUNDING
    assert float(costs[1.0]["contact"]) < ROUNDING
    edge = F * CAMERA_HEIGHT / 31.0
    assert float(costs[3.0]["contact"]) == pytest.approx(math.log(9.0 / edge) / 2, abs=ROUNDING)
    stretched_car = torch.where(labels == 1, depth * torch.linspace(0.5, 3, 96), depth)
    pairs = pairs_of(stretched_car, labels)
    assert float(anchor_terms(pairs, motions_of(pairs), log_heights(), only)["compact"]) == 0


# --- there and back


def test_instances_are_paired_with_themselves_in_the_other_direction() -> None:
    batch = made_batch(B=3, F=2, instances=(1, 0, 2))
    pairs = direct(batch, torch.ones(3, 2, 1, 32, 48))
    pairs.labels_t[5][pairs.labels_t[5] == 2] = 0  # seen in one direction only
    instances = list_instances(pairs.labels_t, pairs.classes)
    there, back = seen_both_ways(instances, len(pairs))
    found = {
        (int(instances.pair[i]), int(instances.slot[i]), int(instances.pair[j]), int(instances.slot[j]))
        for i, j in zip(there, back, strict=True)
    }
    assert found == {(0, 1, 3, 1), (2, 1, 5, 1)}


def test_consistency_sees_what_there_and_back_leave_over() -> None:
    pairs = pairs_of(*scene())
    instances = list_instances(pairs.labels_t, pairs.classes)
    centre = centres(pairs.D_t, pairs.K, instances)
    turn, shift = torch.full((4, 3), 0.05), torch.tensor([[0.6, 0.0, 0.0]]).expand(4, 3)
    backward = pairs.backward[instances.pair]
    only = AnchorConfig(size=0, consistency=1.0)
    where = torch.where(backward[:, None], centre + shift, centre)
    agreeing = about_centre(turn, shift, where, backward)
    assert float(anchor_terms(pairs, motions_of(pairs, agreeing), log_heights(), only)["consistency"]) < 1e-5
    # Shifts of 0.6 there, and 0.6 again instead of back: 1.2 over depths 6 and 10.
    twice = se3.from_euler(torch.zeros(4, 3), shift)
    found = anchor_terms(pairs, motions_of(pairs, twice), log_heights(), only)["consistency"]
    assert float(found) == pytest.approx((1.2 / 6 + 1.2 / 10) / 2, rel=1e-4)


# --- first heights


def test_heights_are_those_of_what_stands_on_the_ground() -> None:
    depth, labels = scene()
    depth[labels > 0] = 77.0  # the instances' own depth is not asked
    pairs = pairs_of(depth, labels)
    classes, heights = heights_from_ground(pairs, list_instances(pairs.labels_t, pairs.classes))
    assert classes.tolist() == [CAR, PERSON] * 2
    assert_close(heights, torch.tensor([1.5, 1.8] * 2), rtol=ROUNDING, atol=0)


class SceneDepth(nn.Module):
    """A network that has learned the scene, in its own unit."""

    def __init__(self, depth: Tensor) -> None:
        super().__init__()
        self.depth = depth
        self.modes: list[bool] = []

    def forward(self, images: Tensor) -> tuple[Tensor]:
        self.modes.append(self.training)
        return (1 / self.depth.expand(len(images), 1, *self.depth.shape),)


def scene_batch(classes: list[int]) -> Batch:
    _, labels = scene()
    return Batch(
        images=torch.rand(1, 2, 3, 64, 96),
        K=pinhole(F, 64, 96, torch.float32)[None],
        labels=labels.expand(1, 1, 2, 64, 96).to(torch.int16),
        classes=torch.tensor(classes).expand(1, 1, 2),
        dt_s=torch.full((1, 1), 0.1),
        names=("scene:0",),
    )


@pytest.mark.parametrize("unit", [1.0, 0.1])
def test_first_heights_are_the_scenes_and_unseen_classes_follow_its_unit(unit: float) -> None:
    depth, _ = scene()
    network = SceneDepth(depth * unit)
    networks = Networks(network, nn.Identity(), nn.Identity())
    networks.train()
    found = initial_log_heights(networks, [scene_batch([CAR, PERSON])] * 3, count=2).exp()
    assert len(network.modes) == 2
    assert not any(network.modes)
    assert networks.training
    assert float(found[CAR]) == pytest.approx(1.5 * unit, rel=ROUNDING)
    assert float(found[PERSON]) == pytest.approx(1.8 * unit, rel=ROUNDING)
    truck = CLASSES.index("truck")
    assert float(found[truck]) == pytest.approx(HEIGHTS_M["truck"] * unit, rel=0.08)


def test_first_heights_without_any_instance_are_typical() -> None:
    batch = scene_batch([CAR, PERSON])
    empty = replace(batch, labels=torch.zeros_like(batch.labels), classes=batch.classes[:, :, :0])
    found = initial_log_heights(Networks(SceneDepth(scene()[0]), nn.Identity(), nn.Identity()), [empty])
    assert_close(found.exp(), torch.tensor([HEIGHTS_M[name] for name in CLASSES]))


def test_with_true_depth_the_anchors_of_real_streets_cost_little(streets: Path) -> None:
    """An anchor whose minimum is not the truth teaches something wrong."""
    costs = []
    for name, first in (("test_0000", 2), ("test_0001", 1), ("test_0002", 2)):
        pairs, camera, regions, _ = true_pair(streets / name, first, least_px=60)
        instances = list_instances(pairs.labels_t, pairs.classes)
        heights = torch.tensor([math.log(HEIGHTS_M[each]) for each in CLASSES])
        own = se3.inverse(camera[instances.pair]) @ regions[instances.pair, instances.slot]
        shown = motions_of(pairs_of(*scene())).intermediate
        motions = made_motions(pairs, camera, regions, proposed=own, intermediate=shown)
        found = anchor_terms(pairs, motions, heights, EVERY)
        deep = anchor_terms(replace(pairs, D_t=stretched(pairs, 2.0)), motions, heights, EVERY)
        costs.append([float(found[each]) for each in ("size", "contact", "consistency")])
        assert float(deep["contact"]) > float(found["contact"]) + 0.3
        assert float(deep["size"]) > float(found["size"]) + 0.4
        assert float(median_depth(pairs.D_t, instances).min()) > 0
    size, contact, consistency = torch.tensor(costs).mean(0).tolist()
    assert size < 0.2
    assert contact < 0.05
    assert consistency < 1e-3


def stretched(pairs: Pairs, factor: float) -> Tensor:
    """True depth with every instance `factor` times as far away."""
    return torch.where(pairs.labels_t[:, None] > 0, factor * pairs.D_t, pairs.D_t)


@pytest.mark.parametrize("name", ["size", "contact", "contact_slack", "consistency"])
@pytest.mark.parametrize("value", [-0.1, math.inf, math.nan])
def test_impossible_weights_are_refused(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"{name} must be 0 or more, got {value}"):
        AnchorConfig(**{name: value})
