"""Scene flow errors: scenes whose truth is known on paper, and the same counted by a second implementation."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache, reduce
from operator import add
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.depth import Share
from evaluation.figure import Figure
from evaluation.ground_truth.scene_flow import SceneFlowTruth
from evaluation.predictions import PredictionError
from evaluation.scene_flow import (
    MEDIAN_SCALE,
    METRIC,
    PairPrediction,
    RegionShares,
    SceneFlowEstimate,
    SceneFlowScore,
    constant_scale,
    count_outliers,
    estimate_pair,
    figures,
    image_scale,
    is_outlier,
    move,
    score_pair,
)
from pipeline.streetworld.truth import FLOW_DEFINED, read_truth
from tests.evaluation.made import rigid, truth_as_prediction

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


def test_a_perfect_estimate_of_a_moving_plane_has_no_outlier() -> None:
    score = score_pair(street_prediction(), street_truth())
    assert percent(score) == NONE
    car = int((STREET > 0).sum())
    for name in MEASURES:
        shares = getattr(score, name)
        assert (shares.foreground.whole, shares.all.whole) == (car, HEIGHT * WIDTH)
    assert score.pairs == 1


def test_the_estimate_is_the_truth_itself_not_only_near_it() -> None:
    truth = street_truth()
    found = estimate_pair(street_prediction(5.4), truth, 5.4)
    np.testing.assert_allclose(found.disparity_0_px, truth.disparity_0_px)
    assert found.disparity_1_px is not None
    assert found.flow_px is not None
    np.testing.assert_allclose(found.disparity_1_px, truth.disparity_1_px)
    np.testing.assert_allclose(found.flow_px, truth.flow_px, atol=1e-9)


def test_a_car_that_is_believed_to_stand_is_wrong_in_d2_and_flow_but_not_in_d1() -> None:
    parked = replace(street_prediction(), motions={})
    found = percent(score_pair(parked, street_truth()))
    assert found["d1"] == [0, 0, 0]
    assert found["d2"] == [0, 100, pytest.approx(100 * STREET.astype(bool).mean())]
    assert found["fl"] == found["sf"] == found["d2"]


def test_a_wall_that_the_camera_drives_towards_on_paper() -> None:
    # From 10 to 8 m: every pixel moves away from the principal point by a quarter of its distance.
    wall = np.full((4, 6), 10.0)
    camera = np.array([[50.0, 0, 2], [0, 50, 1], [0, 0, 1]])
    moved = move(wall, camera, rigid((0, 0, -2)), np.zeros((4, 6), int), {})
    np.testing.assert_allclose(moved.depth, 8)
    v, u = np.mgrid[:4, :6]
    np.testing.assert_allclose(moved.flow_px[..., 0], (u - 2) / 4, atol=1e-12)
    np.testing.assert_allclose(moved.flow_px[..., 1], (v - 1) / 4, atol=1e-12)


def test_an_object_moves_before_the_camera_does() -> None:
    # It goes 1 m to the right as seen from the camera at time 0, which then turns by 90 degrees.
    labels = np.array([[0, 7]])
    camera = np.array([[1.0, 0, 1], [0, 1, 0], [0, 0, 1]])
    motion = rigid(yaw_deg=-90)  # x becomes z
    moved = move(np.full((1, 2), 4.0), camera, motion, labels, {7: rigid((1, 0, 0))})
    assert math.isnan(moved.depth[0, 0])  # (-4, 0, 4) -> z = -4, behind the camera
    np.testing.assert_allclose(moved.depth[0, 1], 1)  # (0, 0, 4) -> (1, 0, 4) -> (-4, 0, 1)
    np.testing.assert_allclose(moved.flow_px[0, 1], [-4, 0], atol=1e-9)


def test_what_moves_behind_the_camera_is_an_outlier_in_d2_and_flow() -> None:
    behind = replace(street_prediction(), later_T_earlier=rigid((0, 0, -1000)), motions={})
    found = percent(score_pair(behind, street_truth()))
    assert found == {"d1": [0, 0, 0], "d2": [100] * 3, "fl": [100] * 3, "sf": [100] * 3}


STEP = 1 / 256


@pytest.mark.parametrize(
    ("true", "error", "outlier"),
    [
        (10, 3, False),  # far more than 5 %, but 3 px are not more than 3 px
        (10, 3 + STEP, True),
        (60, 3, False),  # both borders at once
        (60, 3 + STEP, True),
        (100, 3 + STEP, False),
        (100, 5, False),  # far more than 3 px, but 5 % are not more than 5 %
        (100, 5 + STEP, True),
        (204.21875, 204.21875 / 20, False),
        (0, 3, False),
        (0, 3 + STEP, True),
        (10, math.nan, True),
        (10, math.inf, True),
    ],
)
def test_an_outlier_must_break_both_limits(true: float, error: float, outlier: bool) -> None:
    assert is_outlier(np.array([error]), np.array([true])).tolist() == [outlier]
    if not true:
        return
    for sign in (1, -1):
        truth = truth_of(
            np.array([[true]]), np.array([[true]]), np.array([[[true * 0.6, true * 0.8]]]),
            np.ones((1, 1), bool), np.zeros((1, 1), np.uint8),
        )  # fmt: skip
        found = np.array([[true + sign * error]])
        estimate = SceneFlowEstimate(disparity_0_px=found, disparity_1_px=truth.disparity_1_px)
        score = count_outliers(estimate, truth)
        assert score.d1 == RegionShares(background=Share(part=outlier, whole=1))
        assert score.d2 == RegionShares(background=Share(part=0, whole=1))


@pytest.mark.parametrize(
    ("true", "error", "outlier"),
    [
        ((60, 80), (3, 4), False),  # 5 px of 100
        ((60, 80), (4, -3), False),  # the direction does not matter
        ((60, 80), (3, 4 + 1 / 64), True),
        ((0, 0), (0, 3), False),
        ((0, 0), (0, 3 + 1 / 64), True),
        ((6, 8), (1.8, 2.4), False),
        ((6, 8), (2.5, 2.5), True),  # neither component is off by 3 px, but the length is
    ],
)
def test_flow_is_judged_by_lengths(
    true: tuple[float, float], error: tuple[float, float], outlier: bool
) -> None:
    flow = np.array([[true]], np.float64)
    none = np.zeros((1, 1))
    truth = truth_of(none, none, flow, np.ones((1, 1), bool), np.ones((1, 1), np.uint8))
    estimate = SceneFlowEstimate(disparity_0_px=none, flow_px=flow + np.array(error))
    assert count_outliers(estimate, truth).fl == RegionShares(foreground=Share(part=outlier, whole=1))


def test_a_known_share_of_outliers_is_found() -> None:
    truth = street_truth()
    wrong = np.zeros((HEIGHT, WIDTH), bool)
    wrong[:, ::4] = True
    d1 = np.where(wrong, truth.disparity_0_px + 40, truth.disparity_0_px)
    flow = truth.flow_px.copy()
    flow[::4] += 100
    found = percent(
        count_outliers(
            SceneFlowEstimate(disparity_0_px=d1, disparity_1_px=truth.disparity_1_px, flow_px=flow), truth
        )
    )
    assert found["d1"] == [25, 25, 25]
    assert found["d2"] == [0, 0, 0]
    assert found["fl"][2] == 25
    assert found["sf"][2] == 100 * (1 - 0.75 * 0.75)  # wrong in one of them


def test_each_measure_counts_the_pixels_of_its_own_truth_and_sf_those_of_all_three() -> None:
    full = street_truth()
    d0, d1, valid = full.disparity_0_px.copy(), full.disparity_1_px.copy(), full.flow_valid.copy()
    d0[:10] = 0
    d1[:, :20] = 0
    valid[-5:] = False
    truth = replace(full, disparity_0_px=d0, disparity_1_px=d1, flow_valid=valid)
    nothing = np.full((HEIGHT, WIDTH), np.nan)
    score = count_outliers(
        SceneFlowEstimate(
            disparity_0_px=full.disparity_0_px, disparity_1_px=full.disparity_1_px, flow_px=full.flow_px
        ),
        truth,
    )
    assert [getattr(score, name).all for name in MEASURES] == [
        Share(part=0, whole=30 * 120), Share(part=0, whole=40 * 100), Share(part=0, whole=35 * 120),
        Share(part=0, whole=25 * 100),
    ]  # fmt: skip
    # What is wrong where there is no truth for all three is no outlier of SF.
    wrong = np.where(np.arange(HEIGHT)[:, None] < 10, nothing, full.disparity_1_px)
    score = count_outliers(
        SceneFlowEstimate(disparity_0_px=full.disparity_0_px, disparity_1_px=wrong, flow_px=full.flow_px),
        truth,
    )
    assert score.d2.all == Share(part=10 * 100, whole=40 * 100)
    assert score.sf.all == Share(part=0, whole=25 * 100)


@pytest.mark.parametrize("nothing", [np.nan, np.inf, -np.inf])
def test_what_is_not_predicted_is_an_outlier(nothing: float) -> None:
    truth = street_truth()
    none = np.full((HEIGHT, WIDTH), nothing)
    estimate = SceneFlowEstimate(disparity_0_px=none, disparity_1_px=none, flow_px=np.dstack([none, none]))
    assert percent(count_outliers(estimate, truth)) == {name: [100.0] * 3 for name in MEASURES}


def test_a_method_that_says_less_is_counted_for_what_it_says() -> None:
    truth = street_truth()
    score = count_outliers(SceneFlowEstimate(disparity_0_px=truth.disparity_0_px), truth)
    assert score.d1.all == Share(part=0, whole=HEIGHT * WIDTH)
    assert score.d2 == score.fl == score.sf == RegionShares()
    unnamed = figures(score)
    assert [math.isnan(each.value) for each in unnamed] == [False] * 3 + [True] * 9


def test_an_image_without_objects_has_no_foreground_and_does_not_change_that_of_others() -> None:
    truth = replace(street_truth(), object_map=np.zeros_like(STREET))
    empty = score_pair(street_prediction(), truth)
    assert empty.d1.foreground == Share()
    found = {each.name: each for each in figures(empty)}
    assert (math.isnan(found["D1, fg"].value), found["D1, fg"].count) == (True, 0)
    assert (found["D1, bg"].value, found["D1, bg"].count) == (0, HEIGHT * WIDTH)
    other = score_pair(replace(street_prediction(), motions={}), street_truth())
    both = percent(empty + other)
    assert both["d2"][1] == 100
    assert both["d2"][2] == pytest.approx(50 * STREET.astype(bool).mean())


def test_empty_truth_counts_nothing() -> None:
    none = np.zeros((HEIGHT, WIDTH))
    truth = truth_of(none, none, np.dstack([none, none]), none > 0, STREET)
    assert math.isnan(image_scale(street_prediction(), truth))
    assert score_pair(street_prediction(), truth) == SceneFlowScore()
    assert score_pair(street_prediction(), truth, METRIC) == SceneFlowScore(pairs=1)
    assert all(math.isnan(each.value) and each.count == 0 for each in figures(SceneFlowScore()))


# Scale rules.


@given(st.floats(1e-3, 1e3))
@settings(max_examples=20, deadline=None)
def test_a_wrong_scale_costs_nothing_with_the_median_of_each_pair(scale: float) -> None:
    assert percent(score_pair(street_prediction(scale), street_truth())) == NONE
    assert image_scale(street_prediction(scale), street_truth()) == pytest.approx(scale)


@pytest.mark.parametrize("scale", [0.3, 5.4])
def test_a_wrong_scale_costs_every_disparity_of_a_metric_prediction_but_no_flow(scale: float) -> None:
    found = percent(score_pair(street_prediction(scale), street_truth(), METRIC))
    assert found == {"d1": [100] * 3, "d2": [100] * 3, "fl": [0] * 3, "sf": [100] * 3}
    assert percent(score_pair(street_prediction(), street_truth(), METRIC)) == NONE


def test_one_scale_for_all_pairs_is_right_for_those_that_have_it() -> None:
    predictions = [street_prediction(scale) for scale in (2.0, 5.0, 5.0)]
    scale = constant_scale(image_scale(each, street_truth()) for each in predictions)
    assert scale == pytest.approx(5)
    total = reduce(add, (score_pair(each, street_truth(), scale) for each in predictions))
    assert percent(total)["d1"][2] == pytest.approx(100 / 3)
    assert constant_scale([math.nan, 3.0]) == 3
    with pytest.raises(PredictionError, match="no pair has a scale"):
        constant_scale([math.nan])


def test_the_scale_is_that_of_all_pixels_with_truth_and_of_no_others() -> None:
    truth = street_truth()
    d0 = truth.disparity_0_px.copy()
    d0[:, 1::2] = 0
    prediction = street_prediction(2.0)
    wrong = prediction.inverse_depth.copy()
    wrong[:, 1::2] *= 50  # there is no truth there
    prediction = replace(prediction, inverse_depth=wrong)
    assert image_scale(prediction, replace(truth, disparity_0_px=d0)) == pytest.approx(2)


# D2 by sampling, with flow of another origin.


def later_ground() -> np.ndarray:
    """The ground's inverse depth as the second camera sees it: again affine in the pixel."""
    R, t = CAMERA[:3, :3], CAMERA[:3, 3]
    normal = np.array([0.02, 0.3, 0.1])
    turned = R @ normal
    return 1 / plane_depth(K, tuple(turned), 2.0 + turned @ t, (WIDTH, HEIGHT))


def test_sampling_the_second_depth_where_flow_leads_finds_the_moved_point() -> None:
    labels = np.zeros_like(STREET)
    prediction = PairPrediction(
        inverse_depth=1 / GROUND_M, later_T_earlier=CAMERA, labels=labels, later_inverse_depth=later_ground()
    )
    truth = street_truth()
    moved, sampled = (estimate_pair(prediction, truth, second=each) for each in ("moved", "sampled"))  # type: ignore[arg-type]
    v, u = np.mgrid[:HEIGHT, :WIDTH]
    assert moved.flow_px is not None
    x, y = u + moved.flow_px[..., 0], v + moved.flow_px[..., 1]
    inside = (x >= 0) & (x <= WIDTH - 1) & (y >= 0) & (y <= HEIGHT - 1)
    assert 0.5 < inside.mean() < 1
    assert moved.disparity_1_px is not None
    assert sampled.disparity_1_px is not None
    np.testing.assert_allclose(sampled.disparity_1_px[inside], moved.disparity_1_px[inside])
    np.testing.assert_array_equal(sampled.flow_px, moved.flow_px)  # type: ignore[arg-type]
    # Outside, the border is read.
    rows, columns = np.clip(y, 0, HEIGHT - 1), np.clip(x, 0, WIDTH - 1)
    corner = ~inside & (rows % 1 == 0) & (columns % 1 == 0)
    assert corner.any()
    expected = later_ground()[rows[corner].astype(int), columns[corner].astype(int)] * K[0, 0] * BASELINE_M
    np.testing.assert_allclose(sampled.disparity_1_px[corner], expected)


def test_a_given_flow_leads_to_the_second_depth_and_is_what_fl_counts() -> None:
    truth = street_truth()
    # Depth that differs from column to column: sampling 7 to the right reads that of 7 to the right.
    later = np.repeat(np.linspace(0.02, 0.2, WIDTH)[None], HEIGHT, axis=0)
    flow = np.zeros((HEIGHT, WIDTH, 2))
    flow[..., 0] = 7
    flow[0, 0] = np.nan
    prediction = replace(street_prediction(2.0), later_inverse_depth=later)
    found = estimate_pair(prediction, truth, 2.0, "sampled", flow)
    assert found.disparity_1_px is not None
    fb = K[0, 0] * BASELINE_M / 2
    np.testing.assert_allclose(found.disparity_1_px[1:, :-7], fb * later[1:, 7:])
    assert math.isnan(found.disparity_1_px[0, 0])
    assert found.flow_px is flow
    assert found.disparity_1_px[5, -1] == pytest.approx(fb * 0.2)
    score = score_pair(street_prediction(), truth, flow_px=truth.flow_px + 100)
    assert percent(score)["d2"] == [0, 0, 0]  # that of the moved point does not need flow
    assert percent(score)["fl"] == [100, 100, 100]


def test_sampling_at_the_maps_own_size_counts_pixels_by_their_edges() -> None:
    # A map of half the size, sampled without flow, is the map resized.
    rng = np.random.default_rng(0)
    half = rng.random((HEIGHT // 2, WIDTH // 2)) + 0.1
    prediction = replace(street_prediction(), inverse_depth=half, later_inverse_depth=half)
    found = estimate_pair(prediction, street_truth(), second="sampled", flow_px=np.zeros((HEIGHT, WIDTH, 2)))
    np.testing.assert_allclose(found.disparity_1_px, found.disparity_0_px)  # type: ignore[arg-type]


# Predictions at other sizes.


@pytest.mark.parametrize("size", [(32, 104), (80, 240), (40, 120), (17, 31), (1, 1)])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_inverse_depth_is_resized_as_opencv_does(size: tuple[int, int], kind: type) -> None:
    inverse_depth = (np.random.default_rng(0).random(size) + 0.1).astype(kind)
    prediction = replace(street_prediction(), inverse_depth=inverse_depth)
    found = estimate_pair(prediction, street_truth()).disparity_0_px
    expected = cv2.resize(inverse_depth, (WIDTH, HEIGHT), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_allclose(found, expected * K[0, 0] * BASELINE_M, rtol=1e-5)
    assert found.dtype == np.float64


def test_labels_of_another_size_lie_where_they_did() -> None:
    # Each label pixel becomes 4 x 3 pixels of the truth, edge to edge.
    small = np.random.default_rng(0).integers(0, 4, (HEIGHT // 4, WIDTH // 3))
    large = np.repeat(np.repeat(small, 4, axis=0), 3, axis=1)
    motions = {label: rigid((0.1 * label, 0, 0.5)) for label in (1, 2, 3)}
    one, other = (
        estimate_pair(replace(street_prediction(), labels=labels, motions=motions), street_truth())
        for labels in (small, large)
    )
    np.testing.assert_array_equal(one.flow_px, other.flow_px)  # type: ignore[arg-type]
    twice = np.repeat(np.repeat(large, 2, axis=0), 2, axis=1)
    other = estimate_pair(replace(street_prediction(), labels=twice, motions=motions), street_truth())
    np.testing.assert_array_equal(one.flow_px, other.flow_px)  # type: ignore[arg-type]


def test_labels_of_a_size_that_does_not_divide_are_read_at_pixel_centres() -> None:
    small = np.random.default_rng(0).integers(0, 4, (27, 79)).astype(np.uint8)
    large = cv2.resize(small, (WIDTH, HEIGHT), interpolation=cv2.INTER_NEAREST_EXACT)
    motions = {label: rigid((0.1 * label, 0, 0.5)) for label in (1, 2, 3)}
    one, other = (
        estimate_pair(replace(street_prediction(), labels=labels, motions=motions), street_truth())
        for labels in (small, large)
    )
    np.testing.assert_array_equal(one.flow_px, other.flow_px)  # type: ignore[arg-type]


def test_half_precision_is_good_enough() -> None:
    prediction = street_prediction()
    stored = replace(prediction, inverse_depth=prediction.inverse_depth.astype(np.float16))
    assert percent(score_pair(stored, street_truth())) == NONE


# The same by other means.


def by_loops(estimate: SceneFlowEstimate, truth: SceneFlowTruth) -> dict[str, list[int]]:
    """Outliers and pixels on background, then on foreground, written out pixel by pixel."""
    counts = {name: [0, 0, 0, 0] for name in MEASURES}
    assert estimate.disparity_1_px is not None
    assert estimate.flow_px is not None
    for v in range(truth.size[1]):
        for u in range(truth.size[0]):
            bad = {}
            for name, found, true in (
                ("d1", estimate.disparity_0_px, truth.disparity_0_px),
                ("d2", estimate.disparity_1_px, truth.disparity_1_px),
            ):
                if true[v, u] > 0:
                    error = abs(float(found[v, u]) - float(true[v, u]))
                    bad[name] = not error < math.inf or (error > 3 and error / float(true[v, u]) > 0.05)
            if truth.flow_valid[v, u]:
                x, y = (float(each) for each in truth.flow_px[v, u])
                error = math.dist(
                    (float(estimate.flow_px[v, u, 0]), float(estimate.flow_px[v, u, 1])), (x, y)
                )
                bad["fl"] = not error < math.inf or (error > 3 and error > 0.05 * math.sqrt(x * x + y * y))
            if len(bad) == 3:
                bad["sf"] = any(bad.values())
            place = 0 if truth.object_map[v, u] == 0 else 2
            for name, outlier in bad.items():
                counts[name][place] += outlier
                counts[name][place + 1] += 1
    return counts


def counts_of(score: SceneFlowScore) -> dict[str, list[int]]:
    return {
        name: [
            getattr(score, name).background.part, getattr(score, name).background.whole,
            getattr(score, name).foreground.part, getattr(score, name).foreground.whole,
        ]
        for name in MEASURES
    }  # fmt: skip


def random_pair(seed: int, size: tuple[int, int] = (7, 5)) -> tuple[PairPrediction, SceneFlowTruth]:
    """A prediction, and truth that is near it on most pixels and missing on some."""
    rng = np.random.default_rng(seed)
    width, height = size
    small = np.array([[9.0, 0, width / 2], [0, 8, height / 2], [0, 0, 1]])

    def motion() -> np.ndarray:
        return rigid(tuple(rng.normal(0, 0.7, 3)), *rng.normal(0, 8, 2))  # type: ignore[arg-type]

    prediction = PairPrediction(
        inverse_depth=1 / rng.uniform(0.5, 5, (height, width)),
        later_T_earlier=motion(),
        labels=rng.integers(0, 4, (height, width)),
        motions={1: motion(), 3: motion()},
    )
    depth = 1 / prediction.inverse_depth
    later, flow = by_points(
        depth, small, prediction.later_T_earlier, prediction.labels, dict(prediction.motions)
    )
    later, flow = np.nan_to_num(later, nan=1.0), np.nan_to_num(flow)
    fb = small[0, 0] * 3.0
    known = rng.random((3, height, width)) < 0.7
    return prediction, SceneFlowTruth(
        pair=0,
        disparity_0_px=np.abs(fb / depth + rng.normal(0, 3, depth.shape)) * known[0],
        disparity_1_px=np.abs(fb / later + rng.normal(0, 3, depth.shape)) * known[1],
        flow_px=flow + rng.normal(0, 2, flow.shape),
        flow_valid=known[2],
        object_map=rng.integers(0, 3, (height, width)).astype(np.uint8),
        K=small,
        baseline_m=3.0,
    )


@given(st.integers(0, 2**32), st.sampled_from([None, METRIC, 0.8]))
@settings(max_examples=60, deadline=None)
def test_a_second_implementation_counts_the_same(seed: int, scale: float | None) -> None:
    prediction, truth = random_pair(seed)
    found = score_pair(prediction, truth, scale)
    depth = 1 / prediction.inverse_depth
    later, flow = by_points(
        depth, truth.K, prediction.later_T_earlier, prediction.labels, dict(prediction.motions)
    )
    if scale is None:
        known = truth.disparity_0_px > 0
        if not known.any():
            assert found == SceneFlowScore()
            return
        fb = truth.K[0, 0] * truth.baseline_m
        scale = float(np.median(fb / truth.disparity_0_px[known])) / float(np.median(depth[known]))
    fb = truth.K[0, 0] * truth.baseline_m
    estimate = SceneFlowEstimate(
        disparity_0_px=fb / (scale * depth), disparity_1_px=fb / (scale * later), flow_px=flow
    )
    assert counts_of(found) == by_loops(estimate, truth)


def test_the_random_pairs_have_outliers_and_others_of_every_measure() -> None:
    total = reduce(add, (score_pair(*random_pair(seed), METRIC) for seed in range(20)))
    for shares in percent(total).values():
        assert all(10 < share < 95 for share in shares)


@given(st.lists(st.integers(0, 2**32), min_size=1, max_size=5))
@settings(max_examples=30, deadline=None)
def test_sums_over_images_equal_the_whole_of_all_their_pixels(seeds: list[int]) -> None:
    pairs = [random_pair(seed) for seed in seeds]
    estimates = [estimate_pair(*pair) for pair in pairs]
    truths = [truth for _, truth in pairs]

    def beside(parts: list[np.ndarray]) -> np.ndarray:
        return np.concatenate(parts, axis=1)

    whole = replace(
        truths[0],
        **{
            name: beside([getattr(each, name) for each in truths])
            for name in ("disparity_0_px", "disparity_1_px", "flow_px", "flow_valid", "object_map")
        },
    )
    estimate = SceneFlowEstimate(
        **{
            name: beside([getattr(each, name) for each in estimates])
            for name in ("disparity_0_px", "disparity_1_px", "flow_px")
        }
    )
    total = reduce(add, map(count_outliers, estimates, truths))
    assert total.pairs == len(seeds)
    assert replace(total, pairs=1) == count_outliers(estimate, whole)
    assert total + SceneFlowScore() == total


def test_the_exact_truth_of_rendered_streets_has_no_outlier(streets: Path) -> None:
    """Depth, motions and flow of the renderer, which knows nothing of this module."""
    truth = read_truth(streets / "test_0000" / "truth.h5")
    clip = truth_as_prediction(truth, "street", scale=7.0)
    total = SceneFlowScore()
    for i in range(len(truth) - 1):
        rows = clip.objects.frame == i
        motions = dict(zip(clip.objects.label[rows].tolist(), clip.objects.motion[rows], strict=True))
        here = np.isfinite(truth.depth_m[i]) & np.isin(truth.ids[i], [0, *motions])
        moving = np.isin(truth.ids[i], truth.objects.id[truth.objects.moving])
        disparity = np.where(here, truth.K[0, 0] * BASELINE_M / truth.depth_m[i], 0)
        pair = SceneFlowTruth(
            pair=i,
            disparity_0_px=disparity,
            disparity_1_px=np.zeros_like(disparity),
            flow_px=truth.flow_px[i],
            flow_valid=here & ((truth.flow_state[i] & FLOW_DEFINED) > 0),
            object_map=moving.astype(np.uint8),
            K=truth.K,
            baseline_m=BASELINE_M,
        )
        prediction = PairPrediction(
            inverse_depth=clip.inverse_depth[i],
            later_T_earlier=clip.later_T_earlier[i],
            labels=clip.labels[i],
            motions=motions,
        )
        total += score_pair(prediction, pair)
        flow = estimate_pair(prediction, pair).flow_px
        assert flow is not None
        assert np.abs(flow - truth.flow_px[i])[pair.flow_valid].max() < 0.1
    assert total.d1.all.value == total.fl.all.value == 0
    assert total.fl.background.whole > 10_000
    assert total.fl.foreground.whole > 1000


# Figures and errors.


def named(found: list[Figure]) -> dict[str, Figure]:
    return {each.name: each for each in found}


def test_there_are_twelve_figures_in_percent_with_their_protocol() -> None:
    score = score_pair(replace(street_prediction(), motions={}), street_truth())
    found = figures(score)
    assert [each.name for each in found] == [
        f"{name}, {region}" for name in ("D1", "D2", "Fl", "SF") for region in ("bg", "fg", "all")
    ]
    assert {each.unit for each in found} == {"%"}
    assert [each.value for each in found] == [value for values in percent(score).values() for value in values]
    car = int((STREET > 0).sum())
    assert [each.count for each in found] == [HEIGHT * WIDTH - car, car, HEIGHT * WIDTH] * 4
    head = (
        "KITTI 2015 scene flow, training, 1 pairs, occ (all pixels with truth); outlier: more than 3 px and "
        "more than 5% off; pixels of all pairs alike; fg: moving cars (obj_map)"
    )
    texts = named(found)
    assert texts["D1, all"].protocol == head
    assert texts["D2, all"].protocol == f"{head}; D2 of the moved point"
    assert texts["Fl, all"].protocol == f"{head}; flow of depth and motions"
    assert texts["SF, all"].protocol == (
        f"{head}; outlier in D1, D2 or Fl, pixels with truth for all three; D2 of the moved point; "
        "flow of depth and motions"
    )


def test_figures_say_how_the_scale_was_chosen() -> None:
    for scale, origin, text in (
        (None, "given", MEDIAN_SCALE),
        (METRIC, "given", "none, predictions are in metres"),
        (5.4, "given", "5.4 m a predicted unit, the same for all pairs (given)"),
        (5.4, "median of all pairs", "5.4 m a predicted unit, the same for all pairs (median of all pairs)"),
    ):
        found = named(figures(SceneFlowScore(), scale, origin))
        assert {found[f"{name}, bg"].scale for name in ("D1", "D2", "SF")} == {text}
        assert found["Fl, bg"].scale == ""  # no scale changes it


def test_figures_say_whose_flow_and_which_truth_they_used() -> None:
    found = named(figures(SceneFlowScore(), second="sampled", flow_from="GeoNet", extent="noc"))
    assert "noc (pixels that are seen in the other image, too)" in found["D1, all"].protocol
    sampled = "D2 of the second depth at the target of the flow of GeoNet, or at the border if outside"
    assert found["D2, all"].protocol.endswith(sampled)
    assert found["Fl, all"].protocol.endswith("flow of GeoNet")
    assert found["SF, all"].protocol.endswith(f"{sampled}; flow of GeoNet")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"inverse_depth": np.ones((1, 2, 2))}, r"inverse_depth is float64 \(1, 2, 2\), expected floating"),
        ({"inverse_depth": np.ones((2, 2), int)}, "inverse_depth is int64"),
        ({"inverse_depth": np.ones((0, 2))}, r"inverse_depth is float64 \(0, 2\)"),
        ({"inverse_depth": np.zeros((2, 2))}, "inverse_depth must be finite and above 0"),
        ({"inverse_depth": np.full((2, 2), np.nan)}, "inverse_depth must be finite and above 0"),
        ({"later_inverse_depth": np.full((2, 2), np.inf)}, "later_inverse_depth must be finite"),
        ({"labels": np.zeros((2, 2))}, r"labels are float64 \(2, 2\), expected integers"),
        ({"labels": np.zeros(4, int)}, r"labels are int64 \(4,\)"),
        ({"motions": {0: np.eye(4)}}, "label 0 is the background"),
        ({"motions": {1: np.eye(3)}}, r"a motion is no finite \(4, 4\) matrix"),
        ({"later_T_earlier": np.full((4, 4), np.nan)}, r"a motion is no finite \(4, 4\) matrix"),
    ],
)
def test_predictions_that_are_none_are_refused(changed: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(PredictionError, match=message):
        replace(street_prediction(), **changed)  # type: ignore[arg-type]


def test_maps_of_another_size_are_refused_in_one_line() -> None:
    truth = street_truth()
    small = np.zeros((3, 4))
    with pytest.raises(PredictionError, match=r"d1 is predicted as \(3, 4\), the truth is \(40, 120\)"):
        count_outliers(SceneFlowEstimate(disparity_0_px=small), truth)
    with pytest.raises(PredictionError, match=r"fl is predicted as \(3, 4\), the truth is \(40, 120, 2\)"):
        count_outliers(SceneFlowEstimate(disparity_0_px=truth.disparity_0_px, flow_px=small), truth)
    with pytest.raises(PredictionError, match=r"flow is \(3, 4\), expected \(40, 120, 2\), the truth's size"):
        estimate_pair(street_prediction(), truth, flow_px=small)
    with pytest.raises(PredictionError, match="needs the second frame's depth"):
        estimate_pair(street_prediction(), truth, second="sampled")


def test_scales_and_shapes_that_cannot_be_are_refused() -> None:
    for scale in (0.0, -1.0, math.inf):
        with pytest.raises(ValueError, match="expected metres a predicted unit, above 0"):
            score_pair(street_prediction(), street_truth(), scale)
    with pytest.raises(ValueError, match=r"depth is \(40, 120\), labels are \(40, 119\)"):
        move(DEPTH_M, K, CAMERA, STREET[:, 1:], {})
    with pytest.raises(ValueError, match="with the last row 0, 0, 1"):
        move(DEPTH_M, K * 2, CAMERA, STREET, {})
