"""t_err, r_err and ATE: published figures, drives known on paper, and two other implementations."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from evaluation.alignment import RULES, Rule, align, common_frames
from evaluation.sequence_errors import (
    LENGTHS_M,
    SequenceSums,
    figures,
    path_lengths,
    segments,
    sequence_sums,
)
from evaluation.trajectories import chain
from evaluation.trajectory_files import Trajectory, read_trajectory
from pipeline.errors import ConfigError
from tests.evaluation.made import rigid

ALL_RULES = get_args(Rule)

# By kitti-odom-eval with 7-DoF alignment, as published with that tool: t_err (%), r_err, ATE (m).
PUBLISHED = {
    "09": ("2.8841125", "0.2490562", "8.3866192"),
    "10": ("3.2978395", "0.3045900", "6.6301581"),
}


def line(frames: int, step: float = 1.0) -> np.ndarray:
    """A camera that drives straight on."""
    return np.stack([rigid((0, 0, step * k)) for k in range(frames)])


def drive(frames: int = 700, noise: float = 0.0, seed: int = 0) -> np.ndarray:
    """A winding drive up and down, 1.5 m a frame; noise is by frame, and grows along the chain."""
    rng = np.random.default_rng(seed)
    motions = np.stack([rigid((0, 0, -1.5), np.sin(k / 40), 0.1 * np.cos(k / 25)) for k in range(frames - 1)])
    motions[:, :3, :3] @= Rotation.from_rotvec(
        0.01 * noise * rng.standard_normal((frames - 1, 3))
    ).as_matrix()
    motions[:, :3, 3] += noise * rng.standard_normal((frames - 1, 3))
    return chain(motions)


def scaled(poses: np.ndarray, scale: float) -> np.ndarray:
    result = poses.copy()
    result[:, :3, 3] *= scale
    return result


def published_case(test_data: Path, sequence: str) -> tuple[Trajectory, Trajectory]:
    folder = test_data / "kitti_odometry"
    estimate, truth = (
        folder / "results" / "example_0" / f"{sequence}.txt",
        folder / "poses" / f"{sequence}.txt",
    )
    if not (estimate.is_file() and truth.is_file()):
        pytest.skip(f"needs {estimate} and {truth}")
    return read_trajectory(estimate), read_trajectory(truth)


@pytest.mark.parametrize("sequence", PUBLISHED)
def test_published_figures_are_found_again_to_their_last_digit(test_data: Path, sequence: str) -> None:
    estimate, truth = published_case(test_data, sequence)
    mine, rows = common_frames(estimate.index, truth.index)
    found = sequence_sums(estimate.world_T_camera[mine], truth.world_T_camera, rows, "7dof")
    assert (f"{found.t_err:.7f}", f"{found.r_err:.7f}", f"{found.ate:.7f}") == PUBLISHED[sequence]


@pytest.mark.parametrize("rule", ALL_RULES)
def test_a_perfect_estimate_in_any_world_has_no_error(rule: Rule) -> None:
    truth = drive()
    found = sequence_sums(rigid((5, -6, 7), 120, 10) @ truth, truth, alignment=rule)
    assert found.segments > 100
    assert found.unanswered == 0
    assert found.t_err == pytest.approx(0, abs=1e-9)
    assert found.ate == pytest.approx(0, abs=1e-9)
    assert found.r_err == pytest.approx(0, abs=1e-5)  # arccos near 1


def test_a_perfect_estimate_of_printed_truth_has_no_error(test_data: Path) -> None:
    truth = published_case(test_data, "10")[1].world_T_camera
    found = sequence_sums(truth, truth)
    assert found.t_err == pytest.approx(0, abs=1e-9)
    assert found.r_err == pytest.approx(0, abs=1e-5)
    assert found.ate == pytest.approx(0, abs=1e-9)


def test_a_scale_is_an_error_only_where_it_is_not_fitted() -> None:
    # A metre a frame: the first frame beyond a length L is L + 1 on, and a tenth of that is the error.
    truth = line(1001)
    estimate = scaled(truth, 1.1)
    expected = [0.1 * (length + 1) / length for length in LENGTHS_M for _ in range(0, 1000 - int(length), 10)]
    for rule in ("none", "6dof"):
        found = sequence_sums(estimate, truth, alignment=rule)
        assert found.segments == len(expected) == 440
        assert found.t_err == pytest.approx(100 * np.mean(expected))
        assert found.r_err == pytest.approx(0, abs=1e-5)
    for rule in ("scale", "7dof"):
        found = sequence_sums(estimate, truth, alignment=rule)
        assert found.t_err == pytest.approx(0, abs=1e-9)
        assert found.ate == pytest.approx(0, abs=1e-9)
    # From the first frame on, the k-th is off by k / 10; aligned by its middle, by (k - 500) / 10.
    k = np.arange(1001)
    none, middle = (sequence_sums(estimate, truth, alignment=rule).ate for rule in ("none", "6dof"))
    assert none == pytest.approx(np.sqrt((k**2).mean()) / 10)
    assert middle == pytest.approx(np.sqrt(((k - 500) ** 2).mean()) / 10)


def test_a_constant_yaw_error_on_a_straight_line() -> None:
    # The estimate turns by d after every metre. After n metres it heads n d off and, with z + i x as a
    # complex number, has come to 1 + e^(i d) + ... + e^(i (n - 1) d) = (1 - e^(i n d)) / (1 - e^(i d)).
    d = np.radians(0.01)
    truth = line(901)
    estimate = chain(np.stack([rigid(yaw_deg=-0.01) @ rigid((0, 0, -1))] * 900))
    n = np.repeat(np.array(LENGTHS_M) + 1, [(900 - int(length)) // 10 for length in LENGTHS_M])
    off = np.abs(n - (1 - np.exp(1j * n * d)) / (1 - np.exp(1j * d)))
    found = sequence_sums(estimate, truth, alignment="none")
    assert found.segments == len(n)
    assert found.r_err == pytest.approx(100 * (0.01 * n / (n - 1)).mean())
    assert found.t_err == pytest.approx(100 * (off / (n - 1)).mean())
    # Only a scale changes t_err, and nothing changes r_err.
    assert sequence_sums(estimate, truth, alignment="6dof").t_err == pytest.approx(found.t_err)
    for rule in ALL_RULES:
        assert sequence_sums(estimate, truth, alignment=rule).r_err == pytest.approx(found.r_err)


def test_a_segment_ends_with_the_first_frame_beyond_its_length() -> None:
    first, last, length = segments(np.array([0.0, 50, 100, 100, 100.5, 200, 201]))
    assert (first.tolist(), last.tolist(), length.tolist()) == ([0, 0], [4, 6], [100, 200])
    assert len(segments(path_lengths(line(101)))[0]) == 0  # 100 m are not more than 100 m
    first, last, _ = segments(path_lengths(line(112)))
    assert (first.tolist(), last.tolist()) == ([0, 10], [101, 111])


def test_frames_that_are_not_estimated_answer_no_segment() -> None:
    # Starts are frames 0, 10, ... of the truth, whatever the estimate begins with.
    truth = line(133)
    everything = sequence_sums(truth, truth)
    assert (everything.segments, everything.unanswered) == (4, 0)  # 0-101, 10-111, 20-121, 30-131
    for missing, answered in (([0, 1], 3), ([101], 3), ([50], 4), ([10, 111], 3), ([10, 121], 2)):
        rows = np.setdiff1d(np.arange(133), missing)
        found = sequence_sums(truth[rows], truth, rows)
        assert (found.segments, found.unanswered, found.frames) == (answered, 4 - answered, len(rows))
        assert found.t_err == pytest.approx(0, abs=1e-9)


@given(st.integers(0, 2**32 - 1), st.floats(0.01, 100))
@settings(max_examples=20)
def test_neither_worlds_nor_the_estimates_unit_matter(seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    mine, yours = np.tile(np.eye(4), (2, 1, 1))
    mine[:3, :3], yours[:3, :3] = Rotation.random(2, rng=rng).as_matrix()
    mine[:3, 3], yours[:3, 3] = 100 * rng.standard_normal((2, 3))
    truth, estimate = drive(300), drive(300, noise=0.02, seed=seed % 100)
    for rule in ALL_RULES:
        before = sequence_sums(estimate, truth, alignment=rule)
        unit = scale if rule in ("scale", "7dof") else 1.0
        after = sequence_sums(mine @ scaled(estimate, unit), yours @ truth, alignment=rule)
        assert (after.t_err, after.ate) == pytest.approx((before.t_err, before.ate))
        assert after.r_err == pytest.approx(before.r_err, abs=1e-5)


def other_errors(
    estimate: dict[int, np.ndarray], truth: dict[int, np.ndarray], rule: Rule
) -> tuple[float, float, float]:
    """t_err, r_err, ATE by another way: frame by frame, Horn's quaternions for the alignment, SciPy's angles."""
    x = np.array([estimate[i][:3, 3] for i in estimate])
    y = np.array([truth[i][:3, 3] for i in estimate])
    scale, R, t = 1.0, np.eye(3), np.zeros(3)
    if rule in ("6dof", "7dof"):
        M = (x - x.mean(axis=0)).T @ (y - y.mean(axis=0))
        skew = np.array([M[1, 2] - M[2, 1], M[2, 0] - M[0, 2], M[0, 1] - M[1, 0]])
        N = np.block([[np.trace(M), skew[None]], [skew[:, None], M + M.T - np.trace(M) * np.eye(3)]])
        w, *xyz = np.linalg.eigh(N)[1][:, -1]  # Horn 1987: the rotation is the largest eigenvector
        R = Rotation.from_quat([*xyz, w]).as_matrix()
        if rule == "7dof":
            turned = (x - x.mean(axis=0)) @ R.T
            scale = (turned * (y - y.mean(axis=0))).sum() / (turned**2).sum()
        t = y.mean(axis=0) - scale * R @ x.mean(axis=0)
    else:
        first = min(estimate)
        R = truth[first][:3, :3] @ estimate[first][:3, :3].T
        if rule == "scale":
            a, b = (x - estimate[first][:3, 3]) @ R.T, y - truth[first][:3, 3]
            scale = np.linalg.lstsq(a.reshape(-1, 1), b.ravel())[0][0]
        t = truth[first][:3, 3] - scale * R @ estimate[first][:3, 3]
    ate = np.sqrt(np.mean([np.sum((scale * R @ a + t - b) ** 2) for a, b in zip(x, y, strict=True)]))

    shifts, turns = [], []
    for first in range(0, len(truth), 10):
        for length in range(100, 900, 100):
            way, last = 0.0, first
            while way <= length and last + 1 < len(truth):
                way += float(np.linalg.norm(truth[last + 1][:3, 3] - truth[last][:3, 3]))
                last += 1
            if way <= length or first not in estimate or last not in estimate:
                continue
            (Ra, a), (Rb, b) = ((Rotation.from_matrix(p[:3, :3]), scale * p[:3, 3]) for p in
                                (estimate[first], estimate[last]))  # fmt: skip
            (Rc, c), (Rd, d) = ((Rotation.from_matrix(p[:3, :3]), p[:3, 3]) for p in
                                (truth[first], truth[last]))  # fmt: skip
            est, gt = (Ra.inv() * Rb, Ra.inv().apply(b - a)), (Rc.inv() * Rd, Rc.inv().apply(d - c))
            shifts.append(float(np.linalg.norm(gt[1] - est[1])) / length)
            turns.append(float((est[0].inv() * gt[0]).magnitude()) / length)
    return 100 * float(np.mean(shifts)), 100 * float(np.degrees(np.mean(turns))), float(ate)


@pytest.mark.parametrize("rule", ALL_RULES)
def test_an_independent_implementation_finds_the_same(rule: Rule) -> None:
    truth, estimate = drive(), rigid((1, 2, 3), 50) @ scaled(drive(noise=0.02, seed=3), 0.7)
    rows = np.setdiff1d(np.arange(3, len(truth)), [100, 211, 212, 355])
    found = sequence_sums(estimate[rows], truth, rows, rule)
    assert found.unanswered > 0
    expected = other_errors({i: estimate[i] for i in rows.tolist()}, dict(enumerate(truth)), rule)
    assert (found.t_err, found.r_err, found.ate) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("sequence", PUBLISHED)
def test_an_independent_implementation_finds_the_same_on_real_drives(test_data: Path, sequence: str) -> None:
    estimate, truth = published_case(test_data, sequence)
    mine, rows = common_frames(estimate.index, truth.index)
    found = sequence_sums(estimate.world_T_camera[mine], truth.world_T_camera, rows)
    expected = other_errors(
        dict(zip(estimate.index.tolist(), estimate.world_T_camera, strict=True)),
        dict(zip(truth.index.tolist(), truth.world_T_camera, strict=True)),
        "7dof",
    )
    # SciPy's rotations are exact, those of the benchmark as printed.
    assert (found.t_err, found.ate) == pytest.approx((expected[0], expected[2]), rel=1e-6)
    assert found.r_err == pytest.approx(expected[1], rel=1e-4)


@pytest.mark.parametrize(("rule", "scale"), [("6dof", False), ("7dof", True)])
def test_evo_finds_the_same_absolute_error(rule: Rule, scale: bool) -> None:
    reason = "evo is a development dependency; install the project with its dev extra"
    metrics = pytest.importorskip("evo.core.metrics", reason=reason)
    trajectory = pytest.importorskip("evo.core.trajectory", reason=reason)
    for seed in range(3):
        truth, estimate = drive(), rigid((1, 2, 3), 50) @ scaled(drive(noise=0.05, seed=seed), 0.7)
        reference = trajectory.PosePath3D(poses_se3=list(truth))
        aligned = trajectory.PosePath3D(poses_se3=list(estimate))
        aligned.align(reference, correct_scale=scale)
        error = metrics.APE(metrics.PoseRelation.translation_part)
        error.process_data((reference, aligned))
        expected = error.get_statistic(metrics.StatisticsType.rmse)
        assert sequence_sums(estimate, truth, alignment=rule).ate == pytest.approx(expected)
        np.testing.assert_allclose(align(estimate, truth, rule), aligned.poses_se3, atol=1e-8)


def test_sums_of_sequences_add_up() -> None:
    first, second = (sequence_sums(drive(noise=0.02, seed=k), drive(300 + 400 * k)[:700]) if k else
                     sequence_sums(drive(300, noise=0.05), drive(300)) for k in (0, 1))  # fmt: skip
    both = first + second
    assert both.segments == first.segments + second.segments
    assert both.t_err == pytest.approx(
        (first.segments * first.t_err + second.segments * second.t_err) / both.segments
    )
    assert both.ate == pytest.approx(
        np.sqrt((first.frames * first.ate**2 + second.frames * second.ate**2) / both.frames)
    )
    assert first + SequenceSums() == first


def test_figures_carry_unit_count_and_scale_rule() -> None:
    truth = drive()
    rows = np.arange(1, len(truth))
    for rule in ALL_RULES:
        sums = sequence_sums(truth[1:], truth, rows, rule)
        found = {each.name: each for each in figures(sums, "made drive", rule)}
        assert {name: each.unit for name, each in found.items()} == {
            "t_err": "%",
            "r_err": "deg/100 m",
            "segments with both ends estimated": "fraction",
            "ATE": "m",
        }
        assert all(each.scale == RULES[rule] and each.protocol.startswith("made drive; ") for each in
                   found.values())  # fmt: skip
        assert found["t_err"].count == found["r_err"].count == sums.segments
        assert found["segments with both ends estimated"].value == sums.segments / (sums.segments + 8)
        assert found["ATE"].count == len(rows)


def test_a_drive_too_short_for_a_segment_has_an_absolute_error_only() -> None:
    sums = sequence_sums(line(5), line(5))
    found = {each.name: each for each in figures(sums, "short")}
    assert found["ATE"].value == pytest.approx(0, abs=1e-12)
    for name in ("t_err", "r_err", "segments with both ends estimated"):
        assert np.isnan(found[name].value)
        assert found[name].count == 0
    assert all(np.isnan(each.value) for each in figures(SequenceSums(), "empty"))


def test_one_pose_and_cameras_that_stand_still_are_scored() -> None:
    truth = line(300)
    assert sequence_sums(truth[7:8], truth, np.array([7])).ate == pytest.approx(0, abs=1e-12)
    for rule in ("6dof", "7dof"):
        still = sequence_sums(rigid((5, 6, 7), 20) @ line(300, step=0), truth, alignment=rule)
        assert still.ate == pytest.approx(np.std(np.arange(300)))
        assert still.t_err == pytest.approx(
            100 * (20 * 101 / 100 + 10 * 201 / 200) / 30
        )  # the whole way is missed
    assert sequence_sums(truth, line(300, step=0)).segments == 0


def test_misuse_is_named() -> None:
    truth = line(5)
    with pytest.raises(ValueError, match=r"4 estimated poses for \(5,\) rows"):
        sequence_sums(truth[:4], truth)
    for rows in ([0, 1, 1, 2, 3], [0, 1, 2, 3, 5], [-1, 0, 1, 2, 3], [0.0, 1, 2, 3, 4]):
        with pytest.raises(ValueError, match=r"rising whole numbers in \[0, 5\)"):
            sequence_sums(truth, truth, np.array(rows))
    with pytest.raises(ValueError, match="estimate is"):
        sequence_sums(truth[:0], truth, np.arange(0))
    with pytest.raises(ConfigError, match="alignment 'sim3'"):
        sequence_sums(truth, truth, alignment="sim3")  # type: ignore[arg-type]
