"""Streetworld's truth, given back as a prediction, is perfect; known faults cost what they should."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from evaluation.figure import Figure
from evaluation.predictions import (
    ClipPrediction,
    ObjectMotions,
    PredictionError,
    PredictionIndex,
    write_clip,
    write_index,
)
from evaluation.streetworld import MIN_SHARE, Scores, figures, score_clip, score_streetworld, stored_truth
from pipeline.streetworld.truth import Objects, Truth, read_truth
from tests.evaluation.made import SKY_M, rigid, truth_as_prediction

NAMES = ("test_0000", "test_0001", "test_0002")
NONE_EXPECTED = "of predicting none"


def by_name(results: list[Figure]) -> dict[str, Figure]:
    found = {each.name: each for each in results}
    assert len(found) == len(results), "two figures of one name"
    return found


def values(results: list[Figure]) -> dict[str, float]:
    return {name: each.value for name, each in by_name(results).items()}


@pytest.fixture(scope="module")
def truths(streets: Path) -> dict[str, Truth]:
    return {name: read_truth(streets / name / "truth.h5") for name in NAMES}


def require_perfect(results: list[Figure], tolerance: float) -> None:
    ones = ("d<", "cosine", "over true", "flag", "recall")
    for name, each in by_name(results).items():
        assert each.protocol, name
        if NONE_EXPECTED in name or "infinite" in name:
            continue
        expected = 1.0 if any(part in name for part in ones) else 0.0
        assert each.count > 0, name
        assert each.value == pytest.approx(expected, abs=tolerance), name


def test_truth_given_back_is_perfect_at_any_scale(truths: dict[str, Truth], streets: Path) -> None:
    for scale in (1.0, 7.3):
        clips = [truth_as_prediction(truth, name, scale) for name, truth in truths.items()]
        require_perfect(score_streetworld(clips, streets), 1e-6)


def test_truth_given_back_through_files_is_perfect_to_half_precision(
    truths: dict[str, Truth], streets: Path, tmp_path: Path
) -> None:
    size = truths[NAMES[0]].ids.shape[:0:-1]
    index = PredictionIndex(checkpoint="truth", size=size, clips=NAMES)
    for name, truth in truths.items():
        write_clip(tmp_path, truth_as_prediction(truth, name, 3.0), index)
    write_index(tmp_path, index)
    require_perfect(score_streetworld(tmp_path, streets), 0.02)


def test_a_constant_depth_and_no_motion(truths: dict[str, Truth], streets: Path) -> None:
    truth = truths[NAMES[1]]
    perfect = truth_as_prediction(truth, NAMES[1])
    still = replace(
        perfect,
        inverse_depth=np.ones_like(perfect.inverse_depth),
        later_T_earlier=np.tile(np.eye(4), (len(truth) - 1, 1, 1)),
        objects=replace(perfect.objects, motion=np.tile(np.eye(4), (len(perfect.objects), 1, 1))),
    )
    found = values(score_streetworld([still], streets))
    expected = []
    for depth in truth.depth_m:
        t = depth[depth < 80].astype(np.float64)
        expected.append((np.abs(np.median(t) - t) / t).mean())
    assert found["AbsRel, all"] == pytest.approx(np.mean(expected))
    assert found["object translation error, relative, pooled"] == pytest.approx(1)
    assert found["object translation error, relative"] == pytest.approx(1)
    assert found["moving flag recall"] == 0
    assert found["speed of parked objects"] == 0
    assert found["camera direction error"] == pytest.approx(90)
    for group in ("turning cars", "all objects"):
        none = found[f"object rotation error of predicting none, {group}"]
        assert found[f"object rotation error, {group}"] == pytest.approx(none, nan_ok=True)


# A scene small enough for paper: ground 10 m away, a moving car (id 1) ahead that keeps the camera's speed,
# a parked one (id 2), and a row of sky. 12 x 8 pixels, focal length 6.
SIZE, AHEAD_M, STEP_M = (12, 8), 5.0, 1.0


def paper_truth(frames: int = 6) -> Truth:
    depth = np.full((frames, 8, 12), 10.0, np.float32)
    depth[:, 0] = np.inf
    ids = np.zeros((frames, 8, 12), np.uint16)
    ids[:, 2:6, 1:5], ids[:, 2:6, 7:11] = 1, 2
    depth[:, 2:6, 1:5] = AHEAD_M
    poses = np.stack([rigid((0, 0, STEP_M * k)) for k in range(frames)])
    following = poses @ rigid((0, 0, AHEAD_M))
    parked = np.tile(rigid((2, 0, 40)), (frames, 1, 1))
    return Truth(
        depth_m=depth,
        ids=ids,
        flow_px=np.zeros((frames - 1, 8, 12, 2), np.float32),
        flow_state=np.zeros((frames - 1, 8, 12), np.uint8),
        K=np.array([[6.0, 0, 5.5], [0, 6, 3.5], [0, 0, 1]]),
        world_T_camera=poses,
        timestamps_s=np.arange(frames) / 10,
        objects=Objects(
            id=np.array([1, 2], np.uint16),
            label=("car", "car"),
            kind=("car", "car"),
            size_m=np.ones((2, 3)),
            moving=np.array([True, False]),
            world_T_object=np.stack([following, parked], axis=1),
            visible_px=np.full((frames, 2), 16, np.int32),
        ),
        scenario="following",
        seed=0,
        config={},
    )


def paper_values(clip: ClipPrediction, truth: Truth) -> dict[str, float]:
    return values(figures(score_clip(clip, stored_truth(truth, clip))))


def test_a_car_at_the_cameras_speed_predicted_too_deep() -> None:
    truth = paper_truth()
    clip = truth_as_prediction(truth, "paper", 3.0)
    deep = clip.inverse_depth.copy()
    deep[:, 2:6, 1:5] = 3 / (AHEAD_M * 2.5)  # and the median, 10 m, stays
    found = paper_values(replace(clip, inverse_depth=deep), truth)
    assert found["signed depth error, cars at the camera's speed"] == pytest.approx(1.5)
    assert found["AbsRel, moving"] == pytest.approx(1.5)
    assert found["AbsRel, parked"] == pytest.approx(0)
    assert found["AbsRel, object"] == pytest.approx(0.75)
    assert found["AbsRel, background"] == pytest.approx(0)
    assert found["AbsRel, all"] == pytest.approx(1.5 * 16 / 84)
    assert found["far share, moving cars"] == 1  # 12.5 m is beyond twice 5 m,
    assert found["infinite depth share, moving cars"] == 0  # not beyond twice the ground's 10 m
    deep[:, 2:6, 1:5] = 3 / 20.1
    found = paper_values(replace(clip, inverse_depth=deep), truth)
    assert found["infinite depth share, moving cars"] == 1
    assert found["infinite depth share of the true depth, moving cars"] == 0


def test_sky_is_left_out_of_scale_and_errors() -> None:
    truth = paper_truth()
    clip = truth_as_prediction(truth, "paper")
    near = clip.inverse_depth.copy()
    assert near[0, 0, 0] == 1 / SKY_M
    near[:, 0] = 1.0
    assert paper_values(replace(clip, inverse_depth=near), truth)["AbsRel, all"] == pytest.approx(0)


def test_translations_of_objects_take_the_scale_of_their_images_depth() -> None:
    truth = paper_truth()
    clip = truth_as_prediction(truth, "paper", 4.0)
    found = paper_values(replace(clip, inverse_depth=clip.inverse_depth / 2), truth)
    # Depth says 2 m a unit where motions mean 4: objects move half as far, and the camera has its own scale.
    assert found["object translation error, relative"] == pytest.approx(0.5)
    assert found["object displacement, estimated over true"] == pytest.approx(0.5)
    assert found["5-frame ATE mean, n-4 full snippets"] == pytest.approx(0, abs=1e-12)


def test_labels_stand_for_what_most_of_their_pixels_show() -> None:
    truth = paper_truth()
    clip = truth_as_prediction(truth, "paper")
    # A mask that is too wide still is the moving car; swapped labels give each car the other's motion.
    wide = clip.labels.copy()
    wide[:, 1:7, 1:5] = 1
    assert paper_values(replace(clip, labels=wide), truth)[
        "object translation error, relative"
    ] == pytest.approx(0)
    swapped = np.choose(clip.labels, [0, 2, 1]).astype(np.uint16)
    found = paper_values(replace(clip, labels=swapped), truth)
    assert found["object translation error, relative"] == pytest.approx(1)
    assert found["speed of parked objects"] == pytest.approx(STEP_M / 0.1)
    assert found["moving flag recall"] == 0


def test_estimates_on_background_are_strange_and_missed_objects_cost_recall() -> None:
    truth = paper_truth()
    clip = truth_as_prediction(truth, "paper")
    elsewhere = np.where(clip.labels == 1, 0, clip.labels)
    elsewhere[:, 7, :] = 1
    found = paper_values(replace(clip, labels=elsewhere), truth)
    assert found["recall of moving objects"] == 0
    assert found["estimates that stand for no object"] == 0.5
    found = paper_values(replace(clip, objects=ObjectMotions.empty()), truth)
    assert found["recall of moving objects"] == 0
    assert np.isnan(found["object translation error, relative"])


@pytest.mark.parametrize(("least", "asked"), [(16, 5), (17, 0)])
def test_objects_below_the_least_share_of_the_image_are_not_asked_for(
    least: int, asked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    truth = paper_truth()
    clip = truth_as_prediction(truth, "paper")
    monkeypatch.setattr("evaluation.streetworld.MIN_SHARE", least / (8 * 12))  # they have 16 pixels each
    scores = score_clip(clip, stored_truth(truth, clip))
    assert len(scores.errors) == 2 * asked
    assert scores.found.asked == asked
    assert scores.found.estimates == 10


def test_64_pixels_of_208x64_are_enough() -> None:
    assert 64 / (208 * 64) >= MIN_SHARE > 63 / (208 * 64)


def test_every_second_frame_is_scored_against_the_truth_of_its_time() -> None:
    truth = paper_truth(9)
    clip = truth_as_prediction(truth, "paper")
    double = clip.later_T_earlier[1::2] @ clip.later_T_earlier[::2]
    thinned = replace(
        clip,
        inverse_depth=clip.inverse_depth[::2],
        labels=clip.labels[::2],
        later_T_earlier=double,
        objects=ObjectMotions.empty(),
        timestamps_s=clip.timestamps_s[::2] + 0.001,
    )
    found = paper_values(thinned, truth)
    assert found["5-frame ATE mean, n-4 full snippets"] == pytest.approx(0, abs=1e-12)
    assert found["camera direction error"] == pytest.approx(0, abs=1e-9)


def test_predictions_at_half_the_size_meet_the_nearest_true_pixel(truths: dict[str, Truth]) -> None:
    truth = truths[NAMES[1]]
    clip = truth_as_prediction(truth, NAMES[1])
    # u' = (u + .5) / 2 - .5: the stored pixel lies between two, and either may be the nearest.
    half_K = np.diag([0.5, 0.5, 1]) @ truth.K + np.array([[0, 0, -0.25], [0, 0, -0.25], [0, 0, 0]])
    half = replace(
        clip,
        inverse_depth=clip.inverse_depth[:, ::2, ::2],
        labels=np.zeros_like(clip.labels[:, ::2, ::2]),
        objects=ObjectMotions.empty(),
        K=half_K,
    )
    stored = stored_truth(truth, half)
    assert stored.ids.shape == half.labels.shape
    found = values(figures(score_clip(half, stored)))
    assert found["AbsRel, all"] < 0.05


def test_objects_of_different_clips_never_share_a_track(truths: dict[str, Truth]) -> None:
    truth = truths[NAMES[1]]
    clip = truth_as_prediction(truth, NAMES[1])
    once = score_clip(clip, stored_truth(truth, clip))
    twice = once + once
    assert len(np.unique(twice.errors.track)) == 2 * len(np.unique(once.errors.track))
    assert twice.found.asked == 2 * once.found.asked
    assert twice.regions["all"].images == 2 * len(truth)


def test_no_clip_at_all_is_nan_everywhere(streets: Path) -> None:
    results = score_streetworld([], streets)
    assert all(np.isnan(each.value) and each.count == 0 for each in results)
    assert {each.name for each in results} == {each.name for each in figures(Scores())}


def test_predictions_of_other_streets_are_refused(truths: dict[str, Truth], streets: Path) -> None:
    clip = truth_as_prediction(truths[NAMES[1]], NAMES[1])
    with pytest.raises(PredictionError, match=r"truth\.h5 is missing; give the streetworld folder"):
        score_streetworld([replace(clip, name="elsewhere")], streets)
    late = replace(clip, timestamps_s=clip.timestamps_s + 0.03)
    with pytest.raises(PredictionError, match=r"up to 0\.030 s from those of its truth"):
        score_streetworld([late], streets)


def test_figures_that_depend_on_a_scale_say_how_it_was_chosen() -> None:
    truth = paper_truth()
    clip = truth_as_prediction(truth, "paper")
    found = figures(score_clip(clip, stored_truth(truth, clip)))
    scaled = [each for each in found if each.name.startswith(("AbsRel", "far share", "object translation"))]
    assert len(scaled) > 10
    assert all("median" in each.scale for each in scaled)
    assert not any(each.scale for each in found if each.name.startswith("camera"))
