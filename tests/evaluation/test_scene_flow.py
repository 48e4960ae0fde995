"""Scene flow errors: what counts as an outlier, where, and what the figures say."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from evaluation.depth import Share
from evaluation.figure import Figure
from evaluation.predictions import PredictionError
from evaluation.scene_flow import (
    MEDIAN_SCALE,
    METRIC,
    RegionShares,
    SceneFlowEstimate,
    SceneFlowScore,
    count_outliers,
    estimate_pair,
    figures,
    image_scale,
    is_outlier,
    move,
    score_pair,
)
from tests.evaluation.made import rigid
from tests.evaluation.scene_flow_scenes import (
    CAMERA,
    DEPTH_M,
    HEIGHT,
    MEASURES,
    NONE,
    STREET,
    WIDTH,
    K,
    percent,
    street_prediction,
    street_truth,
    truth_of,
)


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
