"""Build a shard set: plan, pieces, files, masks, manifest. Resumable at any point.

    OUT/.build/plan.json              what was decided before anything ran
    OUT/.build/pieces/...             finished pieces of unfinished files
    OUT/.build/files/00000.json       what was published for a finished file
    OUT/frames, evidence, masks/...   published files
    OUT/shardset.json                 written last: a set that has it is complete; put aside into
                                      .build while files that it lists are made anew
    OUT/build-report.json             times and failures, for people; not part of the set

`.build` is gone once all clips are in. If clips failed it stays, and the same build, run
again, tries just those.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline.assembly import Layout
from pipeline.classes import CLASSES
from pipeline.clip import FramesConfig, stored_camera
from pipeline.configuration import digest, from_dict, to_dict
from pipeline.detectors import DetectorConfig, check_detector, detector_identity
from pipeline.earlier import (
    forget_plan,
    forget_set_aside,
    is_complete,
    is_unfinished,
    is_whole_layer,
    keep_plan,
    listed_before,
    remember_files,
    remove_unlisted_masks,
    require_same,
)
from pipeline.errors import SourceError
from pipeline.events import Event, event
from pipeline.evidence_build import EvidenceBuild, EvidenceResult
from pipeline.flow import FlowConfig, flow_identity
from pipeline.graph import Graph, GraphConfig, open_graph
from pipeline.lease import LEASE_FILE, lease
from pipeline.mask_layer import DEFAULT_LAYER
from pipeline.matching import MaskConfig
from pipeline.plan import PlanConfig, plan_files
from pipeline.progress import Progress
from pipeline.remask import make_layer
from pipeline.shards.hdf5 import publish, remove_leftovers
from pipeline.shards.manifest import (
    ClipEntry,
    Manifest,
    MasksEntry,
    QuarantineEntry,
    file_name,
    write_manifest,
)
from pipeline.sources.clip import BadClip, Clip
from pipeline.sources.scan import SourceConfig, scan
from pipeline.timings import RunTimes


@dataclass(frozen=True, kw_only=True)
class BuildConfig:
    """Everything that decides what a shard set holds."""

    source: SourceConfig = field(default_factory=SourceConfig)
    frames: FramesConfig = field(default_factory=FramesConfig)
    detector: DetectorConfig = field(default_factory=DetectorConfig)
    flow: FlowConfig = field(default_factory=FlowConfig)
    masks: MaskConfig = field(default_factory=MaskConfig)
    plan: PlanConfig = field(default_factory=PlanConfig)


@dataclass(frozen=True, kw_only=True)
class BuildReport:
    """What a build did.

    worked_frames: frames that went through the networks in this run
    seconds:       wall time per stage, summed over workers; stages overlap
    wall_s:        time of this run
    runs:          every run since the set was begun or last complete, with its frames and times
    """

    out: str
    clips: int
    frames: int
    detections: int
    worked_frames: int
    quarantine: tuple[QuarantineEntry, ...]
    seconds: dict[str, float]
    wall_s: float
    runs: tuple[RunTimes, ...]


def build(
    source: Path, out: Path, config: BuildConfig, graph: GraphConfig, *, quiet: bool = False
) -> BuildReport:
    """Raw video -> shard set, with one masks layer called `default`.

    Finished work is kept and skipped, so an interrupted build is resumed by running it
    again; so is a set of which files are missing: they are made again. Clips that cannot be
    read are left out and reported. Masks layers that `remask` added stay; where evidence has
    changed since, because clips that had failed are in now, they are made anew.

    Raises:
        SourceError: nothing usable in `source`.
        BuildError: `out` is being written, holds another set, or the disk is full.
        DetectorError, ConfigError: the networks cannot be loaded.
    """
    begin = time.monotonic()
    source, out = source.absolute(), out.absolute()
    with lease(out, "instance-motion build"):
        remove_leftovers(out)
        scanned = scan(source, config.source)
        clips = [clip for clip in scanned if isinstance(clip, Clip)]
        bad = [clip for clip in scanned if isinstance(clip, BadClip)]
        if not clips:
            reason = f": {bad[0].name}: {bad[0].reason}" if bad else ""
            raise SourceError(f"{source}: no usable clip{reason}")
        description = describe(config, clips, bad)
        set_id = digest(description)
        for each in bad:
            event(Event.CLIP_QUARANTINED, clip=each.name, reason=each.reason)
        before = listed_before(out)
        if before is not None:
            require_same(out, before, set_id, config.masks)
            if is_complete(out, before):
                forget_plan(out)
                return _report(out, before, EvidenceResult.nothing(), begin)
        check_detector(config.detector, {clip.name: clip.frame_names for clip in clips})
        layout = Layout(folder=out, set_id=set_id, frames=config.frames, flow=config.flow)
        if before is not None and not is_unfinished(out):
            missing = remember_files(layout, before)
            if missing and not quiet:
                print(f"{missing} of {len(before.frames)} files are missing: made again", file=sys.stderr)
        keep_plan(out, description)
        manifest, result = _make(layout, description, before, config, clips, bad, source, graph, quiet)
        if before is not None:
            remove_unlisted_masks(out, before, manifest)
        write_manifest(out, manifest)
        forget_set_aside(out)
        report = _report(out, manifest, result, begin)
        publish(out / "build-report.json", (json.dumps(to_dict(report), indent=1) + "\n").encode())
        if not result.failed:
            forget_plan(out)
        return report


def _make(
    layout: Layout,
    description: dict[str, Any],
    before: Manifest | None,
    config: BuildConfig,
    clips: Sequence[Clip],
    bad: Sequence[BadClip],
    source: Path,
    graph: GraphConfig,
    quiet: bool,
) -> tuple[Manifest, EvidenceResult]:
    """All layers, by however many workers, and the manifest that lists them."""
    out, needs_gpu = layout.folder, needs_gpu_for(config.detector)
    work = EvidenceBuild(
        layout,
        clips,
        plan_files([len(clip) for clip in clips], config.plan),
        config,
        needs_gpu=needs_gpu,
        before=before,
    )
    with open_graph(
        graph,
        gpus=gpu_count() if needs_gpu else 0,
        needs_gpu=needs_gpu,
        shared=(out / LEASE_FILE, source),
        say=None if quiet else lambda line: print(line, file=sys.stderr),
    ) as opened:
        with Progress("build", work.frames_total, quiet=quiet) as bar:
            result = work.run(opened, bar)
        if not result.files:
            first = next(iter(result.failed.items()))
            raise SourceError(f"every clip failed; the first: {first[0]}: {first[1]}")
        manifest = _manifest(layout, description, config, clips, bad, work, result)
        masks = _layers(out, manifest, before, config.masks, opened, quiet)
    return replace(manifest, masks=masks), result


def describe(config: BuildConfig, clips: Sequence[Clip], bad: Sequence[BadClip]) -> dict[str, Any]:
    """All that decides the bytes of the frames and evidence layers, as plain data.

    Masks settings are not among them: layers are made from the evidence.
    """
    return {
        "source": to_dict(config.source),
        "frames": to_dict(config.frames),
        "detector": detector_identity(config.detector),
        "flow": flow_identity(config.flow),
        "plan": to_dict(config.plan),
        "clips": {clip.name: _description_of(clip) for clip in clips},
        "unreadable": sorted(clip.name for clip in bad),
    }


def _description_of(clip: Clip) -> dict[str, Any]:
    camera = clip.camera
    return {
        "frames": len(clip),
        "fingerprint": clip.fingerprint,
        "K": camera.K.tolist(),  # its file may have changed while its name did not
        "distortion": to_dict(camera.distortion) if camera.distortion else None,
    }


def _manifest(
    layout: Layout,
    description: dict[str, Any],
    config: BuildConfig,
    clips: Sequence[Clip],
    bad: Sequence[BadClip],
    work: EvidenceBuild,
    result: EvidenceResult,
) -> Manifest:
    placed = work.placement(result.failed)
    entries = tuple(
        ClipEntry(
            name=clip.name,
            frames=len(clip),
            K=tuple(map(tuple, stored_camera(clip.camera, config.frames).K.tolist())),
            fingerprint=clip.fingerprint,
            files=placed[clip.name],
        )
        for clip in clips
        if clip.name not in result.failed
    )
    reasons = {clip.name: clip.reason for clip in bad} | result.failed
    return Manifest(
        set_id=layout.set_id,
        size=config.frames.size,
        codec=config.frames.codec,
        classes=CLASSES,
        config={part: description[part] for part in ("source", "frames", "detector", "flow", "plan")},
        clips=entries,
        quarantine=tuple(QuarantineEntry(clip=name, reason=reasons[name]) for name in sorted(reasons)),
        frames={file_name(index): pair.frames for index, pair in sorted(result.files.items())},
        evidence={file_name(index): pair.evidence for index, pair in sorted(result.files.items())},
    )


def _layers(
    out: Path, manifest: Manifest, before: Manifest | None, masks: MaskConfig, graph: Graph, quiet: bool
) -> dict[str, MasksEntry]:
    """The default layer, and those that `remask` has added: as they are, or made anew."""
    frames = sum(entry.frames for entry in manifest.evidence.values())

    def make(name: str, config: MaskConfig) -> MasksEntry:
        label = "masks" if name == DEFAULT_LAYER else f"masks {name}"
        with Progress(label, frames, quiet=quiet) as bar:
            return make_layer(out, manifest, name, config, graph, bar)

    layers = {DEFAULT_LAYER: make(DEFAULT_LAYER, masks)}
    if before is None:
        return layers
    same = (before.clips, before.evidence) == (manifest.clips, manifest.evidence)
    for name, entry in before.masks.items():
        if name == DEFAULT_LAYER:
            continue
        if same and is_whole_layer(out, name, before):
            layers[name] = entry
        else:
            layers[name] = make(name, from_dict(MaskConfig, entry.config, f"{out}: masks.{name}"))
    return layers


def _report(out: Path, manifest: Manifest, result: EvidenceResult, begin: float) -> BuildReport:
    return BuildReport(
        out=str(out),
        clips=len(manifest.clips),
        frames=sum(clip.frames for clip in manifest.clips),
        detections=result.detections,
        worked_frames=result.worked_frames,
        quarantine=manifest.quarantine,
        seconds={stage: round(seconds, 3) for stage, seconds in sorted(result.seconds.items())},
        wall_s=round(time.monotonic() - begin, 3),
        runs=result.runs,
    )


def needs_gpu_for(detector: DetectorConfig) -> bool:
    """Whether pieces are to run where a GPU is. `auto` looks at this machine."""
    if detector.detector.startswith("masks:"):
        return False
    return detector.device.startswith("cuda") or (detector.device == "auto" and gpu_count() > 0)


def gpu_count() -> int:
    import torch

    return torch.cuda.device_count()
