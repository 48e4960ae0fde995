"""Read a shard set: the door through which training, evaluation and remask come in.

    shards = ShardSet("kitti/")                        # or "s3://bucket/kitti"
    clip = shards.manifest.clips[0]
    image = shards.image(clip, 5)                      # (H, W, 3) uint8 RGB
    labels = shards.labels("default", clip, 5)         # (H, W) label map
    pairs = shards.pairs("default", clip, 5)           # matches with frame 4

Files are opened on first use, in each process, and stay open, up to a number; a copy that travels to another process
(a data loader's worker) opens its own. Those of a URL are fetched whole into a cache
(`pipeline.shards.cache`); damage that is found there while reading is mended by fetching again.
"""

from __future__ import annotations

import hashlib
import os
import resource
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from pipeline.errors import ShardError
from pipeline.shards.cache import CacheConfig, FileCache
from pipeline.shards.evidence import EvidenceFile, FrameEvidence
from pipeline.shards.frames import FramesFile
from pipeline.shards.manifest import ClipEntry, FileEntry, Manifest, MasksEntry, file_name, read_manifest
from pipeline.shards.masks import Instances, MasksFile, Pairs
from pipeline.shards.storage import Location, ObjectStore, StorageError, location_name, parse_location

T = TypeVar("T")
F = TypeVar("F", FramesFile, EvidenceFile, MasksFile)


class ShardSet:
    """A shard set, opened for reading.

    Raises:
        ShardError: from every method, if what it needs is missing, damaged, of another
            version, or of another set; the message names the file and the row.
    """

    def __init__(
        self, folder: Location, manifest: Manifest | None = None, cache: CacheConfig | None = None
    ) -> None:
        """Open a set in a local folder or at a URL.

        Args:
            manifest: that of a set whose shardset.json is still to be written.
            cache:    where files of a URL are kept; none: as the environment says.
        """
        self.folder: Location = parse_location(folder)
        self.cache: FileCache | None = None
        if not isinstance(self.folder, Path):
            self.cache = FileCache(cache or CacheConfig.from_environment())
        self.manifest: Manifest = manifest or read_manifest(self.folder)
        self._open: dict[tuple[str, int], Any] = {}
        self._inodes: dict[tuple[str, int], int | None] = {}  # of those in the cache
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

    @property
    def name(self) -> str:
        """The last part of its folder or URL."""
        return location_name(self.folder)

    def clip(self, name: str) -> ClipEntry:
        """The clip of that name."""
        for clip in self.manifest.clips:
            if clip.name == name:
                return clip
        raise ShardError(f"{self.folder}: no clip {name!r}; `instance-motion inspect` lists what is there")

    def image(self, clip: ClipEntry, frame: int) -> np.ndarray:
        """(H, W, 3) uint8 RGB of frame `frame` of a clip."""
        index, row = locate(clip, frame)
        return self.reading("frames", index, lambda: self.frames_file(index).image(row))

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
        return self.reading("evidence", index, lambda: self.evidence_file(index)[row])

    def labels(self, layer: str, clip: ClipEntry, frame: int) -> np.ndarray:
        """(H, W) label map: 0 background, n is row n - 1 of `instances`."""
        index, row = locate(clip, frame)
        return self.reading(f"masks/{layer}", index, lambda: self.masks_file(layer, index).labels(row))

    def instances(self, layer: str, clip: ClipEntry, frame: int) -> Instances:
        index, row = locate(clip, frame)
        return self.reading(f"masks/{layer}", index, lambda: self.masks_file(layer, index).instances(row))

    def pairs(self, layer: str, clip: ClipEntry, frame: int) -> Pairs:
        """Matched labels of frame `frame` - 1 and frame `frame`."""
        index, row = locate(clip, frame)
        return self.reading(f"masks/{layer}", index, lambda: self.masks_file(layer, index).pairs(row))

    def frames_file(self, index: int) -> FramesFile:
        manifest = self.manifest

        def open_file(path: Path) -> FramesFile:
            return FramesFile(path, set_id=manifest.set_id, codec=manifest.codec, size=manifest.size)

        return self.reading("frames", index, lambda: self._file("frames", index, open_file))

    def evidence_file(self, index: int) -> EvidenceFile:
        manifest = self.manifest

        def open_file(path: Path) -> EvidenceFile:
            return EvidenceFile(path, set_id=manifest.set_id, size=manifest.size)

        return self.reading("evidence", index, lambda: self._file("evidence", index, open_file))

    def masks_file(self, layer: str, index: int) -> MasksFile:
        manifest, entry = self.manifest, self.masks_entry(layer)

        def open_file(path: Path) -> MasksFile:
            file = MasksFile(path, set_id=manifest.set_id, mask_digest=entry.digest, size=manifest.size)
            if file.evidence_sha256 != manifest.evidence[file_name(index)].sha256:
                raise ShardError(
                    f"{path}: made from other evidence than this set holds; run `instance-motion remask`"
                )
            return file

        return self.reading(f"masks/{layer}", index, lambda: self._file(f"masks/{layer}", index, open_file))

    def masks_entry(self, layer: str) -> MasksEntry:
        """Settings and files of a masks layer."""
        if layer not in self.manifest.masks:
            known = ", ".join(sorted(self.manifest.masks)) or "none"
            raise ShardError(
                f"{self.folder}: no masks layer {layer!r}; there are: {known}; `remask` makes new ones"
            )
        return self.manifest.masks[layer]

    def files(self, layer: str) -> Mapping[str, FileEntry]:
        """The files of a layer: "frames", "evidence", or "masks/NAME"."""
        if layer.startswith("masks/"):
            return self.masks_entry(layer.removeprefix("masks/")).files
        return self.manifest.frames if layer == "frames" else self.manifest.evidence

    def digest(self, layer: str) -> str:
        """SHA-256 of what the manifest says of frames and a masks layer: their files, by their own."""
        files = (*self.manifest.frames.items(), *self.masks_entry(layer).files.items())
        lines = (f"{name} {entry.sha256}\n" for name, entry in files)
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def reading(self, layer: str, index: int, read: Callable[[], T]) -> T:
        """What `read` gives, which reads the index-th file of a layer.

        Where it meets damage in the cache of a URL, the file is fetched again, and read once more.
        """
        if self.cache is None:
            return read()
        try:
            return read()
        except StorageError:
            raise
        except ShardError:
            entry = self.files(layer).get(file_name(index))
            if entry is None:
                raise
            self.cache.discard_damaged(entry)
            self._open.pop((layer, index), None)
        try:
            return read()
        except ShardError as error:
            where = f"{self.folder}/{layer}/{file_name(index)}"
            raise error if where in str(error) else ShardError(f"{where}: {error}") from None

    def _file(self, layer: str, index: int, open_file: Callable[[Path], F]) -> F:
        if self._owner != os.getpid():  # after a fork: the parent's handles are not ours to use
            self._open, self._owner = {}, os.getpid()
        key, name, entries = (layer, index), file_name(index), self.files(layer)
        file = self._open.get(key)
        if file is None:
            if name not in entries:
                raise ShardError(f"{self.folder}: {layer}/{name} is not in the manifest; rebuild the set")
            if isinstance(self.folder, Path):
                file = _open_entry(self.folder / layer / name, entries[name], open_file)
            else:
                file = self._fetched(self.folder, key, entries[name], open_file)
            self._open[key] = file
            if len(self._open) > _most_open_files():
                # Not closed: another thread may be reading it. It closes with its last user.
                self._open.pop(next(iter(list(self._open))), None)
        return file

    def _fetched(self, url: str, key: tuple[str, int], entry: FileEntry, open_file: Callable[[Path], F]) -> F:
        assert self.cache is not None
        # What has been removed from the cache takes room until the last reader lets go of it.
        for each, file in list(self._open.items()):
            if _inode(file.path) != self._inodes.get(each):
                self._open.pop(each, None)
        with self.cache.opened(ObjectStore(url), f"{key[0]}/{file_name(key[1])}", entry) as path:
            self._inodes[key] = _inode(path)
            return _open_entry(path, entry, open_file)


def _most_open_files() -> int:
    """By one set at a time. Sets may have thousands of files, processes often no more than 1024 open ones."""
    return max(8, min(512, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4))


def _inode(path: Path) -> int | None:
    """What tells a file from another that later has its name; None: there is none."""
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return None


def _open_entry(path: Path, entry: FileEntry, open_file: Callable[[Path], F]) -> F:
    if path.is_file() and path.stat().st_size != entry.bytes:
        raise ShardError(
            f"{path}: {path.stat().st_size} bytes, the manifest says {entry.bytes}; "
            "delete it and run `instance-motion build` again"
        )
    file = open_file(path)
    if len(file) != entry.frames:
        raise ShardError(f"{path}: {len(file)} frames, the manifest says {entry.frames}; rebuild it")
    return file


def locate(clip: ClipEntry, frame: int) -> tuple[int, int]:
    """File index and row of a clip's frame."""
    rest = frame
    for index, row, count in clip.files:
        if 0 <= rest < count:
            return index, row + rest
        rest -= count
    raise IndexError(f"frame {frame} of clip {clip.name}, which has {clip.frames}")
