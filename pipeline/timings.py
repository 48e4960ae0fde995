"""What every piece of a build cost, over all its runs: one JSON line a piece.

The manifest holds nothing that differs between two builds of the same input, so times have a
file of their own while a build is under way, and end in build-report.json beside the manifest.
A line that a kill tore off is left out; its piece is then missing from the times alone.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class RunTimes:
    """One run of a build.

    began:   when, UTC, as ISO 8601
    frames:  frames that went through the networks
    seconds: wall time per stage in workers, summed; stages overlap
    """

    began: str
    frames: int
    seconds: dict[str, float]


@dataclass
class _Sum:
    frames: int = 0
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))


def note_piece(path: Path, began: str, piece: str, frames: int, seconds: Mapping[str, float]) -> None:
    """Add the line of one finished piece."""
    rounded = {stage: round(value, 4) for stage, value in seconds.items()}
    line = json.dumps({"began": began, "piece": piece, "frames": frames, "seconds": rounded})
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        # A line that was torn off must not swallow this one.
        file.write(line + "\n" if not file.tell() or _ends_whole(path) else "\n" + line + "\n")


def read_times(path: Path) -> tuple[RunTimes, ...]:
    """Every run that finished a piece, in order."""
    sums: dict[str, _Sum] = {}
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return ()
    for line in lines:
        try:
            entry = json.loads(line)
            began, frames, seconds = str(entry["began"]), int(entry["frames"]), dict(entry["seconds"])
            stages = {str(stage): float(value) for stage, value in seconds.items()}
        except (ValueError, KeyError, TypeError):
            continue
        run = sums.setdefault(began, _Sum())
        run.frames += frames
        for stage, value in stages.items():
            run.seconds[stage] += value
    return tuple(
        RunTimes(
            began=began,
            frames=run.frames,
            seconds={stage: round(value, 3) for stage, value in sorted(run.seconds.items())},
        )
        for began, run in sorted(sums.items())
    )


def _ends_whole(path: Path) -> bool:
    with open(path, "rb") as file:
        file.seek(-1, 2)
        return file.read(1) == b"\n"
