"""Alignment of trajectories: similarities that are known, and what positions leave open."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from evaluation.alignment import RULES, Rule, align, common_frames, fit, rebase
from evaluation.predictions import PredictionError
from pipeline.errors import ConfigError
from tests.evaluation.made import rigid

ALL_RULES = get_args(Rule)
SEEDS = st.integers(0, 2**32 - 1)
SCALES = st.floats(1e-3, 1e3)


def random_rigid(rng: np.random.Generator, size_m: float = 100.0) -> np.ndarray:
    """(4, 4) motion, every rotation as likely as another."""
    motion = np.eye(4)
    motion[:3, :3] = Rotation.random(rng=rng).as_matrix()
    motion[:3, 3] = size_m * rng.standard_normal(3)
    return motion


def random_poses(rng: np.random.Generator, count: int = 12) -> np.ndarray:
    """(count, 4, 4) poses that have nothing to do with each other."""
    return np.stack([random_rigid(rng) for _ in range(count)])


def on_a_line(rng: np.random.Generator, count: int = 9) -> np.ndarray:
    """Poses with any rotations, their positions on one line through space."""
    poses = random_poses(rng, count)
    start, way = rng.standard_normal((2, 3))
    poses[:, :3, 3] = start + np.sort(rng.uniform(0, 50, count))[:, None] * way
    return poses


def moved(poses: np.ndarray, scale: float, motion: np.ndarray) -> np.ndarray:
    """The same trajectory in another world, with another unit."""
    scaled = poses.copy()
    scaled[:, :3, 3] *= scale
    return motion @ scaled


def square_error(a: np.ndarray, b: np.ndarray) -> float:
    return float(((a[:, :3, 3] - b[:, :3, 3]) ** 2).sum())


def test_every_rule_says_what_it_does_to_the_scale() -> None:
    assert tuple(RULES) == ALL_RULES


@given(SEEDS, SCALES)
def test_a_similarity_between_the_worlds_is_found(seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    truth, motion = random_poses(rng), random_rigid(rng)
    estimate = moved(truth, 1 / scale, motion)
    found = fit(estimate, truth, "7dof")
    assert found.scale == pytest.approx(scale)
    np.testing.assert_allclose(found.true_T_scaled[:3, :3], motion[:3, :3].T, atol=1e-9)
    np.testing.assert_allclose(align(estimate, truth, "7dof"), truth, atol=1e-7)
    np.testing.assert_allclose(align(estimate, truth, "scale"), truth, atol=1e-7)


@given(SEEDS)
def test_a_rigid_motion_between_the_worlds_is_found_by_every_rule(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = random_poses(rng)
    estimate = random_rigid(rng) @ truth
    for rule in ALL_RULES:
        np.testing.assert_allclose(align(estimate, truth, rule), truth, atol=1e-8)


@given(SEEDS, SCALES)
def test_the_worlds_of_estimate_and_truth_do_not_matter(seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    estimate, truth = random_poses(rng), random_poses(rng)
    mine, yours = random_rigid(rng), random_rigid(rng)
    for rule in ALL_RULES:
        unit = scale if rule in ("scale", "7dof") else 1.0
        np.testing.assert_allclose(
            align(moved(estimate, unit, mine), yours @ truth, rule),
            yours @ align(estimate, truth, rule),
            atol=1e-6,
        )


@given(SEEDS)
def test_umeyama_never_mirrors_and_no_other_rotation_fits_better(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = random_poses(rng, 5)
    estimate = truth.copy()
    estimate[:, :3, 3] *= rng.choice([-1, 1], 3) * rng.uniform(0.5, 2, 3)  # mirrored, for half of the seeds
    for rule in ("6dof", "7dof"):
        found = fit(estimate, truth, rule)
        R = found.true_T_scaled[:3, :3]
        np.testing.assert_allclose(R.T @ R, np.eye(3), atol=1e-12)
        assert np.linalg.det(R) == pytest.approx(1)
        assert found.scale >= 0
        # SciPy's solution of Wahba's problem: the same rotation by other code.
        x, y = (each[:, :3, 3] - each[:, :3, 3].mean(axis=0) for each in (estimate, truth))
        best = Rotation.align_vectors(y, x)[0].as_matrix()
        assert np.trace(R.T @ y.T @ x) == pytest.approx(np.trace(best.T @ y.T @ x))


@given(SEEDS)
def test_no_similarity_near_the_fit_is_better(seed: int) -> None:
    rng = np.random.default_rng(seed)
    estimate, truth = random_poses(rng), random_poses(rng)
    best = square_error(align(estimate, truth, "7dof"), truth)
    assert best <= square_error(align(estimate, truth, "6dof"), truth) * (1 + 1e-12)
    assert best <= square_error(align(estimate, truth, "scale"), truth) * (1 + 1e-12)
    for _ in range(5):
        nudge = np.eye(4)
        nudge[:3, :3] = Rotation.from_rotvec(1e-3 * rng.standard_normal(3)).as_matrix()
        nudge[:3, 3] = rng.standard_normal(3)
        near = moved(align(estimate, truth, "7dof"), rng.uniform(0.99, 1.01), nudge)
        assert best <= square_error(near, truth)


def test_the_scale_that_fits_a_mirrored_trajectory_best() -> None:
    # Pairs of points at +-3, +-2, +-1 on the axes, the last one mirrored: covariance diag(9, 4, -1) / 3,
    # so R = 1 and the scale is (9 + 4 - 1) / (9 + 4 + 1).
    truth = np.tile(np.eye(4), (6, 1, 1))
    for axis, length in enumerate((3, 2, 1)):
        truth[2 * axis : 2 * axis + 2, axis, 3] = length, -length
    estimate = truth.copy()
    estimate[:, 2, 3] *= -1
    found = fit(estimate, truth, "7dof")
    assert found.scale == pytest.approx(12 / 14)
    np.testing.assert_allclose(found.true_T_scaled, np.eye(4), atol=1e-12)


def test_the_scale_rule_is_least_squares_from_the_first_pose() -> None:
    truth = np.stack([rigid((0, 0, z)) for z in (7, 8, 9, 10, 11)])
    estimate = np.stack([rigid((0, 0, z)) for z in (3, 5, 3, 3, 3)])  # from its first: 0 2 0 0 0
    assert fit(estimate, truth, "scale").scale == pytest.approx(2 / 4)
    np.testing.assert_allclose(align(estimate, truth, "scale")[:, 2, 3], [7, 8, 7, 7, 7])


def test_an_estimate_that_drives_backwards_is_not_mirrored() -> None:
    truth = np.stack([rigid((0, 0, z)) for z in (0, 1, 2)])
    backwards = np.stack([rigid((0, 0, z)) for z in (0, -1, -2)])
    assert fit(backwards, truth, "scale").scale == 0
    # The whole world may be turned round, though, and then the cameras look backwards.
    turned = align(backwards, truth, "7dof")
    np.testing.assert_allclose(turned[:, :3, 3], truth[:, :3, 3], atol=1e-12)
    np.testing.assert_allclose(turned[:, 2, 2], -1)
    np.testing.assert_allclose(np.linalg.det(turned[:, :3, :3]), 1)


@given(SEEDS, SCALES, st.integers(2, 9))
def test_on_a_line_the_first_poses_say_how_it_is_turned_about(seed: int, scale: float, count: int) -> None:
    rng = np.random.default_rng(seed)
    truth = on_a_line(rng, count)
    estimate = moved(truth, 1 / scale, random_rigid(rng))
    np.testing.assert_allclose(align(estimate, truth, "7dof"), truth, atol=1e-6)


@given(SEEDS)
def test_of_all_best_fits_on_a_line_the_nearest_to_the_first_poses_is_taken(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth, estimate = on_a_line(rng), on_a_line(rng)
    found = fit(estimate, truth, "7dof")
    R, R0 = found.true_T_scaled[:3, :3], truth[0, :3, :3] @ estimate[0, :3, :3].T
    assert np.linalg.det(R) == pytest.approx(1)
    axis = truth[-1, :3, 3] - truth[0, :3, 3]
    axis /= np.linalg.norm(axis)
    for angle in (*np.linspace(-3, 3, 13), 1e-3, -1e-3):
        other = Rotation.from_rotvec(angle * axis).as_matrix() @ R
        assert np.trace(R0.T @ other) <= np.trace(R0.T @ R) + 1e-9


def test_one_pose_is_put_onto_the_true_one() -> None:
    estimate, truth = rigid((1, 2, 3), 40)[None], rigid((-3, 0, 9), -10, 5)[None]
    for rule in ALL_RULES:
        assert fit(estimate, truth, rule).scale == 1
        np.testing.assert_allclose(align(estimate, truth, rule), truth, atol=1e-12)


def test_an_estimate_that_stands_still_keeps_its_scale_and_first_rotation() -> None:
    # The mean of three times 0.1 is not 0.1, and what differs must not be taken for a way.
    estimate = np.stack([rigid((0.1, 0.7, 1e6 / 3), yaw) for yaw in (90, 100, 110)])
    truth = np.stack([rigid((0, 0, z), 30) for z in (0, 1, 5)])
    for rule, place in (("none", 0), ("scale", 0), ("6dof", 2), ("7dof", 2)):
        aligned = align(estimate, truth, rule)
        assert fit(estimate, truth, rule).scale == 1
        np.testing.assert_allclose(aligned[:, :3, 3], [[0, 0, place]] * 3, atol=1e-12)
        np.testing.assert_allclose(aligned[:, :3, :3], [rigid(yaw_deg=y)[:3, :3] for y in (30, 40, 50)],
                                   atol=1e-12)  # fmt: skip


def test_to_a_truth_that_stands_still_a_moving_estimate_fits_with_scale_zero() -> None:
    estimate = np.stack([rigid((0, 0, z)) for z in (0, 1, 5)])
    truth = np.stack([rigid((1, 2, 3), 30)] * 3)
    for rule in ("scale", "7dof"):
        assert fit(estimate, truth, rule).scale == 0
        np.testing.assert_allclose(align(estimate, truth, rule), truth, atol=1e-12)
    np.testing.assert_allclose(align(estimate, truth, "6dof")[:, :3, 3].mean(axis=0), [1, 2, 3])


def test_far_from_the_origin_of_its_world_a_trajectory_is_aligned_as_well() -> None:
    rng = np.random.default_rng(0)
    truth = random_poses(rng)
    utm = rigid((4.5e5, 5.4e6, 100))
    np.testing.assert_allclose(align(truth, utm @ truth), utm @ truth, atol=1e-6)
    line = on_a_line(rng)
    np.testing.assert_allclose(align(line, utm @ line), utm @ line, atol=1e-6)


def test_arguments_are_left_as_they_are() -> None:
    rng = np.random.default_rng(0)
    estimate, truth = random_poses(rng), random_poses(rng)
    before = estimate.copy(), truth.copy()
    for rule in ALL_RULES:
        align(estimate, truth, rule)
    rebase(truth)
    np.testing.assert_array_equal(estimate, before[0])
    np.testing.assert_array_equal(truth, before[1])


def test_rebased_poses_begin_with_the_identity() -> None:
    rebased = rebase(np.stack([rigid((1, 0, 0), 90), rigid((1, 0, -3), 90)]))
    np.testing.assert_allclose(rebased[0], np.eye(4), atol=1e-12)
    np.testing.assert_allclose(rebased[1, :3, 3], [3, 0, 0], atol=1e-12)  # at yaw 90, x of the world is z


def test_frames_that_both_have() -> None:
    mine, yours = common_frames(np.array([2, 3, 7, 9]), np.array([0, 1, 2, 7, 8, 9]))
    assert (mine.tolist(), yours.tolist()) == ([0, 2, 3], [2, 3, 5])


@pytest.mark.parametrize(("mine", "has"), [([20, 21], "frames 20 to 21"), ([], "no frame")])
def test_no_common_frame_is_an_error_that_says_what_each_has(mine: list[int], has: str) -> None:
    with pytest.raises(PredictionError, match=f"the estimate has {has}, the truth frames 0 to 9: no frame"):
        common_frames(np.array(mine, np.int64), np.arange(10))


def test_misuse_is_named() -> None:
    poses = np.stack([rigid((0, 0, z)) for z in (0, 1, 2)])
    with pytest.raises(ConfigError, match="alignment '8dof'; expected one of none, scale, 6dof, 7dof"):
        align(poses, poses, "8dof")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="3 estimated poses for 2 true ones"):
        align(poses, poses[:2])
    with pytest.raises(ValueError, match=r"estimate is \(3, 3, 4\), expected \(N, 4, 4\)"):
        align(poses[:, :3], poses)
    with pytest.raises(ValueError, match="N > 0"):
        align(poses[:0], poses[:0])
    with pytest.raises(ValueError, match="truth holds a number that is not finite"):
        align(poses, poses * np.nan)
    with pytest.raises(ValueError, match="world_T_camera is"):
        rebase(poses[0])
    with pytest.raises(ValueError, match="truth_index must be a row of rising"):
        common_frames(np.arange(3), np.array([0, 2, 2]))
