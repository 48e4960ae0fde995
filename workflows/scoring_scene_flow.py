"""KITTI 2015 scene flow from files: our predictions of the pairs, or images in the benchmark's format.

Ours: clips called by their pair (`000007`, or a name that ends with `/000007`), of two frames, `_10` and `_11`.
Anybody's: FOLDER/disp_0/NNNNNN_10.png, and disp_1 and flow if there are any, as for a submission.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from evaluation import scene_flow
from evaluation.depth_protocols import Box, shown_box
from evaluation.figure import Figure
from evaluation.ground_truth.scene_flow import (
    PAIRS,
    Extent,
    SceneFlowTruth,
    read_disparity_png,
    read_flow_png,
    read_pair,
)
from evaluation.predictions import ClipPrediction, PredictionError
from evaluation.scene_flow import METRIC, PairPrediction, SceneFlowEstimate, SceneFlowScore, Second
from pipeline.errors import ConfigError
from pipeline.shards.storage import Location
from workflows.masks_at_truth import nearest
from workflows.prediction_sources import is_predictions, is_run, predicted_clips

ORIGIN = "write one for every pair, as for a submission to the benchmark"
FLOW_ORIGIN = "write the flow of every pair as the benchmark has it"
BORDERS = "stored frames were cut, and their borders repeated where they are not predicted"
Scale = Literal["median", "constant", "metric"]
"""Of each pair its own; one for all pairs, the median of these; or none: predictions are in metres."""


def score_scene_flow(
    predictions: str,
    truth: Path,
    *,
    extent: Extent = "occ",
    scale: Scale = "median",
    second: Second = "moved",
    pairs: Sequence[int] = (),
    flow: Path | None = None,
    shards: Location | None = None,
    device: str = "auto",
    quiet: bool = False,
) -> list[Figure]:
    """Every figure of the benchmark.

    Args:
        predictions: a folder of one of the two kinds, or a run (with `shards`).
        pairs:       numbers of the pairs to score; none: all 200.
        flow:        folder of flow PNGs NNNNNN_10.png to sample the second depth with, and to count as Fl.
    """
    wanted = tuple(pairs) or tuple(range(PAIRS))
    if not is_run(predictions) and not is_predictions(Path(predictions)):
        total = SceneFlowScore()
        for pair in wanted:
            true = read_pair(truth, pair, extent)
            total += scene_flow.count_outliers(_given(Path(predictions), true), true)
        return scene_flow.figures(total, METRIC, extent=extent)

    clips = {
        _pair_of(clip.name): clip for clip in predicted_clips(predictions, shards, device=device, quiet=quiet)
    }
    missing = [pair for pair in wanted if pair not in clips]
    if missing:
        raise PredictionError(
            f"{predictions}: no clip is pair {missing[0]:06d} ({len(missing)} are missing); predict clips that are "
            "called by their pair, or name the pairs that are there (--pairs)"
        )
    factor = {"median": None, "metric": METRIC, "constant": None}[scale]
    if scale == "constant":
        factor = scene_flow.constant_scale(
            scene_flow.image_scale(of_clip(clips[true.pair], true), true)
            for true in _read(truth, wanted, extent)
        )
    total, cut = SceneFlowScore(), False
    for true in _read(truth, wanted, extent):
        cut |= _is_cut(clips[true.pair], true)
        flow_px = (
            None if flow is None else read_flow_png(flow / f"{true.name}_10.png", true.size, FLOW_ORIGIN)[0]
        )
        total += scene_flow.score_pair(of_clip(clips[true.pair], true), true, factor, second, flow_px)
    found = scene_flow.figures(
        total,
        factor,
        scale_from="median of the pairs' own",
        second=second,
        flow_from="" if flow is None else str(flow),
        extent=extent,
    )
    return [replace(each, protocol=f"{each.protocol}; {BORDERS}") for each in found] if cut else found


def of_clip(clip: ClipPrediction, truth: SceneFlowTruth) -> PairPrediction:
    """Our prediction of a pair, brought to the whole image: where a stored frame was cut, its border goes on.

    Raises:
        PredictionError: the clip is no pair.
    """
    if len(clip) != 2:
        raise PredictionError(f"{clip.name}: has {len(clip)} frames, expected the two of a pair")
    shown = shown_box(clip.K, clip.size, truth.K)
    first, second = (_whole(clip.inverse_depth[frame], shown, truth.size) for frame in (0, 1))
    width, height = truth.size
    labels = np.zeros((height, width), np.int64)
    for label in np.unique(clip.objects.label):
        labels[nearest(clip.labels[0] == label, shown, (height, width)) == 1] = label
    return PairPrediction(
        inverse_depth=first,
        later_T_earlier=clip.later_T_earlier[0],
        labels=labels,
        motions=dict(zip(clip.objects.label.tolist(), clip.objects.motion, strict=True)),
        later_inverse_depth=second,
    )


def _is_cut(clip: ClipPrediction, truth: SceneFlowTruth) -> bool:
    """Whether the stored frames lack a column or row of the image."""
    x0, y0, x1, y1 = shown_box(clip.K, clip.size, truth.K)
    width, height = truth.size
    return x0 >= 0.5 or y0 >= 0.5 or x1 <= width - 1.5 or y1 <= height - 1.5


def _whole(inverse_depth: np.ndarray, shown: Box, size: tuple[int, int]) -> np.ndarray:
    """(H, W) float64: a map that fills a box of the image, bilinear, its border repeated outside."""
    (x0, y0, x1, y1), (height, width) = shown, inverse_depth.shape
    u = ((np.arange(size[0]) - x0) * width / (x1 - x0) - 0.5).astype(np.float32)
    v = ((np.arange(size[1]) - y0) * height / (y1 - y0) - 0.5).astype(np.float32)
    grid = np.broadcast_arrays(u, v[:, None])
    return cv2.remap(
        inverse_depth.astype(np.float32),
        np.ascontiguousarray(grid[0]),
        np.ascontiguousarray(grid[1]),
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    ).astype(np.float64)


def _given(folder: Path, truth: SceneFlowTruth) -> SceneFlowEstimate:
    """What a folder in the benchmark's format says about a pair; 0 disparity is none."""
    name = f"{truth.name}_10.png"

    def disparity(which: str) -> np.ndarray:
        found = read_disparity_png(folder / which / name, truth.size, ORIGIN)
        return np.where(found > 0, found, np.nan)

    flow_px = None
    if (folder / "flow").is_dir():
        flow_px, valid = read_flow_png(folder / "flow" / name, truth.size, ORIGIN)
        flow_px = np.where(valid[..., None], flow_px, np.nan)
    return SceneFlowEstimate(
        disparity_0_px=disparity("disp_0"),
        disparity_1_px=disparity("disp_1") if (folder / "disp_1").is_dir() else None,
        flow_px=flow_px,
    )


def _pair_of(clip: str) -> int:
    last = clip.rsplit("/", 1)[-1]
    if not last.isdecimal():
        raise ConfigError(f"clip {clip} is not called by a pair's number; name clips 000000, 000001, ...")
    return int(last)


def _read(truth: Path, pairs: Sequence[int], extent: Extent) -> Iterator[SceneFlowTruth]:
    return (read_pair(truth, pair, extent) for pair in pairs)
