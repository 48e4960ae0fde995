"""Camera and object motion: conventions followed through from networks' answers to composite motions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from pipeline.errors import ConfigError
from tests.training.scenes import made_batch, pinhole, stub_networks, texture, true_pair
from training import losses
from training.alignment import AlignmentConfig
from training.geometry import se3
from training.geometry.camera import pixel_grid
from training.geometry.warp import inverse_warp
from training.instances import (
    about_centre,
    centres,
    crop,
    ground_below,
    list_instances,
    square_windows,
)
from training.motion import MotionConfig, camera_motion, compose, find_motions, intermediate_frame
from training.networks.build import Networks
from training.pairs import Pairs, direct


class Answers(nn.Module):
    """A network that gives prepared answers in turn and keeps what it was shown."""

    def __init__(self, *answers: Tensor) -> None:
        super().__init__()
        self.answers = list(answers)
        self.shown: list[tuple[Tensor, Tensor]] = []

    def forward(self, earlier: Tensor, later: Tensor) -> Tensor:
        self.shown.append((earlier, later))
        return self.answers[min(len(self.shown), len(self.answers)) - 1].expand(len(earlier), 6)


STILL = torch.zeros(1, 6)


def made_pairs(*, instances: tuple[int, ...] | None = None, seed: int = 0, depth: float = 8.0) -> Pairs:
    batch = made_batch(B=2, F=2, instances=instances, seed=seed)
    return direct(batch, torch.full((2, 2, 1, 32, 48), depth))


def true_answers(pairs: Pairs, camera: Tensor, regions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What networks would have to say: the camera's six numbers, and (I, 6) of the objects.

    Angles and shift of an object run forward in time, the shift in units of its depth.
    """
    ego = torch.cat([se3.to_euler(camera[:1]), camera[:1, :3, 3]], 1)
    instances = list_instances(pairs.labels_t, pairs.classes)
    centre = centres(pairs.D_t, pairs.K, instances)
    own = se3.inverse(camera[instances.pair]) @ regions[instances.pair, instances.slot]
    moved = (own[:, :3, :3] @ centre[..., None])[..., 0] + own[:, :3, 3]
    backward = pairs.backward[instances.pair][:, None]
    shift = torch.where(backward, centre - moved, moved - centre)
    turn = torch.where(backward[..., None], own[:, :3, :3].mT, own[:, :3, :3])
    return ego, torch.cat([se3.to_euler(turn), shift / centre[:, 2:]], 1), centre


# --- the camera


def test_the_camera_is_asked_in_time_order_and_inverted_for_the_other_direction() -> None:
    pairs = made_pairs()
    ego = Answers(torch.tensor([[0.02, -0.03, 0.01, 0.1, -0.05, 0.4]]))
    camera = camera_motion(ego, pairs, AlignmentConfig())[1]
    assert_close(camera[2:] @ camera[:2], torch.eye(4).expand(2, 4, 4), rtol=0, atol=1e-6)
    assert_close(camera[:2], se3.from_euler(ego.answers[0][:, :3], ego.answers[0][:, 3:]).expand(2, 4, 4))
    (earlier, later) = ego.shown[0]
    background = ((pairs.labels_t == 0) & (pairs.labels_s == 0))[:2, None]
    # The first half has the earlier frame as target.
    assert_close(earlier, pairs.I_t[:2] * background)
    assert_close(later, pairs.I_s[:2] * background)
    assert not pairs.backward[:2].any()


def test_the_camera_sees_only_what_is_background_in_both_frames() -> None:
    pairs = made_pairs()
    pairs.labels_t[0, 25:30, 40:44] = -1
    networks = stub_networks()
    before = camera_motion(networks.ego, pairs, AlignmentConfig())[1]
    hidden = ((pairs.labels_t != 0) | (pairs.labels_s != 0))[:, None]
    painted = replace(
        pairs,
        I_t=torch.where(hidden, torch.rand_like(pairs.I_t), pairs.I_t),
        I_s=torch.where(hidden, torch.rand_like(pairs.I_s), pairs.I_s),
    )
    assert_close(camera_motion(networks.ego, painted, AlignmentConfig())[1], before, rtol=0, atol=0)
    assert bool(hidden[0, 0, 25:30, 40:44].all())


# --- composing


def test_composite_motions_compose_as_rigid_motions() -> None:
    """Fault 5: an object's translation is not added to the camera's; first the object moves, then the camera."""
    pairs = made_pairs(instances=(2, 1))
    instances = list_instances(pairs.labels_t, pairs.classes)
    assert len(instances) == 6
    generator = torch.Generator().manual_seed(0)
    camera = se3.exp(torch.randn(4, 6, dtype=torch.float64, generator=generator) * 0.3)
    objects = se3.exp(torch.randn(6, 6, dtype=torch.float64, generator=generator) * 0.3)
    regions = compose(camera, objects, instances, pairs.region_count)
    assert regions.shape == (4, 3, 4, 4)
    expected = camera[:, None].repeat(1, 3, 1, 1)
    for n, k, own in zip(instances.pair.tolist(), instances.slot.tolist(), objects, strict=True):
        expected[n, k] = camera[n] @ own
    assert_close(regions, expected)
    added = camera[0].clone()
    added[:3, 3] += objects[0, :3, 3]
    assert not torch.allclose(regions[0, 1], added, atol=0.05)


def test_a_turning_object_is_where_its_own_turn_and_the_cameras_put_it() -> None:
    """On paper: a point one unit right of a centre 10 ahead, after 90 degrees about y, camera 2 forward."""
    centre = torch.tensor([[0.0, 0.0, 10.0]], dtype=torch.float64)
    turn = torch.tensor([[0.0, torch.pi / 2, 0.0]], dtype=torch.float64)
    own = about_centre(turn, torch.zeros_like(centre), centre, torch.tensor([False]))
    camera = torch.eye(4, dtype=torch.float64)
    camera[2, 3] = -2
    point = torch.tensor([1.0, 0.0, 10.0, 1.0], dtype=torch.float64)
    # About +y, right turns to nearer: x = 1 becomes z = -1.
    assert_close((camera @ own[0] @ point)[:3], torch.tensor([0.0, 0.0, 7.0], dtype=torch.float64))


def test_regions_without_an_instance_move_with_the_camera() -> None:
    pairs = made_pairs(instances=(2, 0))
    ego, objects = Answers(torch.full((1, 6), 0.05)), Answers(torch.full((1, 6), 0.2))
    motions = find_motions(ego, objects, pairs, MotionConfig(refinements=0))
    for n in (1, 3):
        assert_close(motions.regions[n], motions.camera[n].expand(3, 4, 4))
    for n in (0, 2):
        assert_close(motions.regions[n, 0], motions.camera[n])
        assert not torch.allclose(motions.regions[n, 1], motions.camera[n], atol=0.1)


# --- what the object network is shown, and what its answer means


@pytest.mark.parametrize("object_warp", ["forward", "inverse"])
@pytest.mark.parametrize("object_input", ["crop", "frame"])
def test_both_directions_show_the_object_in_time_order(
    object_warp: Literal["forward", "inverse"], object_input: Literal["crop", "frame"]
) -> None:
    """With a camera at rest both directions show the same: so one motion is seen, once each way."""
    pairs = made_pairs()
    objects = Answers(torch.tensor([[0.02, 0.1, -0.01, 0.05, 0.01, 0.1]]))
    config = MotionConfig(object_warp=object_warp, object_input=object_input, refinements=0)
    motions = find_motions(Answers(STILL), objects, pairs, config)
    assert len(objects.shown) == 1
    earlier, later = objects.shown[0]
    channels, H, W = (4, 64, 64) if object_input == "crop" else (3, 32, 48)
    assert earlier.shape == later.shape == (8, channels, H, W)
    assert_close(earlier[:4], earlier[4:], rtol=0, atol=1e-4)
    assert_close(later[:4], later[4:], rtol=0, atol=1e-4)
    assert not torch.allclose(earlier, later, atol=0.05)
    if object_input == "frame":
        own = (pairs.labels_t[0] == 1)[None]
        assert_close(earlier[0], pairs.I_t[0] * own)
    # Seen from its later centre the motion back undoes the motion there: equal depth, so equal shift.
    turn, shift = objects.answers[0][:, :3].expand(8, 3), motions.objects[:, :3, :3]
    there = se3.from_euler(turn, torch.zeros(8, 3))[:, :3, :3]
    assert_close(shift, torch.where(pairs.backward[motions.instances.pair][:, None, None], there.mT, there))


def test_a_crops_answer_is_in_widths_of_its_window_and_in_depths() -> None:
    pairs = made_pairs(instances=(1, 1), depth=8.0)
    answer = torch.tensor([[0.0, 0.0, 0.0, 0.25, -0.5, 0.1]])
    config = MotionConfig(refinements=0, crop_margin=1.0, crop_least_px=2.0)
    motions = find_motions(Answers(STILL), Answers(answer), pairs, config)
    # Rectangles 14 x 12 that move right by 2: both fit into a window 16 wide; f is 40.
    expected = 8.0 * torch.tensor([0.25 * 16 / 40, -0.5 * 16 / 40, 0.1])
    moved = motions.objects[:, :3, 3]
    sign = torch.where(pairs.backward[motions.instances.pair], -1.0, 1.0)
    assert_close(moved, sign[:, None] * expected, rtol=1e-5, atol=1e-5)
    # Twice as far away everything but the depth looks alike, and is twice as large.
    farther = find_motions(Answers(STILL), Answers(answer), made_pairs(instances=(1, 1), depth=16.0), config)
    assert_close(farther.objects[:, :3, 3], 2 * moved, rtol=1e-5, atol=1e-5)


def test_crops_show_the_masked_object_and_its_mask_from_one_window() -> None:
    pairs = made_pairs(instances=(1, 1))
    objects = Answers(STILL)
    motions = find_motions(Answers(STILL), objects, pairs, MotionConfig(refinements=0))
    both = (pairs.labels_t == 1) | (pairs.labels_s == 1)
    assert torch.equal(both.any(1).nonzero()[:, 1].unique(), torch.arange(5, 21))
    window = square_windows(torch.tensor([[4.5, 5.5, 20.5, 17.5]] * 4), 1.25, 12.0)
    mask = crop(motions.instances.mask[:, None].float(), window, torch.arange(4), 64)
    target = torch.cat([crop(pairs.I_t, window, torch.arange(4), 64) * mask, mask], 1)
    earlier, later = objects.shown[0]
    backward = pairs.backward[:, None, None, None]
    assert_close(torch.where(backward, later, earlier), target, rtol=0, atol=1e-5)


def test_refinements_look_again_and_add_up() -> None:
    pairs = made_pairs(instances=(1, 1))
    first = torch.tensor([[0.0, 0.02, 0.0, 0.1, 0.0, 0.05]])
    second = torch.tensor([[0.01, 0.0, 0.0, -0.02, 0.0, 0.01]])
    config = MotionConfig(refinements=1, object_input="frame")
    objects = Answers(first, second)
    motions = find_motions(Answers(STILL), objects, pairs, config)
    assert len(objects.shown) == 2
    at_once = find_motions(Answers(STILL), Answers(first + second), pairs, replace(config, refinements=0))
    assert_close(motions.objects, at_once.objects)
    # The second look is through a warp with the first estimate, under the target's mask.
    regions = find_motions(Answers(STILL), Answers(first), pairs, replace(config, refinements=0)).regions
    view = inverse_warp(pairs.I_s, pairs.D_s, pairs.D_t, pairs.K, regions, pairs.regions)
    own = motions.instances.mask[:, None]
    earlier, later = objects.shown[1]
    backward = pairs.backward[:, None, None, None]
    assert_close(torch.where(backward, earlier, later), view.image * own)
    assert_close(torch.where(backward, later, earlier), pairs.I_t * own)


def test_objects_only_shift_where_turning_is_switched_off() -> None:
    config = MotionConfig(object_rotation=False)
    motions = find_motions(Answers(STILL), Answers(torch.full((1, 6), 0.1)), made_pairs(), config)
    assert_close(motions.objects[:, :3, :3], torch.eye(3).expand(8, 3, 3))
    assert float(motions.objects[:, :3, 3].norm(dim=1).min()) > 0.1


@pytest.mark.parametrize("instances", [(0, 0), None])
@pytest.mark.parametrize("object_warp", ["none", "inverse", "forward"])
def test_the_object_network_is_asked_only_where_there_is_something_to_ask(
    instances: tuple[int, ...] | None, object_warp: Literal["none", "inverse", "forward"]
) -> None:
    pairs = made_pairs(instances=instances)
    objects = Answers(STILL)
    motions = find_motions(
        Answers(STILL), objects, pairs, MotionConfig(object_warp=object_warp, refinements=0)
    )
    asked = instances is None and object_warp != "none"
    assert len(objects.shown) == asked
    assert (motions.intermediate is not None) == asked
    assert motions.regions.shape == (4, pairs.region_count, 4, 4)
    assert motions.objects.shape == (len(motions.instances), 4, 4)


def test_one_call_serves_all_instances_of_a_batch() -> None:
    networks = stub_networks()
    find_motions(networks.ego, networks.objects, made_pairs(instances=(2, 1)), MotionConfig(refinements=2))
    assert networks.ego.calls == 1
    assert networks.objects.calls == 3  # one look and two more


# --- gradients


def loss_of_objects(networks: Networks, depth: Tensor, config: MotionConfig) -> Tensor:
    pairs = direct(made_batch(B=2, F=2), depth)
    return find_motions(networks.ego, networks.objects, pairs, config).objects.square().sum()


@pytest.mark.parametrize("object_warp", ["inverse", "forward"])
@pytest.mark.parametrize("refinements", [0, 1])
def test_gradients_reach_depth_and_camera_through_the_intermediate_frame_unless_detached(
    object_warp: Literal["inverse", "forward"], refinements: int
) -> None:
    networks = stub_networks()
    depth = (8 + texture((2, 2, 1, 32, 48), 9)).requires_grad_()
    config = MotionConfig(object_warp=object_warp, refinements=refinements)
    loss_of_objects(networks, depth, config).backward()
    for each in (depth, networks.ego.layer.weight, networks.objects.layer.weight):
        assert each.grad is not None
        assert torch.isfinite(each.grad).all()
        assert each.grad.any()

    networks.zero_grad()
    detached = loss_of_objects(networks, depth, replace(config, detach_intermediate=True))
    found = torch.autograd.grad(
        detached, [depth, networks.ego.layer.weight, networks.objects.layer.weight], allow_unused=True
    )
    # The size of what is moved, centre's depth times answer, is detached with the centre.
    assert found[0] is None or not found[0].any()
    assert found[1] is None or not found[1].any()
    assert found[2] is not None
    assert found[2].any()


def test_the_centre_teaches_depth_only_where_it_may() -> None:
    depth = torch.full((2, 2, 1, 32, 48), 8.0, requires_grad=True)
    for detach in (True, False):
        config = MotionConfig(detach_centre=detach, detach_intermediate=True)
        loss = loss_of_objects(stub_networks(), depth, config)
        (found,) = torch.autograd.grad(loss, depth, allow_unused=True)
        assert (found is not None and bool(found.any())) == (not detach)


# --- truth

CLIPS = [("test_0000", 1), ("test_0001", 1), ("test_0002", 3)]


@pytest.mark.parametrize(("name", "first"), CLIPS)
def test_true_answers_become_the_true_motion_of_every_region(streets: Path, name: str, first: int) -> None:
    """The whole chain of conventions: time order, direction, centre, units, composing."""
    pairs, camera, regions, moving = true_pair(streets / name, first, least_px=20)
    ego, objects, _ = true_answers(pairs, camera, regions)
    config = MotionConfig(refinements=0, object_input="frame")
    motions = find_motions(Answers(ego), Answers(objects), pairs, config)
    assert moving
    assert_close(motions.camera, camera, rtol=1e-4, atol=1e-4)
    found = motions.regions[motions.instances.pair, motions.instances.slot]
    assert_close(found, regions[motions.instances.pair, motions.instances.slot], rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize(("name", "first"), CLIPS)
@pytest.mark.parametrize("object_warp", ["inverse", "forward"])
def test_the_intermediate_frame_undoes_the_camera_so_that_only_objects_move(
    streets: Path, name: str, first: int, object_warp: Literal["inverse", "forward"]
) -> None:
    pairs, camera, _, moving = true_pair(streets / name, first, least_px=20)
    shown = intermediate_frame(pairs, camera, MotionConfig(object_warp=object_warp))
    assert shown.labels is not None
    static = shown.filled & (pairs.labels_t == 0)[:, None]
    if object_warp == "inverse":  # which sees what was hidden twice
        static = static & (shown.labels == 0)[:, None]
    warped, unwarped = (
        losses.photometric(pairs.I_t, each)[static].mean() for each in (shown.image, pairs.I_s)
    )
    assert float(warped) < 0.55 * float(unwarped)
    assert float(static.float().mean()) > 0.4

    def displacement(slot: int, labels: Tensor) -> Tensor:
        """Mean pixel of a slot in both directed pairs, against the target's."""
        grid = pixel_grid(*labels.shape[1:], like=pairs.I_t)
        ours, theirs = (
            torch.stack([grid[m].mean(0) for m in each == slot]) for each in (pairs.labels_t, labels)
        )
        return (theirs - ours).norm(dim=1).mean()

    areas = {k: int((pairs.labels_t == k).flatten(1).sum(1).min()) for k in range(1, pairs.region_count)}
    parked = [k for k, area in areas.items() if area > 150 and k not in moving and (shown.labels == k).any()]
    whole = list_instances(pairs.labels_t, pairs.classes)
    inner = {
        int(slot)
        for slot, box in zip(whole.slot, whole.box, strict=True)
        if float(box[0]) > 4 and float(box[2]) < 203
    }
    shifts = [(displacement(k, shown.labels), displacement(k, pairs.labels_s)) for k in parked if k in inner]
    assert shifts or name == "test_0002"  # where every large car leaves the image
    for after, before in shifts:
        assert float(after) < max(0.6, 0.5 * float(before))


def test_the_gate_stops_what_the_camera_explains_and_nothing_else(streets: Path) -> None:
    pairs, camera, regions, moving = true_pair(streets / "test_0001", 1, least_px=300)
    ego, objects, _ = true_answers(pairs, camera, regions)
    instances = list_instances(pairs.labels_t, pairs.classes)
    parked = torch.tensor([int(slot) not in moving for slot in instances.slot])
    assert parked.any()
    assert not parked.all()
    wrong = objects.clone()
    wrong[parked, 3] += 0.05  # half a metre sideways at ten
    config = MotionConfig(refinements=0, object_input="frame", static_gate=True)
    motions = find_motions(Answers(ego), Answers(wrong), pairs, config)
    still = ((motions.objects - torch.eye(4)).abs() < 1e-6).flatten(1).all(1)
    assert torch.equal(still, parked)
    free = find_motions(Answers(ego), Answers(wrong), pairs, replace(config, static_gate=False))
    assert_close(motions.objects[~parked], free.objects[~parked])


def test_what_the_gate_stops_can_still_learn_to_move() -> None:
    """A network that begins at "does not move" is stopped everywhere, as it explains no more than the camera."""
    answer = torch.zeros(1, 6, requires_grad=True)
    config = MotionConfig(static_gate=True, object_input="frame")
    motions = find_motions(Answers(STILL), Answers(answer), made_pairs(), config)
    assert_close(motions.objects, torch.eye(4).expand(8, 4, 4))
    motions.regions[0, 1, 0, 3].backward()
    assert answer.grad is not None
    assert answer.grad.any()


def test_a_margin_stops_what_the_camera_explains_nearly_as_well(streets: Path) -> None:
    pairs, camera, regions, moving = true_pair(streets / "test_0001", 1, least_px=300)
    ego, objects, _ = true_answers(pairs, camera, regions)
    instances = list_instances(pairs.labels_t, pairs.classes)
    parked = torch.tensor([int(slot) not in moving for slot in instances.slot])
    better = objects.clone()
    better[parked, 3] += 1e-4  # hardly moved, and maybe by chance a better fit
    config = MotionConfig(refinements=0, object_input="frame", static_gate=True, gate_margin=0.15)
    motions = find_motions(Answers(ego), Answers(better), pairs, config)
    still = ((motions.objects - torch.eye(4)).abs() < 1e-6).flatten(1).all(1)
    assert torch.equal(still, parked)
    assert torch.equal(motions.still, parked)
    everything = find_motions(Answers(ego), Answers(better), pairs, replace(config, gate_margin=100.0))
    assert_close(everything.objects, torch.eye(4).expand_as(everything.objects))


def test_a_camera_that_is_not_aligned_is_not_aligned_again() -> None:
    """Its network would have no gradient then."""
    pairs, networks = made_pairs(), stub_networks()
    alignment = AlignmentConfig(object_steps=1, camera_again=True)
    config = MotionConfig(refinements=0, static_gate=True, alignment=alignment)
    motions = find_motions(networks.ego, networks.objects, pairs, config)
    assert_close(motions.camera, motions.proposed_camera)
    assert motions.camera.requires_grad


@pytest.mark.parametrize("alignment", [AlignmentConfig(), AlignmentConfig(object_steps=1)])
def test_objects_that_an_edge_cuts_have_a_margin_of_their_own(
    streets: Path, alignment: AlignmentConfig
) -> None:
    pairs, camera, regions, _ = true_pair(streets / "test_0001", 1, least_px=40)
    ego, objects, _ = true_answers(pairs, camera, regions)
    inside = list_instances(pairs.labels_t, pairs.classes).inside()
    assert inside.any()
    assert not inside.all()
    config = MotionConfig(
        refinements=0, object_input="frame", static_gate=True, gate_margin_cut=1e6, alignment=alignment
    )
    motions = find_motions(Answers(ego), Answers(objects), pairs, config)
    assert motions.still[~inside].all()
    plain = find_motions(Answers(ego), Answers(objects), pairs, replace(config, gate_margin_cut=None))
    assert torch.equal(motions.still[inside], plain.still[inside])
    follow = motions.follow_camera()
    assert torch.equal(follow[motions.instances.pair, motions.instances.slot], motions.still)
    assert int((~follow).sum()) == int((~motions.still).sum())


def test_grounded_motion_does_not_depend_on_the_objects_own_depth(streets: Path) -> None:
    """At three times its depth a car that is brought to its ground moves as before."""
    pairs, camera, regions, _ = true_pair(streets / "test_0001", 1, least_px=300)
    ego, objects, _ = true_answers(pairs, camera, regions)
    config = MotionConfig(refinements=0, object_input="frame", grounded=0.0)
    right = find_motions(Answers(ego), Answers(objects), pairs, config)
    deep = torch.where(pairs.labels_t[:, None] > 0, pairs.D_t * 3, pairs.D_t)
    wrong = find_motions(Answers(ego), Answers(objects), replace(pairs, D_t=deep), config)
    _, known = ground_below(pairs.D_t, pairs.labels_t, right.instances)
    known &= right.instances.whole()
    assert known.any()
    assert_close(wrong.centre[known], right.centre[known], rtol=1e-4, atol=1e-4)
    assert_close(wrong.objects[known], right.objects[known], rtol=1e-4, atol=1e-4)
    free = replace(config, grounded=None)
    assert_close(
        find_motions(Answers(ego), Answers(objects), replace(pairs, D_t=deep), free).centre[:, 2],
        3 * find_motions(Answers(ego), Answers(objects), pairs, free).centre[:, 2],
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"grounded": -0.1}, "grounded must be 0 or more"),
        ({"gate_margin": -0.1}, "gate_margin must be 0 or more"),
        ({"gate_margin_cut": -0.1}, "gate_margin_cut must be 0 or more"),
        ({"alpha": 0}, "alpha must be 1 or more, got 0"),
        ({"crop_px": 16}, "crop_px must be a multiple of 16 from 32 on, got 16"),
        ({"crop_px": 40}, "crop_px must be a multiple of 16 from 32 on, got 40"),
        ({"crop_margin": 0.9}, "crop_margin must be 1 or more"),
        ({"crop_least_px": 1.0}, "crop_least_px 2 or more"),
        ({"refinements": 9}, "refinements must lie in 0..8, got 9"),
        ({"refinements": -1}, "refinements must lie in 0..8, got -1"),
    ],
)
def test_impossible_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MotionConfig(**settings)


def test_made_pairs_have_the_pinhole_that_the_tests_count_on() -> None:
    assert_close(made_pairs().K[0], pinhole(40.0, 32, 48, torch.float32))
