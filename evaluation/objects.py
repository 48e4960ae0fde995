"""Object motions against truth: translation, rotation, and which objects are parked.

An object's motion O maps its points from time i to time i + 1, both seen from the camera at time
i. Errors are those of E = inv(estimate) truth. Its rotation is compared as an angle. Its translation
depends on the point that is looked at (turning about the camera sweeps far objects along), so it is
taken at the object's own centre c: the displacement O c - c, of the estimate and of the truth at the
same c. Estimated translations are first multiplied by the depth scale of their image.

Relative translation error: |estimated - true displacement| / |true displacement|. Predicting no
motion gives exactly 1. Nothing is averaged before it has been added up, and parked objects, which have
no length to divide by, are asked for their predicted speed instead.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields

import numpy as np

from evaluation.figure import Figure
from evaluation.odometry import rotation_angle

MOVING_M_S = 0.5
"""An object that is truly this fast moves."""
PARKED_M_S = 0.05
"""One that is slower than this is parked; those between are asked for neither."""
FLAG_M_S = MOVING_M_S
"""Predicted speed from which an object is called moving; a perfect estimate calls all of them right."""
TURNING_DEG = 0.5
"""A car that truly turns by more than this from one frame to the next is turning."""


@dataclass(frozen=True, kw_only=True)
class ObjectErrors:
    """Errors of M estimates, one an object and pair of frames.

    error_m:     (M,) |estimated - true displacement of the centre|, metres
    true_m:      (M,) length of the true displacement;  estimated_m: of the estimated one
    cosine:      (M,) of the angle between the two; 0 where one of them is 0
    rotation_deg, true_rotation_deg: (M,) angle of the rotation's error, and of the true rotation,
                 which is the error of predicting none
    dt_s:        (M,) time between the frames
    car:         (M,) bool
    track:       (M,) int64, one number an object
    """

    error_m: np.ndarray
    true_m: np.ndarray
    estimated_m: np.ndarray
    cosine: np.ndarray
    rotation_deg: np.ndarray
    true_rotation_deg: np.ndarray
    dt_s: np.ndarray
    car: np.ndarray
    track: np.ndarray

    def __len__(self) -> int:
        return len(self.error_m)

    @property
    def moving(self) -> np.ndarray:
        return self.true_m >= MOVING_M_S * self.dt_s

    @property
    def parked(self) -> np.ndarray:
        return self.true_m < PARKED_M_S * self.dt_s

    @property
    def turning(self) -> np.ndarray:
        return self.car & (self.true_rotation_deg > TURNING_DEG)


@dataclass(frozen=True, kw_only=True)
class Found:
    """How many moving objects were asked for in pairs of frames, and how many got an estimate.

    estimates: object motions that were predicted; strange: those that stand for no true object
    """

    asked: int = 0
    found: int = 0
    estimates: int = 0
    strange: int = 0

    def __add__(self, other: Found) -> Found:
        return Found(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})


def compare(
    estimate: np.ndarray,
    truth: np.ndarray,
    *,
    centre_m: np.ndarray,
    scale: np.ndarray,
    dt_s: np.ndarray,
    car: np.ndarray,
    track: np.ndarray,
) -> ObjectErrors:
    """Errors of object motions.

    Args:
        estimate: (M, 4, 4) motions O, translation in scene units.
        truth:    (M, 4, 4) true motions in the same cameras, metres.
        centre_m: (M, 3) the objects' centres in the camera at time i, metres.
        scale:    (M,) metres a scene unit: the depth scale of the images.
        dt_s, car, track: (M,) as in ObjectErrors.
    """
    R, R_true = estimate[:, :3, :3], truth[:, :3, :3]
    moved = (R @ centre_m[..., None])[..., 0] + scale[:, None] * estimate[:, :3, 3] - centre_m
    true = (R_true @ centre_m[..., None])[..., 0] + truth[:, :3, 3] - centre_m
    lengths = np.linalg.norm(moved, axis=-1), np.linalg.norm(true, axis=-1)
    product = lengths[0] * lengths[1]
    return ObjectErrors(
        error_m=np.linalg.norm(moved - true, axis=-1),
        true_m=lengths[1],
        estimated_m=lengths[0],
        cosine=np.divide((moved * true).sum(axis=-1), product, out=np.zeros(len(product)), where=product > 0),
        rotation_deg=np.degrees(rotation_angle(R.mT @ R_true)),
        true_rotation_deg=np.degrees(rotation_angle(R_true)),
        dt_s=np.asarray(dt_s, np.float64),
        car=np.asarray(car, bool),
        track=np.asarray(track, np.int64),
    )


def no_errors() -> ObjectErrors:
    """The errors of no estimate at all."""
    none = np.zeros(0)
    return compare(np.zeros((0, 4, 4)), np.zeros((0, 4, 4)), centre_m=np.zeros((0, 3)), scale=none,
                   dt_s=none, car=none, track=none)  # fmt: skip


def join(parts: Iterable[ObjectErrors]) -> ObjectErrors:
    """Rows of all parts, one after the other. Track numbers must differ between objects."""
    parts = [no_errors(), *parts]
    return ObjectErrors(
        **{f.name: np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(ObjectErrors)}
    )


def figures(errors: ObjectErrors, found: Found, protocol: str) -> list[Figure]:
    """Every figure on object motions, each with what it counts; NaN where there is nothing."""
    return [
        *_translation(errors, protocol),
        *_rotation(errors, protocol),
        *_parked(errors, protocol),
        _figure("recall of moving objects", found.found, found.asked, "fraction", protocol),
        _figure("estimates that stand for no object", found.strange, found.estimates, "fraction", protocol),
    ]


def _translation(errors: ObjectErrors, protocol: str) -> list[Figure]:
    moving = errors.moving
    error, true = errors.error_m[moving], errors.true_m[moving]
    relative, count = error / true, int(moving.sum())
    speed_error = np.abs(errors.estimated_m - errors.true_m)[moving] / errors.dt_s[moving]
    _, of_track = np.unique(errors.track[moving], return_inverse=True)
    tracks = np.bincount(of_track)
    track_means = np.bincount(of_track, weights=relative) / tracks
    of = f"{protocol}; displacement of the centre, objects of at least {MOVING_M_S} m/s, zero motion = 1"

    def pooled(name: str, part: np.ndarray) -> Figure:
        value = float(part.sum() / true.sum()) if count else float("nan")
        return Figure(name=name, value=value, unit="fraction", protocol=f"{of}; ratio of sums", count=count)

    return [
        _figure("object translation error, relative", relative.sum(), count, "fraction", f"{of}; mean"),
        pooled("object translation error, relative, pooled", error),
        _figure("object translation error, relative, mean over tracks", track_means.sum(), len(tracks),
                "fraction", f"{of}; mean over tracks of each track's mean"),
        _figure("object translation error", error.sum(), count, "m", f"{of}; mean"),
        _figure("object speed error", speed_error.sum(), count, "m/s", f"{of}; |estimated - true speed|, mean"),
        _figure("object direction cosine", errors.cosine[moving].sum(), count, "cosine", of),
        pooled("object displacement, estimated over true", errors.estimated_m[moving]),
    ]  # fmt: skip


def _rotation(errors: ObjectErrors, protocol: str) -> list[Figure]:
    groups = {"turning cars": errors.turning, "all objects": np.ones(len(errors), bool)}
    found = []
    for group, rows in groups.items():
        of = (
            f"{protocol}; turning: more than {TURNING_DEG} deg a frame"
            if group == "turning cars"
            else protocol
        )
        for name, degrees in (
            ("object rotation error", errors.rotation_deg),
            ("object rotation error of predicting none", errors.true_rotation_deg),
        ):
            found.append(_figure(f"{name}, {group}", degrees[rows].sum(), int(rows.sum()), "deg", of))
    return found


def _parked(errors: ObjectErrors, protocol: str) -> list[Figure]:
    parked, moving = errors.parked, errors.moving
    flagged = (errors.estimated_m >= FLAG_M_S * errors.dt_s) & (parked | moving)
    right, count = int((flagged & moving).sum()), int(parked.sum())
    speed = errors.estimated_m[parked] / errors.dt_s[parked]
    flag = f"{protocol}; called moving from {FLAG_M_S} m/s; truly moving from {MOVING_M_S}, parked below {PARKED_M_S}"
    return [
        _figure("speed of parked objects", speed.sum(), count, "m/s", protocol),
        _figure("displacement of parked objects", errors.estimated_m[parked].sum(), count, "m", protocol),
        _figure("moving flag precision", right, int(flagged.sum()), "fraction", flag),
        _figure("moving flag recall", right, int(moving.sum()), "fraction", flag),
    ]


def _figure(name: str, total: float, count: int, unit: str, protocol: str) -> Figure:
    value = float(total) / count if count else float("nan")
    return Figure(name=name, value=value, unit=unit, protocol=protocol, count=count)
