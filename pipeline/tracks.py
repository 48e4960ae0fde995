"""Pairwise matches -> tracks: one id per object over its whole clip. Pure functions.

Direct matches chain instances into tracks. A chain that ends may go on in a chain that
begins in the next frame or a few frames later, found in this order:

1. through raw detections: the object was still detected, but not chosen (low score, too
   small, hidden). Mutually best raw overlaps lead from the end to the beginning;
2. across missing detections, or where the flow lost a fast object: the box of the end, moved
   on at its last velocity, overlaps the first box of the later chain, of the same class.

Of each kind shorter gaps are bridged first, then better overlaps; training uses direct matches only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.matching import Match, match
from pipeline.shards.evidence import Overlaps


@dataclass(frozen=True, kw_only=True)
class TrackFrame:
    """What linking needs of one frame.

    detection:   (K,) int64, detection index of each instance
    class_index: (K,) uint8
    box:         (K, 4) float32, pixel edges
    match:       direct matches with the frame before; empty at the first frame of a clip
    overlaps:    overlaps of all raw detection pairs with the frame before
    detections:  number of raw detections of the frame
    """

    detection: np.ndarray
    class_index: np.ndarray
    box: np.ndarray
    match: Match
    overlaps: Overlaps
    detections: int


@dataclass
class _Chain:
    """Instances (frame, row) linked so far, in time order."""

    members: list[tuple[int, int]]


def link(frames: Sequence[TrackFrame], min_iou: float, max_gap: int) -> list[np.ndarray]:
    """Track ids of every instance of a clip.

    Args:
        frames:  the clip's frames, in order.
        min_iou: least IoU, of raw masks (case 1) or of boxes (case 2), across a gap.
        max_gap: longest gap bridged: frames without the instance.

    Returns:
        Per frame (K,) uint32 ids from 1, numbered by first appearance, then by label. No
        id occurs twice in a frame.
    """
    chains = _direct_chains(frames)
    successor = _bridges(frames, chains, min_iou, max_gap)
    ids = [np.zeros(len(frame.detection), np.uint32) for frame in frames]
    has_predecessor = set(successor.values())
    next_id = 1
    for index in range(len(chains)):
        if index in has_predecessor:
            continue
        current: int | None = index
        while current is not None:
            for time, row in chains[current].members:
                ids[time][row] = next_id
            current = successor.get(current)
        next_id += 1
    return ids


def _direct_chains(frames: Sequence[TrackFrame]) -> list[_Chain]:
    """Chains of direct matches, ordered by their first (frame, row)."""
    chains: list[_Chain] = []
    chain_of_row: dict[int, int] = {}
    for time, frame in enumerate(frames):
        before = dict(zip(frame.match.next.tolist(), frame.match.prev.tolist(), strict=True))
        current: dict[int, int] = {}
        for row in range(len(frame.detection)):
            if row in before:
                current[row] = chain_of_row[before[row]]
                chains[current[row]].members.append((time, row))
            else:
                current[row] = len(chains)
                chains.append(_Chain([(time, row)]))
        chain_of_row = current
    return chains


def _bridges(
    frames: Sequence[TrackFrame], chains: Sequence[_Chain], min_iou: float, max_gap: int
) -> dict[int, int]:
    """Which chain goes on in which: {earlier: later}."""
    starts: dict[int, list[int]] = {}
    for index, chain in enumerate(chains):
        starts.setdefault(chain.members[0][0], []).append(index)

    through_raw: list[tuple[int, float, int, int]] = []
    across: list[tuple[int, float, int, int]] = []
    raw_steps: dict[int, dict[int, tuple[int, float]]] = {}
    for index, chain in enumerate(chains):
        end = chain.members[-1][0]
        reachable = [time for time in range(end + 1, end + 2 + max_gap) if time in starts]
        if not reachable:
            continue
        raw_ends = _follow_raw(frames, chain, reachable[-1], min_iou, raw_steps)
        for time in reachable:
            predicted = _predict_box(frames, chain, time)
            class_index = frames[end].class_index[chain.members[-1][1]]
            for later in starts[time]:
                row = chains[later].members[0][1]
                detection, iou = raw_ends.get(time, (-1, 0.0))
                if detection == frames[time].detection[row]:
                    through_raw.append((time - end, -iou, index, later))
                    continue
                iou = _box_iou(predicted, frames[time].box[row])
                if iou > min_iou and class_index == frames[time].class_index[row]:
                    across.append((time - end, -iou, index, later))

    successor: dict[int, int] = {}
    taken: set[int] = set()
    for _, _, earlier, later in [*sorted(through_raw), *sorted(across)]:
        if earlier not in successor and later not in taken:
            successor[earlier] = later
            taken.add(later)
    return successor


def _follow_raw(
    frames: Sequence[TrackFrame],
    chain: _Chain,
    last: int,
    min_iou: float,
    steps: dict[int, dict[int, tuple[int, float]]],
) -> dict[int, tuple[int, float]]:
    """Where mutually best raw overlaps lead: {frame: (detection, least IoU on the way)}."""
    time, row = chain.members[-1]
    detection, worst = int(frames[time].detection[row]), 1.0
    reached: dict[int, tuple[int, float]] = {}
    while time < last:
        time += 1
        if time not in steps:
            steps[time] = _raw_steps(frames, time, min_iou)
        if detection not in steps[time]:
            break
        detection, iou = steps[time][detection]
        worst = min(worst, iou)
        reached[time] = (detection, worst)
    return reached


def _raw_steps(frames: Sequence[TrackFrame], time: int, min_iou: float) -> dict[int, tuple[int, float]]:
    """Mutually best raw detections from frame time - 1 to frame time: {prev: (next, IoU)}."""
    prev, next_ = np.arange(frames[time - 1].detections), np.arange(frames[time].detections)
    pairs = match(prev, next_, frames[time].overlaps, min_iou)
    return {int(a): (int(b), float(iou.min())) for a, b, iou in zip(*pairs, strict=True)}


def _predict_box(frames: Sequence[TrackFrame], chain: _Chain, time: int) -> np.ndarray:
    """The chain's last box, moved on at the velocity of its last step."""
    end, row = chain.members[-1]
    box = frames[end].box[row].astype(np.float64)
    if len(chain.members) == 1:
        return box
    before, before_row = chain.members[-2]
    velocity = (box - frames[before].box[before_row]) / (end - before)
    return box + velocity * (time - end)


def _box_iou(a: np.ndarray, b: np.ndarray) -> float:
    """IoU of two boxes; 0 where either has no area."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    size = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    inter = float(np.prod(np.maximum(size, 0)))
    area = float(np.prod(np.maximum(a[2:] - a[:2], 0)) + np.prod(np.maximum(b[2:] - b[:2], 0)))
    return inter / (area - inter) if area > inter else 0.0
