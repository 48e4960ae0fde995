"""Every figure on a clip whose answer is known on paper."""

from __future__ import annotations

import math

import numpy as np
import pytest

from evaluation.tracks import TrackCounts, TrackedFrame, assign, count_tracks, figures, resample_ids


def strip(*ids: int) -> np.ndarray:
    """Ids side by side, 10x10 pixels each."""
    return np.repeat(np.repeat(np.array([ids]), 10, axis=0), 10, axis=1)


def frame(
    true: tuple[int, ...], labels: tuple[int, ...], track: list[int], pairs: list[tuple[int, int]]
) -> TrackedFrame:
    return TrackedFrame(
        labels=strip(*labels),
        track=np.array(track),
        pairs=np.array(pairs).reshape(-1, 2),
        true_ids=strip(*true),
    )


def values(counts: TrackCounts) -> dict[str, float]:
    return {each.name: each.value for each in figures(counts, "test")}


def test_a_perfect_clip_scores_one_without_switches() -> None:
    clip = [frame((7, 0, 9), (1, 0, 2), [4, 5], [(1, 1), (2, 2)] if t else []) for t in range(3)]
    assert values(count_tracks(clip, 1)) == {
        "pair precision": 1.0,
        "pair recall": 1.0,
        "pair recall of detected objects": 1.0,
        "identity switches per object": 0.0,
        "IDF1": 1.0,
    }


def test_crossed_pairs_are_wrong_and_switch_both_tracks() -> None:
    clip = [frame((7, 9), (1, 2), [4, 5], []), frame((7, 9), (1, 2), [5, 4], [(1, 2), (2, 1)])]
    counts = count_tracks(clip, 1)
    assert (counts.pairs, counts.right_pairs, counts.switches, counts.objects) == (2, 0, 2, 2)
    assert values(counts)["IDF1"] == 0.5


def test_a_missed_object_costs_recall_but_not_recall_of_detected_ones() -> None:
    clip = [frame((7, 9), (1, 2), [1, 2], []), frame((7, 9), (1, 0), [1], [(1, 1)])]
    found = values(count_tracks(clip, 1))
    assert found["pair precision"] == 1.0
    assert found["pair recall"] == 0.5
    assert found["pair recall of detected objects"] == 1.0
    assert found["IDF1"] == pytest.approx(2 * 3 / (3 + 4))


def test_a_pair_of_false_detections_costs_precision() -> None:
    clip = [frame((7, 0), (1, 2), [1, 2], []), frame((7, 0), (1, 2), [1, 2], [(1, 1), (2, 2)])]
    assert values(count_tracks(clip, 1))["pair precision"] == 0.5


def test_a_new_track_after_a_gap_is_one_switch() -> None:
    clip = [frame((7,), (1,), [1], []), frame((7,), (0,), [], []), frame((7,), (1,), [2], [])]
    counts = count_tracks(clip, 1)
    assert (counts.switches, counts.objects) == (1, 1)
    assert values(counts)["IDF1"] == pytest.approx(2 * 1 / (2 + 3))


def test_tiny_objects_are_asked_for_nowhere_and_their_predictions_do_not_count() -> None:
    clip = [frame((7, 9, 9), (1, 2, 2), [1, 2], [(1, 1), (2, 2)] if t else []) for t in range(2)]
    counts = count_tracks(clip, 101)
    assert (counts.true_instances, counts.instances, counts.true_pairs, counts.pairs) == (2, 2, 1, 1)
    assert counts.right_pairs == 1


def test_nothing_at_all_is_nan_not_zero() -> None:
    found = values(count_tracks([frame((0,), (0,), [], [])] * 2, 1))
    assert all(math.isnan(value) for value in found.values())


def test_a_label_stands_for_an_object_above_half_iou_only() -> None:
    assert assign(strip(1, 1), strip(7, 0)) == {}  # IoU exactly 0.5
    assert assign(strip(1, 1, 1), strip(7, 7, 0)) == {1: 7}


def test_counts_add_up_over_clips() -> None:
    clip = [frame((7, 0, 9), (1, 0, 2), [4, 5], [(1, 1), (2, 2)] if t else []) for t in range(3)]
    one = count_tracks(clip, 1)
    assert one + one == TrackCounts(**{name: 2 * value for name, value in vars(one).items()})


def test_ids_follow_the_camera_through_a_crop_and_a_scale() -> None:
    ids = np.arange(24 * 32).reshape(24, 32)
    K = np.array([[20.0, 0, 15.5], [0, 20, 11.5], [0, 0, 1]])
    cropped = K.copy()
    cropped[:2, 2] -= [4, 2]
    np.testing.assert_array_equal(resample_ids(ids, K, cropped, (20, 16)), ids[2:18, 4:24])
    double = np.array([[40.0, 0, 2 * 15.5 + 0.5], [0, 40, 2 * 11.5 + 0.5], [0, 0, 1]])
    np.testing.assert_array_equal(resample_ids(ids, K, double, (64, 48)), ids.repeat(2, 0).repeat(2, 1))
