"""Selection, overlaps and matches against cases known on paper, and properties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.classes import CLASS_INDEX
from pipeline.detections import Detections
from pipeline.errors import ConfigError
from pipeline.flow import Flow, consistent
from pipeline.matching import MaskConfig, match, overlaps, select
from pipeline.shards.evidence import Overlaps
from workflows.reference import plain_overlaps

SIZE = (96, 64)


def rectangle(x: int, y: int, w: int, h: int) -> tuple[np.ndarray, np.ndarray]:
    """Box and mask grid of a full rectangle of whole pixels."""
    box = np.array([x - 0.5, y - 0.5, x + w - 0.5, y + h - 0.5], np.float32)
    return box, np.full((h, w), 255, np.uint8)


def detections(*rectangles: tuple[int, int, int, int], scores=None, classes=None) -> Detections:  # type: ignore[no-untyped-def]
    parts = [rectangle(*each) for each in rectangles]
    count = len(parts)
    return Detections(
        boxes=np.array([box for box, _ in parts], np.float32).reshape(-1, 4),
        scores=np.array(scores if scores is not None else np.linspace(0.9, 0.6, count), np.float32),
        classes=np.array(
            [CLASS_INDEX[name] for name in classes] if classes else [CLASS_INDEX["car"]] * count, np.uint8
        ),
        masks=tuple(grid for _, grid in parts),
    )


def shift(dx: float, dy: float = 0.0) -> Flow:
    forward = np.broadcast_to(np.array([dx, dy], np.float32), (SIZE[1], SIZE[0], 2))
    return Flow(forward=forward.copy(), backward=-forward)


def test_the_higher_score_owns_pixels_that_two_masks_share() -> None:
    chosen = select(detections((10, 10, 20, 10), (20, 10, 20, 10)), SIZE, MaskConfig())
    assert chosen.area.tolist() == [200, 100]
    assert chosen.box.tolist() == [[9.5, 9.5, 29.5, 19.5], [29.5, 9.5, 39.5, 19.5]]
    assert (chosen.labels == 1).sum() == 200
    assert (chosen.labels == 2).sum() == 100


def test_equal_scores_keep_the_order_of_the_detector() -> None:
    both = detections((10, 10, 20, 10), (20, 10, 20, 10), scores=[0.7, 0.7])
    assert select(both, SIZE, MaskConfig()).area.tolist() == [200, 100]


def test_an_instance_more_than_half_hidden_is_dropped_and_hides_nothing() -> None:
    three = detections((10, 10, 20, 10), (16, 10, 20, 10), (30, 10, 20, 10))
    chosen = select(three, SIZE, MaskConfig())
    assert chosen.detection.tolist() == [0, 2]
    assert chosen.area.tolist() == [200, 200]


def test_score_class_and_area_cut() -> None:
    four = detections(
        (0, 0, 20, 10), (30, 0, 20, 10), (60, 0, 20, 10), (0, 30, 7, 9),
        scores=[0.9, 0.8, 0.4, 0.9], classes=["car", "person", "car", "car"],
    )  # fmt: skip
    assert select(four, SIZE, MaskConfig()).detection.tolist() == [0, 1]
    assert select(four, SIZE, MaskConfig(min_area=63)).detection.tolist() == [0, 3, 1]
    assert select(four, SIZE, MaskConfig(classes=("car",))).detection.tolist() == [0]
    assert select(four, SIZE, MaskConfig(min_score=0.4)).detection.tolist() == [0, 1, 2]


def test_the_instance_limit_keeps_the_largest_and_renumbers() -> None:
    three = detections((0, 0, 10, 10), (20, 0, 30, 10), (60, 0, 20, 10))
    chosen = select(three, SIZE, MaskConfig(max_instances=2))
    assert chosen.detection.tolist() == [1, 2]
    assert np.bincount(chosen.labels.ravel()).tolist()[1:] == [300, 200]


def test_a_frame_without_detections_has_an_empty_label_map() -> None:
    chosen = select(Detections.empty(), SIZE, MaskConfig())
    assert len(chosen) == 0
    assert chosen.labels.shape == (SIZE[1], SIZE[0])
    assert not chosen.labels.any()


def test_more_than_255_instances_need_two_bytes_a_label() -> None:
    dots = [(3 * (i % 30), 3 * (i // 30), 2, 2) for i in range(300)]
    chosen = select(detections(*dots, scores=np.linspace(1, 0.6, 300)), SIZE, MaskConfig(min_area=1))
    assert chosen.labels.dtype == np.uint16
    assert chosen.labels.max() == 300


def test_iou_of_a_shifted_rectangle_is_known_on_paper() -> None:
    # 20 px wide, moved by 10, while the flow says 5: 15 px of 25 overlap.
    table = overlaps(detections((20, 20, 20, 10)), detections((30, 20, 20, 10)), shift(5), SIZE)
    assert table.pixels.tolist() == [[150, 250, 150, 250]]


def test_zero_flow_gives_a_mask_at_the_border_iou_one_with_itself() -> None:
    edge = detections((SIZE[0] - 20, 20, 20, 10))
    assert overlaps(edge, edge, shift(0), SIZE).iou.tolist() == [[1.0, 1.0]]


def test_occluded_pixels_count_for_nobody() -> None:
    flow = shift(0)
    flow.backward[:, 30:] += 9.0  # the right part disagrees with the forward flow
    before, after = detections((20, 20, 20, 10)), detections((20, 20, 20, 10))
    table = overlaps(before, after, flow, SIZE)
    visible_prev, visible_next = consistent(flow)
    assert not visible_next[:, 30:].any()
    assert table.pixels[0, 2:].tolist() == [100, 100]  # only the left half is seen on either side
    assert table.iou.tolist() == [[1.0, 1.0]]
    assert visible_prev[20:30, 20:30].all()


def test_overlapping_masks_of_one_frame_are_all_counted() -> None:
    twins = detections((20, 20, 20, 10), (20, 20, 20, 10), (24, 20, 20, 10))
    table = overlaps(twins, twins, shift(0), SIZE)
    iou = {
        (int(a), int(b)): float(both[0]) for a, b, both in zip(table.prev, table.next, table.iou, strict=True)
    }
    assert iou[0, 0] == iou[0, 1] == iou[1, 0] == 1.0
    assert iou[0, 2] == pytest.approx(16 / 24)
    assert len(iou) == 9


def test_match_is_mutual_and_above_the_threshold() -> None:
    table = Overlaps(
        prev=np.array([0, 0, 1, 2], np.uint16),
        next=np.array([0, 1, 1, 2], np.uint16),
        pixels=np.array([[8, 10, 8, 10], [9, 10, 9, 10], [6, 10, 6, 10], [5, 10, 9, 10]], np.uint32),
    )
    pairs = match(np.arange(3), np.arange(3), table, 0.5)
    # 1's best is 1, whose best is 0; 2-2 fails in one direction (0.5 is not above 0.5)
    assert list(zip(pairs.prev.tolist(), pairs.next.tolist(), strict=True)) == [(0, 1)]
    alone = match(np.array([1]), np.array([1]), table, 0.5)
    assert alone.iou.tolist() == [[0.6, 0.6]]


def test_settings_that_cannot_be_are_refused() -> None:
    for wrong in (
        {"min_score": 0.01}, {"mask_probability": 1.0}, {"classes": ("cat",)}, {"classes": ()}, {"min_area": 0},
        {"max_hidden": -0.1}, {"max_instances": 0}, {"min_iou": 0.05}, {"min_iou": 1.0}, {"max_gap": -1},
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            MaskConfig(**wrong)  # type: ignore[arg-type]


def test_equal_settings_are_equal_whatever_the_order_of_classes() -> None:
    assert MaskConfig(classes=("car", "person", "car")) == MaskConfig(classes=("person", "car"))


rectangles = st.lists(
    st.tuples(st.integers(-5, 90), st.integers(-5, 60), st.integers(1, 30), st.integers(1, 30)), max_size=6
)


@settings(max_examples=60, deadline=None)
@given(a=rectangles, b=rectangles, dx=st.floats(-8, 8), dy=st.floats(-8, 8), seed=st.integers(0, 99))
def test_overlaps_equal_their_plain_definition(a, b, dx, dy, seed) -> None:  # type: ignore[no-untyped-def]
    noise = np.random.default_rng(seed).normal(0, 0.4, (2, SIZE[1], SIZE[0], 2)).astype(np.float32)
    exact = shift(dx, dy)
    flow = Flow(forward=exact.forward + noise[0], backward=exact.backward + noise[1])
    prev, next_ = detections(*a), detections(*b)
    table = overlaps(prev, next_, flow, SIZE)
    have = {
        (int(i), int(j)): row.tolist() for i, j, row in zip(table.prev, table.next, table.pixels, strict=True)
    }
    assert have == plain_overlaps(prev, next_, flow, SIZE)


@settings(max_examples=60, deadline=None)
@given(a=rectangles, b=rectangles, dx=st.floats(-8, 8), min_iou=st.floats(0.1, 0.95))
def test_matches_are_one_to_one_above_the_threshold_and_the_same_in_reverse(a, b, dx, min_iou) -> None:  # type: ignore[no-untyped-def]
    prev, next_ = detections(*a), detections(*b)
    there = overlaps(prev, next_, shift(dx), SIZE)
    back = overlaps(next_, prev, Flow(forward=shift(dx).backward, backward=shift(dx).forward), SIZE)
    pairs = match(np.arange(len(prev)), np.arange(len(next_)), there, min_iou)
    assert len(set(pairs.prev.tolist())) == len(set(pairs.next.tolist())) == len(pairs.prev)
    assert (pairs.iou > min_iou).all()
    if len({tuple(row) for row in there.pixels.tolist()}) == len(there):  # no ties
        reverse = match(np.arange(len(next_)), np.arange(len(prev)), back, min_iou)
        both = zip(reverse.next.tolist(), reverse.prev.tolist(), strict=True)
        assert set(both) == set(zip(pairs.prev.tolist(), pairs.next.tolist(), strict=True))


@settings(max_examples=60, deadline=None)
@given(boxes=rectangles, area=st.integers(1, 200), hidden=st.floats(0, 1), limit=st.integers(1, 6))
def test_label_maps_and_tables_agree(boxes, area, hidden, limit) -> None:  # type: ignore[no-untyped-def]
    config = MaskConfig(min_area=area, max_hidden=hidden, max_instances=limit)
    chosen = select(detections(*boxes), SIZE, config)
    counts = np.bincount(chosen.labels.ravel(), minlength=len(chosen) + 1)
    assert counts[1:].tolist() == chosen.area.tolist()
    assert len(chosen) <= limit
    assert (chosen.area >= area).all()
