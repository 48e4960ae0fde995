"""Objects' own motions as numbers with names: where, how far, how fast, turning how, moving or parked.

One step is one object between two frames. Lengths are scene units times `scale`: metres where metres a
scene unit are known, else scene units.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace

import numpy as np
from scipy.spatial.transform import Rotation

from evaluation.objects import FLAG_M_S
from evaluation.predictions import ClipPrediction
from evaluation.trajectories import chain, nearest_rotation
from pipeline.classes import CLASSES

PARKED_SHARE = 0.01
"""Without metres: an object that moves by less than this share of its depth a frame is parked. Errors of
a translation grow with depth, and no speed can be asked for where the unit is unknown."""
STEADY_STEPS = 5
"""Moving or parked is asked of the median over so many steps of a track, the one in question in the
middle: a single step is noisy, and what is parked stays parked for a while."""


@dataclass(frozen=True, kw_only=True)
class ObjectStep:
    """One object from frame i to i + 1.

    centre:       (3,) at time i, in camera i (x right, y down, z forward)
    world_centre: (3,) the same in the camera of the first frame
    move:         (3,) what the centre moves by itself, in the axes of camera i
    turn_deg:     (3,) rotation vector of its own turn, degrees, in the axes of camera i
    speed:        length of the move a second
    moving:       False: parked
    motion:       (4, 4) O, translation in the same unit as all else
    """

    frame: int
    time_s: float
    track: int
    class_name: str
    label: int
    next_label: int
    centre: np.ndarray
    world_centre: np.ndarray
    move: np.ndarray
    turn_deg: np.ndarray
    speed: float
    moving: bool
    motion: np.ndarray


def object_steps(clip: ClipPrediction, scale_m: float | None = None) -> list[ObjectStep]:
    """All steps of a clip, by rising frame.

    Args:
        scale_m: metres a scene unit, None where it is unknown.
    """
    scale = scale_m or 1.0
    poses, objects = chain(clip.later_T_earlier), clip.objects
    steps = []
    for n, i in enumerate(objects.frame.tolist()):
        motion, centre = objects.motion[n].copy(), objects.centre[n] * scale
        motion[:3, 3] *= scale
        move = motion[:3, :3] @ centre + motion[:3, 3] - centre
        turn = Rotation.from_matrix(nearest_rotation(motion[:3, :3])).as_rotvec(degrees=True)
        dt_s = clip.timestamps_s[i + 1] - clip.timestamps_s[i]
        steps.append(
            ObjectStep(
                frame=i,
                time_s=float(clip.timestamps_s[i]),
                track=int(objects.track[n]),
                class_name=CLASSES[objects.class_index[n]],
                label=int(objects.label[n]),
                next_label=int(objects.next_label[n]),
                centre=centre,
                world_centre=poses[i, :3, :3] @ centre + poses[i, :3, 3] * scale,
                move=move,
                turn_deg=turn,
                speed=float(np.linalg.norm(move) / dt_s),
                moving=False,
                motion=motion,
            )
        )
    return _with_states(steps, scale_m is not None)


def _with_states(steps: list[ObjectStep], metric: bool) -> list[ObjectStep]:
    """The same steps, each moving or parked."""
    of_track: dict[int, list[int]] = defaultdict(list)
    for row, step in enumerate(steps):
        of_track[step.track].append(row)
    found = list(steps)
    for rows in of_track.values():
        if metric:
            measure, limit = [steps[row].speed for row in rows], FLAG_M_S
        else:
            relative = [np.linalg.norm(steps[row].move) / max(steps[row].centre[2], 1e-6) for row in rows]
            measure, limit = relative, PARKED_SHARE
        reach = STEADY_STEPS // 2
        for k, row in enumerate(rows):
            around = measure[max(0, k - reach) : k + reach + 1]
            found[row] = replace(steps[row], moving=bool(np.median(around) >= limit))
    return found
