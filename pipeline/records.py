"""What a build has published so far: one record per planned file, under `.build/files`."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from pipeline.assembly import FilePair, Layout
from pipeline.configuration import from_dict, to_dict
from pipeline.shards.hdf5 import publish
from pipeline.shards.manifest import FileEntry, file_name

LAYERS = ("frames", "evidence")
_NO_RECORD = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)


def write_record(layout: Layout, index: int, clips: Sequence[str], pair: FilePair) -> None:
    """Note that a file is published. clips: names of those in it, in order"""
    publish(_record_path(layout, index), json.dumps({"clips": list(clips), **to_dict(pair)}).encode())


def read_record(layout: Layout, index: int, clips: Sequence[str]) -> FilePair | None:
    """What an earlier run published for a file, if just these clips are in it and it is still there,
    or was withdrawn since."""
    path = _record_path(layout, index)
    try:
        record = json.loads(path.read_text())
        found = record.pop("clips")
        pair = from_dict(FilePair, record, str(path))
    except _NO_RECORD:  # none, or damaged: work again
        return None
    return pair if found == list(clips) and _are_there(layout, index, pair) else None


def withdraw(layout: Layout, index: int) -> None:
    """Take a published file from the set. It is kept under `.build`: `restore` brings it back."""
    for layer in LAYERS:
        path, kept = _path(layout, layer, index), _kept_path(layout, layer, index)
        if path.exists():
            kept.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, kept)


def restore(layout: Layout, index: int, pair: FilePair) -> None:
    """Put back what was withdrawn of a file that `read_record` has found."""
    for layer, entry in _entries(pair):
        path = _path(layout, layer, index)
        if not _fits(path, entry):
            path.parent.mkdir(parents=True, exist_ok=True)
            os.replace(_kept_path(layout, layer, index), path)


def _are_there(layout: Layout, index: int, pair: FilePair) -> bool:
    return all(
        _fits(_path(layout, layer, index), entry) or _fits(_kept_path(layout, layer, index), entry)
        for layer, entry in _entries(pair)
    )


def _entries(pair: FilePair) -> tuple[tuple[str, FileEntry], ...]:
    return tuple(zip(LAYERS, (pair.frames, pair.evidence), strict=True))


def _fits(path: Path, entry: FileEntry) -> bool:
    return path.is_file() and path.stat().st_size == entry.bytes


def _path(layout: Layout, layer: str, index: int) -> Path:
    return layout.folder / layer / file_name(index)


def _kept_path(layout: Layout, layer: str, index: int) -> Path:
    return layout.work / "withdrawn" / layer / file_name(index)


def _record_path(layout: Layout, index: int) -> Path:
    return layout.work / "files" / f"{index:05d}.json"
