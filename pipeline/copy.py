"""A finished shard set to another place, file by file: folder to object store, back, or between two.

Every file is read whole, checked against the manifest's SHA-256, and written whole; shardset.json comes
last, so that the copy is complete or is no shard set. Run again, it goes on where it was stopped. What is
there already is left:

- in a folder, if its size and SHA-256 are the manifest's;
- in an object store, if its size is the manifest's and the store says of it that it is this file: by its
  shardset.json, or by unfinished-copy.json, which lists what a copy is writing, from before its first
  object to its end. (Objects appear whole. Size alone would not do: files of two builds often have one
  size.) `check` reads every object back, and writes those again that differ.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.errors import BuildError, ConfigError, ShardError
from pipeline.lease import lease
from pipeline.progress import Progress
from pipeline.shards.hdf5 import remove_leftovers
from pipeline.shards.manifest import (
    MANIFEST,
    MAX_MANIFEST_BYTES,
    UNFINISHED_COPY,
    FileEntry,
    Manifest,
    manifest_bytes,
    parse_manifest,
    read_manifest,
    update_manifest,
)
from pipeline.shards.storage import (
    LocalFolder,
    Location,
    MissingObject,
    ObjectStore,
    location_name,
    open_store,
    parse_location,
)

Store = LocalFolder | ObjectStore


@dataclass(frozen=True, kw_only=True)
class CopyReport:
    """What a copy did. bytes: those written; layers: masks layers of the copy, earlier ones included."""

    destination: str
    files: int
    copied: int
    bytes: int
    layers: tuple[str, ...]

    def summary(self) -> str:
        kept = f", {self.files - self.copied} were there" if self.copied < self.files else ""
        return (
            f"{self.destination}: {self.copied} of {self.files} files copied, "
            f"{self.bytes / 1e6:,.1f} MB{kept}; masks: {', '.join(self.layers) or 'none'}"
        )


def copy_set(
    source: Location,
    destination: Location,
    *,
    layers: tuple[str, ...] = (),
    threads: int = 4,
    check: bool = False,
    quiet: bool = False,
) -> CopyReport:
    """Copy a finished shard set to a folder or URL; each may be either.

    A destination that has the set already gets the masks layers that it lacks.

    Args:
        layers:  masks layers to copy; none is all. Frames and evidence always are.
        threads: transfers at a time; each holds one file in memory.
        check:   read back what an object store has, and write again what differs.

    Raises:
        ShardError: no shard set, a damaged file, or a store that cannot be reached.
        BuildError: the destination holds something else, or is being written.
        ConfigError: a layer that is not there, or a set onto itself.
    """
    source, destination = parse_location(source), parse_location(destination)
    if threads < 1:
        raise ConfigError(f"threads must be at least 1, got {threads}")
    if _same(source, destination):
        raise ConfigError(f"{source} cannot be copied onto itself; give another destination")
    manifest = _with_layers(source, read_manifest(source), layers)
    with _one_writer(destination):
        store = open_store(destination)
        known = _begin(store, manifest)
        transfers = _Transfers(source=open_store(source), destination=store, known=known, check=check)
        files = _files(manifest)
        copied = written = 0
        with Progress(f"copy {location_name(source)}", len(files), quiet=quiet, unit="file") as bar:
            for count in transfers.run(files, threads):
                copied, written = copied + (count > 0), written + count
                bar.advance(1)
        update_manifest(destination, lambda now: _merged(destination, now, manifest))
        if isinstance(store, ObjectStore):
            store.remove(UNFINISHED_COPY)
    return CopyReport(
        destination=str(destination),
        files=len(files),
        copied=copied,
        bytes=written,
        layers=tuple(sorted(read_manifest(destination).masks)),
    )


@contextmanager
def _one_writer(destination: Location) -> Iterator[None]:
    """The lease of a local folder. A URL has none: two copies of one set write the same objects."""
    if not isinstance(destination, Path):
        yield
        return
    if (destination / ".build").is_dir() and not (destination / MANIFEST).exists():
        raise BuildError(f"{destination} holds an unfinished build; finish it, or choose another folder")
    with lease(destination, "instance-motion copy"):
        remove_leftovers(destination)
        yield


def _begin(store: Store, manifest: Manifest) -> dict[str, FileEntry]:
    """Refuse another set, note in an object store what will be written, and say what is there.

    Returns:
        The files that the destination says it has, by name; they may still be on their way.
    """
    known: dict[str, FileEntry] = {}
    finished = _manifest_of(store, MANIFEST)
    if finished is not None:
        _merged(store.location, finished, manifest)
        known = _files(finished)
    if isinstance(store, LocalFolder):
        return known
    begun = _manifest_of(store, UNFINISHED_COPY)
    if begun is not None:
        if begun.set_id != manifest.set_id:
            raise BuildError(
                f"{store.location} holds an unfinished copy of another shard set; remove it, or choose "
                "another destination"
            )
        files = _files(manifest)
        for name, entry in _files(begun).items():
            if name not in known and name in files and files[name] != entry:
                store.remove(name)  # of a layer made again since: it must not pass for the new one
        known = {**_files(begun), **known}
    if finished is None or not _files(manifest).items() <= _files(finished).items():
        _remove_strangers(store, _files(manifest).keys() - known.keys())
        both = replace(manifest, masks={**(begun.masks if begun else {}), **manifest.masks})
        store.write(UNFINISHED_COPY, manifest_bytes(both))
    return known


def _remove_strangers(store: ObjectStore, names: Iterable[str]) -> None:
    """Objects under names that nobody has noted: once they are, what is of the right size is not read again."""
    strangers = set(names)
    for folder in sorted({name.rsplit("/", 1)[0] for name in strangers}):
        for file in store.sizes(folder):
            if f"{folder}/{file}" in strangers:
                store.remove(f"{folder}/{file}")


def _merged(location: Location, there: Manifest | None, manifest: Manifest) -> Manifest:
    """What a destination lists after a copy, which has layers of the same set already or not.

    Raises:
        BuildError: it holds another set, or other files under the same names.
    """
    if there is None:
        return manifest
    if there.set_id != manifest.set_id:
        raise BuildError(
            f"{location} holds another shard set ({there.set_id[:12]}..., not {manifest.set_id[:12]}...); "
            "choose another destination"
        )
    if (there.frames, there.evidence) != (manifest.frames, manifest.evidence):
        raise BuildError(
            f"{location} holds this set with other bytes, as another machine built it; choose another destination"
        )
    for name, entry in manifest.masks.items():
        if there.masks.get(name, entry) != entry:
            raise BuildError(
                f"{location} has a masks layer {name!r} with other settings or bytes; copy other layers "
                "(--layer), or choose another destination"
            )
    return replace(manifest, masks={**there.masks, **manifest.masks})


def _manifest_of(store: Store, name: str) -> Manifest | None:
    try:
        content = store.read(name, MAX_MANIFEST_BYTES)
    except MissingObject:
        return None
    return parse_manifest(content, f"{store.location}/{name}")


def _with_layers(source: Location, manifest: Manifest, layers: tuple[str, ...]) -> Manifest:
    """The manifest with these masks layers only; all, if none are named."""
    for name in layers:
        if name not in manifest.masks:
            known = ", ".join(sorted(manifest.masks)) or "none"
            raise ConfigError(f"{source}: no masks layer {name!r}; there are: {known}")
    chosen = {name: manifest.masks[name] for name in layers} or manifest.masks
    return replace(manifest, masks=chosen)


def _files(manifest: Manifest) -> dict[str, FileEntry]:
    """Every file of a set by its name below the set's folder."""
    masks = {f"masks/{name}": entry.files for name, entry in manifest.masks.items()}
    layers = {"frames": manifest.frames, "evidence": manifest.evidence, **masks}
    return {
        f"{layer}/{name}": entry for layer, files in layers.items() for name, entry in sorted(files.items())
    }


def _same(source: Location, destination: Location) -> bool:
    if isinstance(source, Path) and isinstance(destination, Path):
        return source.resolve() == destination.resolve()
    return source == destination


@dataclass(frozen=True, kw_only=True)
class _Transfers:
    """From one store to another. known: what the destination says of itself."""

    source: Store
    destination: Store
    known: dict[str, FileEntry]
    check: bool

    def run(self, files: dict[str, FileEntry], threads: int) -> Iterator[int]:
        """Bytes written of each file, in the order in which they are done; 0: it was there."""
        sizes = {
            f"{layer}/{name}": size
            for layer in sorted({name.rsplit("/", 1)[0] for name in files})
            for name, size in self.destination.sizes(layer).items()
        }
        waiting = iter(files.items())
        running: set[Future[int]] = set()
        with ThreadPoolExecutor(threads) as pool:
            while True:
                while len(running) < threads and (item := next(waiting, None)) is not None:
                    name, entry = item
                    running.add(pool.submit(self._transfer, name, entry, sizes.get(name)))
                if not running:
                    return
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for each in done:
                    yield each.result()

    def _transfer(self, name: str, entry: FileEntry, size: int | None) -> int:
        if size == entry.bytes and self._is_there(name, entry):
            return 0
        data = self.source.read(name, entry.bytes)
        problem = _problem(data, entry)
        if problem is not None:
            raise ShardError(f"{self.source.location}/{name}: {problem}; rebuild it, or copy from elsewhere")
        self.destination.write(name, data)
        return len(data)

    def _is_there(self, name: str, entry: FileEntry) -> bool:
        """Whether a file of the right size is the right one; see the module."""
        if isinstance(self.destination, ObjectStore) and not self.check:
            return self.known.get(name) == entry
        return _problem(self.destination.read(name, entry.bytes), entry) is None


def _problem(data: bytes, entry: FileEntry) -> str | None:
    if len(data) != entry.bytes:
        return f"{'more' if len(data) > entry.bytes else len(data)} bytes, the manifest says {entry.bytes}"
    if hashlib.sha256(data).hexdigest() != entry.sha256:
        return "SHA-256 differs from the manifest: the file is damaged"
    return None
