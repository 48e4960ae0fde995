"""shardset.json: what a shard set is made of, written last and replaced whole.

The manifest holds nothing that differs between two builds of the same input (no times, no
host names), so equal builds have equal manifests.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from pipeline.classes import CLASSES
from pipeline.configuration import from_dict, to_dict
from pipeline.errors import ConfigError, ShardError
from pipeline.shards.codec import ImageCodec
from pipeline.shards.storage import LocalFolder, Location, MissingObject, ObjectStore, open_store

FORMAT, VERSION = "instance-motion shard set", 1
MANIFEST = "shardset.json"
UNFINISHED_COPY = "unfinished-copy.json"
"""In an object store, until a copy is finished: the manifest that it will have."""
MAX_MANIFEST_BYTES = 1 << 29


@dataclass(frozen=True, kw_only=True)
class ClipEntry:
    """One clip: its length, its camera for stored frames, and where its frames are.

    files: (file index, row of the clip's first frame in that file, frames) per segment
    """

    name: str
    frames: int
    K: tuple[tuple[float, ...], ...]
    fingerprint: str
    files: tuple[tuple[int, int, int], ...]

    @property
    def intrinsics(self) -> np.ndarray:
        """(3, 3) float64, pixels of the stored frame."""
        return np.array(self.K, np.float64)


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """One published file: what its bytes must be."""

    sha256: str
    bytes: int
    frames: int


@dataclass(frozen=True, kw_only=True)
class QuarantineEntry:
    """A clip that is not in the set, and why."""

    clip: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class MasksEntry:
    """One masks layer: its settings and its files, by name within masks/<layer>/."""

    config: dict[str, Any]
    digest: str
    files: dict[str, FileEntry] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything that a reader must know before it opens a file.

    set_id: digest of input and configuration; every file of the set states it
    size:   (width, height) of stored frames
    config: how the set was built: source, frames, flow, detector, for the record
    """

    set_id: str
    size: tuple[int, int]
    codec: ImageCodec
    classes: tuple[str, ...]
    config: dict[str, Any]
    clips: tuple[ClipEntry, ...]
    quarantine: tuple[QuarantineEntry, ...]
    frames: dict[str, FileEntry]
    evidence: dict[str, FileEntry]
    masks: dict[str, MasksEntry] = field(default_factory=dict)

    def with_masks(self, name: str, entry: MasksEntry) -> Manifest:
        """The same set with one masks layer added or replaced."""
        return replace(self, masks={**self.masks, name: entry})


def manifest_bytes(manifest: Manifest) -> bytes:
    """The content of shardset.json; equal manifests give equal bytes."""
    data = {"format": FORMAT, "version": VERSION, **to_dict(manifest)}
    return (json.dumps(data, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def write_manifest(location: Location, manifest: Manifest) -> None:
    """Publish shardset.json."""
    open_store(location).write(MANIFEST, manifest_bytes(manifest))


def update_manifest(location: Location, change: Callable[[Manifest | None], Manifest]) -> None:
    """Replace shardset.json by `change` of what is there now; None: there is none yet.

    In an object store, no other writer's change gets lost (as far as the store can tell, see
    `ObjectStore.update`): `change` may be called several times. Of a local folder the caller holds
    the lease.
    """

    def changed(before: bytes | None) -> bytes:
        manifest = None if before is None else parse_manifest(before, f"{location}/{MANIFEST}")
        return manifest_bytes(change(manifest))

    store = open_store(location)
    if isinstance(store, ObjectStore):
        store.update(MANIFEST, changed, MAX_MANIFEST_BYTES)
        return
    try:
        before: bytes | None = store.read(MANIFEST, MAX_MANIFEST_BYTES)
    except MissingObject:
        before = None
    data = changed(before)
    if data != before:
        store.write(MANIFEST, data)


def read_manifest(location: Location) -> Manifest:
    """Read and check shardset.json.

    Raises:
        ShardError: no shard set, an unfinished one, of another version, or damaged.
    """
    store = open_store(location)
    try:
        data = store.read(MANIFEST, MAX_MANIFEST_BYTES)
    except MissingObject:
        hint = "no shard set"
        if isinstance(location, Path) and (location / ".build").is_dir():
            hint = "an unfinished build; run the same `instance-motion build` again"
        elif _is_there(store, UNFINISHED_COPY):
            hint = "an unfinished copy; run the same `instance-motion copy` again"
        raise ShardError(f"{location}: {hint} ({MANIFEST} is missing)") from None
    return parse_manifest(data, f"{location}/{MANIFEST}")


def parse_manifest(content: bytes, path: str) -> Manifest:
    """Check the content of a shardset.json; `path` is what errors call it."""
    if len(content) > MAX_MANIFEST_BYTES:
        raise ShardError(f"{path}: larger than {MAX_MANIFEST_BYTES} bytes; this is not a manifest")
    try:
        data = json.loads(content.decode("utf-8"))
        if not isinstance(data, dict):
            raise ValueError(f"expected an object, found {type(data).__name__}")
        found = (data.pop("format", None), data.pop("version", None))
    except (ValueError, RecursionError) as error:
        raise ShardError(
            f"{path}: not a manifest ({' '.join(str(error).split())}); rebuild the set"
        ) from None
    if found != (FORMAT, VERSION):
        raise ShardError(
            f"{path}: {found[0]!r} version {found[1]!r}, expected {FORMAT!r} version {VERSION}; "
            "install the release of instance-motion that wrote it, or rebuild the set with this one"
        )
    try:
        manifest = from_dict(Manifest, data, MANIFEST)
    except (ConfigError, TypeError, OverflowError) as error:
        folder = path.removesuffix(f"/{MANIFEST}")
        raise ShardError(f"{folder}: {' '.join(str(error).split())}; rebuild the set") from None
    _check(path, manifest)
    return manifest


def check_layer_name(name: str) -> str:
    """A masks layer's name becomes a folder: letters, digits, . _ - only."""
    safe = name and all(ch.isascii() and (ch.isalnum() or ch in "._-") for ch in name) and name[0] not in ".-"
    if not safe or len(name) > 100:
        raise ConfigError(
            f"layer name {name[:40]!r}: use letters, digits, '.', '_' and '-', such as 'score-0.7'"
        )
    return name


def _is_there(store: LocalFolder | ObjectStore, name: str) -> bool:
    try:
        store.read(name, 0)
    except ShardError:
        return False
    return True


def _check(path: str, manifest: Manifest) -> None:
    width, height = manifest.size
    if not (0 < width <= 16384 and 0 < height <= 16384):
        raise ShardError(f"{path}: frame size {width}x{height} is absurd; rebuild the set")
    if manifest.classes != CLASSES[: len(manifest.classes)]:
        raise ShardError(f"{path}: its classes are not those of this release; rebuild the set")
    for layer in (manifest.frames, manifest.evidence, *(masks.files for masks in manifest.masks.values())):
        for name in layer:
            if PurePosixPath(name).name != name or not name.endswith(".h5") or len(name) > 100:
                raise ShardError(f"{path}: file name {name[:60]!r} is not one of a shard set; do not use it")
    try:
        for name in manifest.masks:
            check_layer_name(name)
    except ConfigError as error:
        raise ShardError(f"{path}: {error}") from None
    for name, layer in {
        "evidence": manifest.evidence,
        **{f"masks/{k}": v.files for k, v in manifest.masks.items()},
    }.items():
        sizes = {file: entry.frames for file, entry in layer.items()}
        if sizes != {file: entry.frames for file, entry in manifest.frames.items()}:
            raise ShardError(
                f"{path}: layer {name} does not list the files of the frames layer; rebuild the set"
            )
    if len({clip.name for clip in manifest.clips}) != len(manifest.clips):
        raise ShardError(f"{path}: two clips have one name; rebuild the set")
    for clip in manifest.clips:
        fits = [len(row) for row in clip.K] == [3, 3, 3] and np.isfinite(clip.intrinsics).all()
        if not fits or sum(count for _, _, count in clip.files) != clip.frames:
            raise ShardError(f"{path}: clip {clip.name[:60]!r} does not add up; rebuild the set")
        for index, first, count in clip.files:
            entry = manifest.frames.get(file_name(index))
            if entry is None or first < 0 or count < 1 or first + count > entry.frames:
                raise ShardError(f"{path}: clip {clip.name[:60]!r} points outside its files; rebuild the set")


def file_name(index: int) -> str:
    """Name of the index-th file of every layer."""
    return f"{index:05d}.h5"
