"""Objects' own motions as CSV, a line a step, and as JSON, by track (PREDICTIONS.md)."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from typing import Any

from evaluation.object_steps import ObjectStep

TRACKS_FORMAT, TRACKS_VERSION = "instance-motion object tracks", 2
CSV_COLUMNS = (
    *("frame", "time_s", "track", "class", "label", "next_label", "state"),
    *("x", "y", "z", "world_x", "world_y", "world_z", "move_x", "move_y", "move_z"),
    *("turn_x_deg", "turn_y_deg", "turn_z_deg", "speed_per_s", "unit"),
)


def tracks_csv(steps: Sequence[ObjectStep], unit: str) -> str:
    """One line a step.

    x, y, z: its centre at time i in camera i; world_*: the same in the first camera; move_*: what
    its centre moves from time i to i + 1, in the axes of camera i; turn_*: the rotation vector of its own
    turn in the same axes; speed_per_s: length of the move a second; state: moving or parked.

    Args:
        unit: of all lengths, "m" or "scene".
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for step in steps:
        numbers = (*step.centre, *step.world_centre, *step.move, *step.turn_deg, step.speed)
        head = (step.frame, f"{step.time_s:.6f}", step.track, step.class_name, step.label, step.next_label)
        writer.writerow((*head, _state(step), *(f"{value:.6g}" for value in numbers), unit))
    return out.getvalue()


def tracks_json(steps: Sequence[ObjectStep], clip: str, unit: str) -> str:
    """The same by track, with each motion's matrix O (seen from the camera at time i)."""
    tracks: dict[int, dict[str, Any]] = {}
    for step in steps:
        track = tracks.setdefault(step.track, {"track": step.track, "class": step.class_name, "steps": []})
        track["steps"].append(
            {
                "frame": step.frame,
                "time_s": step.time_s,
                "label": step.label,
                "next_label": step.next_label,
                "state": _state(step),
                "centre": step.centre.tolist(),
                "world_centre": step.world_centre.tolist(),
                "move": step.move.tolist(),
                "turn_deg": step.turn_deg.tolist(),
                "speed_per_s": step.speed,
                "motion": step.motion.tolist(),
            }
        )
    lengths = {"m": "metres", "scene": "scene units"}[unit]
    data = {
        "format": TRACKS_FORMAT,
        "version": TRACKS_VERSION,
        "clip": clip,
        "units": f"{lengths}, seconds, degrees; world = camera of the first frame (x right, y down, z forward)",
        "tracks": [tracks[key] for key in sorted(tracks)],
    }
    return json.dumps(data, indent=1, allow_nan=False) + "\n"


def _state(step: ObjectStep) -> str:
    return "moving" if step.moving else "parked"
