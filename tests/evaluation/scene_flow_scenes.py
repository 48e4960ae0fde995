"""A made street with a moving car, its scene flow known point by point, for the tests of scene flow."""

from __future__ import annotations

from functools import cache

import numpy as np

from evaluation.ground_truth.scene_flow import SceneFlowTruth
from evaluation.scene_flow import (
    PairPrediction,
    SceneFlowScore,
)
from tests.evaluation.made import rigid

K = np.array([[700.0, 0, 60.3], [0, 690, 20.1], [0, 0, 1]])
BASELINE_M = 0.54
HEIGHT, WIDTH = 40, 120
CAMERA = rigid((0.1, -0.05, -0.9), yaw_deg=1.2, pitch_deg=-0.4)  # drives ahead, in a bend
CAR = rigid((0.6, 0.02, 1.3), yaw_deg=-3.0)
MEASURES = ("d1", "d2", "fl", "sf")
STREET = np.zeros((HEIGHT, WIDTH), np.uint8)
STREET[12:30, 30:70] = 3  # the car


def plane_depth(
    K: np.ndarray, normal: tuple[float, float, float], offset: float, size: tuple[int, int]
) -> np.ndarray:
    """Depth of the plane normal . X = offset; its inverse is affine in the pixel."""
    v, u = np.mgrid[: size[1], : size[0]]
    rays = np.linalg.inv(K) @ np.stack([u, v, np.ones_like(u)]).reshape(3, -1)
    return (offset / (np.array(normal) @ rays)).reshape(size[1], size[0])


GROUND_M = plane_depth(K, (0.02, 0.3, 0.1), 2.0, (WIDTH, HEIGHT))
CAR_M = plane_depth(K, (-0.3, 0.1, 1.0), 8.0, (WIDTH, HEIGHT))
DEPTH_M = np.where(STREET > 0, CAR_M, GROUND_M)


def truth_of(
    d0: np.ndarray, d1: np.ndarray, flow: np.ndarray, flow_valid: np.ndarray, objects: np.ndarray
) -> SceneFlowTruth:
    return SceneFlowTruth(
        pair=0,
        disparity_0_px=d0,
        disparity_1_px=d1,
        flow_px=flow,
        flow_valid=flow_valid,
        object_map=objects,
        K=K,
        baseline_m=BASELINE_M,
    )


def by_points(
    depth: np.ndarray, K: np.ndarray, camera: np.ndarray, labels: np.ndarray, motions: dict[int, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Depth and flow of every pixel, a point at a time, with numbers instead of matrices."""
    height, width = depth.shape
    later, flow = np.full(depth.shape, np.nan), np.full((height, width, 2), np.nan)
    f, g, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
    for v in range(height):
        for u in range(width):
            z = float(depth[v, u])
            X = [(u - cx) / f * z, (v - cy) / g * z, z]
            for T in (motions.get(int(labels[v, u]), np.eye(4)), camera):
                X = [sum(T[i, k] * X[k] for k in range(3)) + T[i, 3] for i in range(3)]
            if X[2] > 0:
                later[v, u] = X[2]
                flow[v, u] = f * X[0] / X[2] + cx - u, g * X[1] / X[2] + cy - v
    return later, flow


@cache
def street_truth() -> SceneFlowTruth:
    later, flow = by_points(DEPTH_M, K, CAMERA, STREET, {3: CAR})
    fb = K[0, 0] * BASELINE_M
    return truth_of(fb / DEPTH_M, fb / later, flow, np.ones_like(STREET, bool), STREET)


def street_prediction(scale: float = 1.0) -> PairPrediction:
    """The truth, in units of `scale` metres."""

    def in_units(motion: np.ndarray) -> np.ndarray:
        scaled = motion.copy()
        scaled[:3, 3] /= scale
        return scaled

    return PairPrediction(
        inverse_depth=scale / DEPTH_M,
        later_T_earlier=in_units(CAMERA),
        labels=STREET,
        motions={3: in_units(CAR)},
    )


def percent(score: SceneFlowScore) -> dict[str, list[float]]:
    """bg, fg, all of every measure."""
    return {
        name: [
            100 * share.value
            for share in (
                getattr(score, name).background,
                getattr(score, name).foreground,
                getattr(score, name).all,
            )
        ]
        for name in MEASURES
    }


NONE = {name: [0.0, 0.0, 0.0] for name in MEASURES}
