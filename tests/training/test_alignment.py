"""Direct alignment: known motions are found again, and what images do not say stays as proposed."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from pipeline.errors import ConfigError
from tests.training.scenes import CAR, pinhole, stub_networks, texture, true_pair
from training.alignment import (
    AlignmentConfig,
    Points,
    _frame_of,
    _normal_equations,
    _observe,
    align,
    align_camera,
    align_instances,
    points_of,
    source_of,
)
from training.geometry import se3
from training.geometry.camera import unproject
from training.geometry.sampling import sample, sample_points
from training.geometry.warp import inverse_warp
from training.instances import list_instances
from training.motion import MotionConfig, find_motions
from training.pairs import Pairs

H, W, F = 48, 96, 80.0
FREE = AlignmentConfig(
    camera_steps=8,
    camera_shrink=(2, 1),
    object_steps=8,
    trust_turn=10,
    trust_shift=10,
    camera_trust_turn=10,
    camera_trust_ahead=10,
    camera_trust_sideways=10,
    samples=1e6,
)
ANYWHERE = (10.0,) * 6


def scene(motion: Tensor, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Target, source, target depth and K of a bumpy textured wall under s_T_t.

    The source is the texture; the target is what the true motion makes of it, so that the true
    motion explains the images to rounding.
    """
    K = pinhole(F, H, W, torch.float32)[None]
    depth = 6 + 3 * texture((1, 1, H, W), seed + 1, cells=16)
    source = texture((1, 3, H, W), seed, cells=6)
    view = inverse_warp(source, depth, depth, K, motion[None, None], None)
    return view.image, source, depth, K


def inner() -> Tensor:
    """(1, 2, H, W): all of the source; of the target what shows something of it."""
    background = torch.zeros(1, 2, H, W, dtype=torch.bool)
    background[:, 1] = True
    background[:, 0, 6:-6, 8:-8] = True
    return background


def motion_of(shift: tuple[float, float, float], turn_deg: tuple[float, float, float]) -> Tensor:
    return se3.from_euler(torch.tensor(turn_deg) * math.pi / 180, torch.tensor(shift))


def apart(a: Tensor, b: Tensor) -> tuple[float, float]:
    """Rotation, degrees, and translation between two motions."""
    error = se3.inverse(a) @ b
    return math.degrees(float(se3.rotation_angle(error))), float(error[..., :3, 3].norm())


@pytest.mark.parametrize(
    ("shift", "turn"),
    [((0.1, 0, 0), (0, 0, 0)), ((0, 0.05, -0.4), (0.3, -0.8, 0.5)), ((0, 0, 0), (0.5, 1.0, -1.0))],
)
def test_the_motion_of_the_camera_is_found_from_standing_still(
    shift: tuple[float, float, float], turn: tuple[float, float, float]
) -> None:
    truth = motion_of(shift, turn)
    target, source, depth, K = scene(truth)
    found = align_camera(target, source, depth, K, inner(), torch.eye(4)[None], FREE)[0]
    degrees, distance = apart(found, truth)
    assert degrees < 0.02
    assert distance < 0.01


def test_what_is_no_background_does_not_count() -> None:
    truth = motion_of((0.1, 0, 0.2), (0, 0.5, 0))
    target, source, depth, K = scene(truth)
    background = inner()
    background[:, 0, 10:38, 30:60] = False
    target[:, :, 12:36, 32:58] = texture((1, 3, 24, 26), 7)
    found = align_camera(target, source, depth, K, background, torch.eye(4)[None], FREE)[0]
    assert max(apart(found, truth)) < 0.05
    fooled = align_camera(target, source, depth, K, inner(), torch.eye(4)[None], FREE)[0]
    assert max(apart(fooled, truth)) > 2 * max(apart(found, truth))


def test_a_turning_object_is_found_beside_a_camera_that_stands() -> None:
    """Its motion runs about its own middle; the background and the other object keep theirs."""
    depth = 6 + 0.8 * texture((1, 1, H, W), 1, cells=10)
    K = pinhole(F, H, W, torch.float32)[None]
    labels = torch.zeros(1, H, W, dtype=torch.long)
    labels[:, 12:40, 14:46] = 1
    labels[:, 12:40, 56:84] = 2
    centre = unproject(depth, K)[0, :, labels[0] == 1].mean(1)
    turned = se3.about(motion_of((0, 0, 0), (0, 4.0, 0)), centre)
    turned[:3, 3] += torch.tensor([0.05, 0.0, 0.1])
    motions = torch.stack([torch.eye(4), turned, torch.eye(4)])[None]
    source = texture((1, 3, H, W), 3, cells=6)
    target = inverse_warp(source, depth, depth, K, motions, labels).image
    # The source shows the object where it went.
    seen = torch.ones_like(labels) * 0
    seen[:, 8:44, 8:52] = 1
    seen[:, 8:44, 53:90] = 2
    pair, slot = torch.tensor([0, 0]), torch.tensor([1, 2])
    start = torch.eye(4).repeat(2, 1, 1)
    config = replace(FREE, trust_turn=0.3, trust_shift=0.3)
    still = torch.eye(4).expand(2, 4, 4)
    moved = align_instances(target, source, depth, K, labels, seen, pair, slot, start, still, None, config)
    found, stands = moved
    assert not stands.any()
    degrees, distance = apart(se3.about(found[0], -centre), se3.about(turned, -centre))
    assert degrees < 0.25
    assert distance < 0.02
    assert max(apart(found[1], torch.eye(4))) < 0.02


@pytest.mark.parametrize("wrong", [1 / 1.15, 1.0, 1 / 0.87])
def test_what_stands_follows_the_camera_though_its_depth_is_wrong_and_what_moves_does_not(
    wrong: float,
) -> None:
    camera = motion_of((0.25, 0, -0.1), (0, 0.4, 0))
    own = motion_of((0, 0.12, 0), (0, 0, 1.5))
    depth = 6 + 0.5 * texture((1, 1, H, W), 1, cells=10)
    K = pinhole(F, H, W, torch.float32)[None]
    labels = torch.zeros(1, H, W, dtype=torch.long)
    labels[:, 12:40, 14:44] = 1
    labels[:, 12:40, 54:84] = 2
    motions = torch.stack([camera, camera, camera @ own])[None]
    source = texture((1, 3, H, W), 3, cells=6)
    target = inverse_warp(source, depth, depth, K, motions, labels).image
    target = target + 0.01 * torch.randn(target.shape, generator=torch.Generator().manual_seed(0))
    seen = torch.zeros_like(labels)
    seen[:, :, :50] = 1
    seen[:, :, 50:] = 2
    believed = torch.where(labels[:, None] > 0, depth * wrong, depth)
    pair, slot = torch.tensor([0, 0]), torch.tensor([1, 2])
    both = camera.expand(2, 4, 4)
    args = (target, source, believed, K, labels, seen, pair, slot, both, both)
    margin = torch.full((2,), 0.3)
    found, stands = align_instances(*args, margin, FREE)
    assert stands.tolist() == [True, False]
    assert_close(found[0], camera)
    assert not torch.allclose(found[1], camera, atol=1e-3)
    free, _ = align_instances(*args, None, FREE)
    assert_close(found[1], free[1])
    everything, stands = align_instances(*args, torch.tensor([0.3, 1e6]), FREE)
    assert stands.all()  # each has a margin of its own
    assert_close(everything[1], camera)
    if wrong != 1.0:  # another motion takes the place of what depth does not explain
        assert not torch.allclose(free[0], camera, atol=1e-3)


def test_without_texture_the_proposal_stays() -> None:
    proposal = motion_of((0.1, -0.05, 0.3), (0.2, 0.4, -0.1))[None]
    flat = torch.full((1, 3, H, W), 0.5)
    everything = torch.ones(1, 2, H, W, dtype=torch.bool)
    K = pinhole(F, H, W, torch.float32)[None]
    config = AlignmentConfig(camera_steps=4)
    found = align_camera(flat, flat, torch.full((1, 1, H, W), 8.0), K, everything, proposal, config)
    assert_close(found, proposal)


def test_little_trust_holds_on_to_the_proposal() -> None:
    truth = motion_of((0.1, 0, 0), (0, 0, 0))
    target, source, depth, K = scene(truth)
    everything = inner()

    def moved(trust: float) -> float:
        config = replace(FREE, camera_trust_turn=trust, camera_trust_ahead=trust, camera_trust_sideways=trust)
        return float(align_camera(target, source, depth, K, everything, torch.eye(4)[None], config)[0, 0, 3])

    assert abs(moved(1e-6)) < 1e-4
    assert moved(10.0) == pytest.approx(0.1, abs=0.01)
    assert moved(1e-6) < moved(3e-4) < moved(10.0)


def test_groups_do_not_see_each_other_and_one_without_points_stays() -> None:
    truth = motion_of((0.1, 0, 0.1), (0, 0.3, 0))
    target, source, depth, K = scene(truth)
    labels = torch.zeros(1, H, W, dtype=torch.long)
    every = inner()[:, 0]
    view = source_of(source, labels, K)

    def run(group: int, count: int) -> Tensor:
        points = points_of(target, depth, K, labels, every, torch.tensor([[group]]))
        return align(points, view, torch.eye(4).repeat(count, 1, 1), 5, FREE, ANYWHERE)

    found = run(1, 3)
    assert_close(found[0], torch.eye(4))
    assert_close(found[2], torch.eye(4))
    assert_close(found[1], run(0, 1)[0])


def test_no_step_makes_a_group_worse() -> None:
    """Also from a start far beyond what a step can see."""
    truth = motion_of((0.1, 0, 0), (0, 0, 0))
    target, source, depth, K = scene(truth)
    labels = torch.zeros(1, H, W, dtype=torch.long)
    every = inner()[:, 0]
    points = points_of(target, depth, K, labels, every, torch.tensor([[0]]))
    view = source_of(source, labels, K)
    for seed in range(6):
        generator = torch.Generator().manual_seed(seed)
        start = se3.exp(torch.randn(1, 6, generator=generator) * 0.2)
        costs = [
            _observe(points, view, align(points, view, start, n, FREE, ANYWHERE), FREE.noise).cost.sum()
            for n in range(5)
        ]
        assert all(b <= a + 1e-6 for a, b in zip(costs, costs[1:], strict=False)), (seed, costs)


def test_normal_equations_are_those_of_the_differentiated_residuals() -> None:
    """J^T W J and J^T W e by autograd, one residual after the other."""
    target, source, depth, K = (each.double() for each in scene(motion_of((0.1, 0, 0.1), (0, 0.4, 0))))
    labels = torch.zeros(1, H, W, dtype=torch.long)
    mask = torch.zeros(1, H, W, dtype=torch.bool)
    mask[:, 10:40:7, 10:90:9] = True
    points = points_of(target, depth, K, labels, mask, torch.tensor([[0]]))
    # Slopes are those of a linear image, so that sampling them is exact.
    u, v = torch.arange(W).double(), torch.arange(H).double()[:, None]
    source = torch.stack([0.01 * u + 0 * v, 0.02 * v + 0 * u, 0.004 * u - 0.01 * v])[None]
    view = source_of(source, labels, K)
    start = motion_of((0.02, 0.01, 0.05), (0.2, 0.1, 0.3)).double()[None]
    centre, scale = _frame_of(points, start, True)
    seen = _observe(points, view, start, FREE.noise)
    A, b = _normal_equations(seen, points, view, centre, scale, 1)

    def residuals(xi: Tensor) -> Tensor:
        turn = se3.about(se3.exp(torch.cat([torch.zeros(3).double(), xi[3:]])), centre[0])
        shift = torch.eye(4).double()
        shift = torch.cat(
            [turn[:, :3], turn[:, 3:] + torch.cat([xi[:3] * scale[0], xi.new_zeros(1)])[:, None]], 1
        )
        return _observe(points, view, (shift @ start[0])[None], FREE.noise).error

    J = torch.autograd.functional.jacobian(residuals, torch.zeros(6).double())  # (P, 3, 6)
    weight = seen.weight[:, None, None]
    assert_close(A[0], (J * weight).flatten(0, 1).mT @ J.flatten(0, 1), rtol=1e-6, atol=1e-9)
    error = (J * weight * seen.error[..., None]).sum((0, 1))
    assert_close(b[0], error, rtol=1e-6, atol=1e-9)


def test_loose_points_are_read_as_maps_are() -> None:
    images = texture((3, 4, 9, 13), 0).double()
    index = torch.tensor([2, 0, 1, 2, 0])
    uv = torch.tensor([[0, 0], [12, 8], [3.25, 7.5], [-4, 20], [11.99, 0.01]], dtype=torch.float64)
    found = sample_points(images.permute(0, 2, 3, 1), index, uv)
    for row, (image, position) in enumerate(zip(index, uv, strict=True)):
        there = sample(images[image][None], position.view(1, 1, 1, 2), padding="border")
        assert_close(found[row], there[0, :, 0, 0])
    inner = torch.tensor([[3.3, 4.6], [7.2, 1.1]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda uv: sample_points(images.permute(0, 2, 3, 1), index[:2], uv), (inner,)
    )


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (5, 1)])
def test_loose_points_of_narrow_images(size: tuple[int, int]) -> None:
    image = texture((1, 2, *size), 0)
    found = sample_points(
        image.permute(0, 2, 3, 1), torch.zeros(1, dtype=torch.long), torch.tensor([[9.0, 9.0]])
    )
    assert_close(found[0], image[0, :, -1, -1])


def test_numbers_that_are_none_move_nothing() -> None:
    target, source, depth, K = scene(torch.eye(4))
    depth[:] = math.nan
    everything = torch.ones(1, 2, H, W, dtype=torch.bool)
    found = align_camera(target, source, depth, K, everything, torch.eye(4)[None], FREE)
    assert_close(found[0], torch.eye(4))


def test_no_instances_and_no_points_are_ordinary() -> None:
    target, source, depth, K = scene(torch.eye(4))
    labels = torch.zeros(1, H, W, dtype=torch.long)
    none = torch.zeros(0, dtype=torch.long)
    nobody = torch.zeros(0, 4, 4)
    args = (target, source, depth, K, labels, labels, none, none, nobody, nobody, torch.zeros(0))
    found, stands = align_instances(*args, FREE)
    assert found.shape == (0, 4, 4)
    assert stands.shape == (0,)
    nothing = torch.zeros(1, 2, H, W, dtype=torch.bool)
    start = motion_of((0.1, 0, 0), (0, 0, 0))[None]
    assert_close(align_camera(target, source, depth, K, nothing, start, FREE), start)


@pytest.mark.parametrize("still", [True, False])
def test_instances_that_stand_still_help_to_find_the_camera(still: bool) -> None:
    """The background is grey and says nothing; the one instance fills the middle of the image."""
    truth = motion_of((0.1, 0.0, -0.15), (0, 0.4, 0))
    target, source, depth, K = scene(truth)
    labels = torch.zeros(1, H, W, dtype=torch.long)
    labels[:, 6:-6, 10:-10] = 1
    seen = torch.ones_like(labels)  # it fills the source: the camera comes nearer
    I_t, I_s = target.masked_fill((labels == 0)[:, None], 0.5), source
    pairs = Pairs(
        I_t=torch.cat([I_t, I_s]),
        I_s=torch.cat([I_s, I_t]),
        D_t=torch.cat([depth, depth]),
        D_s=torch.cat([depth, depth]),
        K=torch.cat([K, K]),
        labels_t=torch.cat([labels, seen]),
        labels_s=torch.cat([seen, labels]),
        classes=torch.full((2, 1), CAR),
        backward=torch.tensor([False, True]),
    )
    nets = stub_networks()
    for parameter in [*nets.ego.parameters(), *nets.objects.parameters()]:
        torch.nn.init.zeros_(parameter)
    config = MotionConfig(
        refinements=0,
        static_gate=True,
        gate_margin=1e30 if still else 0.0,
        alignment=replace(FREE, static_depths=(1.0,), camera_again=True),
    )
    motions = find_motions(nets.ego, nets.objects, pairs, config)
    assert motions.still.tolist() == [still] * 2
    once = replace(config, alignment=replace(config.alignment, camera_again=False))
    first = apart(find_motions(nets.ego, nets.objects, pairs, once).camera[0], truth)
    found = apart(motions.camera[0], truth)
    if still:
        assert max(found) < 0.4 * max(first)
        assert_close(motions.objects, torch.eye(4).expand(2, 4, 4), atol=1e-5, rtol=0)
        assert_close(motions.camera[0] @ motions.camera[1], torch.eye(4), atol=1e-5, rtol=0)
    else:  # what moves by itself has no say, and keeps its whole motion
        assert max(found) > 0.5 * max(first)
        assert max(apart(motions.regions[0, 1], truth)) < 0.5 * max(apart(torch.eye(4), truth))


def test_on_a_true_street_alignment_comes_nearer_to_the_truth(streets: Path) -> None:
    """Networks say "no motion"; true depth and masks; camera and moving objects end nearer."""
    nets = stub_networks()
    for parameter in [*nets.ego.parameters(), *nets.objects.parameters()]:
        torch.nn.init.zeros_(parameter)
    ratios: list[float] = []
    for name, first in (("test_0000", 0), ("test_0001", 1), ("test_0002", 0)):
        pairs, camera, regions, moving = true_pair(streets / name, first, least_px=150)
        aligned = AlignmentConfig(camera_steps=8, camera_shrink=(8, 4, 2, 1), object_steps=5)
        motions = find_motions(nets.ego, nets.objects, pairs, MotionConfig(refinements=0, alignment=aligned))
        assert_close(motions.proposed_camera, torch.eye(4).expand(2, 4, 4))
        before = apart(camera[0], torch.eye(4))
        after = apart(camera[0], motions.camera[0])
        assert after[1] < 0.35 * before[1]
        instances = list_instances(pairs.labels_t, pairs.classes)
        for row, (pair, slot) in enumerate(
            zip(instances.pair.tolist(), instances.slot.tolist(), strict=True)
        ):
            if slot in moving:
                own = se3.inverse(camera[pair]) @ regions[pair, slot]
                centre = motions.centre[row]

                def displaced(T: Tensor, centre: Tensor = centre) -> Tensor:
                    return T[:3, :3] @ centre + T[:3, 3] - centre

                true = displaced(own)
                ratios.append(float((displaced(motions.objects[row]) - true).norm() / true.norm()))
    assert len(ratios) >= 4
    assert sorted(ratios)[len(ratios) // 2] < 0.7, ratios


@pytest.mark.parametrize(
    ("windows", "scale", "expected"),
    [((3, 1), 2, (7, 3, 1)), ((1,), 1.5, (3, 1)), ((5, 3), 4, (21, 13, 1)), ((3, 1), 1, (3, 1))],
)
def test_windows_grow_with_the_images(
    windows: tuple[int, ...], scale: float, expected: tuple[int, ...]
) -> None:
    assert AlignmentConfig(object_windows=windows).on_larger_images(scale).object_windows == expected


@pytest.mark.parametrize(
    "change",
    [
        {"camera_steps": -1},
        {"camera_shrink": ()},
        {"camera_shrink": (0,)},
        {"object_windows": (2,)},
        {"object_windows": ()},
        {"static_depths": ()},
        {"static_depths": (1.0, 0.0)},
        {"noise": 0.0},
        {"trust_turn": math.inf},
        {"samples": 0.0},
        {"camera_trust_sideways": 0.0},
        {"points_per_sample": -1.0},
    ],
)
def test_settings_that_mean_nothing_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        AlignmentConfig(**change)  # type: ignore[arg-type]


def test_points_carry_what_their_pixel_shows() -> None:
    target, _, depth, K = scene(torch.eye(4))
    labels = torch.zeros(1, H, W, dtype=torch.long)
    labels[0, 5, 7] = 2
    points = points_of(target, depth, K, labels, labels > 0, torch.tensor([[9, 9, 4]]))
    assert isinstance(points, Points)
    assert points.group.tolist() == [4]
    assert points.label.tolist() == [2]
    assert_close(points.colour[0], target[0, :, 5, 7])
    assert_close(points.X[0], unproject(depth, K)[0, :, 5, 7])
