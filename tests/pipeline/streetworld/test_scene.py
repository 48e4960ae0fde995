"""What a seed draws: all scenarios, nobody touching anybody, the promised motions."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.classes import CLASS_INDEX
from pipeline.streetworld.scene import draw_scene
from pipeline.streetworld.world import SCENARIOS

FRAMES = 12


@pytest.fixture(scope="module")
def scenes():
    return {seed: draw_scene(seed, FRAMES) for seed in [*range(20), 100_003, 200_007]}


def test_a_seed_draws_one_scene(scenes):
    again = draw_scene(4, FRAMES)
    np.testing.assert_array_equal(again.world_T_camera, scenes[4].world_T_camera)
    assert len(again.actors) == len(scenes[4].actors)
    for one, two in zip(again.actors, scenes[4].actors, strict=True):
        np.testing.assert_array_equal(one.poses, two.poses)
        assert one.solids[0].paints == two.solids[0].paints
    assert not np.array_equal(scenes[14].world_T_camera, scenes[4].world_T_camera)


def test_ten_seeds_hold_every_scenario(scenes):
    assert {scenes[s].scenario for s in range(10)} == set(SCENARIOS)


def test_objects_never_touch_in_any_frame(scenes):
    """Points all over one object's footprint, edges included, never lie in another's."""
    edge = np.linspace(-1, 1, 9)
    grid = np.stack(np.meshgrid(edge, edge), -1).reshape(-1, 2)
    pairs = 0
    for scene in scenes.values():
        for one in scene.actors:
            points = np.concatenate([grid * one.size[:2] / 2, np.zeros((81, 1)), np.ones((81, 1))], 1)
            world = np.einsum("nij,kj->nki", one.poses, points)
            for other in scene.actors:
                if other is not one:
                    local = np.einsum("nij,nkj->nki", np.linalg.inv(other.poses), world)
                    assert not np.any(np.all(np.abs(local[..., :2]) < other.size[:2] / 2, axis=-1))
                    pairs += 1
    assert pairs > 1000


def test_solids_stay_within_the_stated_size(scenes):
    for scene in scenes.values():
        for actor in scene.actors:
            low = np.min([s.low for s in actor.solids], axis=0)
            high = np.max([s.high for s in actor.solids], axis=0)
            slack = 0.02 if actor.label == "car" else 0.05
            assert np.all(high[:2] <= actor.size[:2] / 2 + slack)
            assert np.all(low[:2] >= -actor.size[:2] / 2 - slack)
            assert high[2] <= actor.size[2] + slack
            assert low[2] == pytest.approx(0, abs=1e-9)  # feet and wheels reach the ground


def test_the_car_ahead_keeps_its_distance(scenes):
    for seed in (0, 10):
        scene = scenes[seed]
        path = scene.world_T_camera[:, :3, 3]
        assert np.linalg.norm(np.diff(path, axis=0), axis=1).min() > 0.1
        ahead = scene.actors[0]
        relative = (np.linalg.inv(scene.world_T_camera) @ ahead.poses)[:, :3, 3]
        gap = np.linalg.norm(relative, axis=1)
        assert ahead.moving
        assert ahead.label == "car"
        assert np.all(relative[:, 2] > 4)
        # On a bend the straight line between two points of a lane changes a little.
        assert np.ptp(gap) < 0.02 * gap[0]
        assert np.ptp(gap) < 0.03 * np.linalg.norm(path[-1] - path[0])


def test_scenarios_keep_their_promises(scenes):
    assert not scenes[9].actors
    assert not any(actor.moving for actor in scenes[7].actors)
    assert scenes[7].actors
    standing = scenes[8].world_T_camera[:, :3, 3]
    assert np.min(np.linalg.norm(np.diff(standing, axis=0), axis=1)) < 0.03
    turned = [
        np.degrees(np.arccos(np.clip((np.trace(a.poses[0, :3, :3].T @ a.poses[-1, :3, :3]) - 1) / 2, -1, 1)))
        for seed in (3, 13)
        for a in scenes[seed].actors
    ]
    assert max(turned) > 15


def test_moving_says_whether_the_pose_changes(scenes):
    for scene in scenes.values():
        for actor in scene.actors:
            assert actor.moving == bool(np.abs(actor.poses - actor.poses[0]).max() > 0)


def test_labels_are_classes_and_ids_count_from_one(scenes):
    for scene in scenes.values():
        assert {a.label for a in scene.actors} <= {"car", "person"} <= set(CLASS_INDEX)
        assert [a.id for a in scene.actors] == list(range(1, len(scene.actors) + 1))
