"""Objects' own motions as numbers: every one known on paper."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace

import numpy as np
import pytest

from evaluation.object_steps import object_steps
from evaluation.object_tracks import tracks_csv, tracks_json
from evaluation.predictions import ClipPrediction, ObjectMotions
from tests.evaluation.made import rigid, small_prediction


def rows_of(clip: ClipPrediction, scale_m: float | None = None) -> list[dict[str, str]]:
    text = tracks_csv(object_steps(clip, scale_m), "scene" if scale_m is None else "m")
    return list(csv.DictReader(io.StringIO(text)))


def numbers(row: dict[str, str]) -> dict[str, float]:
    return {key: float(value) for key, value in row.items() if key not in ("class", "state", "unit")}


def test_object_tracks_as_csv() -> None:
    rows = rows_of(small_prediction())
    assert [(row["frame"], row["track"], row["class"], row["label"], row["unit"]) for row in rows] == [
        ("0", "7", "car", "3", "scene"),
        ("1", "7", "car", "3", "scene"),
    ]
    first, second = map(numbers, rows)
    assert (first["x"], first["y"], first["z"]) == (1, 0, 5)
    assert (first["move_x"], first["move_z"], first["turn_y_deg"]) == (0, 1, 0)
    assert first["speed_per_s"] == 10  # one unit in a tenth of a second
    # The second camera stands 2 further ahead; the motion is about the camera's y axis.
    assert (second["world_x"], second["world_z"]) == (0, 6)
    turn = (second["turn_x_deg"], second["turn_y_deg"], second["turn_z_deg"])
    np.testing.assert_allclose([second["move_x"], second["move_z"], *turn], [4, -4, 0, 90, 0], atol=1e-9)
    np.testing.assert_allclose(second["speed_per_s"], np.sqrt(32) / 0.2, rtol=1e-5)


def test_a_known_scale_makes_metres_of_every_length_and_of_no_angle() -> None:
    for plain, metric in zip(rows_of(small_prediction()), rows_of(small_prediction(), 2.5), strict=True):
        assert metric["unit"] == "m"
        a, b = numbers(plain), numbers(metric)
        for key in a:
            length = key in ("x", "y", "z", "speed_per_s") or key.startswith(("world", "move"))
            np.testing.assert_allclose(b[key], a[key] * (2.5 if length else 1), rtol=1e-5, err_msg=key)


def test_object_tracks_as_json_hold_the_motion_itself() -> None:
    clip = small_prediction()
    data = json.loads(tracks_json(object_steps(clip), clip.name, "scene"))
    assert (data["format"], data["version"], data["clip"]) == ("instance-motion object tracks", 2, clip.name)
    (track,) = data["tracks"]
    assert (track["track"], track["class"], len(track["steps"])) == (7, "car", 2)
    np.testing.assert_array_equal([step["motion"] for step in track["steps"]], clip.objects.motion)
    metric = json.loads(tracks_json(object_steps(clip, 3.0), clip.name, "m"))["tracks"][0]["steps"]
    for step, motion in zip(metric, clip.objects.motion, strict=True):
        np.testing.assert_allclose(np.array(step["motion"])[:3, 3], 3 * motion[:3, 3])


def driving(moves: list[float], depth: float = 10.0, scale: float = 1.0) -> ClipPrediction:
    """One track that moves ahead by so much in each step, ten frames a second."""
    count = len(moves)
    return replace(
        small_prediction(),
        inverse_depth=np.ones((count + 1, 2, 2), np.float32),
        labels=np.ones((count + 1, 2, 2), np.uint16),
        later_T_earlier=np.tile(np.eye(4), (count, 1, 1)),
        timestamps_s=np.arange(count + 1) / 10,
        objects=ObjectMotions(
            frame=np.arange(count, dtype=np.int32),
            slot=np.ones(count, np.int32),
            label=np.ones(count, np.uint16),
            next_label=np.ones(count, np.uint16),
            track=np.full(count, 5, np.uint32),
            class_index=np.full(count, 2, np.uint8),
            motion=np.stack([rigid((0, 0, move * scale)) for move in moves]),
            centre=np.tile([0, 0, depth * scale], (count, 1)),
        ),
    )


@pytest.mark.parametrize(
    ("moves", "scale_m", "moving"),
    [
        ([0.051] * 4, 1.0, [True] * 4),  # metres: 0.51 m/s
        ([0.049] * 4, 1.0, [False] * 4),
        ([0.0255] * 4, 2.0, [True] * 4),
        ([0.101] * 4, None, [True] * 4),  # scene units: 1 % of the depth of 10
        ([0.099] * 4, None, [False] * 4),
        ([0.0, 0.0, 5.0, 0.0, 0.0], None, [False] * 5),  # one step is noise
        ([0.0] * 4 + [1.0] * 4, None, [False] * 3 + [False, True] + [True] * 3),
    ],
)
def test_moving_is_asked_of_the_median_over_neighbouring_steps(
    moves: list[float], scale_m: float | None, moving: list[bool]
) -> None:
    assert [step.moving for step in object_steps(driving(moves), scale_m)] == moving


def test_without_metres_the_state_does_not_depend_on_the_unit() -> None:
    moves = [0.05, 0.2, 0.12, 0.0, 0.3, 0.02]
    states = [[step.moving for step in object_steps(driving(moves, scale=s))] for s in (0.01, 1, 50)]
    assert states[0] == states[1] == states[2]
    assert len(set(states[0])) == 2
