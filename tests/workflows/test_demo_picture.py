"""The demo's pictures: what is drawn where, told from pixels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from evaluation.object_steps import ObjectStep, object_steps
from evaluation.predictions import ClipPrediction
from pipeline.overlay import track_colour
from tests.evaluation.made import object_rows, rigid, small_prediction
from workflows.demo_picture import (
    LINES,
    MAP_WIDTH,
    PATH,
    _round_up,
    demo_frames,
    demo_picture,
    map_colour,
    scene_of,
)

SIZE = (104, 32)


def made_clip(*rows: tuple[int, int, int, int, np.ndarray, tuple[float, float, float]]) -> ClipPrediction:
    """Three frames of 104 x 32; the camera drives ahead; labels 1 left, 2 right."""
    labels = np.zeros((3, SIZE[1], SIZE[0]), np.uint8)
    labels[:, 10:20, 20:40], labels[:, 10:20, 60:80] = 1, 2
    return replace(
        small_prediction("street/one"),
        inverse_depth=np.full(labels.shape, 0.1, np.float32),
        labels=labels,
        later_T_earlier=np.stack([rigid((0, 0, -1))] * 2),
        objects=object_rows(*rows),
        timestamps_s=np.array([0.0, 0.1, 0.2]),
    )


def ahead_and_parked() -> ClipPrediction:
    return made_clip(
        (0, 1, 1, 1, rigid((0, 0, 1)), (-4, 0, 10)),
        (0, 2, 2, 2, rigid(), (4, 0, 10)),
        (1, 1, 1, 1, rigid((0, 0, 1)), (-4, 0, 10)),
    )


def is_colour(picture: np.ndarray, colour: tuple[int, int, int], tolerance: int = 30) -> np.ndarray:
    return (np.abs(picture.astype(int) - colour) < tolerance).all(-1)


def grey(_: int) -> np.ndarray:
    return np.full((SIZE[1], SIZE[0], 3), 128, np.uint8)


def drawn(clip: ClipPrediction, frame: int = 0, scale_m: float | None = None) -> tuple[np.ndarray, ...]:
    """The frame as shown, its depth, and the right column."""
    steps = object_steps(clip, scale_m)
    picture = demo_picture(scene_of(clip, steps, scale_m), frame, grey(frame))
    width, half = picture.shape[1] - MAP_WIDTH, picture.shape[0] // 2
    return picture[:half, :width], picture[half:, :width], picture[:, width:]


def test_small_frames_are_enlarged_a_whole_number_of_times_and_all_pictures_are_alike() -> None:
    clip = ahead_and_parked()
    pictures = list(demo_frames(clip, object_steps(clip), grey))
    assert [picture.shape for picture in pictures] == [(2 * 8 * 32, 8 * 104 + MAP_WIDTH, 3)] * 3
    assert all(picture.dtype == np.uint8 for picture in pictures)


def test_instances_are_outlined_in_the_colour_of_their_track() -> None:
    seen, _, _ = drawn(ahead_and_parked())
    for track, (left, right) in ((1, (20, 40)), (2, (60, 80))):
        rows, columns = np.nonzero(is_colour(seen, track_colour(track)))
        assert 8 * left - 3 <= columns.min() < 8 * left + 3
        assert 8 * right - 4 < columns.max() <= 8 * right + 3
        assert rows.max() <= 8 * 20 + 3
    inside = seen[8 * 12 : 8 * 18, 8 * 22 : 8 * 38]
    assert (inside == 128).all()


def test_what_moves_has_an_arrow_the_way_it_moves_and_what_is_parked_has_none() -> None:
    _, _, right = drawn(ahead_and_parked())
    above = right[: right.shape[0] - (24 + 17 * (LINES + 1))]
    moving = np.argwhere(is_colour(above, map_colour(1)))
    parked = np.argwhere(is_colour(above, map_colour(2)))
    # 1 unit in 0.1 s: 5 in half a second, on a map that reaches 20: a quarter of it, upwards.
    assert np.ptp(moving[:, 0]) > 0.2 * (above.shape[0] - 60)
    assert np.ptp(parked[:, 0]) < 25
    # Left of the camera and right of it, at the same height where they stand.
    assert moving[:, 1].max() < MAP_WIDTH / 2 < parked[:, 1].min()
    assert abs(moving[:, 0].max() - parked[:, 0].max()) <= 4


def test_the_camera_stands_below_the_middle_with_its_path_behind_it() -> None:
    clip = ahead_and_parked()
    lengths = []
    for frame in range(3):
        _, _, right = drawn(clip, frame)
        height = right.shape[0] - (24 + 17 * (LINES + 1))
        column = is_colour(right[:height], PATH)[:, MAP_WIDTH // 2 - 1 : MAP_WIDTH // 2 + 2].any(1)
        lengths.append(np.flatnonzero(column).max())
    assert lengths[0] < lengths[1] < lengths[2]


def test_the_list_names_the_nearest_and_says_how_many_more_there_are() -> None:
    few, many = (
        made_clip(*[(0, 1, 1, track, rigid(), (0, 0, 10 + track)) for track in range(1, count + 1)])
        for count in (LINES, LINES + 3)
    )
    blank = made_clip()
    height = 24 + 17 * (LINES + 1)
    ink = [
        [
            int((drawn(each)[2][-height:][y - 12 : y + 2] > 80).any(-1).sum())
            for y in range(36, 36 + 17 * (LINES + 1), 17)
        ]
        for each in (blank, few, many)
    ]
    assert not any(ink[0])
    assert all(ink[1][:LINES])
    assert not ink[1][LINES]
    assert ink[2][LINES]


def test_a_known_scale_changes_labels_and_not_the_map() -> None:
    plain, metric = drawn(ahead_and_parked())[2], drawn(ahead_and_parked(), scale_m=2.0)[2]
    height = plain.shape[0] - (24 + 17 * (LINES + 1))
    colours = [np.argwhere(is_colour(each[:height], map_colour(2))) for each in (plain, metric)]
    assert np.abs(colours[0].mean(0) - colours[1].mean(0)).max() < 3
    assert (plain[height:] != metric[height:]).any()


def test_a_clip_without_objects_and_one_of_a_single_frame_are_drawn() -> None:
    clip = made_clip()
    assert len(list(demo_frames(clip, [], grey))) == 3
    single = replace(
        clip,
        inverse_depth=clip.inverse_depth[:1],
        labels=clip.labels[:1],
        later_T_earlier=np.zeros((0, 4, 4)),
        timestamps_s=np.zeros(1),
    )
    steps: list[ObjectStep] = object_steps(single)
    assert len(list(demo_frames(single, steps, grey))) == 1


@pytest.mark.parametrize(
    ("length", "expected"), [(0.0, 1), (1, 1), (1.01, 1.2), (19, 20), (0.033, 0.04), (9.5, 10), (60, 60)]
)
def test_the_map_reaches_a_round_length(length: float, expected: float) -> None:
    assert _round_up(length) == pytest.approx(expected)
