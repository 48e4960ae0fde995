"""Object motions whose errors are known on paper."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.objects import Found, ObjectErrors, compare, figures, join, no_errors
from tests.evaluation.made import rigid

CENTRE = np.array([1.0, 0.5, 12.0])


def about(centre: np.ndarray, motion: np.ndarray) -> np.ndarray:
    """The same rotation and translation, about another point."""
    there, back = np.eye(4), np.eye(4)
    there[:3, 3], back[:3, 3] = centre, -centre
    return there @ motion @ back


def one(estimate: np.ndarray, truth: np.ndarray, scale: float = 1.0, **given: float) -> ObjectErrors:
    row = {"dt_s": 0.1, "car": True, "track": 1, **given}
    return compare(
        estimate[None], truth[None], centre_m=CENTRE[None], scale=np.array([scale]),
        dt_s=np.array([row["dt_s"]]), car=np.array([row["car"]]), track=np.array([row["track"]]),
    )  # fmt: skip


def values(errors: ObjectErrors, found: Found | None = None) -> dict[str, float]:
    return {each.name: each.value for each in figures(errors, found or Found(), "test")}


@given(st.floats(1e-3, 1e3), st.floats(-60, 60), st.floats(-5, 5))
def test_a_perfect_estimate_of_any_scale_has_no_error(scale: float, yaw: float, ahead: float) -> None:
    truth = about(CENTRE, rigid((0.3, 0, ahead), yaw))
    estimate = truth.copy()
    estimate[:3, 3] /= scale
    errors = one(estimate, truth, scale)
    assert errors.error_m[0] == pytest.approx(0, abs=1e-9)
    assert errors.rotation_deg[0] == pytest.approx(0, abs=1e-5)
    assert errors.true_rotation_deg[0] == pytest.approx(abs(yaw), abs=1e-9)
    assert errors.true_m[0] == pytest.approx(np.hypot(0.3, ahead))


def test_predicting_no_motion_costs_exactly_one() -> None:
    truths = [rigid((0, 0, 1)), about(CENTRE, rigid((2, 0, 0), 5)), about(CENTRE, rigid((0, 0, 0.3), -2))]
    found = values(join(one(np.eye(4), truth, 3.0, track=k) for k, truth in enumerate(truths)))
    for name in ("", ", pooled", ", mean over tracks"):
        assert found[f"object translation error, relative{name}"] == pytest.approx(1)
    assert found["object direction cosine"] == 0
    assert found["object displacement, estimated over true"] == 0


def test_half_the_way_is_an_error_of_a_half_in_the_right_direction() -> None:
    found = values(one(rigid((0, 0, 0.5)), rigid((0, 0, 1))))
    assert found["object translation error, relative"] == pytest.approx(0.5)
    assert found["object direction cosine"] == pytest.approx(1)
    assert found["object displacement, estimated over true"] == pytest.approx(0.5)
    assert found["object speed error"] == pytest.approx(
        5
    )  # 5 m/s where 10 are true: a metre in a tenth of a second
    assert values(one(rigid((1, 0, 0)), rigid((0, 0, 1))))["object direction cosine"] == 0


def test_translations_are_scaled_by_their_images_depth() -> None:
    assert values(one(rigid((0, 0, 0.1)), rigid((0, 0, 2)), 20.0))[
        "object translation error, relative"
    ] == pytest.approx(0)


def test_turning_on_the_spot_moves_the_centre_nowhere() -> None:
    # About its own centre an object stays; the same matrix about the camera sweeps it 12 m * angle.
    turn = rigid(yaw_deg=1.0)
    assert one(np.eye(4), about(CENTRE, turn)).true_m[0] == pytest.approx(0, abs=1e-12)
    swept = 2 * np.sin(np.radians(0.5)) * np.hypot(CENTRE[0], CENTRE[2])
    assert one(np.eye(4), turn).true_m[0] == pytest.approx(swept)


def test_sums_first_a_slow_object_does_not_rule_the_pooled_error() -> None:
    # Errors 0.1 of 0.1 m and 0.1 of 1.9 m.
    errors = join([one(rigid((0, 0, 0.2)), rigid((0, 0, 0.1))), one(rigid((0, 0, 2.0)), rigid((0, 0, 1.9)))])
    found = values(errors)
    assert found["object translation error, relative"] == pytest.approx((1 + 0.1 / 1.9) / 2)
    assert found["object translation error, relative, pooled"] == pytest.approx(0.2 / 2)
    assert found["object translation error"] == pytest.approx(0.1)


def test_a_long_track_counts_as_much_as_a_short_one_in_the_mean_over_tracks() -> None:
    right, wrong = one(rigid((0, 0, 1)), rigid((0, 0, 1)), track=4), one(np.eye(4), rigid((0, 0, 1)), track=9)
    found = values(join([right, wrong, wrong, wrong]))
    assert found["object translation error, relative"] == pytest.approx(0.75)
    assert found["object translation error, relative, mean over tracks"] == pytest.approx(0.5)


def test_rotation_of_turning_cars_and_of_all() -> None:
    turning = one(about(CENTRE, rigid(yaw_deg=2.0)), about(CENTRE, rigid((1, 0, 0), 3.0)))
    straight = one(np.eye(4), rigid((0, 0, 1), 0.4))
    person = one(np.eye(4), about(CENTRE, rigid((0, 0, 1), 8.0)), car=False)
    found = values(join([turning, straight, person]))
    assert found["object rotation error, turning cars"] == pytest.approx(1.0)
    assert found["object rotation error of predicting none, turning cars"] == pytest.approx(3.0)
    assert found["object rotation error, all objects"] == pytest.approx((1 + 0.4 + 8) / 3)
    assert found["object rotation error of predicting none, all objects"] == pytest.approx((3 + 0.4 + 8) / 3)


def test_a_rotation_the_wrong_way_is_worse_than_none() -> None:
    truth = about(CENTRE, rigid(yaw_deg=2.0))
    assert one(about(CENTRE, rigid(yaw_deg=-2.0)), truth).rotation_deg[0] == pytest.approx(4)


def test_parked_objects_are_asked_for_their_speed_and_not_for_a_ratio() -> None:
    found = values(one(rigid((0, 0, 0.2)), np.eye(4)))
    assert found["speed of parked objects"] == pytest.approx(2)  # 0.2 m in 0.1 s
    assert found["displacement of parked objects"] == pytest.approx(0.2)
    assert np.isnan(found["object translation error, relative"])


def test_precision_and_recall_of_the_moving_flag() -> None:
    fast, still, slow = (
        rigid((0, 0, 1)),
        np.eye(4),
        rigid((0, 0, 0.02)),
    )  # .02 m in .1 s: asked for neither way
    rows = [(fast, fast), (still, fast), (fast, still), (still, still), (fast, fast), (fast, slow)]
    found = values(join(one(estimate, truth) for estimate, truth in rows))
    assert found["moving flag precision"] == pytest.approx(2 / 3)
    assert found["moving flag recall"] == pytest.approx(2 / 3)


def test_recall_and_strange_estimates_are_ratios_of_sums() -> None:
    found = values(no_errors(), Found(asked=3, found=3, estimates=4) + Found(asked=1, estimates=1, strange=1))
    assert found["recall of moving objects"] == 0.75
    assert found["estimates that stand for no object"] == 0.2


def test_nothing_at_all_is_nan_everywhere() -> None:
    results = figures(no_errors(), Found(), "test")
    assert all(np.isnan(each.value) and each.count == 0 for each in results)
