"""Read a shard set: the door through which training, evaluation and remask come in.

    shards = ShardSet("kitti/")
    clip = shards.manifest.clips[0]
    image = shards.image(clip, 5)                      # (H, W, 3) uint8 RGB
    labels = shards.labels("default", clip, 5)         # (H, W) label map
    pairs = shards.pairs("default", clip, 5)           # matches with frame 4

Files are opened on first use, once per process; a copy that travels to another process
(a data loader's worker) opens its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from pipeline.errors import ShardError
from pipeline.shards.evidence import EvidenceFile, FrameEvidence
from pipeline.shards.frames import FramesFile
from pipeline.shards.manifest import ClipEntry, FileEntry, Manifest, MasksEntry, file_name, read_manifest
from pipeline.shards.masks import Instances, MasksFile, Pairs

F = TypeVar("F", FramesFile, EvidenceFile, MasksFile)


class ShardSet:
    """A shard set, opened for reading.

    Raises:
        ShardError: from every method, if what it needs is missing, damaged, of another
            version, or of another set; the message names the file and the row.
    """

    def __init__(self, folder: str | Path, manifest: Manifest | None = None) -> None:
        """`manifest`: that of a set whose shardset.json is still to be written."""
        self.folder = Path(folder)
        self.manifest: Manifest = manifest or read_manifest(self.folder)
        self._open: dict[tuple[str, int], Any] = {}
        self._owner = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}  # handles stay in their process

    def __enter__(self) -> ShardSet:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all files; they are opened again when needed."""
        for file in self._open.values():
            file.close()
        self._open.clear()

    def clip(self, name: str) -> ClipEntry:
        """The clip of that name."""
        for clip in self.manifest.clips:
            if clip.name == name:
                return clip
        raise ShardError(f"{self.folder}: no clip {name!r}; `instance-motion inspect` lists what is there")

    def image(self, clip: ClipEntry, frame: int) -> np.ndarray:
        """(H, W, 3) uint8 RGB of frame `frame` of a clip."""
        index, row = locate(clip, frame)
        return self.frames_file(index).image(row)

    def is_static(self, clip: ClipEntry, frame: int) -> bool:
        """Whether nothing moved since the frame before."""
        index, row = locate(clip, frame)
        return bool(self.frames_file(index).static[row])

    def timestamps_s(self, clip: ClipEntry) -> np.ndarray:
        """(N,) float64 seconds."""
        return np.concatenate(
            [self.frames_file(index).timestamps_s[row : row + count] for index, row, count in clip.files]
        )

    def evidence(self, clip: ClipEntry, frame: int) -> FrameEvidence:
        """Raw detections of a frame, and their overlaps with the frame before."""
        index, row = locate(clip, frame)
        return self.evidence_file(index)[row]

    def labels(self, layer: str, clip: ClipEntry, frame: int) -> np.ndarray:
        """(H, W) label map: 0 background, n is row n - 1 of `instances`."""
        index, row = locate(clip, frame)
        return self.masks_file(layer, index).labels(row)

    def instances(self, layer: str, clip: ClipEntry, frame: int) -> Instances:
        index, row = locate(clip, frame)
        return self.masks_file(layer, index).instances(row)

    def pairs(self, layer: str, clip: ClipEntry, frame: int) -> Pairs:
        """Matched labels of frame `frame` - 1 and frame `frame`."""
        index, row = locate(clip, frame)
        return self.masks_file(layer, index).pairs(row)

    def frames_file(self, index: int) -> FramesFile:
        manifest = self.manifest
        return self._file(
            "frames",
            index,
            manifest.frames,
            lambda path: FramesFile(path, set_id=manifest.set_id, codec=manifest.codec, size=manifest.size),
        )

    def evidence_file(self, index: int) -> EvidenceFile:
        manifest = self.manifest
        return self._file(
            "evidence",
            index,
            manifest.evidence,
            lambda path: EvidenceFile(path, set_id=manifest.set_id, size=manifest.size),
        )

    def masks_file(self, layer: str, index: int) -> MasksFile:
        manifest, entry = self.manifest, self.masks_entry(layer)

        def open_file(path: Path) -> MasksFile:
            file = MasksFile(path, set_id=manifest.set_id, mask_digest=entry.digest, size=manifest.size)
            if file.evidence_sha256 != manifest.evidence[file_name(index)].sha256:
                raise ShardError(
                    f"{path}: made from other evidence than this set holds; run `instance-motion remask`"
                )
            return file

        return self._file(f"masks/{layer}", index, entry.files, open_file)

    def masks_entry(self, layer: str) -> MasksEntry:
        """Settings and files of a masks layer."""
        if layer not in self.manifest.masks:
            known = ", ".join(sorted(self.manifest.masks)) or "none"
            raise ShardError(
                f"{self.folder}: no masks layer {layer!r}; there are: {known}; `remask` makes new ones"
            )
        return self.manifest.masks[layer]

    def _file(
        self, layer: str, index: int, entries: dict[str, FileEntry], open_file: Callable[[Path], F]
    ) -> F:
        if self._owner != os.getpid():  # after a fork: the parent's handles are not ours to use
            self._open, self._owner = {}, os.getpid()
        key = (layer, index)
        if key not in self._open:
            name = file_name(index)
            if name not in entries:
                raise ShardError(f"{self.folder}: {layer}/{name} is not in the manifest; rebuild the set")
            path, entry = self.folder / layer / name, entries[name]
            if path.is_file() and path.stat().st_size != entry.bytes:
                raise ShardError(
                    f"{path}: {path.stat().st_size} bytes, the manifest says {entry.bytes}; "
                    "delete it and run `instance-motion build` again"
                )
            file = open_file(path)
            if len(file) != entry.frames:
                raise ShardError(f"{path}: {len(file)} frames, the manifest says {entry.frames}; rebuild it")
            self._open[key] = file
        return self._open[key]


def locate(clip: ClipEntry, frame: int) -> tuple[int, int]:
    """File index and row of a clip's frame."""
    rest = frame
    for index, row, count in clip.files:
        if 0 <= rest < count:
            return index, row + rest
        rest -= count
    raise IndexError(f"frame {frame} of clip {clip.name}, which has {clip.frames}")
