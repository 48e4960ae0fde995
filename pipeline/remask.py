"""New masks under other thresholds, from the evidence, without running a network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from pipeline.errors import BuildError, ShardError
from pipeline.graph import Failure, Graph, GraphConfig, Task, open_graph
from pipeline.lease import lease
from pipeline.mask_layer import MaskedFrame, SelectJob, jobs, masks_entry, select_file, write_layer
from pipeline.matching import MaskConfig
from pipeline.progress import Progress
from pipeline.shards.hdf5 import remove_leftovers
from pipeline.shards.manifest import (
    MANIFEST,
    FileEntry,
    Manifest,
    MasksEntry,
    check_layer_name,
    read_manifest,
    update_manifest,
)
from pipeline.shards.storage import Location, ObjectStore, open_store, parse_location

WORTH_WORKERS = 4000
"""Frames from which starting worker processes pays."""


def remask(
    location: Location,
    name: str,
    config: MaskConfig,
    graph: GraphConfig,
    *,
    replace_layer: bool = False,
    quiet: bool = False,
) -> MasksEntry:
    """Make masks layer `name` of a shard set, byte for byte what a full build would make.

    A layer of that name with the same settings is left as it is, unless it is to be replaced or files of it
    are missing. One that is replaced under other settings leaves the manifest first, and comes back whole.

    A local folder has one writer at a time. A URL has no such lease: two that make the same layer there
    write the same bytes under the same names; two that make different layers both end up in the manifest,
    which is read again just before it is replaced, and replaced only if nobody has done so between, where
    the store can tell (`ObjectStore.update`); two that make one layer under different settings are
    told apart then, and the second one fails.

    Raises:
        ShardError: no shard set, damaged evidence, or a store that cannot be reached.
        BuildError: the set is being written, or has a layer of that name with other settings.
    """
    check_layer_name(name)
    location = parse_location(location)
    if isinstance(location, Path):
        location = location.absolute()
    read_manifest(location)  # before a lease file is left in a folder that is no shard set
    with _one_writer(location):
        manifest = read_manifest(location)
        existing = manifest.masks.get(name)
        same = existing is not None and existing.digest == masks_entry(config).digest
        if existing is not None and not replace_layer:
            if not same:
                raise BuildError(
                    f"{location} has a masks layer {name!r} with other settings; "
                    "choose another --name, or add --replace"
                )
            if not _missing(location, f"masks/{name}", existing.files):
                return existing
        if missing := _missing(location, "evidence", manifest.evidence):
            raise ShardError(
                f"{location}/evidence/{missing[0]}: missing or cut; run the same `instance-motion build` again"
            )
        frames = sum(entry.frames for entry in manifest.evidence.values())
        if graph.workers is None and graph.scheduler is None and frames < WORTH_WORKERS:
            graph = replace(graph, workers=0)

        def forget() -> None:
            nonlocal existing
            if existing is not None and not same:
                _forget_layer(location, manifest, name)
                existing = None

        shared = (location / MANIFEST,) if isinstance(location, Path) else ()
        with open_graph(graph, shared=shared) as opened, Progress("masks", frames, quiet=quiet) as bar:
            entry = make_layer(location, manifest, name, config, opened, bar, before_write=forget)

        def with_layer(now: Manifest | None) -> Manifest:
            now = _of_same_set(manifest, now, location)
            if now.masks.get(name) not in (existing, entry):
                raise BuildError(
                    f"{location}: another process has made layer {name!r} with other settings meanwhile, and "
                    "files of both may be mixed; run it again with --replace"
                )
            return now.with_masks(name, entry)

        update_manifest(location, with_layer)
        return entry


def _of_same_set(manifest: Manifest, now: Manifest | None, location: Location) -> Manifest:
    if now is None or now.set_id != manifest.set_id:
        raise BuildError(f"{location} has become another set meanwhile; run remask again")
    return now


def _forget_layer(location: Location, manifest: Manifest, name: str) -> None:
    """Have nobody read a layer of which some files are of the old settings, and some of the new ones."""

    def without(now: Manifest | None) -> Manifest:
        now = _of_same_set(manifest, now, location)
        return replace(now, masks={each: entry for each, entry in now.masks.items() if each != name})

    update_manifest(location, without)


def _missing(location: Location, layer: str, files: Mapping[str, FileEntry]) -> list[str]:
    """Files of a layer that are not there, or not as large as listed; none, where a store cannot list."""
    store = open_store(location)
    try:
        there = store.sizes(layer)
    except ShardError:
        return []
    if isinstance(store, ObjectStore) and not there:
        return []
    return [name for name, entry in files.items() if there.get(name) != entry.bytes]


@contextmanager
def _one_writer(location: Location) -> Iterator[None]:
    """The lease of a local folder; for a URL there is none."""
    if not isinstance(location, Path):
        yield
        return
    with lease(location, "instance-motion remask"):
        remove_leftovers(location)
        yield


def make_layer(
    location: Location,
    manifest: Manifest,
    name: str,
    config: MaskConfig,
    graph: Graph,
    bar: Progress,
    before_write: Callable[[], None] = lambda: None,
) -> MasksEntry:
    """Make the files of a masks layer and return its manifest entry. The caller holds the lease."""
    waiting = iter(jobs(location, manifest, config))

    def next_task() -> Task | None:
        job = next(waiting, None)
        if job is None:
            return None
        return Task(function=select_file, argument=job, key=f"masks-{name}-{job.index:05d}")

    def selected() -> Iterator[tuple[int, list[MaskedFrame]]]:
        for task, result in graph.run(next_task):
            job: SelectJob = task.argument
            if isinstance(result, Failure):
                if result.killed:
                    raise BuildError(f"workers died again and again over file {job.index}: {result.error}")
                raise result.error
            yield job.index, result

    return write_layer(location, manifest, name, config, selected(), bar.advance, before_write)
