"""Chained poses and their text, with every number known on paper."""

from __future__ import annotations

import io

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from evaluation.odometry import relative_motions
from evaluation.trajectories import chain, kitti_text, nearest_rotation, tum_text
from tests.evaluation.made import rigid, small_prediction


def test_a_camera_that_drives_forward_moves_points_backward() -> None:
    poses = chain(np.stack([rigid((0, 0, -2)), rigid((0, 0, -2))]))
    np.testing.assert_allclose(poses[:, :3, 3], [[0, 0, 0], [0, 0, 2], [0, 0, 4]])


def test_after_a_right_turn_forward_is_to_the_right() -> None:
    # The camera turns right by 90 deg about y (down): what was to the right is then ahead.
    turn = rigid(yaw_deg=-90)
    np.testing.assert_allclose(turn[:3, :3] @ [1, 0, 0], [0, 0, 1], atol=1e-12)
    poses = chain(np.stack([turn, rigid((0, 0, -1))]))
    np.testing.assert_allclose(poses[2, :3, 3], [1, 0, 0], atol=1e-12)


@given(st.lists(st.tuples(*[st.floats(-3, 3)] * 3, st.floats(-170, 170), st.floats(-80, 80)), max_size=6))
def test_the_motions_between_chained_poses_are_those_that_were_chained(steps: list) -> None:
    motions = np.array([rigid(step[:3], *step[3:]) for step in steps]).reshape(-1, 4, 4)
    np.testing.assert_allclose(relative_motions(chain(motions)), motions, atol=1e-9)


def test_rotations_of_a_long_chain_stay_rotations() -> None:
    step = rigid((0, 0, -1), 0.7, 0.1).astype(np.float32)
    step[:3, :3] *= 1 + 1e-5
    last = chain(np.stack([step] * 3000))[-1, :3, :3]
    np.testing.assert_allclose(last.T @ last, np.eye(3), atol=1e-10)


def test_the_nearest_rotation_of_a_mirror_is_a_rotation() -> None:
    assert np.linalg.det(nearest_rotation(np.diag([1.0, 1, -0.9]))) > 0
    np.testing.assert_allclose(nearest_rotation(1.1 * rigid(yaw_deg=20)[:3, :3]), rigid(yaw_deg=20)[:3, :3])


def test_kitti_text_is_the_upper_rows_of_world_T_camera() -> None:
    poses = chain(small_prediction().later_T_earlier)
    found = np.loadtxt(io.StringIO(kitti_text(poses)))
    assert found.shape == (3, 12)
    np.testing.assert_allclose(found.reshape(3, 3, 4), poses[:, :3], atol=1e-9)


def test_tum_text_is_time_position_and_quaternion_with_w_last() -> None:
    poses = np.stack([np.eye(4), rigid((1, 2, 3), 90)])
    found = np.loadtxt(io.StringIO(tum_text(poses, np.array([0.5, 1.25]))))
    half = np.sqrt(0.5)
    np.testing.assert_allclose(
        found, [[0.5, 0, 0, 0, 0, 0, 0, 1], [1.25, 1, 2, 3, 0, half, 0, half]], atol=1e-8
    )
