"""Scene flow: scale rules, D2 by sampling with flow of another origin, maps of other sizes."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import reduce
from operator import add

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.predictions import PredictionError
from evaluation.scene_flow import (
    METRIC,
    PairPrediction,
    constant_scale,
    estimate_pair,
    image_scale,
    score_pair,
)
from tests.evaluation.made import rigid
from tests.evaluation.scene_flow_scenes import (
    BASELINE_M,
    CAMERA,
    GROUND_M,
    HEIGHT,
    NONE,
    STREET,
    WIDTH,
    K,
    percent,
    plane_depth,
    street_prediction,
    street_truth,
)

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
