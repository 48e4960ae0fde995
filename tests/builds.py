"""Whole builds by the real command, for tests: small streets, small pieces, small files."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT

# Small pieces and files, so that a clip spans several of both.
CUT = ("--frames-per-piece", "3", "--frames-per-file", "6")
SIZE = ("--size", "208", "64")


def command(*arguments: object, workers: int | None = 0) -> list[str]:
    """The command line of `instance-motion`, in a process of its own."""
    line = [sys.executable, "-m", "workflows.cli", *map(str, arguments)]
    return line if workers is None else [*line, "--workers", str(workers)]


def run(*arguments: object, workers: int | None = 0, **options) -> subprocess.CompletedProcess[str]:  # type: ignore[no-untyped-def]
    """Run `instance-motion` to its end, whatever its end."""
    return subprocess.run(
        command(*arguments, workers=workers), capture_output=True, text=True, cwd=ROOT, timeout=300, **options
    )


def build(source: Path, out: Path, *options: object, workers: int | None = 0) -> None:
    """A build that must succeed."""
    done = run("build", source, out, *SIZE, *CUT, "--quiet", *options, workers=workers)
    assert done.returncode == 0, done.stderr


def contents(out: Path, *layers: str) -> dict[str, str]:
    """SHA-256 of every file of the set; of some layers only, if named."""
    found = {}
    for layer in layers or ("frames", "evidence", "masks", "shardset.json"):
        paths = [out / layer] if (out / layer).is_file() else sorted((out / layer).rglob("*.h5"))
        for path in paths:
            found[str(path.relative_to(out))] = hashlib.sha256(path.read_bytes()).hexdigest()
    assert found
    return found
