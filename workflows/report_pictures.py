"""The frames that a run predicts best and worst, with truth and error, for the report.

A frame's number is its AbsRel as `evaluation.streetworld` counts it over all regions: valid truth up to 80 m,
one median scale an image, scaled depth clamped. Its mean over all frames is that protocol's "AbsRel, all".
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from evaluation import depth
from evaluation.predictions import ClipPrediction, PredictionError, read_clips
from evaluation.streetworld import PROTOCOL, StoredTruth, stored_truth
from pipeline.errors import ConfigError
from pipeline.shards.reader import ShardSet
from pipeline.shards.storage import Location
from pipeline.streetworld.truth import TRUTH_FILE, read_truth
from training.pictures import colour_disparity
from workflows.report import Panel, Picture

MAX_WIDTH = 832
"""Wider panels are made smaller, pixels: the page holds two dozen of them."""
JPEG_QUALITY = 90
LIMIT = 0.5
"""Relative error whose colour is strongest."""
TOO_NEAR, RIGHT, TOO_DEEP, NOT_COUNTED = (33, 102, 172), (247, 247, 247), (178, 24, 43), (128, 128, 128)
"""Colours of the error map, RGB."""


@dataclass(frozen=True, kw_only=True)
class FrameScore:
    """A frame and its number.

    abs_rel: over `pixels` valid pixels;  scale: metres a scene unit, the median's
    depth_m: (H, W) predicted depth, scaled;  truth_m: (H, W) true depth, inf is sky
    """

    clip: str
    frame: int
    time_s: float
    abs_rel: float
    pixels: int
    scale: float
    depth_m: np.ndarray
    truth_m: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """Best first, worst first; `text` says how frames were ranked, `legend` what the error's colours mean."""

    best: tuple[Picture, ...]
    worst: tuple[Picture, ...]
    text: str
    legend: tuple[Panel, ...]


def best_and_worst(
    predictions: Path | Iterable[ClipPrediction], shards: Location, streets: Path, count: int = 3
) -> Ranking:
    """The frames with the lowest and the highest AbsRel, at most one of a clip in each list.

    Args:
        predictions: a folder of predictions, or the predictions themselves; read once.
        shards:      the shard set that they were made of.
        streets:     the folder that it was built from: STREETS/<clip name>/truth.h5.
        count:       frames in each list; fewer where there are fewer clips, none is in both.

    Raises:
        PredictionError: a clip has no truth there or other frames than its truth, or nothing can be counted.
        ShardError: a clip is not in the shard set.
    """
    if count < 1:
        raise ConfigError(f"count must be at least 1, got {count}")
    best: list[FrameScore] = []
    worst: list[FrameScore] = []
    numbers: list[float] = []
    clips = 0
    for clip in read_clips(predictions) if isinstance(predictions, Path) else predictions:
        scores = frame_scores(clip, _truth_of(clip, streets))
        clips += 1
        numbers += [each.abs_rel for each in scores]
        # Of each clip two frames at most are kept, so a long set fits into memory.
        if scores:
            best = sorted([*best, min(scores, key=_rank)], key=_rank)[:count]
            worst = sorted([*worst, max(scores, key=_rank)], key=_rank, reverse=True)[:count]
    if not numbers:
        raise PredictionError(f"{streets}: no frame with valid truth; give the streets that were predicted")
    chosen = {(each.clip, each.frame) for each in best}
    worst = [each for each in worst if (each.clip, each.frame) not in chosen]
    with ShardSet(shards) as opened:
        text = (
            f"AbsRel of an image: {PROTOCOL}, median scale an image. {len(numbers)} frames of {clips} clips: "
            f"mean {np.mean(numbers):.4f}, median {np.median(numbers):.4f}, lowest {min(numbers):.4f}, "
            f"highest {max(numbers):.4f}. At most one frame of a clip is shown in each list. In depth, near is "
            "bright, alike in truth and prediction."
        )
        return Ranking(
            best=_pictures("Best", best, opened),
            worst=_pictures("Worst", worst, opened),
            text=text,
            legend=(_legend(),),
        )


def frame_scores(clip: ClipPrediction, truth: StoredTruth) -> list[FrameScore]:
    """The number of every frame; one without valid truth has none and is left out."""
    scores = []
    for frame in range(len(clip)):
        predicted, true = clip.depth(frame), truth.depth_m[frame]
        valid = depth.valid_truth(true)
        if not valid.any():
            continue
        scale = depth.median_scale(predicted, true, valid)
        sums = depth.pixel_sums(predicted * scale, true, valid)
        scores.append(
            FrameScore(
                clip=clip.name,
                frame=frame,
                time_s=float(clip.timestamps_s[frame]),
                abs_rel=float(sums.errors()[depth.ERRORS.index("AbsRel")]),
                pixels=sums.pixels,
                scale=scale,
                depth_m=predicted * scale,
                truth_m=true,
            )
        )
    return scores


def error_map(depth_m: np.ndarray, truth_m: np.ndarray) -> np.ndarray:
    """(H, W) scaled and true depth -> (H, W, 3) uint8 RGB: relative error, what is not counted grey."""
    valid = depth.valid_truth(truth_m)
    clamped = np.clip(depth_m, depth.MIN_DEPTH_M, depth.MAX_DEPTH_M)
    relative = np.zeros(truth_m.shape)
    relative[valid] = (clamped[valid] - truth_m[valid]) / truth_m[valid]
    return np.where(valid[..., None], error_colours(relative), np.array(NOT_COUNTED, np.uint8))


def error_colours(relative: np.ndarray) -> np.ndarray:
    """(...) (predicted - true) / true -> (..., 3) uint8 RGB: blue too near, white right, red too deep."""
    strength = np.clip(relative / LIMIT, -1, 1)[..., None]
    ends = np.where(strength < 0, TOO_NEAR, TOO_DEEP)
    return (RIGHT + np.abs(strength) * (ends - np.array(RIGHT))).round().astype(np.uint8)


def _rank(score: FrameScore) -> tuple[float, str, int]:
    """Equal numbers stand in the order of names, so that the page is the same each time."""
    return score.abs_rel, score.clip, score.frame


def _truth_of(clip: ClipPrediction, streets: Path) -> StoredTruth:
    path = streets / clip.name / TRUTH_FILE
    if not path.is_file():
        raise PredictionError(f"{path} is missing; give the streets that the shard set was built from")
    return stored_truth(read_truth(path), clip)


def _pictures(title: str, scores: Sequence[FrameScore], shards: ShardSet) -> tuple[Picture, ...]:
    return tuple(_picture(f"{title} {place}", score, shards) for place, score in enumerate(scores, 1))


def _picture(title: str, score: FrameScore, shards: ShardSet) -> Picture:
    entry = shards.clip(score.clip)
    if score.frame >= entry.frames or shards.manifest.size != score.truth_m.shape[::-1]:
        raise PredictionError(
            f"{score.clip}: its predictions have other frames than {shards.folder}; give the shard set "
            "that was predicted"
        )
    # Sky is 1 / inf = 0; the nearest twentieth saturates, as in other pictures of depth.
    brightest = float(np.percentile(1 / score.truth_m, 95))
    shown = {
        "image": shards.image(entry, score.frame),
        "true depth": colour_disparity(1 / score.truth_m, brightest),
        "predicted depth": colour_disparity(1 / score.depth_m, brightest),
        "error": error_map(score.depth_m, score.truth_m),
    }
    return Picture(
        title=f"{title}: AbsRel {score.abs_rel:.4f}",
        caption=f"{score.clip}, frame {score.frame} ({score.time_s:.2f} s), {score.pixels} px, "
        f"scale {score.scale:.4g} m a scene unit",
        panels=tuple(Panel(name=name, data=_jpeg(picture)) for name, picture in shown.items()),
    )


def _legend() -> Panel:
    steps = np.linspace(-LIMIT, LIMIT, 101)[None].repeat(8, axis=0)
    name = f"error, from {LIMIT:.0%} too near (blue) to {LIMIT:.0%} too deep (red); grey is not counted"
    done, data = cv2.imencode(".png", error_colours(steps)[..., ::-1])
    assert done
    return Panel(name=name, data=data.tobytes(), media="image/png")


def _jpeg(picture: np.ndarray) -> bytes:
    height, width = picture.shape[:2]
    if width > MAX_WIDTH:
        size = (MAX_WIDTH, max(1, round(height * MAX_WIDTH / width)))
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    done, data = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    assert done
    return data.tobytes()
