"""Scene flow counted by a second implementation, in parts, and on exact rendered streets."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import reduce
from operator import add
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.ground_truth.scene_flow import SceneFlowTruth
from evaluation.scene_flow import (
    METRIC,
    PairPrediction,
    SceneFlowEstimate,
    SceneFlowScore,
    count_outliers,
    estimate_pair,
    score_pair,
)
from pipeline.streetworld.truth import FLOW_DEFINED, read_truth
from tests.evaluation.made import rigid, truth_as_prediction
from tests.evaluation.scene_flow_scenes import (
    BASELINE_M,
    MEASURES,
    by_points,
    percent,
)

# The same by other means.


def by_loops(estimate: SceneFlowEstimate, truth: SceneFlowTruth) -> dict[str, list[int]]:
    """Outliers and pixels on background, then on foreground, written out pixel by pixel."""
    counts = {name: [0, 0, 0, 0] for name in MEASURES}
    assert estimate.disparity_1_px is not None
    assert estimate.flow_px is not None
    for v in range(truth.size[1]):
        for u in range(truth.size[0]):
            bad = {}
            for name, found, true in (
                ("d1", estimate.disparity_0_px, truth.disparity_0_px),
                ("d2", estimate.disparity_1_px, truth.disparity_1_px),
            ):
                if true[v, u] > 0:
                    error = abs(float(found[v, u]) - float(true[v, u]))
                    bad[name] = not error < math.inf or (error > 3 and error / float(true[v, u]) > 0.05)
            if truth.flow_valid[v, u]:
                x, y = (float(each) for each in truth.flow_px[v, u])
                error = math.dist(
                    (float(estimate.flow_px[v, u, 0]), float(estimate.flow_px[v, u, 1])), (x, y)
                )
                bad["fl"] = not error < math.inf or (error > 3 and error > 0.05 * math.sqrt(x * x + y * y))
            if len(bad) == 3:
                bad["sf"] = any(bad.values())
            place = 0 if truth.object_map[v, u] == 0 else 2
            for name, outlier in bad.items():
                counts[name][place] += outlier
                counts[name][place + 1] += 1
    return counts


def counts_of(score: SceneFlowScore) -> dict[str, list[int]]:
    return {
        name: [
            getattr(score, name).background.part, getattr(score, name).background.whole,
            getattr(score, name).foreground.part, getattr(score, name).foreground.whole,
        ]
        for name in MEASURES
    }  # fmt: skip


def random_pair(seed: int, size: tuple[int, int] = (7, 5)) -> tuple[PairPrediction, SceneFlowTruth]:
    """A prediction, and truth that is near it on most pixels and missing on some."""
    rng = np.random.default_rng(seed)
    width, height = size
    small = np.array([[9.0, 0, width / 2], [0, 8, height / 2], [0, 0, 1]])

    def motion() -> np.ndarray:
        return rigid(tuple(rng.normal(0, 0.7, 3)), *rng.normal(0, 8, 2))  # type: ignore[arg-type]

    prediction = PairPrediction(
        inverse_depth=1 / rng.uniform(0.5, 5, (height, width)),
        later_T_earlier=motion(),
        labels=rng.integers(0, 4, (height, width)),
        motions={1: motion(), 3: motion()},
    )
    depth = 1 / prediction.inverse_depth
    later, flow = by_points(
        depth, small, prediction.later_T_earlier, prediction.labels, dict(prediction.motions)
    )
    later, flow = np.nan_to_num(later, nan=1.0), np.nan_to_num(flow)
    fb = small[0, 0] * 3.0
    known = rng.random((3, height, width)) < 0.7
    return prediction, SceneFlowTruth(
        pair=0,
        disparity_0_px=np.abs(fb / depth + rng.normal(0, 3, depth.shape)) * known[0],
        disparity_1_px=np.abs(fb / later + rng.normal(0, 3, depth.shape)) * known[1],
        flow_px=flow + rng.normal(0, 2, flow.shape),
        flow_valid=known[2],
        object_map=rng.integers(0, 3, (height, width)).astype(np.uint8),
        K=small,
        baseline_m=3.0,
    )


@given(st.integers(0, 2**32), st.sampled_from([None, METRIC, 0.8]))
@settings(max_examples=60, deadline=None)
def test_a_second_implementation_counts_the_same(seed: int, scale: float | None) -> None:
    prediction, truth = random_pair(seed)
    found = score_pair(prediction, truth, scale)
    depth = 1 / prediction.inverse_depth
    later, flow = by_points(
        depth, truth.K, prediction.later_T_earlier, prediction.labels, dict(prediction.motions)
    )
    if scale is None:
        known = truth.disparity_0_px > 0
        if not known.any():
            assert found == SceneFlowScore()
            return
        fb = truth.K[0, 0] * truth.baseline_m
        scale = float(np.median(fb / truth.disparity_0_px[known])) / float(np.median(depth[known]))
    fb = truth.K[0, 0] * truth.baseline_m
    estimate = SceneFlowEstimate(
        disparity_0_px=fb / (scale * depth), disparity_1_px=fb / (scale * later), flow_px=flow
    )
    assert counts_of(found) == by_loops(estimate, truth)


def test_the_random_pairs_have_outliers_and_others_of_every_measure() -> None:
    total = reduce(add, (score_pair(*random_pair(seed), METRIC) for seed in range(20)))
    for shares in percent(total).values():
        assert all(10 < share < 95 for share in shares)


@given(st.lists(st.integers(0, 2**32), min_size=1, max_size=5))
@settings(max_examples=30, deadline=None)
def test_sums_over_images_equal_the_whole_of_all_their_pixels(seeds: list[int]) -> None:
    pairs = [random_pair(seed) for seed in seeds]
    estimates = [estimate_pair(*pair) for pair in pairs]
    truths = [truth for _, truth in pairs]

    def beside(parts: list[np.ndarray]) -> np.ndarray:
        return np.concatenate(parts, axis=1)

    whole = replace(
        truths[0],
        **{
            name: beside([getattr(each, name) for each in truths])
            for name in ("disparity_0_px", "disparity_1_px", "flow_px", "flow_valid", "object_map")
        },
    )
    estimate = SceneFlowEstimate(
        **{
            name: beside([getattr(each, name) for each in estimates])
            for name in ("disparity_0_px", "disparity_1_px", "flow_px")
        }
    )
    total = reduce(add, map(count_outliers, estimates, truths))
    assert total.pairs == len(seeds)
    assert replace(total, pairs=1) == count_outliers(estimate, whole)
    assert total + SceneFlowScore() == total


def test_the_exact_truth_of_rendered_streets_has_no_outlier(streets: Path) -> None:
    """Depth, motions and flow of the renderer, which knows nothing of this module."""
    truth = read_truth(streets / "test_0000" / "truth.h5")
    clip = truth_as_prediction(truth, "street", scale=7.0)
    total = SceneFlowScore()
    for i in range(len(truth) - 1):
        rows = clip.objects.frame == i
        motions = dict(zip(clip.objects.label[rows].tolist(), clip.objects.motion[rows], strict=True))
        here = np.isfinite(truth.depth_m[i]) & np.isin(truth.ids[i], [0, *motions])
        moving = np.isin(truth.ids[i], truth.objects.id[truth.objects.moving])
        disparity = np.where(here, truth.K[0, 0] * BASELINE_M / truth.depth_m[i], 0)
        pair = SceneFlowTruth(
            pair=i,
            disparity_0_px=disparity,
            disparity_1_px=np.zeros_like(disparity),
            flow_px=truth.flow_px[i],
            flow_valid=here & ((truth.flow_state[i] & FLOW_DEFINED) > 0),
            object_map=moving.astype(np.uint8),
            K=truth.K,
            baseline_m=BASELINE_M,
        )
        prediction = PairPrediction(
            inverse_depth=clip.inverse_depth[i],
            later_T_earlier=clip.later_T_earlier[i],
            labels=clip.labels[i],
            motions=motions,
        )
        total += score_pair(prediction, pair)
        flow = estimate_pair(prediction, pair).flow_px
        assert flow is not None
        assert np.abs(flow - truth.flow_px[i])[pair.flow_valid].max() < 0.1
    assert total.d1.all.value == total.fl.all.value == 0
    assert total.fl.background.whole > 10_000
    assert total.fl.foreground.whole > 1000
