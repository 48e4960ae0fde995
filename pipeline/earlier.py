"""What an earlier build, or one that was stopped, left in the output folder, and what of it is kept.

OUT/.build/plan.json        input and settings; as long as it is there, something is left to try
OUT/.build/shardset.json    the manifest of a set that is taken from its readers while files that
                            it lists are made anew
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.assembly import FilePair, Layout
from pipeline.configuration import canonical_json
from pipeline.errors import BuildError
from pipeline.mask_layer import DEFAULT_LAYER, masks_entry
from pipeline.matching import MaskConfig
from pipeline.records import write_record
from pipeline.shards.hdf5 import publish
from pipeline.shards.manifest import MANIFEST, FileEntry, Manifest, file_name, read_manifest


def is_unfinished(out: Path) -> bool:
    """Whether the same build, run again, would still try something."""
    return _plan_path(out).exists()


def require_same(out: Path, before: Manifest, set_id: str, masks: MaskConfig) -> None:
    """Refuse to build another set, or other masks, over one that is there.

    Raises:
        BuildError: it was built from other input or settings, or its masks were made with other settings.
    """
    if before.set_id != set_id:
        raise BuildError(
            f"{out} holds a set that was built from other input or settings; "
            "choose another folder, or delete this one first"
        )
    if has_other_masks(before, masks):
        raise BuildError(
            f"{out} is there already, with other mask settings; "
            f"`instance-motion remask {out} --name NAME` makes another masks layer"
        )


def has_other_masks(before: Manifest, masks: MaskConfig) -> bool:
    """Whether the default layer was made with other settings."""
    layer = before.masks.get(DEFAULT_LAYER)
    return layer is not None and layer.digest != masks_entry(masks).digest


def is_complete(out: Path, before: Manifest) -> bool:
    """Whether nothing is left to do: no clip is to be tried again, and no file is missing."""
    return (
        (out / MANIFEST).exists()
        and not is_unfinished(out)
        and DEFAULT_LAYER in before.masks
        and all(_is_whole(out, *each) for each in _files(before))
    )


def keep_plan(out: Path, description: dict[str, Any]) -> None:
    """Write down what this build is, or refuse to go on with a different one."""
    path = _plan_path(out)
    text = canonical_json(description)
    if not path.exists():
        leftovers = [name for name in ("frames", "evidence", "masks") if (out / name).exists()]
        if leftovers and listed_before(out) is None:
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


def forget_plan(out: Path) -> None:
    """Remove `.build`, what says that work is left first: a kill in between costs nothing.

    A worker that was given up may still publish a piece there; the next run removes it.
    """
    _plan_path(out).unlink(missing_ok=True)
    shutil.rmtree(out / ".build", ignore_errors=True)


def listed_before(out: Path) -> Manifest | None:
    """The manifest of the set that is there, or that was set aside; None if there was none yet."""
    folder = next((each for each in (out, out / ".build") if (each / MANIFEST).exists()), None)
    return None if folder is None else read_manifest(folder)


def set_aside(out: Path) -> None:
    """Take a set from its readers: files that its manifest lists are about to change."""
    if (out / MANIFEST).exists():
        os.replace(out / MANIFEST, out / ".build" / MANIFEST)


def forget_set_aside(out: Path) -> None:
    (out / ".build" / MANIFEST).unlink(missing_ok=True)


def remember_files(layout: Layout, manifest: Manifest) -> int:
    """Note the files of a set as published, so that only those are made again that are missing.

    Returns:
        How many are missing.
    """
    clips = clips_of_files(manifest)
    missing = 0
    for name, entry in manifest.frames.items():
        index, evidence = int(name.removesuffix(".h5")), manifest.evidence[name]
        if is_whole_pair(layout.folder, index, manifest):
            write_record(layout, index, clips.get(index, []), FilePair(frames=entry, evidence=evidence))
        else:
            missing += 1
    return missing


def remove_unlisted_masks(out: Path, before: Manifest, now: Manifest) -> None:
    """Remove masks of files that have left a set, because their clips failed when they were made again."""
    for name, layer in before.masks.items():
        for file in layer.files.keys() - now.masks[name].files.keys():
            set_aside(out)
            (out / "masks" / name / file).unlink(missing_ok=True)


def is_whole_pair(out: Path, index: int, manifest: Manifest) -> bool:
    """Whether a file of frames and its evidence are there, as large as the manifest says."""
    name = file_name(index)
    return all(
        name in files and _is_whole(out, f"{layer}/{name}", files[name])
        for layer, files in (("frames", manifest.frames), ("evidence", manifest.evidence))
    )


def is_whole_layer(out: Path, name: str, manifest: Manifest) -> bool:
    """Whether every file of a masks layer is there, as large as the manifest says."""
    files = manifest.masks[name].files
    return all(_is_whole(out, f"masks/{name}/{file}", entry) for file, entry in files.items())


def clips_of_files(manifest: Manifest) -> dict[int, list[str]]:
    """Names of the clips in each file, in order."""
    found: dict[int, list[str]] = {}
    for clip in manifest.clips:
        for index in dict.fromkeys(index for index, _, _ in clip.files):
            found.setdefault(index, []).append(clip.name)
    return found


def _files(manifest: Manifest) -> Iterator[tuple[str, FileEntry]]:
    masks = {f"masks/{name}": layer.files for name, layer in manifest.masks.items()}
    for layer, files in {"frames": manifest.frames, "evidence": manifest.evidence, **masks}.items():
        for name, entry in files.items():
            yield f"{layer}/{name}", entry


def _is_whole(out: Path, name: str, entry: FileEntry) -> bool:
    path = out / name
    return path.is_file() and path.stat().st_size == entry.bytes


def _plan_path(out: Path) -> Path:
    return out / ".build" / "plan.json"
