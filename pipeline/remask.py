"""New masks under other thresholds, from the evidence, without running a network."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from pipeline.errors import BuildError
from pipeline.graph import Failure, Graph, GraphConfig, Task, open_graph
from pipeline.lease import lease
from pipeline.mask_layer import MaskedFrame, SelectJob, jobs, masks_entry, select_file, write_layer
from pipeline.matching import MaskConfig
from pipeline.progress import Progress
from pipeline.shards.manifest import Manifest, MasksEntry, check_layer_name, read_manifest, write_manifest

WORTH_WORKERS = 4000
"""Frames from which starting worker processes pays."""


def remask(
    folder: Path,
    name: str,
    config: MaskConfig,
    graph: GraphConfig,
    *,
    replace_layer: bool = False,
    quiet: bool = False,
) -> MasksEntry:
    """Make masks layer `name` of a shard set, byte for byte what a full build would make.

    A layer of that name with the same settings is left as it is.

    Raises:
        ShardError: no shard set, or damaged evidence.
        BuildError: the set is being written, or has a layer of that name with other settings.
    """
    check_layer_name(name)
    folder = folder.absolute()
    read_manifest(folder)  # before a lease file is left in a folder that is no shard set
    with lease(folder, "instance-motion remask"):
        manifest = read_manifest(folder)
        existing = manifest.masks.get(name)
        if existing is not None and existing.digest == masks_entry(config).digest:
            return existing
        if existing is not None and not replace_layer:
            raise BuildError(
                f"{folder} has a masks layer {name!r} with other settings; "
                "choose another --name, or add --replace"
            )
        frames = sum(entry.frames for entry in manifest.evidence.values())
        if graph.workers is None and graph.scheduler is None and frames < WORTH_WORKERS:
            graph = replace(graph, workers=0)
        with open_graph(graph) as opened, Progress("masks", frames, quiet=quiet) as bar:
            entry = make_layer(folder, manifest, name, config, opened, bar)
        write_manifest(folder, manifest.with_masks(name, entry))
        return entry


def make_layer(
    folder: Path, manifest: Manifest, name: str, config: MaskConfig, graph: Graph, bar: Progress
) -> MasksEntry:
    """Make the files of a masks layer and return its manifest entry. The caller holds the lease."""
    waiting = iter(jobs(folder, manifest, config))

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

    return write_layer(folder, manifest, name, config, selected(), bar.advance)
