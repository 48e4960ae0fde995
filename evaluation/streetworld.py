"""Predictions on streetworld clips against exact truth: depth, camera motion, object motion.

Truth is taken to the stored size by the nearest pixel; sky and all beyond 80 m are left out. Objects and
background are told apart by true ids. Scale: the median of each image, for depth and for the
translations of its objects; the camera has its own, one a snippet.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import numpy as np

from evaluation import depth, objects, odometry
from evaluation.depth import DepthTally, Share
from evaluation.figure import Figure
from evaluation.objects import Found, ObjectErrors
from evaluation.odometry import PairSums, SnippetSums, inverse
from evaluation.predictions import ClipPrediction, PredictionError, read_clips
from evaluation.tracks import resample_ids
from evaluation.trajectories import chain
from pipeline.streetworld.truth import TRUTH_FILE, Truth, read_truth

MIN_SHARE = 64 / (208 * 64)
"""Objects that cover less of the image are not asked for their motion: 64 px of 208x64."""
SAME_SPEED = 0.2
"""A car keeps the camera's velocity when the two differ by at most this share of the camera's."""
PROTOCOL = "streetworld, exact truth, nearest pixel, no sky, 80 m"
MEDIAN_SCALE = "median(true) / median(predicted) depth of each image, for its objects' translations too"
REGIONS = ("all", "background", "object", "moving", "parked", "cars at the camera's speed")


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Everything that was counted on some clips; adds up.

    regions:   depth errors of each of REGIONS
    far:       pixels of moving cars beyond twice their true depth
    infinite:  pixels of moving cars beyond twice their ground contact; true_infinite: in the true depth
    scales:    median scale of every image, metres a scene unit
    """

    regions: dict[str, DepthTally] = field(default_factory=dict)
    far: Share = field(default_factory=Share)
    infinite: Share = field(default_factory=Share)
    true_infinite: Share = field(default_factory=Share)
    scales: tuple[float, ...] = ()
    full: SnippetSums = field(default_factory=SnippetSums)
    tails: SnippetSums = field(default_factory=SnippetSums)
    pairs: PairSums = field(default_factory=PairSums)
    errors: ObjectErrors = field(default_factory=objects.no_errors)
    found: Found = field(default_factory=Found)

    def __add__(self, other: Scores) -> Scores:
        regions = dict(self.regions)
        depth.merge(regions, other.regions)
        # Objects of different clips must not share a track.
        shift = int(self.errors.track.max(initial=-1)) + 1
        moved = {f.name: getattr(other.errors, f.name) for f in fields(ObjectErrors)}
        moved["track"] = moved["track"] + shift
        added = ("far", "infinite", "true_infinite", "scales", "full", "tails", "pairs", "found")
        return Scores(
            regions=regions,
            errors=objects.join([self.errors, ObjectErrors(**moved)]),
            **{name: getattr(self, name) + getattr(other, name) for name in added},
        )


@dataclass(frozen=True, kw_only=True)
class StoredTruth:
    """Truth of a clip's frames, at the stored size.

    depth_m: (N, H, W) float32, inf is sky;  ids: (N, H, W) uint16;  K: (3, 3)
    world_T_camera: (N, 4, 4);  world_T_object: (N, O, 4, 4);  timestamps_s: (N,)
    id, car, moving: (O,) ids, whether a car, whether its pose changes during the clip
    """

    depth_m: np.ndarray
    ids: np.ndarray
    K: np.ndarray
    world_T_camera: np.ndarray
    world_T_object: np.ndarray
    timestamps_s: np.ndarray
    id: np.ndarray
    car: np.ndarray
    moving: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    def mask(self, frame: int, chosen: np.ndarray) -> np.ndarray:
        """(H, W) bool: pixels of the objects chosen by (O,) bool."""
        return np.isin(self.ids[frame], self.id[chosen])


def score_streetworld(predictions: Path | Iterable[ClipPrediction], streets: Path) -> list[Figure]:
    """Every figure of predictions on streetworld clips.

    Args:
        predictions: a folder of predictions, or the predictions themselves.
        streets:     the folder that their shard set was built from: STREETS/<clip name>/truth.h5.

    Raises:
        PredictionError: a clip has no truth there, or other frames than its truth.
    """
    total = Scores()
    for clip in read_clips(predictions) if isinstance(predictions, Path) else predictions:
        path = streets / clip.name / TRUTH_FILE
        if not path.is_file():
            raise PredictionError(
                f"{path} is missing; give the streetworld folder that the shard set was built from"
            )
        total += score_clip(clip, stored_truth(read_truth(path), clip))
    return figures(total)


def stored_truth(truth: Truth, clip: ClipPrediction) -> StoredTruth:
    """The truth of a prediction's frames (found by their times), at its size."""
    frames = _frames_at(truth.timestamps_s, clip)

    def resample(maps: np.ndarray) -> np.ndarray:
        return np.stack([resample_ids(maps[k], truth.K, clip.K, clip.size) for k in frames])

    return StoredTruth(
        depth_m=resample(truth.depth_m),
        ids=resample(truth.ids),
        K=clip.K,
        world_T_camera=truth.world_T_camera[frames],
        world_T_object=truth.objects.world_T_object[frames],
        timestamps_s=truth.timestamps_s[frames],
        id=truth.objects.id,
        car=np.array([label == "car" for label in truth.objects.label], bool),
        moving=truth.objects.moving,
    )


def score_clip(clip: ClipPrediction, truth: StoredTruth) -> Scores:
    """Count one clip."""
    poses, count = chain(clip.later_T_earlier), len(clip)
    scales = np.full(count, np.nan)
    total = Scores(
        full=odometry.snippet_sums(poses, truth.world_T_camera),
        tails=odometry.snippet_sums(poses, truth.world_T_camera, tails=True),
        pairs=odometry.pair_sums(clip.later_T_earlier, odometry.relative_motions(truth.world_T_camera)),
    )
    for frame in range(count):
        score = _score_frame(clip.depth(frame), truth, frame)
        scales[frame] = score.scales[0] if score.scales else np.nan
        total += score
    errors, found = _score_objects(clip, truth, scales)
    return total + Scores(errors=errors, found=found)


def figures(scores: Scores) -> list[Figure]:
    """Ratios of the sums, each with what it counts."""
    by_image = f"{PROTOCOL}, true masks"
    same = scores.regions.get(REGIONS[-1], DepthTally()).pooled
    scales = np.array(scores.scales)
    spread = float(scales.std() / scales.mean()) if len(scales) else float("nan")
    shares = (
        ("far share, moving cars", scores.far, f"deeper than {depth.FAR:g}x true depth"),
        ("infinite depth share, moving cars", scores.infinite, f"deeper than {depth.FAR:g}x ground contact"),
        ("infinite depth share of the true depth, moving cars", scores.true_infinite,
         f"deeper than {depth.FAR:g}x ground contact"),
    )  # fmt: skip
    scaled = [
        *depth.figures({name: scores.regions.get(name, DepthTally()) for name in REGIONS}, by_image),
        Figure(name=f"signed depth error, {REGIONS[-1]}", value=same.mean_signed, unit="fraction",
               protocol=f"{by_image}; pixel-pooled", count=same.pixels),
        *(Figure(name=name, value=share.value, unit="fraction", protocol=f"{by_image}; {what}",
                 count=share.whole) for name, share, what in shares),
        *objects.figures(scores.errors, scores.found,
                         f"streetworld, exact truth, majority true id, from {MIN_SHARE:.2%} of the image"),
    ]  # fmt: skip
    return [
        *(replace(figure, scale=MEDIAN_SCALE) for figure in scaled),
        Figure(name="spread of the median scale", value=spread, unit="fraction",
               protocol=f"{PROTOCOL}; standard deviation over mean, all images", count=len(scales)),
        *odometry.figures(scores.full, scores.tails, scores.pairs, "streetworld, exact truth"),
    ]  # fmt: skip


def _score_frame(predicted: np.ndarray, truth: StoredTruth, frame: int) -> Scores:
    """Depth of one image; an image without valid pixels adds nothing."""
    true, ids = truth.depth_m[frame], truth.ids[frame]
    valid = depth.valid_truth(true)
    if not valid.any():
        return Scores()
    moving_cars = truth.mask(frame, truth.moving & truth.car)
    masks = {
        "all": np.ones(ids.shape, bool),
        "background": ids == 0,
        "object": ids > 0,
        "moving": truth.mask(frame, truth.moving),
        "parked": truth.mask(frame, ~truth.moving),
        REGIONS[-1]: truth.mask(frame, _at_cameras_speed(truth, frame)),
    }
    scale = depth.median_scale(predicted, true, valid)
    chosen = truth.id[truth.moving & truth.car].tolist()
    return Scores(
        regions=depth.score_image(predicted, true, valid, masks),
        far=depth.far_share(predicted * scale, true, moving_cars & valid),
        infinite=depth.beyond_contact(predicted, ids, chosen),
        true_infinite=depth.beyond_contact(true, ids, chosen),
        scales=(scale,),
    )


def _at_cameras_speed(truth: StoredTruth, frame: int) -> np.ndarray:
    """(O,) bool: cars whose velocity is the camera's, from this frame to the next (or, last, before)."""
    if len(truth) < 2:
        return np.zeros(len(truth.id), bool)
    i = min(frame, len(truth) - 2)
    camera = truth.world_T_camera[i + 1, :3, 3] - truth.world_T_camera[i, :3, 3]
    cars = truth.world_T_object[i + 1, :, :3, 3] - truth.world_T_object[i, :, :3, 3]
    speed = np.linalg.norm(camera)
    same = np.linalg.norm(cars - camera, axis=-1) <= SAME_SPEED * speed
    return truth.car & same & bool(speed >= odometry.MIN_STEP_M)


def _score_objects(
    clip: ClipPrediction, truth: StoredTruth, scales: np.ndarray
) -> tuple[ObjectErrors, Found]:
    rows = clip.objects
    parts, found = [], Found(estimates=len(rows))
    shares = np.stack([np.bincount(ids.ravel(), minlength=1 << 16)[truth.id] / ids.size for ids in truth.ids])
    for i in range(len(clip) - 1):
        here = np.flatnonzero(rows.frame == i)
        stands_for = _majority(clip.labels[i], truth, i, rows.label[here])
        strange = stands_for < 0
        judged = ~strange & (shares[i][stands_for] >= MIN_SHARE) & np.isfinite(scales[i])
        o, chosen = stands_for[judged], here[judged]
        true, dt_s = _true_motions(truth, i), truth.timestamps_s[i + 1] - truth.timestamps_s[i]
        centres = _centres(truth, i, o)
        parts.append(
            objects.compare(
                rows.motion[chosen],
                true[o],
                centre_m=centres,
                scale=np.full(len(o), scales[i]),
                dt_s=np.full(len(o), dt_s),
                car=truth.car[o],
                track=o,
            )
        )
        seen = np.flatnonzero((shares[i] >= MIN_SHARE) & (shares[i + 1] >= MIN_SHARE))
        moved = _displacements(true[seen], _centres(truth, i, seen))
        asked = set(seen[np.linalg.norm(moved, axis=-1) >= objects.MOVING_M_S * dt_s].tolist())
        found += Found(asked=len(asked), found=len(asked & set(o.tolist())), strange=int(strange.sum()))
    return objects.join(parts), found


def _majority(labels: np.ndarray, truth: StoredTruth, frame: int, asked: np.ndarray) -> np.ndarray:
    """(R,) row of the true object that most pixels of each label show, -1 where that is background."""
    row_of = {int(i): row for row, i in enumerate(truth.id)}
    most = [int(np.bincount(truth.ids[frame][labels == label]).argmax()) for label in asked]
    return np.array([row_of.get(i, -1) for i in most], np.int64)


def _true_motions(truth: StoredTruth, i: int) -> np.ndarray:
    """(O, 4, 4) motions from frame i to i + 1 seen from the camera at time i, metres."""
    camera = truth.world_T_camera[i]
    return inverse(camera) @ truth.world_T_object[i + 1] @ inverse(truth.world_T_object[i]) @ camera


def _centres(truth: StoredTruth, frame: int, chosen: np.ndarray) -> np.ndarray:
    """(C, 3) mean of the true points of each chosen object's visible pixels, in the camera, metres."""
    centres = np.zeros((len(chosen), 3))
    for n, row in enumerate(chosen):
        v, u = np.nonzero(truth.ids[frame] == truth.id[row])
        rays = np.linalg.solve(truth.K, np.stack([u, v, np.ones(len(u))]))
        centres[n] = (rays * truth.depth_m[frame, v, u]).mean(axis=1)
    return centres


def _displacements(motions: np.ndarray, centres: np.ndarray) -> np.ndarray:
    return (motions[:, :3, :3] @ centres[..., None])[..., 0] + motions[:, :3, 3] - centres


def _frames_at(timestamps_s: np.ndarray, clip: ClipPrediction) -> np.ndarray:
    """The truth's frame of each predicted frame, by time."""
    frames = np.abs(timestamps_s[None] - clip.timestamps_s[:, None]).argmin(axis=1)
    step = float(np.diff(timestamps_s).min(initial=np.inf))
    off = float(np.abs(timestamps_s[frames] - clip.timestamps_s).max())
    if off > step / 4 or (np.diff(frames) < 1).any():
        raise PredictionError(
            f"{clip.name}: its frames are up to {off:.3f} s from those of its truth, which are {step:.3f} s "
            "apart; predict on shards of the streets that are scored"
        )
    return frames
