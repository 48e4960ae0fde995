"""Build a shard set: plan, pieces, files, masks, manifest. Resumable at any point.

    OUT/.build/plan.json              what was decided before anything ran
    OUT/.build/pieces/...             finished pieces of unfinished files
    OUT/.build/files/00000.json       what was published for a finished file
    OUT/frames, evidence, masks/...   published files
    OUT/shardset.json                 written last: a set that has it is complete
    OUT/build-report.json             times and failures, for people; not part of the set

`.build` is gone once all clips are in. If clips failed it stays, and the same build, run
again, tries just those.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.assembly import Layout
from pipeline.classes import CLASSES
from pipeline.clip import FramesConfig, stored_camera
from pipeline.configuration import canonical_json, digest, to_dict
from pipeline.detectors import DetectorConfig, check_detector, detector_identity
from pipeline.errors import BuildError, SourceError
from pipeline.events import Event, event
from pipeline.evidence_build import EvidenceBuild, EvidenceResult
from pipeline.flow import FlowConfig, flow_identity
from pipeline.graph import GraphConfig, open_graph
from pipeline.lease import LEASE_FILE, lease
from pipeline.mask_layer import masks_entry
from pipeline.matching import MaskConfig
from pipeline.plan import PlanConfig, plan_files
from pipeline.progress import Progress
from pipeline.remask import make_layer
from pipeline.shards.hdf5 import publish, remove_leftovers
from pipeline.shards.manifest import (
    MANIFEST,
    ClipEntry,
    Manifest,
    QuarantineEntry,
    file_name,
    read_manifest,
    write_manifest,
)
from pipeline.sources.clip import BadClip, Clip
from pipeline.sources.scan import SourceConfig, scan
from pipeline.timings import RunTimes

DEFAULT_LAYER = "default"


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
    runs:          every run so far, with its frames and times
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
    again. Clips that cannot be read are left out and reported.

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
        if (out / MANIFEST).exists():
            manifest = _finished(out, set_id, config.masks)
            if manifest is not None:
                return _report(out, manifest, EvidenceResult.nothing(), begin)
        check_detector(config.detector, {clip.name: clip.frame_names for clip in clips})
        _keep_plan(out, description)

        layout = Layout(folder=out, set_id=set_id, frames=config.frames, flow=config.flow)
        needs_gpu = needs_gpu_for(config.detector)
        planned = plan_files([len(clip) for clip in clips], config.plan)
        work = EvidenceBuild(layout, clips, planned, config, needs_gpu=needs_gpu)
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
            with Progress(
                "masks", sum(entry.frames for entry in manifest.evidence.values()), quiet=quiet
            ) as bar:
                entry = make_layer(out, manifest, DEFAULT_LAYER, config.masks, opened, bar)
        manifest = manifest.with_masks(DEFAULT_LAYER, entry)
        write_manifest(out, manifest)
        report = _report(out, manifest, result, begin)
        publish(out / "build-report.json", (json.dumps(to_dict(report), indent=1) + "\n").encode())
        if not result.failed:
            _forget_plan(out)
        return report


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


def is_unfinished(out: Path) -> bool:
    """Whether the same build, run again, would still try something."""
    return _plan_path(out).exists()


def _plan_path(out: Path) -> Path:
    return out / ".build" / "plan.json"


def _forget_plan(out: Path) -> None:
    """Remove `.build`, what says that work is left first: a kill in between costs nothing.

    A worker that was given up may still publish a piece there; the next run removes it.
    """
    _plan_path(out).unlink(missing_ok=True)
    shutil.rmtree(out / ".build", ignore_errors=True)


def _finished(out: Path, set_id: str, masks: MaskConfig) -> Manifest | None:
    """The manifest if nothing is left to do, None if clips are to be tried again."""
    manifest = read_manifest(out)
    if manifest.set_id != set_id:
        raise BuildError(
            f"{out} holds a set that was built from other input or settings; "
            "choose another folder, or delete this one first"
        )
    if is_unfinished(out):
        return None
    _forget_plan(out)
    layer = manifest.masks.get(DEFAULT_LAYER)
    if layer is None or layer.digest != masks_entry(masks).digest:
        raise BuildError(
            f"{out} is complete, with other mask settings; "
            f"`instance-motion remask {out} --name NAME` makes another masks layer"
        )
    return manifest


def _keep_plan(out: Path, description: dict[str, Any]) -> None:
    """Write down what this build is, or refuse to go on with a different one."""
    path = _plan_path(out)
    text = canonical_json(description)
    if not path.exists():
        leftovers = [name for name in ("frames", "evidence", "masks") if (out / name).exists()]
        if leftovers and not (out / MANIFEST).exists():
            raise BuildError(f"{out} is not empty ({leftovers[0]}/ is there); choose another folder")
        publish(path, text.encode())
        return
    try:
        before = json.loads(path.read_text())
        if not isinstance(before, dict):
            raise ValueError(f"expected an object, found {type(before).__name__}")
    except (ValueError, RecursionError):
        raise BuildError(f"{path}: damaged; delete {out} and build it again") from None
    for part in description:
        if canonical_json(before.get(part)) != canonical_json(description[part]):
            raise BuildError(
                f"{out} holds an unfinished build with other {part}; go on with the same settings and input, "
                "or delete the folder"
            )


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
