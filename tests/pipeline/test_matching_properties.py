"""Selection, overlaps and matches of any soft masks under any flow, against plain definitions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.classes import CLASSES
from pipeline.detections import Detections
from pipeline.flow import Flow
from pipeline.masks import paste
from pipeline.matching import MaskConfig, Match, match, overlaps, select
from pipeline.shards.evidence import EvidenceFile, FrameEvidence, Overlaps, encode_evidence
from pipeline.shards.hdf5 import publish
from workflows.reference import plain_overlaps

SIZE = (40, 28)
QUICK = settings(max_examples=60, deadline=None, derandomize=True)


seeds = st.binary(min_size=8, max_size=8).map(lambda data: int.from_bytes(data, "little"))


def soft_detections(rng: np.random.Generator, most: int) -> Detections:
    """Soft masks on grids of any shape in boxes of any place: one pixel, none, or half outside."""
    count = int(rng.integers(0, most + 1)) if rng.random() < 0.3 else most
    corner = rng.uniform(-8, np.multiply(SIZE, 0.9), (count, 2))
    extent = rng.choice([0, 0.4, 1, 3, 9, 14, 20, 60], (count, 2)) * rng.uniform(0.8, 1.2, (count, 2))
    grids = []
    for _ in range(count):
        shape = (1, 1) if rng.random() < 0.2 else tuple(rng.integers(2, 12, 2))
        lowest = rng.choice([0, 100, 255])
        grids.append(rng.integers(lowest, 256, shape).astype(np.uint8))
    scores = rng.choice([0.3, 0.6, 0.6, 0.9], count) if rng.random() < 0.5 else rng.uniform(0.05, 1, count)
    return Detections(
        boxes=np.concatenate([corner, corner + extent], axis=1).astype(np.float32),
        scores=np.sort(scores)[::-1].astype(np.float32),
        classes=rng.integers(0, len(CLASSES), count).astype(np.uint8),
        masks=tuple(grids),
    )


def scene(seed: int) -> tuple[Detections, Detections, Flow]:
    """Two frames and a flow: some detections move with it, more or less; it may be rough or wild."""
    rng = np.random.default_rng(seed)
    prev, others = soft_detections(rng, 6), soft_detections(rng, 3)
    step = rng.uniform(-6, 6, 2)
    moved = prev.select(np.flatnonzero(rng.random(len(prev)) < 0.8))
    boxes = moved.boxes + np.tile(step + rng.normal(0, 0.7, (len(moved), 2)), 2).astype(np.float32)
    noise = rng.normal(0, rng.choice([0, 0.3, 3], p=[0.4, 0.4, 0.2]), (2, SIZE[1], SIZE[0], 2))
    if rng.random() < 0.3:
        noise[rng.random(noise.shape) < 0.02] = rng.choice([-1e5, 1e5, 511.98])
    flow = Flow(forward=(step + noise[0]).astype(np.float32), backward=(noise[1] - step).astype(np.float32))
    return prev, together(replace(moved, boxes=boxes), others), flow


def as_dict(table: Overlaps) -> dict[tuple[int, int], list[int]]:
    rows = zip(table.prev.tolist(), table.next.tolist(), table.pixels.tolist(), strict=True)
    return {(a, b): pixels for a, b, pixels in rows}


def together(a: Detections, b: Detections) -> Detections:
    return Detections(
        boxes=np.concatenate([a.boxes, b.boxes]),
        scores=np.concatenate([a.scores, b.scores]),
        classes=np.concatenate([a.classes, b.classes]),
        masks=a.masks + b.masks,
    )


NOWHERE = Detections(
    boxes=np.array([[500, 500, 540, 540], [-90, 3, -60, 9], [5, 5, 5, 9], [np.nan, 0, 9, 9]], np.float32),
    scores=np.full(4, 0.01, np.float32),
    classes=np.zeros(4, np.uint8),
    masks=(np.full((28, 28), 255, np.uint8),) * 3 + (np.zeros((0, 0), np.uint8),),
)
"""Detections that cover no pixel."""


@QUICK
@given(seed=seeds)
def test_overlaps_of_soft_masks_under_rough_flow_equal_their_definition(seed: int) -> None:
    prev, next_, flow = scene(seed)
    assert as_dict(overlaps(prev, next_, flow, SIZE)) == plain_overlaps(prev, next_, flow, SIZE)


@QUICK
@given(seed=seeds)
def test_backwards_in_time_the_same_pixels_are_counted(seed: int) -> None:
    prev, next_, flow = scene(seed)
    back = overlaps(next_, prev, Flow(forward=flow.backward, backward=flow.forward), SIZE)
    there = as_dict(overlaps(prev, next_, flow, SIZE))
    assert {(b, a): [*pixels[2:], *pixels[:2]] for (a, b), pixels in as_dict(back).items()} == there


@QUICK
@given(seed=seeds)
def test_order_and_far_away_detections_change_no_overlap(seed: int) -> None:
    prev, next_, flow = scene(seed)
    order = np.random.default_rng(seed).permutation(len(prev))
    table = as_dict(overlaps(prev, next_, flow, SIZE))
    shuffled = as_dict(overlaps(prev.select(order), next_, flow, SIZE))
    assert {(int(order[a]), b): pixels for (a, b), pixels in shuffled.items()} == table
    assert as_dict(overlaps(together(prev, NOWHERE), together(next_, NOWHERE), flow, SIZE)) == table


def overlap_table(seed: int) -> tuple[Overlaps, np.ndarray, np.ndarray]:
    """A table of few, often equal IoUs, and instances chosen of either frame, in any order."""
    rng = np.random.default_rng(seed)
    rows, columns = rng.integers(0, 7, 2)
    prev, next_ = np.nonzero(rng.random((rows, columns)) < 0.6)
    pixels = rng.choice([1, 3, 5, 6, 8, 9, 10], (len(prev), 4))
    pixels[:, 1::2] = 10
    table = Overlaps(
        prev=prev.astype(np.uint16), next=next_.astype(np.uint16), pixels=pixels.astype(np.uint32)
    )
    chosen = [
        rng.permutation(n)[: rng.integers(0, n + 1) if rng.random() < 0.4 else n] for n in (rows, columns)
    ]
    return table, chosen[0], chosen[1]


def plain_match(
    prev: np.ndarray, next_: np.ndarray, table: Overlaps, min_iou: float
) -> list[tuple[int, int]]:
    """By definition: each is the other's first best, and both IoUs are above the threshold."""
    iou = {
        (int(a), int(b)): float(both.min())
        for a, b, both in zip(table.prev, table.next, table.iou, strict=True)
    }

    def worst(row: int, column: int) -> float:
        return iou.get((int(prev[row]), int(next_[column])), 0.0)

    rows, columns = range(len(prev)), range(len(next_))
    return [
        (row, column)
        for row in rows
        for column in columns
        if worst(row, column) > min_iou
        and column == max(columns, key=lambda c: worst(row, c))
        and row == max(rows, key=lambda r: worst(r, column))
    ]


def pairs(found: Match) -> list[tuple[int, int]]:
    return list(zip(found.prev.tolist(), found.next.tolist(), strict=True))


@settings(QUICK, max_examples=150)
@given(seed=seeds, min_iou=st.sampled_from([0.1, 0.3, 0.5, 0.55, 0.8, 0.99]))
def test_matches_are_each_others_first_best_above_the_threshold(seed: int, min_iou: float) -> None:
    table, prev, next_ = overlap_table(seed)
    found = match(prev, next_, table, min_iou)
    assert pairs(found) == plain_match(prev, next_, table, min_iou)
    assert set(pairs(match(prev, next_, table, min(min_iou + 0.2, 0.999)))) <= set(pairs(found))
    ious = {
        (int(a), int(b)): both.tolist() for a, b, both in zip(table.prev, table.next, table.iou, strict=True)
    }
    assert found.iou.tolist() == [ious[int(prev[row]), int(next_[column])] for row, column in pairs(found)]


def plain_select(detections: Detections, config: MaskConfig) -> tuple[np.ndarray, list[int]]:
    """By definition, one whole mask at a time: label map and chosen detections."""
    order = sorted(range(len(detections)), key=lambda index: -detections.scores[index])
    chosen: list[tuple[int, np.ndarray]] = []
    free = np.ones((SIZE[1], SIZE[0]), bool)
    for index in order:
        if detections.scores[index] < np.float32(config.min_score):
            continue
        if CLASSES[detections.classes[index]] not in config.classes:
            continue
        mask = np.zeros_like(free)
        patch = paste(detections.masks[index], detections.boxes[index], SIZE, config.mask_probability)
        mask[patch.slices] = patch.mask
        visible = mask & free
        if visible.sum() >= config.min_area and visible.sum() >= (1 - config.max_hidden) * mask.sum():
            chosen.append((index, visible))
            free &= ~visible
    if config.max_instances is not None:
        largest = sorted(range(len(chosen)), key=lambda row: -chosen[row][1].sum())[: config.max_instances]
        chosen = [chosen[row] for row in sorted(largest)]
    labels = sum(((row + 1) * visible for row, (_, visible) in enumerate(chosen)), start=0 * free.astype(int))
    return labels, [index for index, _ in chosen]


configs = st.builds(
    MaskConfig,
    min_score=st.sampled_from([0.05, 0.3, 0.5]),
    mask_probability=st.sampled_from([0.1, 0.5, 0.9]),
    classes=st.sampled_from([CLASSES, CLASSES[:5]]),
    min_area=st.sampled_from([1, 2, 30]),
    max_hidden=st.sampled_from([0, 0.4, 0.5, 1]),
    max_instances=st.sampled_from([None, 1, 3]),
)


@settings(QUICK, max_examples=120)
@given(seed=seeds, config=configs)
def test_selection_equals_its_definition(seed: int, config: MaskConfig) -> None:
    detections = soft_detections(np.random.default_rng(seed), 9)
    chosen = select(detections, SIZE, config)
    labels, indices = plain_select(detections, config)
    np.testing.assert_array_equal(chosen.labels, labels)
    assert chosen.detection.tolist() == indices
    for row, (area, box) in enumerate(zip(chosen.area, chosen.box, strict=True)):
        v, u = np.nonzero(labels == row + 1)
        assert area == len(u)
        assert box.tolist() == [u.min() - 0.5, v.min() - 0.5, u.max() + 0.5, v.max() + 0.5]
    with_more = select(together(detections, NOWHERE), SIZE, config)
    np.testing.assert_array_equal(with_more.labels, labels)


@QUICK
@given(seed=seeds, config=configs)
def test_between_different_scores_the_order_of_detections_does_not_matter(
    seed: int, config: MaskConfig
) -> None:
    detections = soft_detections(np.random.default_rng(seed), 9)
    scores = np.linspace(0.9, 0.1, len(detections)).astype(np.float32)
    distinct = replace(detections, scores=scores)
    order = np.random.default_rng(seed).permutation(len(detections))
    here, there = select(distinct, SIZE, config), select(distinct.select(order), SIZE, config)
    np.testing.assert_array_equal(there.labels, here.labels)
    assert order[there.detection].tolist() == here.detection.tolist()


@settings(QUICK, max_examples=5)
@given(count=st.integers(250, 300), seed=st.integers(0, 99))
def test_any_number_of_one_pixel_instances_gets_a_label_each(count: int, seed: int) -> None:
    places = np.random.default_rng(seed).permutation(SIZE[0] * SIZE[1])[:count]
    corner = np.stack([places % SIZE[0], places // SIZE[0]], axis=1) - 0.5
    dots = Detections(
        boxes=np.concatenate([corner, corner + 1], axis=1).astype(np.float32),
        scores=np.full(count, 0.7, np.float32),
        classes=np.zeros(count, np.uint8),
        masks=(np.full((1, 1), 255, np.uint8),) * count,
    )
    chosen = select(dots, SIZE, MaskConfig(min_area=1))
    assert chosen.labels.dtype == (np.uint8 if count < 256 else np.uint16)
    assert chosen.labels.ravel()[places].tolist() == list(range(1, count + 1))
    still = Flow(
        forward=np.zeros((SIZE[1], SIZE[0], 2), np.float32),
        backward=np.zeros((SIZE[1], SIZE[0], 2), np.float32),
    )
    table = overlaps(dots, dots, still, SIZE)
    found = match(chosen.detection, chosen.detection, table, 0.9)
    assert pairs(found) == [(row, row) for row in range(count)]


@settings(QUICK, max_examples=25)
@given(seed=seeds, config=configs)
def test_what_a_shard_keeps_regenerates_selection_overlaps_and_matches(
    tmp_path_factory: pytest.TempPathFactory, seed: int, config: MaskConfig
) -> None:
    prev, next_, flow = scene(seed)
    table = overlaps(prev, next_, flow, SIZE)
    path: Path = tmp_path_factory.getbasetemp() / "evidence.h5"
    evidence = [
        FrameEvidence(detections=prev, overlaps=Overlaps.empty()),
        FrameEvidence(detections=next_, overlaps=table),
    ]
    publish(path, encode_evidence(evidence, set_id="a" * 64, size=SIZE, flow_shape=None))
    file = EvidenceFile(path, set_id="a" * 64, size=SIZE)
    kept = [file[0], file[1]]
    file.close()

    def outcome(frames: list[FrameEvidence]) -> list[np.ndarray]:
        chosen = [select(frame.detections, SIZE, config) for frame in frames]
        found = match(chosen[0].detection, chosen[1].detection, frames[1].overlaps, config.min_iou)
        again = overlaps(frames[0].detections, frames[1].detections, flow, SIZE, config.mask_probability)
        return [*(each.labels for each in chosen), *found, again.prev, again.next, again.pixels]

    for have, want in zip(outcome(kept), outcome(evidence), strict=True):
        np.testing.assert_array_equal(have, want)
