"""Matched pairs and tracks against true object ids. Sums first, ratios last.

A predicted instance stands for the true object that it overlaps with IoU above 0.5 in its
frame (at most one, for label maps do not overlap). Everything else follows from that:

- a predicted pair is right when both its instances stand for one object. Precision counts
  all predicted pairs; recall, the pairs of all objects seen in two neighbouring frames;
  recall of detected ones, those of which both instances were detected;
- an identity switch: an object's track differs from the track that it had when it was last
  detected;
- IDF1 (Ristani et al. 2016): tracks and objects are assigned one to one so that they share
  the most frames, and F1 counts instances under that assignment.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from scipy.optimize import linear_sum_assignment

from evaluation.figure import Figure

MIN_IOU = 0.5


@dataclass(frozen=True, kw_only=True)
class TrackedFrame:
    """One frame of a clip, predicted and true.

    labels:    (H, W) predicted label map, 0 background
    track:     (K,) track id of labels 1..K
    pairs:     (P, 2) labels in the frame before and in this frame that are matched
    true_ids:  (H, W) true object ids, 0 background; ids are constant over the clip
    """

    labels: np.ndarray
    track: np.ndarray
    pairs: np.ndarray
    true_ids: np.ndarray


@dataclass(frozen=True, kw_only=True)
class TrackCounts:
    """Sums over frames and clips; they add up."""

    frames: int = 0
    pairs: int = 0
    right_pairs: int = 0
    true_pairs: int = 0
    detected_true_pairs: int = 0
    objects: int = 0
    switches: int = 0
    instances: int = 0
    true_instances: int = 0
    right_instances: int = 0

    def __add__(self, other: TrackCounts) -> TrackCounts:
        return TrackCounts(
            **{each.name: getattr(self, each.name) + getattr(other, each.name) for each in fields(self)}
        )


def count_tracks(clip: Sequence[TrackedFrame], min_area: int) -> TrackCounts:
    """Count one clip.

    Args:
        clip:     its frames, in order.
        min_area: true objects with fewer visible pixels in a frame are not asked for there;
                  predictions that stand for them are neither right nor wrong.
    """
    counts = TrackCounts()
    before: dict[int, int] = {}
    asked_before: set[int] = set()
    tiny_before: set[int] = set()
    last_track: dict[int, int] = {}
    shared: Counter[tuple[int, int]] = Counter()
    for frame in clip:
        area = np.bincount(frame.true_ids.ravel())
        present = {int(i) for i in np.flatnonzero(area) if i}
        asked = {i for i in present if area[i] >= min_area}
        stands_for = assign(frame.labels, frame.true_ids)
        judged = {label: i for label, i in stands_for.items() if i in asked}
        tiny = {label for label, i in stands_for.items() if i not in asked}
        pairs = [(int(a), int(b)) for a, b in frame.pairs if int(b) not in tiny and int(a) not in tiny_before]
        switches = 0
        for label, i in judged.items():
            track = int(frame.track[label - 1])
            switches += i in last_track and last_track[i] != track
            last_track[i] = track
            shared[i, track] += 1
        both = asked & asked_before
        counts += TrackCounts(
            frames=1,
            pairs=len(pairs),
            right_pairs=sum(1 for a, b in pairs if b in judged and before.get(a) == judged[b]),
            true_pairs=len(both),
            detected_true_pairs=len(both & set(before.values()) & set(judged.values())),
            switches=switches,
            instances=len(frame.track) - len(tiny),
            true_instances=len(asked),
        )
        before, tiny_before, asked_before = judged, tiny, asked
    return counts + TrackCounts(objects=len(last_track), right_instances=_best_assignment(shared))


def figures(counts: TrackCounts, protocol: str) -> list[Figure]:
    """Ratios of the sums, each with what it counts."""

    def figure(name: str, part: float, whole: int, unit: str = "fraction") -> Figure:
        value = part / whole if whole else float("nan")
        return Figure(name=name, value=value, unit=unit, protocol=protocol, count=whole)

    instances = counts.instances + counts.true_instances
    return [
        figure("pair precision", counts.right_pairs, counts.pairs),
        figure("pair recall", counts.right_pairs, counts.true_pairs),
        figure("pair recall of detected objects", counts.right_pairs, counts.detected_true_pairs),
        figure("identity switches per object", counts.switches, counts.objects, "switches"),
        Figure(name="IDF1", value=2 * counts.right_instances / instances if instances else float("nan"),
               unit="fraction", protocol=protocol, count=counts.true_instances),
    ]  # fmt: skip


def assign(labels: np.ndarray, true_ids: np.ndarray) -> dict[int, int]:
    """Label -> true id, where their pixels overlap with IoU above 0.5."""
    base = int(true_ids.max()) + 1
    joint = Counter(dict(zip(*_counts(labels.astype(np.int64) * base + true_ids), strict=True)))
    area = dict(zip(*_counts(labels), strict=True))
    true_area = dict(zip(*_counts(true_ids), strict=True))
    found = {}
    for code, both in joint.items():
        label, true_id = divmod(code, base)
        if label and true_id and both / (area[label] + true_area[true_id] - both) > MIN_IOU:
            found[label] = true_id
    return found


def resample_ids(ids: np.ndarray, K: np.ndarray, stored_K: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """True ids of a frame as rendered -> of the frame as stored, nearest pixel.

    Both cameras look the same way from the same place, so pixels follow from intrinsics alone.

    Args:
        ids:      (H, W) ids, camera K.
        stored_K: (3, 3) intrinsics of the stored frame, of `size` (width, height).
    """
    width, height = size
    if ids.shape == (height, width) and np.allclose(K, stored_K):
        return ids
    map_to = K @ np.linalg.inv(stored_K)
    u = np.rint(map_to[0, 0] * np.arange(width) + map_to[0, 2]).astype(int)
    v = np.rint(map_to[1, 1] * np.arange(height) + map_to[1, 2]).astype(int)
    return ids[np.clip(v, 0, ids.shape[0] - 1)[:, None], np.clip(u, 0, ids.shape[1] - 1)]


def _counts(values: np.ndarray) -> tuple[list[int], list[int]]:
    found, counts = np.unique(values, return_counts=True)
    return found.tolist(), counts.tolist()


def _best_assignment(shared: Counter[tuple[int, int]]) -> int:
    """Most frames that a one-to-one assignment of objects to tracks can share."""
    objects = sorted({i for i, _ in shared})
    tracks = sorted({track for _, track in shared})
    table = np.zeros((len(objects), len(tracks)), np.int64)
    for (i, track), frames in shared.items():
        table[objects.index(i), tracks.index(track)] = frames
    rows, columns = linear_sum_assignment(table, maximize=True)
    return int(table[rows, columns].sum())
