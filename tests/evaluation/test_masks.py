"""Mask AP on frames whose figures are known without computing."""

from __future__ import annotations

import math

import numpy as np
import pytest

from evaluation.masks import FrameMasks, MaskAP, ap_table, mask_ap

SIZE = (60, 80)


def squares(*corners: tuple[int, int], side: int = 10) -> np.ndarray:
    masks = np.zeros((len(corners), *SIZE), dtype=bool)
    for mask, (y, x) in zip(masks, corners, strict=True):
        mask[y : y + side, x : x + side] = True
    return masks


def truth(masks: np.ndarray, name: str = "car") -> FrameMasks:
    return FrameMasks(masks=masks, classes=[name] * len(masks))


def found(masks: np.ndarray, scores: list[float], name: str = "car") -> FrameMasks:
    return FrameMasks(masks=masks, classes=[name] * len(masks), scores=np.array(scores))


def pick(results: list[MaskAP], protocol: str = "AP50", size: str = "all", name: str = "car") -> MaskAP:
    (result,) = [r for r in results if (r.protocol, r.size, r.name) == (protocol, size, name)]
    return result


def test_perfect_is_one():
    masks = squares((5, 5), (5, 40), (30, 20))
    results = mask_ap([truth(masks)], [found(masks, [0.9, 0.8, 0.7])])
    assert [pick(results).value, pick(results, "AP50:95").value] == pytest.approx([1, 1])
    assert pick(results).count == 3


def test_nothing_found_is_zero():
    results = mask_ap([truth(squares((5, 5)))], [found(squares(), [])])
    assert pick(results).value == pick(results, "AP50:95").value == 0


def test_one_of_two_found_reaches_half_the_recall():
    results = mask_ap([truth(squares((5, 5), (30, 30)))], [found(squares((5, 5)), [0.9])])
    assert pick(results).value == pytest.approx(51 / 101)  # recall levels 0, .01, ... .50


def test_a_better_scored_false_alarm_halves_precision():
    predictions = found(squares((40, 60), (5, 5)), [0.9, 0.8])
    assert pick(mask_ap([truth(squares((5, 5)))], [predictions])).value == pytest.approx(0.5)


def test_overlap_decides_at_which_thresholds_a_mask_counts():
    shifted = squares((5, 7))  # 8 of 12 columns: IoU 2/3, enough for .50, .55, .60, .65
    results = mask_ap([truth(squares((5, 5)))], [found(shifted, [0.9])])
    assert pick(results).value == pytest.approx(1)
    assert pick(results, "AP50:95").value == pytest.approx(0.4)


def test_objects_under_16_pixels_count_neither_way():
    large, small = squares((5, 5)), squares((40, 40), side=3)
    frames = [truth(np.concatenate([large, small]))]
    assert pick(mask_ap(frames, [found(large, [0.5])])).value == pytest.approx(1)
    both = found(np.concatenate([small, large]), [0.9, 0.5])
    assert pick(mask_ap(frames, [both])).value == pytest.approx(1)
    assert pick(mask_ap(frames, [both])).count == 1


def test_size_bins_hold_each_object_once_and_empty_ones_are_nan():
    results = mask_ap([truth(squares((5, 5), side=10))], [found(squares((5, 5), side=10), [0.9])])
    counts = {r.size: r.count for r in results if r.protocol == "AP50"}
    assert counts == {"all": 1, "16-99 px": 0, "100-999 px": 1, "from 1000 px": 0, "from 100 px": 1}
    assert math.isnan(pick(results, size="16-99 px").value)


def test_classes_and_frames_are_kept_apart():
    car, person = squares((5, 5)), squares((30, 30))
    frames = [truth(car), truth(person, "person"), truth(squares())]
    swapped = [found(car, [0.8], "person"), found(person, [0.9], "person"), found(squares(), [])]
    results = mask_ap(frames, swapped)
    assert pick(results).value == 0
    assert pick(results, name="person").value == pytest.approx(
        1
    )  # its false alarm in the other frame has the lower score
    assert "| person | all | 1 |" in ap_table(results)


def test_nothing_true_gives_no_figures():
    assert mask_ap([truth(squares())], [found(squares((5, 5)), [0.9])]) == []


def test_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="1 true frames but 0"):
        mask_ap([truth(squares())], [])
    with pytest.raises(ValueError, match="scores"):
        mask_ap([truth(squares((5, 5)))], [truth(squares((5, 5)))])
    with pytest.raises(ValueError, match="bool"):
        FrameMasks(masks=np.zeros((1, 4, 4)), classes=["car"])
