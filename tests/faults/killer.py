"""Run a build or a remask that is killed at random points until it gets through.

    python -m tests.faults.killer SEED build SOURCE OUT MASKS
    python -m tests.faults.killer SEED remask SHARDS NAME

Each round is a fork that kills itself (SIGKILL) when it is about to change something on the disk
for the n-th time, n at random: opening a file for writing, renaming, removing, making a folder.
Every other round waits for a rename, and every other of those cuts the file first, as if the write
had gone half way. Prints one JSON object: rounds that were killed, and before which operations.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch  # noqa: F401 (loaded before the forks, which would each load it)

import pipeline.given_masks  # noqa: F401
from pipeline.build import BuildConfig, build
from pipeline.clip import FramesConfig
from pipeline.detectors import DetectorConfig
from pipeline.graph import GraphConfig
from pipeline.matching import MaskConfig
from pipeline.plan import PlanConfig
from pipeline.remask import remask
from pipeline.sources.scan import SourceConfig
from tests.faults.clips import SIZE

MOST_OPERATIONS = 12
"""Before the first round is killed, at most; one more every third round, or none gets through."""
HALF = "os.rename, half written"
AIMS = ("anything", HALF, "anything", "os.rename")  # in turns: what a round waits for, once its count is up
MOST_ROUNDS = 1000
CHANGES = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")
HERE = GraphConfig(workers=0)


def config(masks: Path) -> BuildConfig:
    """Small pieces and files, and no network."""
    return BuildConfig(
        source=SourceConfig(fov_deg=70),
        frames=FramesConfig(size=SIZE),
        detector=DetectorConfig(detector=f"masks:{masks}"),
        plan=PlanConfig(frames_per_piece=2, frames_per_file=6),
        masks=MaskConfig(min_area=4),
    )


STRICT = MaskConfig(min_area=4, min_score=0.6)


def main() -> None:
    seed, what, *where = sys.argv[1:]
    rng, killed = random.Random(int(seed)), Counter[str]()
    if what == "build":
        source, out, masks = map(Path, where)
        work: Callable[[], Any] = lambda: build(source, out, config(masks), HERE, quiet=True)  # noqa: E731
    else:
        out, name = Path(where[0]), where[1]
        work = lambda: remask(out, name, STRICT, HERE, quiet=True)  # noqa: E731
    for number in range(MOST_ROUNDS):
        countdown, aim = rng.randint(1, MOST_OPERATIONS + number // 3), AIMS[number % len(AIMS)]
        operation = one_round(work, out, countdown, aim, rng.random())
        if operation is None:
            print(json.dumps({"rounds": killed.total(), "before": dict(killed)}))
            return
        killed[operation] += 1
    raise SystemExit(f"not through after {MOST_ROUNDS} rounds")


def one_round(work: Callable[[], Any], folder: Path, countdown: int, aim: str, cut: float) -> str | None:
    """Work in a fork; the operation before which it killed itself, or None if it got through."""
    told, tell = os.pipe()
    child = os.fork()
    if not child:
        os.close(told)
        kill_at(folder, countdown, aim, cut, tell)
        try:
            work()
        except BaseException as error:
            os.write(2, repr(error).encode())
            os._exit(1)
        os._exit(0)
    os.close(tell)
    with open(told, "rb") as answer:
        operation = answer.read().decode()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return operation
    if os.WEXITSTATUS(status):
        raise SystemExit("a round failed instead of being killed")
    return None


def kill_at(folder: Path, countdown: int, aim: str, cut: float, tell: int) -> None:
    """Kill this process when it is about to change something in `folder` for the n-th time, or, if it is
    to be a rename, at the next one; cut: share of the file that is kept where it is half written."""
    left, inside = countdown, str(folder)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if event not in CHANGES or not str(arguments[0]).startswith(inside):
            return
        if event == "open" and not (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR):
            return
        if event == "os.mkdir" and os.path.isdir(arguments[0]):
            return
        left -= 1
        if left > 0 or (aim != "anything" and event != "os.rename"):
            return
        if aim == HALF:
            os.truncate(arguments[0], int(os.path.getsize(arguments[0]) * cut))
        os.write(tell, (HALF if aim == HALF else event).encode())
        os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


if __name__ == "__main__":
    main()
