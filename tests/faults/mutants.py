"""Small shard sets, one file of each spoilt at random from a seed.

The manifest's size and SHA-256 are made to fit the spoilt file, as a hostile set's would.
Changes of HDF5's own structures come with a right checksum where HDF5 keeps one: else a parser
would look no further.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path

import numpy as np

from pipeline.classes import CLASSES
from pipeline.detections import Detections
from pipeline.shards.evidence import encode_evidence
from pipeline.shards.frames import encode_frames
from pipeline.shards.manifest import ClipEntry, FileEntry, Manifest, MasksEntry, write_manifest
from pipeline.shards.masks import FrameMasks, encode_masks
from pipeline.shards.plain_hdf5 import lookup3
from tests.pipeline.shards import examples

SET_ID, DIGEST = "a" * 64, "b" * 64
FILES = {
    "frames": "frames/00000.h5",
    "frames-png": "frames/00000.h5",
    "evidence": "evidence/00000.h5",
    "evidence-flow": "evidence/00000.h5",
    "masks": "masks/default/00000.h5",
    "manifest": "shardset.json",
}
"""What is spoilt -> the file. `-png`: images are PNG; `-flow`: evidence keeps flow."""

MEMORY_BYTES = 64 << 20
"""What reading one mutant may add to the process; the files have some 20 kB."""
SECONDS = 20
"""An alarm for one mutant: reading takes 0.02 s."""


# --- sets ----------------------------------------------------------------------------------------


@cache
def contents(kind: str) -> dict[str, bytes]:
    """A whole small set, by file: 4 frames of one clip, detections, matches, two masks a frame."""
    codec = "png" if kind == "frames-png" else "jpeg"
    size = examples.SIZE
    frames, flow_shape = examples.evidence_frames(), None
    masks = examples.masks_frames()
    if not kind.startswith("evidence"):  # two masks in every frame, each of a detection there
        frames = [
            frame if len(frame.detections) >= 2 else replace(frame, detections=examples.detections(2, 4))
            for frame in frames
        ]
        masks = [_agreeing(mask, frame.detections) for mask, frame in zip(masks, frames, strict=True)]
    if kind == "evidence-flow":
        flow_shape = (2, size[1] // 2, size[0] // 2, 2)
        flow = np.random.default_rng(0).integers(-99, 99, (3, *flow_shape)).astype(np.int16)
        frames[1:] = [replace(frame, flow=each) for frame, each in zip(frames[1:], flow, strict=True)]
    evidence = encode_evidence(frames, set_id=SET_ID, size=size, flow_shape=flow_shape)
    options = {"set_id": SET_ID, "codec": codec, "size": size, "static_below_px": 0.25}
    return {
        "frames/00000.h5": encode_frames(examples.frames_table(codec=codec), **options),  # type: ignore[arg-type]
        "evidence/00000.h5": evidence,
        "masks/default/00000.h5": encode_masks(
            masks,
            set_id=SET_ID,
            mask_digest=DIGEST,
            evidence_sha256=hashlib.sha256(evidence).hexdigest(),
            size=size,
        ),
    }


def _agreeing(masks: FrameMasks, detections: Detections) -> FrameMasks:
    """The same masks with the scores and classes of their detections."""
    rows = masks.instances.detection
    instances = replace(masks.instances, score=detections.scores[rows], class_index=detections.classes[rows])
    return replace(masks, instances=instances)


def write_set(folder: Path, kind: str, files: dict[str, bytes] | None = None) -> None:
    """Write a set whose manifest fits its files, whatever they hold."""
    files = files or contents(kind)
    # Masks of other evidence are refused as such, so they stand beside whole evidence only.
    with_masks = not kind.startswith("evidence")
    for name, data in files.items():
        if with_masks or not name.startswith("masks"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
    entries = {
        name: {
            "00000.h5": FileEntry(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data), frames=4)
        }
        for name, data in files.items()
    }  # fmt: skip
    K = tuple(tuple(map(float, row)) for row in examples.K)
    clip = ClipEntry(name="drive/one", frames=4, K=K, fingerprint="c" * 64, files=((0, 0, 4),))
    layer = MasksEntry(config={}, digest=DIGEST, files=entries["masks/default/00000.h5"])
    manifest = Manifest(
        set_id=SET_ID,
        size=examples.SIZE,
        codec="png" if kind == "frames-png" else "jpeg",
        classes=CLASSES,
        config={},
        clips=(clip,),
        quarantine=(),
        frames=entries["frames/00000.h5"],
        evidence=entries["evidence/00000.h5"],
        masks={"default": layer} if with_masks else {},
    )
    write_manifest(folder, manifest)


# --- mutations -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Block:
    """One structure of an HDF5 file that states its own checksum: bytes start..stop-1."""

    start: int
    stop: int
    checksum_at: int


def mutant(kind: str, seed: int) -> dict[str, bytes]:
    """The set `kind` with its file changed in one to three ways."""
    files = dict(contents(kind))
    rng = random.Random(f"{kind} {seed}")
    name = FILES[kind]
    data = bytearray(files[name])
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        change = rng.choices(
            (_change_structure, _change_heap, _change_bytes, _change_length), (10, 2, 4, 3)
        )[0]  # fmt: skip
        data = change(data, rng)
    files[name] = bytes(data)
    return files


def mutant_manifest(text: bytes, seed: int) -> bytes:
    """A manifest with one value replaced, removed or doubled, or its text changed; one in sixteen says the same
    in another order."""
    rng = random.Random(f"manifest {seed}")
    if seed % 16 == 0:
        pairs = list(json.loads(text).items())
        rng.shuffle(pairs)
        return json.dumps(dict(pairs), indent=rng.choice((None, 3))).encode()
    if rng.random() < 0.4:
        return bytes(rng.choice((_change_bytes, _change_length))(bytearray(text), rng))
    data = json.loads(text)
    for _ in range(rng.choice((1, 1, 2))):
        holder, key = rng.choice(list(_places(data)))
        odd = (
            None, True, -1, 0, 2**31, 2**63, -(2**63), 10**400, 1.5, float("nan"), float("inf"), "", "x", "../x",
            "\0", "\ud800", "/etc/passwd", [], {}, [[]], ["00000.h5"], {"x": None}, "1" * 5000,
        )  # fmt: skip
        action = rng.random()
        if action < 0.7:
            holder[key] = rng.choice(odd)
        elif action < 0.8:
            del holder[key]
        elif action < 0.9 and isinstance(holder, dict):
            holder[rng.choice(("x", "", "00001.h5", "../x.h5", "x.h5\n"))] = holder[key]
        elif isinstance(holder, list):
            holder.extend([holder[key]] * rng.choice((1, 100)))
        else:
            holder[key] = [holder[key]]
    return json.dumps(data).encode("utf-8", "surrogatepass")


def _places(data: object) -> Iterator[tuple[dict | list, str | int]]:
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        yield data, key  # type: ignore[misc]
        yield from _places(value)


def _change_structure(data: bytearray, rng: random.Random) -> bytearray:
    """An integer inside one of HDF5's own structures, with a checksum that fits."""
    blocks = [block for block in structures(bytes(data)) if block.stop - block.start > 8]
    if not blocks:
        return _change_bytes(data, rng)
    block = rng.choice(blocks)
    width = rng.choice((1, 1, 2, 4, 8))
    places = range(block.start + (4 if rng.random() < 0.95 else 0), block.stop - width + 1)
    at = next((at for at in rng.choices(places, k=4) if data[at]), rng.choice(places))  # much is padding
    if rng.random() < 0.3:
        data[at] ^= 1 << rng.randrange(8)
    else:
        data[at : at + width] = _odd_integer(rng, width, len(data), [each.start for each in blocks])
    seal(data, block)
    return data


def _change_heap(data: bytearray, rng: random.Random) -> bytearray:
    """The heap of the attributes' strings, which has no checksum."""
    start = data.find(b"GCOL")
    if start < 0:
        return _change_bytes(data, rng)
    width = rng.choice((1, 2, 4, 8))
    at = start + rng.randrange(0, 400)
    data[at : at + width] = _odd_integer(rng, width, len(data), [start])
    return data


def _change_bytes(data: bytearray, rng: random.Random) -> bytearray:
    """Bits and bytes anywhere; the length stays."""
    if not data:
        return data
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(data))
        length = min(rng.choice((1, 1, 2, 8, 64, 512)), len(data) - at)
        kind = rng.randrange(4)
        if kind == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at : at + length] = bytes([rng.choice((0, 255))]) * length
        elif kind == 2:
            data[at : at + length] = rng.randbytes(length)
        else:
            other = rng.randrange(len(data) - length + 1)
            data[at : at + length], data[other : other + length] = (
                data[other : other + length], data[at : at + length],
            )  # fmt: skip
    return data


def _change_length(data: bytearray, rng: random.Random) -> bytearray:
    """Cut off, cut out, inserted or appended."""
    at, length = rng.randrange(len(data) + 1), rng.choice((1, 1, 2, 8, 100, 4096))
    kind = rng.randrange(4)
    if kind == 0:
        return data[:at]
    if kind == 1:
        return data[:at] + data[at + length :]
    if kind == 2:
        return data[:at] + rng.randbytes(length) + data[at:]
    return data + bytes([rng.choice((0, 255))]) * length


def _odd_integer(rng: random.Random, width: int, size: int, starts: list[int]) -> bytes:
    top = 1 << (8 * width)
    odd = (0, 1, 2, 3, 7, 8, 16, 32, 64, top - 1, top - 2, top // 2, top // 2 - 1, top // 16, size, size - 1,
           size + 1, size // 2, rng.randrange(top), rng.randrange(256), *starts)  # fmt: skip
    return (rng.choice(odd) % top).to_bytes(width, "little")


# --- HDF5's structures ---------------------------------------------------------------------------


@lru_cache(8)
def structures(data: bytes) -> tuple[Block, ...]:
    """The structures with a checksum, as our writer's HDF5 lays them out; those that fit theirs."""
    found = []
    for match in re.finditer(rb"\x89HDF|OHDR|OCHK|FRHP|FHDB|BTHD|BTLF|FSHD|FSSE", data):
        start = match.start()
        for stop, checksum_at in _extents(data, start, match[0]):
            block = Block(start, stop, checksum_at)
            if stop <= len(data) and data[checksum_at : checksum_at + 4] == _checksum(data, block):
                found.append(block)
                break
    return tuple(found)


def seal(data: bytearray, block: Block) -> None:
    """Make a structure's checksum right."""
    data[block.checksum_at : block.checksum_at + 4] = _checksum(bytes(data), block)


def _extents(data: bytes, start: int, signature: bytes) -> Iterator[tuple[int, int]]:
    """Where a structure may end, and where its checksum then stands (HDF5 file format 3.0)."""
    fixed = {b"\x89HDF": 48, b"FRHP": 146, b"BTHD": 38, b"FSHD": 82}
    if signature in fixed:
        stop = start + fixed[signature]
        yield stop, stop - 4
    elif signature == b"OHDR" and len(data) > start + 40:
        flags = data[start + 5]
        at = start + 6 + (16 if flags & 0x20 else 0) + (4 if flags & 0x10 else 0)
        width = 1 << (flags & 3)
        stop = at + width + int.from_bytes(data[at : at + width], "little") + 4
        yield stop, stop - 4
    elif signature == b"FHDB":
        for size in (512, 1024, 2048, 4096):
            yield start + size, start + 17
    else:  # its length stands elsewhere
        for stop in range(start + 12, start + 700):
            yield stop, stop - 4


def _checksum(data: bytes, block: Block) -> bytes:
    if block.checksum_at + 4 == block.stop:
        covered = data[block.start : block.checksum_at]
    else:  # in the middle: counted as zero
        covered = data[block.start : block.checksum_at] + bytes(4) + data[block.checksum_at + 4 : block.stop]
    return struct.pack("<I", lookup3(covered))
