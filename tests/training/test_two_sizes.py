"""Motions found on small images and aligned once more on large ones."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from tests.training.scenes import stub_networks, true_pair
from training.alignment import AlignmentConfig
from training.geometry import se3
from training.geometry.camera import resize_intrinsics
from training.geometry.sampling import resize
from training.instances import list_instances
from training.motion import MotionConfig, Motions, align_again, find_motions
from training.networks.build import Networks
from training.pairs import Pairs

ALIGNED = MotionConfig(
    refinements=0,
    static_gate=True,
    gate_margin=0.3,
    alignment=AlignmentConfig(camera_steps=5, camera_again=True, object_steps=5),
)


@pytest.fixture(scope="module")
def still_networks() -> Networks:
    """Networks that say "no motion"."""
    nets = stub_networks()
    for parameter in [*nets.ego.parameters(), *nets.objects.parameters()]:
        torch.nn.init.zeros_(parameter)
    return nets


def halved(pairs: Pairs) -> Pairs:
    """The same pairs as half as large images show them."""
    H, W = pairs.I_t.shape[-2:]
    size = (H // 2, W // 2)

    def labels(map_: Tensor) -> Tensor:
        return F.interpolate(map_[:, None].double(), size, mode="nearest-exact")[:, 0].long()

    return replace(
        pairs,
        I_t=resize(pairs.I_t, size, "area"),
        I_s=resize(pairs.I_s, size, "area"),
        D_t=1 / resize(1 / pairs.D_t, size, "area"),
        D_s=1 / resize(1 / pairs.D_s, size, "area"),
        K=resize_intrinsics(pairs.K, 0.5, 0.5),
        labels_t=labels(pairs.labels_t),
        labels_s=labels(pairs.labels_s),
    )


def turn_error_deg(motions: Motions, camera: Tensor) -> float:
    return float(se3.rotation_angle(se3.inverse(camera[:1]) @ motions.camera[:1]).rad2deg())


def displacement_errors(motions: Motions, pairs: Pairs, regions: Tensor, moving: list[int]) -> dict:
    """Relative error of each moving object's displacement, by pair and slot."""
    errors = {}
    instances = motions.instances
    for row, key in enumerate(zip(instances.pair.tolist(), instances.slot.tolist(), strict=True)):
        if key[1] in moving:
            centre = motions.centre[row]
            true, found = (
                each[:3, :3] @ centre + each[:3, 3] - centre
                for each in (se3.inverse(regions[key[0], 0]) @ regions[key], motions.objects[row])
            )
            errors[key] = float((found - true).norm() / true.norm())
    return errors


def test_motions_come_nearer_to_the_truth_on_larger_images(streets: Path, still_networks: Networks) -> None:
    """True depth and masks: on the whole cameras turn more exactly, and objects move more exactly."""
    before, after, turns = [], [], []
    for name, first in itertools.product(("test_0000", "test_0001", "test_0002"), range(0, 5, 2)):
        pairs, camera, regions, moving = true_pair(streets / name, first, least_px=150)
        small = halved(pairs)
        found = find_motions(still_networks.ego, still_networks.objects, small, ALIGNED)
        again = align_again(found, pairs, 2, ALIGNED)
        turns.append((turn_error_deg(found, camera), turn_error_deg(again, camera)))
        errors = displacement_errors(found, small, regions, moving)
        finer = displacement_errors(again, pairs, regions, moving)
        assert set(errors) <= set(finer)
        before += [errors[key] for key in errors]
        after += [finer[key] for key in errors]
    assert sum(second for _, second in turns) < 0.7 * sum(first for first, _ in turns), turns
    assert sum(after) < 0.9 * sum(before), (before, after)
    assert len(after) >= 4


def test_an_instance_that_small_images_do_not_show_is_found_on_large_ones(
    streets: Path, still_networks: Networks
) -> None:
    pairs, _, regions, moving = true_pair(streets / "test_0000", 0, least_px=150)
    small = halved(pairs)
    hidden = moving[0]
    small = replace(
        small,
        labels_t=small.labels_t.masked_fill(small.labels_t == hidden, -1),
        labels_s=small.labels_s.masked_fill(small.labels_s == hidden, -1),
    )
    found = find_motions(still_networks.ego, still_networks.objects, small, ALIGNED)
    assert hidden not in found.instances.slot.tolist()
    again = align_again(found, pairs, 2, ALIGNED)
    expected = list_instances(pairs.labels_t, pairs.classes)
    assert again.instances.slot.tolist() == expected.slot.tolist()
    row = again.instances.slot.tolist().index(hidden)
    assert not again.still[row]
    pair = int(again.instances.pair[row])
    assert_close(again.camera[pair] @ again.objects[row], again.regions[pair, hidden])
    assert displacement_errors(again, pairs, regions, moving)[pair, hidden] < 0.7


def test_the_camera_alone_is_aligned_where_objects_were_not_looked_at(
    streets: Path, still_networks: Networks
) -> None:
    pairs, camera, _, _ = true_pair(streets / "test_0000", 0, least_px=150)
    config = replace(ALIGNED, object_warp="none")
    found = find_motions(still_networks.ego, still_networks.objects, halved(pairs), config)
    again = align_again(found, pairs, 2, config)
    assert turn_error_deg(again, camera) < turn_error_deg(found, camera)
    assert_close(again.objects, torch.eye(4).expand_as(again.objects))
    assert_close(again.regions, again.camera[:, None].expand_as(again.regions))
