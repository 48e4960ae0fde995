"""How long the evaluators take at full data-set size: `python -m evaluation.benchmark`.

Inputs are generated at the benchmarks' own sizes: 697 depth maps of 1242x375 with 5 % true pixels
(Eigen), a drive as long as KITTI odometry's sequence 00, and 200 scene-flow pairs. Twenty different
images are made and taken in turn; files are not read.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import tyro

from evaluation import odometry, scene_flow
from evaluation.depth_protocols import KITTI_EIGEN, DepthScore, score_map
from evaluation.ground_truth.scene_flow import SceneFlowTruth
from evaluation.scene_flow import PairPrediction, SceneFlowScore, move, score_pair
from evaluation.sequence_errors import sequence_sums
from evaluation.trajectories import chain

IMAGES = 20
"""Different images; more would only fill memory."""


@dataclass(frozen=True)
class Setting:
    depth_maps: int = 697
    poses: int = 4541
    pairs: int = 200
    size: tuple[int, int] = (1242, 375)
    """Width and height of the truth."""
    predicted: tuple[int, int] = (832, 256)
    """Width and height of predictions."""
    objects: int = 5
    """Moving objects of a scene-flow pair."""


def main(setting: Setting) -> None:
    """Print the table."""
    print(f"{'evaluator':44} {'of':>6} {'s':>8} {'ms each':>9}")
    for name, count, work in (
        ("depth, KITTI Eigen", setting.depth_maps, lambda: depth_maps(setting)),
        ("odometry, t_err r_err ATE, 7-DoF", setting.poses, lambda: odometry_sequence(setting)),
        ("odometry, 5-frame snippets", setting.poses, lambda: odometry_snippets(setting)),
        ("scene flow, D2 of the moved point", setting.pairs, lambda: scene_flow_pairs(setting, "moved")),
        ("scene flow, D2 sampled", setting.pairs, lambda: scene_flow_pairs(setting, "sampled")),
    ):
        seconds = _timed(work())
        print(f"{name:44} {count:6} {seconds:8.2f} {1000 * seconds / count:9.3f}", flush=True)


def depth_maps(setting: Setting) -> Callable[[], object]:
    """Prediction and sparse truth of every image under KITTI_EIGEN."""
    rng = np.random.default_rng(0)
    (W, H), (w, h) = setting.size, setting.predicted
    truth = rng.uniform(3, 79, (IMAGES, H, W)) * (rng.random((IMAGES, H, W)) < 0.05)
    maps = rng.uniform(0.01, 0.5, (IMAGES, h, w)).astype(np.float32)

    def work() -> DepthScore:
        images = (n % IMAGES for n in range(setting.depth_maps))
        return sum((score_map(maps[n], truth[n], KITTI_EIGEN) for n in images), DepthScore())

    return work


def odometry_sequence(setting: Setting) -> Callable[[], object]:
    """A drive in bends against itself with noise: all segments, and the aligned positions."""
    truth, estimate = _drive(setting.poses)
    return lambda: sequence_sums(estimate, truth)


def odometry_snippets(setting: Setting) -> Callable[[], object]:
    """The same drive, snippet by snippet."""
    truth, estimate = _drive(setting.poses)
    return lambda: odometry.snippet_sums(estimate, truth)


def scene_flow_pairs(setting: Setting, second: scene_flow.Second) -> Callable[[], object]:
    """A slanted road with boxes on it, each with a motion of its own."""
    (W, H), (w, h) = setting.size, setting.predicted
    K = np.array([[0.58 * W, 0, (W - 1) / 2], [0, 0.58 * W, (H - 1) / 2], [0, 0, 1]])
    labels = np.zeros((H, W), np.int64)
    for k in range(1, setting.objects + 1):
        left = W * k // (setting.objects + 2)
        labels[H // 2 : H // 2 + H // 5, left : left + W // 12] = k
    depth = np.tile(np.linspace(60, 5, H)[:, None], (1, W))
    camera, own = np.eye(4), np.eye(4)
    camera[2, 3], own[2, 3] = -0.8, 0.5
    motions = dict.fromkeys(range(1, setting.objects + 1), own)
    moved = move(depth, K, camera, labels, motions)
    focal = K[0, 0] * 0.54
    truth = SceneFlowTruth(
        pair=0,
        disparity_0_px=(focal / depth).astype(np.float32),
        disparity_1_px=(focal / moved.depth).astype(np.float32),
        flow_px=moved.flow_px.astype(np.float32),
        flow_valid=np.ones((H, W), bool),
        object_map=labels.astype(np.uint8),
        K=K,
        baseline_m=0.54,
    )
    rows = np.linspace(0, H - 1, h).round().astype(int)
    columns = np.linspace(0, W - 1, w).round().astype(int)
    small = (1 / depth)[rows[:, None], columns].astype(np.float32)
    prediction = PairPrediction(
        inverse_depth=small,
        later_T_earlier=camera,
        labels=labels[rows[:, None], columns],
        motions=motions,
        later_inverse_depth=small,
    )

    def work() -> SceneFlowScore:
        scores = (score_pair(prediction, truth, second=second) for _ in range(setting.pairs))
        return sum(scores, SceneFlowScore())

    return work


def _drive(count: int) -> tuple[np.ndarray, np.ndarray]:
    """(N, 4, 4) true and estimated poses, some 0.8 m a frame."""
    rng = np.random.default_rng(0)
    steps = np.tile(np.eye(4), (count - 1, 1, 1))
    angle = 0.02 * np.sin(np.arange(count - 1) / 60)
    steps[:, 0, 0] = steps[:, 2, 2] = np.cos(angle)
    steps[:, 0, 2], steps[:, 2, 0] = np.sin(angle), -np.sin(angle)
    steps[:, 2, 3] = -0.8
    noisy = steps.copy()
    noisy[:, :3, 3] += rng.normal(0, 0.01, (count - 1, 3))
    return chain(steps), chain(noisy)


def _timed(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


if __name__ == "__main__":
    main(tyro.cli(Setting, prog="python -m evaluation.benchmark", description=__doc__))
