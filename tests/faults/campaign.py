"""Processes that read spoilt shard sets under a limit of memory and an alarm.

What is spoilt may crash, hang or exhaust whatever reads it. So a process of its own reads, with
little more memory than it has when it starts; the number of each set is written down before,
so that a crash has a name; after one, another process goes on.

    python -m tests.faults.campaign frames --seeds 0 20000                  # what ended how
    python -m tests.faults.campaign frames --seeds 0 2000 --how library     # the same by the HDF5 library
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from pipeline.errors import ShardError
from pipeline.shards.evidence import FrameEvidence
from pipeline.shards.manifest import ClipEntry
from pipeline.shards.masks import Instances, Pairs
from pipeline.shards.reader import ShardSet
from pipeline.shards.verify import verify_clip, verify_files
from tests.conftest import ROOT
from tests.faults.mutants import FILES, mutant, mutant_manifest, write_set
from tests.pipeline.shards import examples

MEMORY_BYTES = 64 << 20
"""What reading one mutant may add to the process; the files have some 20 kB."""
SECONDS = 20
"""An alarm for one mutant: reading takes 0.01 s."""
W, H = examples.SIZE


def check_image(image: np.ndarray, static: bool) -> None:
    assert (image.shape, image.dtype) == ((H, W, 3), np.uint8)
    assert static in (False, True)


def check_evidence(evidence: FrameEvidence) -> None:
    detections, overlaps = evidence.detections, evidence.overlaps
    assert (detections.boxes.dtype, detections.scores.dtype) == (np.float32, np.float32)
    assert all(grid.dtype == np.uint8 and grid.ndim == 2 for grid in detections.masks)
    assert overlaps.iou.shape == (len(overlaps), 2) == (len(overlaps.next), 2)
    assert evidence.flow is None or (evidence.flow.ndim, evidence.flow.dtype) == (4, np.int16)


def check_masks(labels: np.ndarray, instances: Instances, pairs: Pairs) -> None:
    assert labels.shape == (H, W)
    assert labels.dtype in (np.uint8, np.uint16)
    assert {len(column) for column in vars(instances).values()} == {len(instances)}
    assert pairs.iou.shape == (len(pairs), 2) == (len(pairs.next), 2)


def read_everything(folder: Path) -> list[str]:
    """Every row of every table, every image, mask and flow, and what `verify` finds.

    Returns the refusals, in words; an unspoilt set gives none.

    Raises: whatever is not a ShardError: a bug.
    """
    refusals: list[str] = []

    def attempt(read: Callable[[], object]) -> None:
        try:
            read()
        except ShardError as error:
            refusals.append(str(error))

    def read_set() -> None:
        with ShardSet(folder) as shards:
            for clip in shards.manifest.clips:
                attempt(lambda: read_clip(shards, clip))  # noqa: B023
                refusals.extend(finding.problem for finding in verify_clip(shards, clip))
            refusals.extend(finding.problem for _, finding in verify_files(shards) if finding)

    def read_clip(shards: ShardSet, clip: ClipEntry) -> None:
        assert clip.intrinsics.shape == (3, 3)
        reads: list[Callable[[int], object]] = [
            lambda frame: check_image(shards.image(clip, frame), shards.is_static(clip, frame)),
            lambda frame: check_evidence(shards.evidence(clip, frame)),
            *(
                lambda frame, layer=layer: check_masks(  # type: ignore[misc]
                    shards.labels(layer, clip, frame),
                    shards.instances(layer, clip, frame),
                    shards.pairs(layer, clip, frame),
                )
                for layer in shards.manifest.masks
            ),
        ]
        openings = [
            lambda: (shards.timestamps_s(clip), [shards.frames_file(i).segments for i, _, _ in clip.files]),
            lambda: [shards.evidence_file(i).detection_count for i, _, _ in clip.files],
            *(
                lambda layer=layer: shards.masks_file(layer, clip.files[0][0])
                for layer in shards.manifest.masks
            ),
        ]
        for opening, read in zip(openings, reads, strict=True):
            before = len(refusals)
            attempt(opening)
            for frame in range(clip.frames if len(refusals) == before else 1):
                attempt(lambda: read(frame))  # noqa: B023
        for index, row, count in clip.files:
            for at in range(row, row + count):
                attempt(lambda: shards.frames_file(index).name(at))  # noqa: B023

    attempt(read_set)
    for line in refusals:
        assert "\n" not in line, f"an error of several lines: {line!r}"
    return refusals


# --- processes that read under limits ------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """How reading one set ended. `words`: the first refusal, or the bug."""

    number: int
    ending: str  # "read", "refused", "exception", "killed by signal N"
    words: str
    peak_bytes: int
    seconds: float

    @property
    def is_bug(self) -> bool:
        return self.ending not in ("read", "refused")


def read_mutants(kind: str, first: int, last: int, *options: str) -> list[Outcome]:
    """Read the mutants with the seeds first..last-1. `options`: of the command line."""
    return _supervised([kind, *options], first, last)


def read_sets(folders: Sequence[Path], how: str = "shards") -> list[Outcome]:
    """Read sets that are there."""
    return _supervised(["sets", "--how", how, "--sets", *map(str, folders)], 0, len(folders))


def _supervised(arguments: Sequence[str], first: int, last: int) -> list[Outcome]:
    """Run the reading process; where it dies, note on what, and go on behind that."""
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory() as name:
        log = Path(name) / "log"
        while first < last:
            options = ["--seeds", str(first), str(last), "--folder", f"{name}/set", "--log", str(log)]
            line = [sys.executable, "-m", "tests.faults.campaign", *arguments, *options]
            done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
            lines = [json.loads(each) for each in log.read_text().splitlines()] if log.exists() else []
            outcomes += [Outcome(**each) for each in lines if "ending" in each]
            if done.returncode == 0:
                break
            if not lines or "ending" in lines[-1]:
                raise AssertionError(f"the reading process failed by itself:\n{done.stderr}")
            number = lines[-1]["number"]
            ending = f"killed by signal {-done.returncode}"
            outcomes.append(Outcome(number, ending, done.stderr[-2000:], 0, 0.0))
            first = number + 1
            log.unlink()
    return outcomes


def _read_under_limits(arguments: argparse.Namespace) -> None:
    """The reading process. Writes down each number before reading and each outcome after."""
    read = {"shards": read_everything, "library": read_by_library, "misbehave": misbehave}[arguments.how]
    folder: Path = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    kind = "frames" if arguments.kind in ("manifest", "sets") else arguments.kind
    write_set(folder, kind)
    clean = (folder / "shardset.json").read_bytes()
    assert read_everything(folder) == []  # and all that reading needs is loaded before memory is limited
    memory = _status("VmSize") + (arguments.memory << 20)
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    with open(arguments.log, "a", encoding="utf-8") as log:
        for number in range(*arguments.seeds):
            if arguments.kind == "sets":
                folder = arguments.sets[number]
            elif arguments.kind == "manifest":
                (folder / "shardset.json").write_bytes(mutant_manifest(clean, number))
            else:
                write_set(folder, kind, mutant(kind, number))
            print(json.dumps({"number": number}), file=log, flush=True)
            print(json.dumps(vars(_watched(number, folder, read))), file=log, flush=True)


def _watched(number: int, folder: Path, read: Callable[[Path], list[str]]) -> Outcome:
    """Read one set; how it ended, its peak memory and time."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before, began = _status("VmRSS"), time.monotonic()
    signal.alarm(SECONDS)
    try:
        refusals = read(folder)
        ending, words = ("refused", refusals[0]) if refusals else ("read", "")
    except Exception:  # what the campaign looks for: whoever started it counts these as bugs
        ending, words = "exception", traceback.format_exc()
    signal.alarm(0)
    return Outcome(number, ending, words, max(_status("VmHWM") - before, 0), time.monotonic() - began)


def read_by_library(folder: Path) -> list[str]:
    """The same files by the HDF5 library: why our reader does without it."""
    refusals = []
    for path in sorted(folder.rglob("*.h5")):
        try:
            with h5py.File(path, "r", locking=False) as file:
                _ = [(name, file[name][()]) for name in file], dict(file.attrs)
        except Exception as error:
            refusals.append(" ".join(str(error).split()))
    return refusals


def misbehave(folder: Path) -> list[str]:
    """What the limits are for, so that a test sees them work: three sets that end badly."""
    ending = (folder / "shardset.json").read_text()
    if ending == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if ending == "hang":
        signal.alarm(1)
        while True:
            pass
    if ending == "memory":
        bytearray(2 * MEMORY_BYTES)
    return [ending]


def _status(name: str) -> int:
    """A figure of this process, bytes."""
    match = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match
    return int(match[1]) << 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=[*FILES, "sets"])
    parser.add_argument("--seeds", nargs=2, type=int, default=(0, 1000), metavar=("FIRST", "LAST"))
    parser.add_argument("--how", choices=("shards", "library", "misbehave"), default="shards")
    parser.add_argument("--memory", type=int, default=MEMORY_BYTES >> 20, help="MiB")
    for hidden in ("--folder", "--log"):
        parser.add_argument(hidden, type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--sets", nargs="+", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.log:
        _read_under_limits(arguments)
        return
    options = ("--how", arguments.how, "--memory", str(arguments.memory))
    outcomes = read_mutants(arguments.kind, *arguments.seeds, *options)
    for outcome in outcomes:
        if outcome.is_bug:
            print(f"--- seed {outcome.number}: {outcome.ending}, {outcome.seconds:.2f} s\n{outcome.words}")
    print(summary(outcomes))


def summary(outcomes: Sequence[Outcome]) -> str:
    """One line: how many ended how, and the most that one took."""
    endings = dict(collections.Counter(outcome.ending for outcome in outcomes))
    peak, longest = (max(getattr(each, name) for each in outcomes) for name in ("peak_bytes", "seconds"))
    return f"{endings}; at most {peak >> 10} KiB more than before, {longest:.2f} s"


if __name__ == "__main__":
    main()
