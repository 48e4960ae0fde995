"""Linking: chains, both kinds of bridges, and what must hold for any input."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.matching import Match, match
from pipeline.shards.evidence import Overlaps
from pipeline.tracks import TrackFrame, link

CAR, PERSON = 2, 0


def table(*rows: tuple[int, int, float]) -> Overlaps:
    """Overlaps with the given (prev, next, IoU)."""
    return Overlaps(
        prev=np.array([row[0] for row in rows], np.uint16),
        next=np.array([row[1] for row in rows], np.uint16),
        pixels=np.array([[100 * row[2], 100] * 2 for row in rows], np.uint32).reshape(-1, 4),
    )


def frame(
    chosen: list[int],
    boxes: list[float],
    overlaps: Overlaps,
    before: TrackFrame | None,
    classes=None,
    raw: int = 5,
) -> TrackFrame:  # type: ignore[no-untyped-def]
    """Instances at the given left edges, 10 px wide, matched as the overlaps say."""
    detection = np.array(chosen, np.int64)
    none = Match(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, 2)))
    return TrackFrame(
        detection=detection,
        class_index=np.array(classes or [CAR] * len(chosen), np.uint8),
        box=np.array([[x, 0, x + 10, 10] for x in boxes], np.float32).reshape(-1, 4),
        match=match(before.detection, detection, overlaps, 0.5) if before else none,
        overlaps=overlaps if before else table(),
        detections=raw,
    )


def clip(*parts: tuple, **options) -> list[TrackFrame]:  # type: ignore[no-untyped-def]
    frames: list[TrackFrame] = []
    for chosen, boxes, overlaps in parts:
        frames.append(frame(chosen, boxes, overlaps, frames[-1] if frames else None, **options))
    return frames


def ids(frames: list[TrackFrame], max_gap: int = 3) -> list[list[int]]:
    return [each.tolist() for each in link(frames, 0.5, max_gap)]


def test_direct_matches_become_one_track_and_ids_follow_first_appearance() -> None:
    frames = clip(
        ([0, 1], [0, 50], table()), ([1, 0], [50, 0], table((0, 0, 0.9), (1, 1, 0.9))), ([2], [90], table())
    )
    assert ids(frames) == [[1, 2], [2, 1], [3]]


def test_a_gap_is_bridged_through_raw_detections_that_were_not_chosen() -> None:
    # Detection 4 carries the object through frame 1 although it was not chosen there; its
    # box has jumped, so that only the raw way leads on.
    frames = clip(([0], [0], table()), ([], [], table((0, 4, 0.8))), ([2], [300], table((4, 2, 0.7))))
    assert ids(frames) == [[1], [], [1]]
    assert ids(frames, max_gap=0) == [[1], [], [2]]


def test_a_gap_without_detections_is_bridged_along_the_last_velocity() -> None:
    step = table((0, 0, 0.9))
    frames = clip(([0], [0], table()), ([0], [8], step), ([], [], table()), ([0], [24], table()))
    assert ids(frames) == [[1], [1], [], [1]]
    standing = clip(([0], [0], table()), ([0], [8], step), ([], [], table()), ([0], [8], table()))
    assert ids(standing) == [[1], [1], [], [2]]  # the object went on, this is another one


def test_a_bridge_along_the_velocity_keeps_the_class() -> None:
    first = frame([0], [0], table(), None, classes=[CAR])
    gap = frame([], [], table(), first)
    for classes, want in (([CAR], 1), ([PERSON], 2)):
        last = frame([0], [0], table(), gap, classes=classes)
        assert ids([first, gap, last])[2] == [want]


def test_gaps_longer_than_allowed_stay_open() -> None:
    empty = ([], [], table())
    for gap, want in ((3, 1), (4, 2)):
        frames = clip(([0], [0], table()), *[empty] * gap, ([0], [0], table()))
        assert ids(frames)[-1] == [want]


def test_one_chain_goes_on_in_one_other_only() -> None:
    frames = clip(([0], [0], table()), ([], [], table()), ([0, 1], [0, 1], table()))
    assert ids(frames) == [[1], [], [1, 2]]


def test_the_shorter_gap_wins() -> None:
    later = ([0, 1], [3, 0], table((0, 0, 0.9)))  # the chain from frame 2 goes on, another one begins
    frames = clip(([0], [0], table()), ([], [], table()), ([0], [3], table()), later)
    assert ids(frames) == [[1], [], [1], [1, 2]]


def test_an_empty_clip_has_no_tracks() -> None:
    assert ids(clip(*[([], [], table())] * 3)) == [[], [], []]


@st.composite
def clips(draw) -> list[TrackFrame]:  # type: ignore[no-untyped-def]
    frames: list[TrackFrame] = []
    for _ in range(draw(st.integers(1, 7))):
        raw = draw(st.integers(0, 5))
        chosen = draw(st.lists(st.integers(0, raw - 1), unique=True)) if raw else []
        boxes = draw(st.lists(st.integers(0, 60), min_size=len(chosen), max_size=len(chosen)))
        rows = []
        if frames:
            for a in range(frames[-1].detections):
                for b in range(raw):
                    iou = draw(st.sampled_from([0.0, 0.0, 0.3, 0.6, 0.8, 1.0]))
                    rows += [(a, b, iou)] if iou else []
        frames.append(frame(chosen, boxes, table(*rows), frames[-1] if frames else None, raw=raw))
    return frames


@settings(max_examples=200, deadline=None)
@given(frames=clips(), max_gap=st.integers(0, 4))
def test_what_holds_for_any_clip(frames: list[TrackFrame], max_gap: int) -> None:
    tracks = link(frames, 0.5, max_gap)
    seen: dict[int, int] = {}
    for time, (each, frame_ids) in enumerate(zip(frames, tracks, strict=True)):
        assert len(frame_ids) == len(each.detection)
        assert len(set(frame_ids.tolist())) == len(frame_ids)
        for track in frame_ids.tolist():
            assert time - seen.get(track, time) <= max_gap + 1
            seen[track] = time
        for a, b in zip(each.match.prev, each.match.next, strict=True):
            assert tracks[time - 1][a] == frame_ids[b]
    assert sorted(seen) == list(range(1, len(seen) + 1))
    np.testing.assert_equal(tracks, link(frames, 0.5, max_gap))


def test_no_bridge_means_only_direct_matches_share_a_track() -> None:
    frames = clip(([0], [0], table()), ([0], [50], table((0, 0, 0.4))), ([0], [50], table((0, 0, 0.9))))
    assert ids(frames, max_gap=0) == [[1], [2], [2]]


def test_a_step_that_the_flow_missed_is_bridged_along_the_velocity() -> None:
    step, lost = table((0, 0, 0.9)), table((0, 0, 0.4))
    frames = clip(([0], [0], table()), ([0], [8], step), ([0], [16], lost), ([0], [24], step))
    assert ids(frames, max_gap=0) == [[1], [1], [1], [1]]


@pytest.mark.parametrize("iou", [0.5, 0.51])
def test_a_raw_bridge_needs_more_than_the_threshold(iou: float) -> None:
    frames = clip(([0], [0], table()), ([], [], table((0, 4, iou))), ([2], [300], table((4, 2, 0.7))))
    assert ids(frames)[2] == ([1] if iou > 0.5 else [2])
