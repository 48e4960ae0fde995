"""Tracks of any clip: what more time, more frames, other labels and longer gaps change, and what not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.matching import Match, match
from pipeline.shards.evidence import Overlaps
from pipeline.tracks import TrackFrame, link

MIN_IOU = 0.5
QUICK = settings(max_examples=100, deadline=None, derandomize=True)
seeds = st.binary(min_size=8, max_size=8).map(lambda data: int.from_bytes(data, "little"))
Groups = set[frozenset[tuple[int, int]]]


def random_clip(
    rng: np.random.Generator, *, raw: bool = True, boxes: bool = True, length: int = 8
) -> list[TrackFrame]:
    """Objects that move evenly, are detected or not, chosen or not, and overlap with what comes next.

    raw:   raw overlaps may lead through frames in which an object was not chosen
    boxes: boxes of different objects and times may overlap
    """
    objects = int(rng.integers(1, 5))
    place, velocity = rng.uniform(0, 60, objects), rng.uniform(-6, 6, objects)
    class_index = rng.integers(0, 2, objects)
    frames: list[TrackFrame] = []
    there: list[int] = []
    for time in range(length):
        before, there = there, rng.permutation(np.flatnonzero(rng.random(objects) < 0.8)).tolist()
        rows = [
            (a, b, rng.uniform(0.52, 1) if old == new else rng.uniform(0.1, 0.6))
            for a, old in enumerate(before)
            for b, new in enumerate(there)
            if rng.random() < (0.8 if old == new else 0.1)
        ]
        counts = np.array([[round(1e6 * iou), 1_000_000] * 2 for _, _, iou in rows], np.uint32).reshape(-1, 4)
        table = Overlaps(
            prev=np.array([a for a, _, _ in rows], np.uint16),
            next=np.array([b for _, b, _ in rows], np.uint16),
            pixels=counts,
        )
        chosen = np.array([b for b in range(len(there)) if rng.random() < 0.7], np.int64)
        x = [place[there[b]] + velocity[there[b]] * time if boxes else 4e3 * time**2 + 50 * b for b in chosen]
        direct = match(frames[-1].detection, chosen, table, MIN_IOU) if frames else no_match()
        frames.append(
            TrackFrame(
                detection=chosen,
                class_index=class_index[[there[b] for b in chosen]].astype(np.uint8),
                box=np.array([[left, 0, left + 12, 10] for left in x], np.float32).reshape(-1, 4),
                match=direct,
                overlaps=table if raw else Overlaps.empty(),
                detections=len(there),
            )
        )
    return frames


def no_match() -> Match:
    return Match(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, 2)))


def empty_frame() -> TrackFrame:
    return TrackFrame(
        detection=np.zeros(0, np.int64),
        class_index=np.zeros(0, np.uint8),
        box=np.zeros((0, 4), np.float32),
        match=no_match(),
        overlaps=Overlaps.empty(),
        detections=0,
    )


def groups(frames: Sequence[TrackFrame], max_gap: int, begin: int = 0) -> Groups:
    """Tracks as sets of (time, detection); times count from `begin`."""
    found: dict[int, set[tuple[int, int]]] = {}
    for time, (frame, ids) in enumerate(zip(frames, link(frames, MIN_IOU, max_gap), strict=True), begin):
        for detection, track in zip(frame.detection.tolist(), ids.tolist(), strict=True):
            found.setdefault(track, set()).add((time, detection))
    return {frozenset(each) for each in found.values()}


@QUICK
@given(seed=seeds, max_gap=st.integers(0, 4))
def test_ids_count_up_by_first_appearance_and_label(seed: int, max_gap: int) -> None:
    frames = random_clip(np.random.default_rng(seed))
    flat = [track for ids in link(frames, MIN_IOU, max_gap) for track in ids.tolist()]
    assert list(dict.fromkeys(flat)) == list(range(1, len(set(flat)) + 1))
    assert len(flat) == sum(len(frame.detection) for frame in frames)


@QUICK
@given(seed=seeds)
def test_without_bridges_tracks_are_what_direct_matches_connect(seed: int) -> None:
    frames = random_clip(np.random.default_rng(seed), raw=False, boxes=False)
    place = {(time, int(d)): (time, int(d)) for time, frame in enumerate(frames) for d in frame.detection}
    for time, frame in enumerate(frames):  # relabel until nothing changes: connected components
        for a, b in zip(frame.match.prev, frame.match.next, strict=True):
            old = place[time, int(frame.detection[b])]
            new = place[time - 1, int(frames[time - 1].detection[a])]
            place = {node: new if root == old else root for node, root in place.items()}
    expected = {frozenset(node for node in place if place[node] == root) for root in place.values()}
    assert groups(frames, 4) == expected


@QUICK
@given(seed=seeds, raw=st.booleans(), max_gap=st.integers(0, 4))
def test_a_longer_gap_joins_tracks_and_splits_none(seed: int, raw: bool, max_gap: int) -> None:
    # One kind of bridge at a time: a longer one through raw detections goes before a shorter one across.
    frames = random_clip(np.random.default_rng(seed), raw=raw, boxes=not raw)
    shorter, longer = groups(frames, max_gap), groups(frames, max_gap + 1)
    assert all(any(track <= other for other in longer) for track in shorter)


@QUICK
@given(seed=seeds, max_gap=st.integers(0, 4))
def test_labels_and_the_order_of_detections_do_not_matter(seed: int, max_gap: int) -> None:
    rng = np.random.default_rng(seed)
    frames = random_clip(rng)
    orders = [rng.permutation(len(frame.detection)) for frame in frames]
    ranks = [np.argsort(order) for order in orders]
    shuffled = [
        replace(
            frame,
            detection=frame.detection[order],
            class_index=frame.class_index[order],
            box=frame.box[order],
            match=Match(ranks[time - 1][frame.match.prev], ranks[time][frame.match.next], frame.match.iou),
        )
        for time, (frame, order) in enumerate(zip(frames, orders, strict=True))
    ]
    assert groups(shuffled, max_gap) == groups(frames, max_gap)


@QUICK
@given(seed=seeds, max_gap=st.integers(0, 4))
def test_clips_apart_by_more_than_the_gap_do_not_touch_each_other(seed: int, max_gap: int) -> None:
    rng = np.random.default_rng(seed)
    first, second = random_clip(rng), random_clip(rng)
    second[0] = replace(second[0], overlaps=Overlaps.empty())
    begin = len(first) + max_gap + 1
    both = [*first, *[empty_frame()] * (max_gap + 1), *second, empty_frame()]
    assert groups(both, max_gap) == groups(first, max_gap) | groups(second, max_gap, begin)


@QUICK
@given(seed=seeds, max_gap=st.integers(1, 4))
def test_a_bridge_needs_a_reason(seed: int, max_gap: int) -> None:
    """Neighbours in a track that are no direct match: a raw way, or boxes of one class that overlap."""
    frames = random_clip(np.random.default_rng(seed))
    for track in groups(frames, max_gap):
        members = sorted(track)
        for (begin, a), (end, b) in zip(members, members[1:], strict=False):
            rows = [frames[t].detection.tolist().index(d) for t, d in ((begin, a), (end, b))]
            direct = zip(frames[end].match.prev.tolist(), frames[end].match.next.tolist(), strict=True)
            if end == begin + 1 and tuple(rows) in set(direct):
                continue
            assert end - begin <= max_gap + 1
            same_class = frames[begin].class_index[rows[0]] == frames[end].class_index[rows[1]]
            assert raw_way(frames, begin, a, end) == b or same_class


def raw_way(frames: Sequence[TrackFrame], begin: int, detection: int, end: int) -> int | None:
    """The raw detection that mutually best overlaps lead to."""
    for time in range(begin + 1, end + 1):
        everything = np.arange(frames[time - 1].detections), np.arange(frames[time].detections)
        found = match(*everything, frames[time].overlaps, MIN_IOU)
        steps = dict(zip(found.prev.tolist(), found.next.tolist(), strict=True))
        if detection not in steps:
            return None
        detection = steps[detection]
    return detection
