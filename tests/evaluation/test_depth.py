"""Depth errors on maps whose answers are known on paper."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.depth import (
    ERRORS,
    DepthTally,
    PixelSums,
    Share,
    beyond_contact,
    contact_depth,
    far_share,
    figures,
    median_scale,
    merge,
    pixel_sums,
    score_image,
    valid_truth,
)

RAMP = np.linspace(2, 60, 48).reshape(6, 8)
ALL = np.ones((6, 8), bool)


def errors_of(tally: DepthTally) -> dict[str, float]:
    return dict(zip(ERRORS, tally.image_mean().tolist(), strict=True))


@given(st.floats(1e-4, 1e4))
def test_a_perfect_prediction_of_any_scale_has_no_error(scale: float) -> None:
    found = errors_of(score_image(RAMP * scale, RAMP, ALL, {"all": ALL})["all"])
    assert found == pytest.approx(dict(zip(ERRORS, [0, 0, 0, 0, 1, 1, 1], strict=True)), abs=1e-9)


def test_the_seven_errors_of_two_pixels() -> None:
    # Predicted 10 and 30 where the truth is 10 and 20.
    truth, predicted = np.array([[10.0, 20.0]]), np.array([[10.0, 30.0]])
    found = pixel_sums(predicted, truth, np.ones((1, 2), bool))
    expected = [0.25, 2.5, np.sqrt(50), np.sqrt(np.log(1.5) ** 2 / 2), 0.5, 1.0, 1.0]
    np.testing.assert_allclose(found.errors(), expected)  # 1.5 lies between 1.25 and 1.25^2 = 1.5625
    assert found.mean_signed == 0.25


def test_errors_too_deep_and_too_shallow_have_opposite_signs() -> None:
    one, truth = np.ones((1, 1), bool), np.array([[10.0]])
    assert pixel_sums(truth * 2, truth, one).mean_signed == 1
    assert pixel_sums(truth / 2, truth, one).mean_signed == -0.5


def test_a_region_is_judged_with_the_scale_of_the_whole_image() -> None:
    # Objects twice as deep as they are, and fewer than the background: their error stays 1.
    objects = np.zeros((6, 8), bool)
    objects[:2, :3] = True
    truth = np.full((6, 8), 10.0)
    predicted = np.where(objects, 20.0, 10.0) * 0.07
    found = score_image(predicted, truth, ALL, {"all": ALL, "object": objects, "background": ~objects})
    assert errors_of(found["object"])["AbsRel"] == pytest.approx(1)
    assert errors_of(found["background"])["AbsRel"] == pytest.approx(0)
    assert errors_of(found["all"])["AbsRel"] == pytest.approx(6 / 48)


def test_every_image_has_a_scale_of_its_own() -> None:
    """Fault 6: the scale of a batch's first image, used for all, makes AbsRel .32 of what should be 0."""
    total: dict[str, DepthTally] = {}
    for scale in (1.0, 2.0, 0.5):
        merge(total, score_image(RAMP * scale, RAMP, ALL, {"all": ALL}))
    assert total["all"].images == 3
    assert errors_of(total["all"])["AbsRel"] == pytest.approx(0, abs=1e-12)
    with pytest.raises(ValueError, match="one image at a time"):
        median_scale(np.stack([RAMP, RAMP]), np.stack([RAMP, RAMP]), np.stack([ALL, ALL]))


def test_an_image_without_objects_does_not_enter_their_mean() -> None:
    """Fault 7: it neither makes NaN nor counts as an image without error."""
    total: dict[str, DepthTally] = {}
    objects = np.zeros((6, 8), bool)
    objects[5, :5] = True
    predicted = np.where(objects, 2 * RAMP, RAMP)
    for mask in (objects, np.zeros_like(objects)):
        merge(total, score_image(predicted if mask.any() else RAMP, RAMP, ALL, {"object": mask, "all": ALL}))
    assert (total["object"].images, total["all"].images) == (1, 2)
    assert errors_of(total["object"])["d<1.25"] == 0
    assert np.isfinite(total["object"].image_mean()).all()


def test_an_image_without_valid_pixels_enters_nothing() -> None:
    none = np.zeros_like(ALL)
    assert score_image(RAMP, RAMP, none, {"all": ALL}) == {"all": DepthTally()}
    assert np.isnan(DepthTally().image_mean()).all()
    assert all(np.isnan(each.value) and each.count == 0 for each in figures({"all": DepthTally()}, "test"))


def test_truth_outside_the_caps_is_not_valid() -> None:
    truth = np.array([[0.0, 1e-3, 0.5, 79.9, 80.0, np.inf, np.nan, -1.0]])
    assert valid_truth(truth).tolist() == [[False, False, True, True, False, False, False, False]]


def test_scaled_depth_is_clamped_for_the_errors_but_not_for_the_far_share() -> None:
    truth, predicted, all_ = np.array([[50.0]]), np.array([[1000.0]]), np.ones((1, 1), bool)
    assert pixel_sums(predicted, truth, all_).abs_rel == pytest.approx(30 / 50)
    assert far_share(predicted, truth, all_).value == 1  # clamped, 80 m would not be beyond twice 50 m


def test_images_count_alike_in_the_mean_and_pixels_alike_when_pooled() -> None:
    # One image with 1 pixel of error 1, one with 3 pixels of error 0.
    tally = DepthTally.of(PixelSums(pixels=1, abs_rel=1.0)) + DepthTally.of(PixelSums(pixels=3))
    found = {each.name: each for each in figures({"object": tally}, "test")}
    assert found["AbsRel, object"].value == 0.5
    assert found["AbsRel, object"].count == 2
    assert found["AbsRel, object, pixel-pooled"].value == 0.25
    assert found["AbsRel, object, pixel-pooled"].count == 4


def test_the_far_share_is_a_ratio_of_sums() -> None:
    truth = np.full((1, 4), 10.0)
    first = far_share(np.array([[20.0, 20.1, 9.0, 40.0]]), truth, np.ones((1, 4), bool))
    assert first == Share(part=2, whole=4)  # twice the depth itself is not beyond it
    assert (first + Share(part=0, whole=4)).value == 0.25
    assert np.isnan(Share().value)


def scene(car_depth: float) -> tuple[np.ndarray, np.ndarray]:
    """Ground that comes nearer downwards, and a car of one depth that stands where it is 10 deep."""
    depth = np.repeat(np.array([40.0, 30, 20, 15, 10, 5])[:, None], 8, axis=1)
    labels = np.zeros((6, 8), int)
    labels[1:4, 2:6] = 1
    depth[labels == 1] = car_depth
    return depth, labels


def test_an_infinitely_deep_car_is_seen_against_the_ground_that_it_stands_on() -> None:
    for car, share in ((11.0, 0.0), (20.0, 0.0), (20.5, 1.0), (1e6, 1.0)):
        depth, labels = scene(car)
        assert contact_depth(depth, labels, labels == 1) == 10
        for scale in (1.0, 0.03):
            assert beyond_contact(depth * scale, labels, [1]) == Share(part=round(12 * share), whole=12)


def test_only_columns_that_reach_the_ground_tell_its_depth() -> None:
    depth, labels = scene(9.0)
    labels[3, 3:5] = 0  # between the wheels: background that lies 15 deep is seen below the car
    depth[3, 3:5] = 15
    assert contact_depth(depth, labels, labels == 1) == 10


def test_an_instance_whose_ground_is_hidden_or_outside_the_picture_is_left_out() -> None:
    depth, labels = scene(1e6)
    hidden = labels.copy()
    hidden[4, :] = 2
    assert contact_depth(depth, hidden, hidden == 1) is None
    assert beyond_contact(depth, hidden, [1]) == Share()
    labels[4:, 2:6] = 1
    assert beyond_contact(depth, labels, [1]) == Share()
    assert beyond_contact(depth, labels, [7]) == Share()  # not there at all
