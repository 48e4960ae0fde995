"""Paths, hills and footprints against what is known on paper."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from pipeline.streetworld.roads import Hill, Path, stand
from pipeline.streetworld.traffic import Footprints, Route, distance, draw_speed, overlap

curvatures = st.one_of(st.just(0.0), st.floats(1 / 250, 1 / 13), st.floats(-1 / 13, -1 / 250))


@given(curvature=curvatures, length=st.floats(10, 18), s=st.floats(-20, 90), d=st.floats(-9, 9))
@settings(max_examples=200, deadline=None)
def test_coordinates_undo_pose_before_on_and_after_an_arc(curvature, length, s, d):
    path = Path.build(3.0, -2.0, 0.4, [(30.0, 0.0), (length, curvature), (40.0, 0.0)])
    x, y, _ = path.pose(np.array([s]), d)
    got_s, got_d = path.coordinates(x, y)
    assert_allclose([got_s[0], got_d[0]], [s, d], atol=1e-9)


def test_a_quarter_circle_to_the_left_ends_at_its_radius():
    path = Path.build(0, 0, 0, [(10 * np.pi / 2, 1 / 10)])
    x, y, heading = path.pose(np.array([10 * np.pi / 2, 10 * np.pi / 2 + 5]))
    assert_allclose([x, y], [[10, 10], [10, 15]], atol=1e-12)
    assert_allclose(heading, np.pi / 2)


def test_offset_d_is_to_the_left():
    x, y, _ = Path.build(0, 0, 0, [(10.0, 0.0)]).pose(np.array([4.0]), 1.5)
    assert (x[0], y[0]) == (4.0, 1.5)


@given(
    x=st.floats(-80, 80), y=st.floats(-30, 30), heading=st.floats(-4, 4), bend=st.floats(-1 / 600, 1 / 600)
)
@settings(max_examples=50, deadline=None)
def test_bodies_stand_on_the_hill_with_their_wheels(x, y, heading, bend):
    hill = Hill(bend=bend, slope=0.03)
    pose = stand(hill, x, y, heading)
    R = pose[:3, :3]
    assert_allclose(R.T @ R, np.eye(3), atol=1e-12)
    assert np.linalg.det(R) > 0
    for axle in (-1.3, 1.3):
        wheel = pose @ np.array([axle, 0.8, 0, 1])
        assert wheel[2] == pytest.approx(hill.height(wheel[0]), abs=0.004)
    # The body points where its heading says, seen from above.
    assert np.arctan2(R[1, 0], R[0, 0]) == pytest.approx(
        np.arctan2(np.sin(heading), np.cos(heading)), abs=1e-9
    )


def rectangle(x, y, heading, half_length, half_width):
    return np.array([x, y, heading, half_length, half_width], float)


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (rectangle(3.9, 0, 0, 2, 1), True),
        (rectangle(4.1, 0, 0, 2, 1), False),
        (rectangle(0, 2.1, 0, 2, 1), False),
        (rectangle(3.1, 0, np.pi / 2, 2, 1), False),
        (rectangle(2.9, 0, np.pi / 2, 2, 1), True),
        (rectangle(3.0, 2.95, np.pi / 4, 2, 1), False),  # only an axis of the turned one tells them apart
        (rectangle(2.6, 1.6, np.pi / 4, 2, 1), True),
    ],
)
def test_overlap_of_rectangles(other, expected):
    one = rectangle(0, 0, 0, 2, 1)
    assert bool(overlap(one, other)) is expected
    assert bool(overlap(other, one)) is expected


def test_footprints_refuse_what_meets_in_one_frame_only():
    taken = Footprints(3)
    still = Route(x=np.zeros(3), y=np.zeros(3), heading=np.zeros(3))
    passing = Route(x=np.zeros(3), y=np.array([-9.0, 0.5, 9.0]), heading=np.zeros(3))
    beside = Route(x=np.zeros(3), y=np.array([-9.0, 4.5, 9.0]), heading=np.zeros(3))
    assert taken.admit(still, 4, 2)
    assert not taken.admit(passing, 4, 2)
    assert taken.admit(beside, 4, 2)


def test_constant_speed_drives_speed_times_time():
    assert_allclose(distance(np.full(11, 7.0), fps=10.0), 0.7 * np.arange(11))


def test_a_clip_that_stands_has_standing_and_moving_frames():
    speeds = draw_speed(np.random.default_rng(0), 40, 10.0, 8.0, stand=True)
    assert np.any(speeds == 0)
    assert np.any(speeds > 2)
