"""The benchmarks' rules for depth, on maps whose answers are known on paper."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from evaluation.depth import ERRORS, DepthTally
from evaluation.depth_protocols import (
    ALL,
    CITYSCAPES,
    GARG_CROP,
    KITTI_EIGEN,
    KITTI_EIGEN_Z,
    KITTI_IMPROVED,
    MEDIAN_SCALE,
    NO_CROP,
    Crop,
    DepthProtocol,
    DepthScore,
    figures,
    resample,
    score_map,
    shown_box,
)
from evaluation.ground_truth.kitti_depth import raw_depth
from evaluation.predictions import PredictionError
from pipeline.errors import ConfigError
from tests.evaluation.test_kitti_depth import real_frames

PERFECT = [0, 0, 0, 0, 1, 1, 1]
KITTI_SIZE, CITY_SIZE = (375, 1242), (1024, 2048)
PLAIN = DepthProtocol(name="plain", truth="made", crop=NO_CROP)


def errors(score: DepthScore, region: str = ALL) -> dict[str, float]:
    return dict(zip(ERRORS, score.regions[region].image_mean().tolist(), strict=True))


def truth_of(size: tuple[int, int]) -> np.ndarray:
    """Depth from 4 m to 60 m, everywhere."""
    return np.linspace(4, 60, size[0] * size[1], dtype=np.float32).reshape(size)


def counts(protocol: DepthProtocol, size: tuple[int, int], rows: slice, columns: slice) -> bool:
    """Whether a protocol counts any pixel of a part of an image, found from outside."""
    truth = np.zeros(size, np.float32)
    truth[rows, columns] = 5
    return score_map(np.ones((1, 1)), truth, protocol).regions[ALL].images == 1


def assert_counts_exactly(
    protocol: DepthProtocol, size: tuple[int, int], rows: tuple[int, int], columns: tuple[int, int]
) -> None:
    """A protocol counts rows[0]..rows[1] - 1 and columns alike, and nothing around them."""
    every = slice(None)
    for first, inside in ((rows[0] - 1, False), (rows[0], True), (rows[1] - 1, True), (rows[1], False)):
        assert counts(protocol, size, slice(first, first + 1), every) == inside
    for first, inside in (
        *((columns[0] - 1, False), (columns[0], True)),
        *((columns[1] - 1, True), (columns[1], False)),
    ):
        assert counts(protocol, size, every, slice(first, first + 1)) == inside
    whole = score_map(np.ones((1, 1)), np.full(size, 5.0), protocol)
    assert whole.regions[ALL].pooled.pixels == (rows[1] - rows[0]) * (columns[1] - columns[0])


def window(size: tuple[int, int], rows: slice, columns: slice) -> np.ndarray:
    mask = np.zeros(size, bool)
    mask[rows, columns] = True
    return mask


@pytest.mark.parametrize(
    ("size", "rows", "columns"),
    [
        (KITTI_SIZE, (153, 371), (44, 1197)),
        ((374, 1238), (152, 370), (44, 1193)),  # 152.63, 370.97, 44.50, 1193.50: cut, not rounded
        ((370, 1226), (151, 366), (44, 1181)),  # other days have other sizes; 0.99189189 * 370 < 367
    ],
)
def test_the_garg_crop_to_the_pixel(
    size: tuple[int, int], rows: tuple[int, int], columns: tuple[int, int]
) -> None:
    assert_counts_exactly(KITTI_EIGEN, size, rows, columns)


def test_the_cityscapes_crop_to_the_pixel() -> None:
    assert_counts_exactly(CITYSCAPES, CITY_SIZE, (256, 768), (192, 1856))
    assert_counts_exactly(CITYSCAPES, (256, 512), (64, 192), (48, 464))


def test_improved_truth_counts_everywhere() -> None:
    score = score_map(np.ones((1, 1)), np.full(KITTI_SIZE, 5.0), KITTI_IMPROVED)
    assert score.regions[ALL].pooled.pixels == 375 * 1242


@pytest.mark.parametrize("protocol", [KITTI_EIGEN, KITTI_EIGEN_Z, KITTI_IMPROVED])
@pytest.mark.parametrize("factor", [1.0, 0.01, 37.5])
def test_a_perfect_prediction_of_any_scale_has_no_error(protocol: DepthProtocol, factor: float) -> None:
    truth = truth_of(KITTI_SIZE)
    score = score_map(1 / (truth * factor), truth, protocol)
    assert list(errors(score).values()) == pytest.approx(PERFECT, abs=1e-5)
    assert score.scales == pytest.approx((1 / factor,), rel=1e-5)


def test_cityscapes_predictions_show_the_rows_above_the_bonnet() -> None:
    truth = truth_of(CITY_SIZE)[::-1]  # the nearer, the lower
    score = score_map(1 / truth[:768], truth, CITYSCAPES)
    assert list(errors(score).values()) == pytest.approx(PERFECT, abs=1e-5)
    assert score.regions[ALL].pooled.pixels == 512 * 1664
    # A prediction for all rows would be squeezed, and is far off.
    assert errors(score_map(1 / truth, truth, CITYSCAPES))["AbsRel"] > 0.05


def test_a_known_factor_on_some_of_the_pixels() -> None:
    # The left 3/4 right, the right 1/4 twice as deep: the median is that of the right part alone.
    truth = np.full((4, 8), 10.0)
    predicted = truth.copy()
    predicted[:, 6:] = 20
    found = errors(score_map(1 / predicted, truth, PLAIN))
    assert found == pytest.approx(
        {
            "AbsRel": 0.25,
            "SqRel": 2.5,
            "RMSE": 5.0,
            "RMSElog": np.log(2) / 2,
            "d<1.25": 0.75,
            "d<1.25^2": 0.75,
            "d<1.25^3": 0.75,
        }
    )


def test_a_known_factor_on_half_of_the_pixels_is_shared_by_the_median() -> None:
    # Depths 10 and 20 on half the pixels each, median 15: 2/3 and 4/3 of the truth.
    truth = np.full((4, 8), 10.0)
    predicted = truth.copy()
    predicted[:, 4:] = 20
    score = score_map(1 / predicted, truth, PLAIN)
    assert errors(score)["AbsRel"] == pytest.approx(1 / 3)
    assert score.scales == pytest.approx((2 / 3,))


def test_a_given_scale_replaces_the_median() -> None:
    truth = np.full((4, 8), 10.0)
    score = score_map(1 / truth, truth, PLAIN, scale=2.0)
    assert errors(score)["AbsRel"] == pytest.approx(1)
    assert score.scales == (1.0,)  # what the median would have been: its spread tells of the network
    with pytest.raises(ConfigError, match="a scale of 0; expected metres"):
        score_map(1 / truth, truth, PLAIN, scale=0.0)


def test_pixels_outside_the_crop_do_not_move_the_scale() -> None:
    truth = truth_of(KITTI_SIZE)
    predicted = truth.copy()
    predicted[:153], predicted[:, :44] = 1e3, 1e3
    predicted[371:], predicted[:, 1197:] = 1e-3, 1e-3
    assert errors(score_map(1 / predicted, truth, KITTI_EIGEN))["AbsRel"] == pytest.approx(0, abs=1e-6)


def test_truth_from_the_cap_on_does_not_count() -> None:
    truth = np.array([[0, 1e-3, 40, 79.99, 80, 85, np.nan, np.inf]])
    assert score_map(np.ones((1, 8)), truth, PLAIN).regions[ALL].pooled.pixels == 2
    near = replace(PLAIN, cap_m=50.0)
    assert score_map(np.ones((1, 8)), truth, near).regions[ALL].pooled.pixels == 1


@pytest.mark.parametrize(
    ("protocol", "counted"), [(KITTI_IMPROVED, 4), (replace(KITTI_IMPROVED, far_truth=False), 3)]
)
def test_improved_truth_counts_what_lies_beyond_the_cap_and_clamps_the_prediction(
    protocol: DepthProtocol, counted: int
) -> None:
    truth = np.array([[40.0, 40.0], [40.0, 100.0]], np.float32)
    tally = score_map(1 / truth.astype(np.float64), truth, protocol).regions["all"].pooled
    assert tally.pixels == counted
    assert tally.abs_rel == pytest.approx(0.2 if counted == 4 else 0)  # 80 where 100 is true


@pytest.mark.parametrize("cap_m", [80.0, 50.0])
def test_scaled_depth_is_clamped_to_the_cap_after_scaling(cap_m: float) -> None:
    # Two of three right, so the scale is 1/100; the third is 100 times too deep: 4000 m -> the cap.
    truth = np.array([[10.0, 20, 40]])
    predicted = np.array([[10.0, 20, 4000]]) * 100
    found = errors(score_map(1 / predicted, truth, replace(PLAIN, cap_m=cap_m)))
    assert found["AbsRel"] == pytest.approx((cap_m - 40) / 40 / 3)


def test_an_empty_truth_adds_nothing() -> None:
    empty = score_map(
        np.ones((4, 8)), np.zeros(KITTI_SIZE), KITTI_EIGEN, {"object": np.ones(KITTI_SIZE, bool)}
    )
    assert empty == DepthScore(regions={ALL: DepthTally(), "object": DepthTally()})
    truth = truth_of(KITTI_SIZE)
    full = score_map(np.ones((4, 8)), truth, KITTI_EIGEN)
    assert (full + empty).regions[ALL] == full.regions[ALL]
    assert (full + empty).scales == full.scales


def test_objects_are_judged_with_the_scale_of_all_pixels() -> None:
    truth = np.full((4, 8), 10.0)
    objects = window((4, 8), slice(0, 2), slice(0, 4))
    predicted = np.where(objects, 0.2, 0.1)
    score = score_map(1 / predicted, truth, PLAIN, {"object": objects, "background": ~objects})
    assert errors(score, "object")["AbsRel"] == pytest.approx(1)
    assert errors(score, "background")["AbsRel"] == pytest.approx(0)
    assert errors(score)["AbsRel"] == pytest.approx(8 / 32)


def test_an_image_without_objects_does_not_enter_their_mean() -> None:
    truth = np.full((4, 8), 10.0)
    objects = window((4, 8), slice(0, 2), slice(0, 4))
    predicted = np.where(objects, 20.0, 10.0)
    total = DepthScore()
    for mask, depth in ((objects, predicted), (np.zeros_like(objects), truth)):
        total += score_map(1 / depth, truth, PLAIN, {"object": mask})
    assert (total.regions["object"].images, total.regions[ALL].images) == (1, 2)
    assert errors(total, "object")["AbsRel"] == pytest.approx(1)
    assert errors(total)["AbsRel"] == pytest.approx(1 / 8)


@pytest.mark.parametrize("size", [(256, 832), (192, 640), (375, 1242), (768, 2048), (96, 2000), (1, 1)])
def test_disparity_is_resized_as_opencv_does(size: tuple[int, int]) -> None:
    disparity = np.random.default_rng(0).random(size, np.float32) + 0.01
    expected = cv2.resize(disparity, KITTI_SIZE[::-1], interpolation=cv2.INTER_LINEAR)
    rows, columns = GARG_CROP.window(*KITTI_SIZE)
    box = KITTI_EIGEN.shown(*KITTI_SIZE)
    whole = resample(disparity, box, slice(0, 375), slice(0, 1242))
    np.testing.assert_allclose(whole, expected, rtol=1e-5)
    np.testing.assert_array_equal(resample(disparity, box, rows, columns), whole[rows, columns])
    assert whole.dtype == np.float32


def test_disparity_is_resized_before_it_is_inverted() -> None:
    # 1/10 and 1/30 of 2 px on 4 px, pixel edges to pixel edges: 1/10, 3/4 + 1/4, 1/4 + 3/4, 1/30.
    disparity, truth = np.array([[1 / 10, 1 / 30]]), np.array([[10, 12, 20, 30]])
    score = score_map(disparity, truth, PLAIN, scale=1.0)
    assert errors(score)["AbsRel"] == pytest.approx(0)


def test_half_precision_is_computed_in_single() -> None:
    truth = truth_of(KITTI_SIZE)
    found = errors(score_map((1 / truth).astype(np.float16), truth, KITTI_EIGEN))
    assert 0 < found["AbsRel"] < 1e-3


def test_a_map_that_was_cut_out_of_the_image_is_put_back_where_it_was() -> None:
    # 40x20 pixels halved to 20x10, 2 columns cut off on either side and 1 row at the top.
    truth = np.repeat(np.linspace(4, 40, 40)[None], 20, axis=0)
    truth_K = np.array([[50, 0, 19.0], [0, 50, 9.0], [0, 0, 1]])
    map_K = np.array([[25, 0, (19 + 0.5) / 2 - 0.5 - 2], [0, 25, (9 + 0.5) / 2 - 0.5 - 1], [0, 0, 1]])
    box = shown_box(map_K, (16, 9), truth_K)
    assert box == (3.5, 1.5, 35.5, 19.5)
    u = (np.arange(16) + 0.5) * 2 + 4 - 0.5
    disparity = np.repeat((u + 1)[None], 9, axis=0)  # rises by 1 a column of the truth
    inside = resample(disparity, box, slice(2, 20), slice(5, 35))
    np.testing.assert_allclose(inside, np.repeat(np.arange(6.0, 36)[None], 18, axis=0))
    outside = np.isnan(resample(disparity, box, slice(0, 20), slice(0, 40)))
    np.testing.assert_array_equal(outside, ~window((20, 40), slice(2, 20), slice(4, 36)))
    with pytest.raises(PredictionError, match="224 of 800 pixels that count have no predicted depth"):
        score_map(disparity, truth, PLAIN, shown=box)
    whole = score_map(
        disparity, truth, replace(PLAIN, crop=Crop(name="", top=0.1, left=0.1, right=0.9)), shown=box
    )
    assert whole.regions[ALL].pooled.pixels == 18 * 32


def test_the_box_of_the_whole_image_is_the_protocols() -> None:
    K = np.array([[721.5, 0, 609.6], [0, 721.5, 172.9], [0, 0, 1]])
    sx, sy = 832 / 1242, 256 / 375
    small = np.array([[sx, 0, 0.5 * sx - 0.5], [0, sy, 0.5 * sy - 0.5], [0, 0, 1]]) @ K
    assert shown_box(small, (832, 256), K) == pytest.approx(KITTI_EIGEN.shown(*KITTI_SIZE))
    assert CITYSCAPES.shown(*CITY_SIZE) == (-0.5, -0.5, 2047.5, 767.5)


def test_holes_are_refused_where_they_count_and_only_there() -> None:
    truth = truth_of(KITTI_SIZE)
    for nothing in (0, np.nan):
        predicted = 1 / truth
        predicted[:153, :] = nothing
        assert errors(score_map(predicted, truth, KITTI_EIGEN))["AbsRel"] == pytest.approx(0, abs=1e-6)
        predicted[200, 300] = nothing
        with pytest.raises(PredictionError, match=r"1 of 251354 pixels that count have no predicted depth"):
            score_map(predicted, truth, KITTI_EIGEN)
        truth_there = truth.copy()
        truth_there[200, 300] = 0
        score_map(predicted, truth_there, KITTI_EIGEN)


def test_impossible_values_are_refused() -> None:
    truth = np.full((2, 2), 10.0)
    for value in (-1.0, np.inf):
        with pytest.raises(PredictionError, match="below 0 or infinite"):
            score_map(np.full((2, 2), value), truth, PLAIN)


@pytest.mark.parametrize(
    ("inverse_depth", "truth", "masks", "message"),
    [
        (np.ones((1, 2, 2)), np.ones((2, 2)), {}, "not floating"),
        (np.ones((2, 2), int), np.ones((2, 2)), {}, "not floating"),
        (np.ones((2, 2)), np.ones(4), {}, "true depth"),
        (np.ones((2, 2)), np.ones((2, 2)), {"object": np.ones((2, 3), bool)}, "mask object"),
        (np.ones((2, 2)), np.ones((2, 2)), {"object": np.ones((2, 2))}, "mask object"),
        (np.ones((2, 2)), np.ones((2, 2)), {ALL: np.ones((2, 2), bool)}, "is taken"),
    ],
)
def test_wrong_shapes_and_types_are_named(
    inverse_depth: np.ndarray, truth: np.ndarray, masks: Mapping[str, np.ndarray], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        score_map(inverse_depth, truth, PLAIN, masks)


def test_protocols_that_contradict_themselves_cannot_be_made() -> None:
    with pytest.raises(ConfigError, match="shares must rise"):
        Crop(name="upside down", top=0.6, bottom=0.4)
    with pytest.raises(ConfigError, match="is not seen"):
        replace(PLAIN, unseen_rows=0.25)
    with pytest.raises(ConfigError, match="a cap of 0 m"):
        replace(PLAIN, cap_m=0.0)


def test_every_figure_carries_its_protocol_and_its_scale_rule() -> None:
    truth = truth_of(KITTI_SIZE)
    score = score_map(1 / truth, truth, KITTI_EIGEN, {"object": truth < 20})
    with pytest.raises(ValueError, match="say where the masks come from"):
        figures(score, KITTI_EIGEN)
    found = figures(score, KITTI_EIGEN, masks_from="by hand")
    assert len(found) == 2 * 2 * len(ERRORS) + 1
    for figure in found:
        assert figure.protocol.startswith("KITTI Eigen: raw LiDAR scans, depth = the LiDAR's forward x")
        assert figure.scale == MEDIAN_SCALE
    assert "; masks: by hand; mean over images" in found[0].protocol
    given = figures(score_map(1 / truth, truth, KITTI_EIGEN, scale=5.4), KITTI_EIGEN, scale=5.4)
    assert {each.scale for each in given[:-1]} == {"5.4 m a predicted unit, given, the same for all images"}
    assert figures(DepthScore(), PLAIN)[0].count == 0


def test_the_descriptions_state_the_rules() -> None:
    assert KITTI_EIGEN.description == (
        "KITTI Eigen: raw LiDAR scans, depth = the LiDAR's forward x, devkit rounding, nearest point; "
        "0.001 < true depth < 80 m; Garg crop (rows 0.40810811-0.99189189 of the height, columns "
        "0.03594771-0.96405229 of the width); disparity resized bilinearly to the truth's size, then "
        "inverted; scaled, then clamped to [0.001, 80] m"
    )
    assert "; no crop; " in KITTI_IMPROVED.description
    assert "rows 256:768, columns 192:1856 of 2048x1024" in CITYSCAPES.description
    assert "without the bottom 25% of the rows" in CITYSCAPES.description
    assert "camera's z (not the published rule)" in KITTI_EIGEN_Z.description


def test_the_spread_of_the_scales() -> None:
    # Scales 1, 2 and 3: standard deviation sqrt(2/3) over mean 2.
    truth, total = np.full((2, 2), 10.0), DepthScore()
    for scale in (1, 2, 3):
        total += score_map(scale / truth, truth, PLAIN)
    assert total.scales == pytest.approx((1, 2, 3))
    spread = figures(total, PLAIN)[-1]
    assert (spread.name, spread.count) == ("spread of the median scale", 3)
    assert spread.value == pytest.approx(np.sqrt(2 / 3) / 2)
    assert np.isnan(DepthScore().scale_spread)


def usual_abs_rel(disparity: np.ndarray, truth: np.ndarray) -> float:
    """AbsRel of one KITTI image, written out as in the papers."""
    height, width = truth.shape
    depth = 1 / cv2.resize(disparity, (width, height), interpolation=cv2.INTER_LINEAR)
    crop = np.array(
        [0.40810811 * height, 0.99189189 * height, 0.03594771 * width, 0.96405229 * width]
    ).astype(int)
    mask = np.zeros(truth.shape, bool)
    mask[crop[0] : crop[1], crop[2] : crop[3]] = True
    mask &= (truth > 1e-3) & (truth < 80)
    predicted, true = depth[mask], truth[mask]
    predicted = np.clip(predicted * np.median(true) / np.median(predicted), 1e-3, 80)
    return float(np.mean(np.abs(predicted - true) / true))


def test_real_truth_scores_as_the_usual_recipe_does(test_data: Path) -> None:
    frames = real_frames(test_data)
    total, usual = DepthScore(), []
    road = np.repeat(np.linspace(0.001, 1, 256, dtype=np.float32)[:, None], 832, axis=1)
    constant = DepthScore()
    for frame in frames:
        truth = raw_depth(test_data / "kitti_raw", frame)
        total += score_map(road, truth, KITTI_EIGEN)
        constant += score_map(np.ones((1, 1)), truth, KITTI_EIGEN)
        usual.append(usual_abs_rel(road, truth))
    assert errors(total)["AbsRel"] == pytest.approx(np.mean(usual), rel=1e-5)
    assert total.regions[ALL].images == 25
    # A wall at one distance: what any network must beat on these frames.
    assert errors(constant)["AbsRel"] == pytest.approx(0.3414, abs=5e-5)
