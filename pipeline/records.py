"""What a build has published so far: one record per planned file, under `.build/files`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from pipeline.assembly import FilePair, Layout
from pipeline.configuration import from_dict, to_dict
from pipeline.shards.hdf5 import publish
from pipeline.shards.manifest import FileEntry, file_name

_NO_RECORD = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)


def write_record(layout: Layout, index: int, clips: Sequence[str], pair: FilePair) -> None:
    """Note that a file is published. clips: names of those in it, in order"""
    publish(_record_path(layout, index), json.dumps({"clips": list(clips), **to_dict(pair)}).encode())


def read_record(layout: Layout, index: int, clips: Sequence[str]) -> FilePair | None:
    """What an earlier run published for a file, if just these clips are in it and it is still there."""
    path = _record_path(layout, index)
    try:
        record = json.loads(path.read_text())
        found = record.pop("clips")
        pair = from_dict(FilePair, record, str(path))
    except _NO_RECORD:  # none, or damaged: work again
        return None
    return pair if found == list(clips) and _are_there(layout, index, pair) else None


def withdraw(layout: Layout, index: int) -> None:
    """Remove a published file and its record."""
    _record_path(layout, index).unlink(missing_ok=True)
    for layer in ("frames", "evidence"):
        _path(layout, layer, index).unlink(missing_ok=True)


def _are_there(layout: Layout, index: int, pair: FilePair) -> bool:
    entries: tuple[tuple[str, FileEntry], ...] = (("frames", pair.frames), ("evidence", pair.evidence))
    for layer, entry in entries:
        path = _path(layout, layer, index)
        if not path.is_file() or path.stat().st_size != entry.bytes:
            return False
    return True


def _path(layout: Layout, layer: str, index: int) -> Path:
    return layout.folder / layer / file_name(index)


def _record_path(layout: Layout, index: int) -> Path:
    return layout.work / "files" / f"{index:05d}.json"
