"""Shard sets made to harm: valid HDF5 and valid codecs, but not what a shard set holds.

They are read by a process under limits (see `campaign`). Each is refused in words that name what is
wrong, unless it is a mere oddity.
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest
import simplejpeg
import zstandard

from pipeline.shards import evidence, frames, masks
from pipeline.shards.blobs import blob_columns
from pipeline.shards.codec import compress, encode_image
from pipeline.shards.hdf5 import file_image
from pipeline.shards.plain_hdf5 import PlainFile, lookup3
from tests.faults.campaign import MEMORY_BYTES, Outcome, read_sets, summary
from tests.faults.mutants import FILES, contents, seal, structures, write_set
from tests.faults.table import Fault
from tests.pipeline.shards import examples

Columns = dict[str, np.ndarray]
SCHEMAS = {"frames": frames.SCHEMA, "evidence": evidence.SCHEMA, "masks": masks.SCHEMA}
HDF5_LAYERS = {"frames": "segment_count", "evidence": "detection_offsets", "masks": "label_bytes"}
"""Layer -> the data set of its file that is replaced."""
W, H = examples.SIZE


# --- structures of HDF5 ----------------------------------------------------------------------------


def replaced(make: Callable[[h5py.File, str, np.ndarray], object]) -> Callable[[h5py.File, str], None]:
    """Replace one data set by what `make` makes of its name and content."""

    def change(file: h5py.File, name: str) -> None:
        data = file[name][()]
        del file[name]
        make(file, name, data)

    return change


def of_type(dtype: object) -> Callable[[h5py.File, str], None]:
    return replaced(lambda file, name, data: file.create_dataset(name, data.shape, dtype))


def attribute(name: str, value: object) -> Callable[[h5py.File, str], None]:
    return lambda file, _: file.attrs.__setitem__(name, value)


def filled(**options: object) -> Callable[[h5py.File, str], None]:
    return replaced(lambda file, name, data: file.create_dataset(name, data=data, **options))


def declared(shape: tuple[int, ...], **options: object) -> Callable[[h5py.File, str], None]:
    return replaced(lambda file, name, data: file.create_dataset(name, shape, data.dtype, **options))


def virtual(file: h5py.File, name: str, data: np.ndarray) -> None:
    layout = h5py.VirtualLayout(data.shape, data.dtype)
    layout[:] = h5py.VirtualSource("/etc/hostname", "x", data.shape)
    file.create_virtual_dataset(name, layout)


def committed(file: h5py.File, name: str, data: np.ndarray) -> None:
    file["type"] = data.dtype
    file.create_dataset(name, data=data, dtype=file["type"])
    del file["type"]


def compact(file: h5py.File, name: str, data: np.ndarray) -> None:
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_layout(h5py.h5d.COMPACT)
    kind, space = h5py.h5t.py_create(data.dtype), h5py.h5s.create_simple(data.shape)
    h5py.h5d.create(file.id, name.encode(), kind, space, plist).write(h5py.h5s.ALL, h5py.h5s.ALL, data)


def linked_to_itself(file: h5py.File, name: str, data: np.ndarray) -> None:
    file[name] = file["/"]


PLAIN, GROUP, LINK, NUMBERS = "not stored as plain data", "is a group", "is a link", "plain numbers"
STRUCTURES: dict[str, tuple[Callable[[h5py.File, str], object], str]] = {
    "external link": (replaced(lambda f, n, d: f.__setitem__(n, h5py.ExternalLink("/etc/passwd", "/"))), LINK),
    "soft link to itself": (replaced(lambda f, n, d: f.__setitem__(n, h5py.SoftLink(f"/{n}"))), LINK),
    "group": (replaced(lambda f, n, d: f.create_group(n)), GROUP),
    "root inside the root": (replaced(linked_to_itself), GROUP),
    "type without data": (replaced(lambda f, n, d: f.__setitem__(n, np.dtype("i8"))), "is no data set"),
    "committed type": (replaced(committed), "stands elsewhere"),
    "chunks": (filled(chunks=True), PLAIN),
    "compressed": (filled(chunks=True, compression="gzip"), PLAIN),
    "a checksum filter": (filled(chunks=True, fletcher32=True), PLAIN),
    "growing": (filled(maxshape=(None,)), PLAIN),
    "compact": (replaced(compact), PLAIN),
    "zip bomb": (declared((1 << 33,), chunks=(1 << 20,), compression="gzip", fillvalue=0), PLAIN),
    "virtual": (replaced(virtual), PLAIN),
    "external storage": (declared((4,), external=[("/etc/hostname", 0, 64)]), PLAIN),
    "nothing": (replaced(lambda f, n, d: f.__setitem__(n, h5py.Empty(d.dtype))), NUMBERS),
    "scalar": (replaced(lambda f, n, d: f.__setitem__(n, d.ravel()[0])), "has shape"),
    "no storage": (declared((1 << 40,)), "declares"),
    "absurd rank": (declared((1,) * 32), "has shape"),
    "empty but wide": (declared((0, 1 << 61)), "has shape"),
    "big-endian": (replaced(lambda f, n, d: f.create_dataset(n, data=d.astype(">i8"))), NUMBERS),
    "complex": (of_type("c16"), NUMBERS),
    "record": (of_type([("a", "i4"), ("b", "f8", (3,))]), NUMBERS),
    "enum": (of_type(h5py.enum_dtype({"a": 1, "b": 2}, basetype="i8")), NUMBERS),
    "opaque": (of_type(h5py.opaque_dtype(np.dtype("V8"))), NUMBERS),
    "array": (of_type(np.dtype(("i8", (2, 2)))), NUMBERS),
    "object reference": (of_type(h5py.ref_dtype), NUMBERS),
    "region reference": (of_type(h5py.regionref_dtype), NUMBERS),
    "strings": (of_type(h5py.string_dtype()), NUMBERS),
    "long strings": (of_type("S1000"), NUMBERS),
    "lists": (of_type(h5py.vlen_dtype("i8")), NUMBERS),
    "long double": (of_type(np.longdouble), NUMBERS),
    "other integers": (of_type("u8"), "holds uint64"),
    "longer": (replaced(lambda f, n, d: f.create_dataset(n, data=np.repeat(d, 2, axis=0))), ""),
    "one more": (lambda f, n: f.create_dataset("more", data=[1]), "'more' is unknown"),
    "many more": (lambda f, n: [f.create_dataset(f"more{i}", data=[1]) for i in range(2000)], ""),
    "a long name": (lambda f, n: f.__setitem__("n" * 300, 1), "not like ours"),
    "no version": (lambda f, n: f.attrs.__delitem__("version"), "version is None"),
    "version as a float": (attribute("version", 1.0), "version is None"),
    "version as a list": (attribute("version", [1]), "version is None"),
    "version as text": (attribute("version", "1"), "version is '1'"),
    "format as bytes": (attribute("format", np.bytes_(b"instance-motion frames")), "format is None"),
    "format as a list": (attribute("format", ["instance-motion frames"] * 99), "format is None"),
    "format as nothing": (attribute("format", h5py.Empty("S1")), "format is None"),
    "format as a reference": (lambda f, n: f.attrs.__setitem__("format", f.ref), "format is None"),
    "format of half a megabyte": (attribute("format", "x" * 500_000), "bytes at"),
    "set of other bytes": (attribute("set_id", b"\xff\xfe" * 32), ""),
    "90 attributes": (lambda f, n: [f.attrs.__setitem__(f"a{i}", i) for i in range(90)], "is None"),
    "one more attribute": (attribute("more", 1), "read"),
    "an attribute of a data set": (lambda f, n: f[n].attrs.__setitem__("x" * 999, "y" * 9999), "read"),
}  # fmt: skip
WHOLE_FILES: dict[str, tuple[dict[str, object], str]] = {
    "old groups": ({"libver": "earliest"}, "superblock of version 0"),
    "a block before the file": ({"libver": ("v110", "v110"), "userblock_size": 512}, "signature not found"),
    "ordered names": ({"libver": ("v110", "v110"), "track_order": True}, ""),
    "pages": ({"libver": ("v110", "v110"), "fs_strategy": "page", "fs_persist": True}, "not like ours"),
    "the latest version": ({"libver": "latest"}, ""),
}
"""The same content written otherwise; where no words are given, it may be read as well."""


def edited(layer: str, change: Callable[[h5py.File, str], object]) -> bytes:
    """The layer's file after a change by the library, whose structures are valid."""
    memory = io.BytesIO(contents(layer)[FILES[layer]])
    with h5py.File(memory, "r+") as file:
        change(file, HDF5_LAYERS[layer])
    return memory.getvalue()


def written(layer: str, options: dict[str, object]) -> bytes:
    """The layer's content in a file of another layout."""
    memory = io.BytesIO()
    with (
        h5py.File(io.BytesIO(contents(layer)[FILES[layer]])) as old,
        h5py.File(memory, "w", **options) as new,
    ):
        new.attrs.update(old.attrs)
        for name in old:
            new.create_dataset(name, data=old[name][()])
    return memory.getvalue()


# --- contents ----------------------------------------------------------------------------------------


def rebuilt(tmp: Path, kind: str, change: Callable[[Columns, dict[str, str | int]], object]) -> bytes:
    """The layer's file with other columns, written as ours are: only their content is at fault."""
    layer = kind.split("-")[0]
    path = tmp / "whole.h5"
    path.write_bytes(contents(kind)[FILES[kind]])
    with PlainFile(path) as file:
        columns, attributes = {name: file.read(name) for name in file.links}, dict(file.attrs)
    change(columns, attributes)
    return file_image(attributes, columns, SCHEMAS[layer])  # type: ignore[arg-type]


def at(name: str, place: object, value: object) -> Callable[..., None]:
    def change(columns: Columns, _: object) -> None:
        columns[name][place] = value  # type: ignore[index]

    return change


def blobs(name: str, change: Callable[[bytes], bytes], row: int = 1) -> Callable[..., None]:
    """Change one blob; lengths and checksums are made to fit."""

    def rewrite(columns: Columns, _: object) -> None:
        ends = columns[f"{name}_offsets"]
        parts = [columns[f"{name}_data"][a:b].tobytes() for a, b in zip(ends, ends[1:], strict=False)]
        parts[row] = change(parts[row])
        columns.update(blob_columns(name, parts))

    return rewrite


def flow_shape(text: str) -> Callable[..., None]:
    return lambda _, attributes: attributes.update(flow_shape=text)


def png(*chunks: tuple[bytes, bytes], size: tuple[int, int] = (W, H), colour: int = 2) -> bytes:
    """A PNG of black pixels with further chunks before its data."""
    channels = {0: 1, 2: 3, 3: 1, 6: 4}[colour]
    rows = (b"\0" * (1 + channels * size[0])) * size[1]
    head = struct.pack(">IIBBBBB", *size, 8, colour, 0, 0, 0)
    parts = [(b"IHDR", head), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + body


def jpeg(image: np.ndarray, *options: int) -> bytes:
    return cv2.imencode(".jpg", image, options)[1].tobytes()


def many_scans(count: int) -> bytes:
    """A progressive JPEG that refines the same coefficients again and again."""
    data = jpeg(np.zeros((H, W, 3), np.uint8), cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
    first = data.index(b"\xff\xda")
    second = data.index(b"\xff\xda", first + 2)
    last = data.rindex(b"\xff\xda")
    return data[:second] + data[last:-2] * count + data[-2:]


def zlib_bomb(name: bytes, prefix: bytes) -> tuple[bytes, bytes]:
    return name, prefix + zlib.compress(bytes(1 << 27), 9)


SIDEWAYS = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"  # EXIF: turned by 90 degrees
ANIMATED = (
    (b"acTL", struct.pack(">II", 2, 0)),
    (b"fcTL", struct.pack(">IIIIIHHBB", 0, 4, 4, 1, 1, 1, 10, 0, 0)),
)
CONTENTS: dict[str, tuple[str, Callable[..., object], str]] = {
    # kind, change, words ("read": none need mind; "": may be refused)
    "offsets go backwards": ("frames", at("image_offsets", 2, 10**9), "offsets do not fit"),
    "offsets overlap": ("frames", at("image_offsets", [1, 2], [900, 800]), "offsets do not fit"),
    "offsets below zero": ("evidence", at("mask_offsets", 1, -1), "offsets do not fit"),
    "offsets at the end of int64": ("masks", at("labels_offsets", slice(1, 4), 2**63 - 1), "offsets do not fit"),
    "offsets that overflow": ("masks", at("instance_offsets", [1, 2], [-(2**63), 2**63 - 1]), "offsets do not fit"),
    "offsets begin late": ("evidence", at("overlap_offsets", 0, 1), "offsets do not fit"),
    "no offsets": ("frames", lambda c, a: c.update(image_offsets=c["image_offsets"][:0]), "offsets do not fit"),
    "no rows": ("masks", lambda c, a: c.update(label_bytes=c["label_bytes"][:0]), "offsets do not fit"),
    "no evidence rows": ("evidence", lambda c, a: c.update(detection_offsets=c["detection_offsets"][:0]), "offsets do not fit"),
    "fewer checksums": ("frames", lambda c, a: c.update(name_crc32c=c["name_crc32c"][:2]), "2 checksums for 4"),
    "columns of two lengths": ("masks", lambda c, a: c.update(instance_area=c["instance_area"][:3]), "differ in length"),
    "segments of two lengths": ("frames", lambda c, a: c.update(segment_first=np.zeros(3, np.int64)), "differ in length"),
    "negative count": ("frames", at("segment_count", 0, -4), "cannot be"),
    "counts that overflow": ("frames", lambda c, a: c.update(
        segment_count=np.array([2**63 - 1, 2**63 - 1, 6]), segment_first=np.zeros(3, np.int64),
        segment_K=np.repeat(c["segment_K"], 3, axis=0), clip_data=c["clip_data"],
        clip_offsets=np.array([0, 0, 0, len(c["clip_data"])]),
        clip_crc32c=np.array([0, 0, *c["clip_crc32c"]], np.uint32)), "disagree about"),
    "negative first": ("frames", at("segment_first", 0, -(2**63)), "cannot be"),
    "times not a number": ("frames", at("timestamps_s", 2, np.nan), "timestamps do not increase"),
    "times without end": ("frames", at("timestamps_s", slice(2, 4), np.inf), "timestamps do not increase"),
    "times go backwards": ("frames", at("timestamps_s", 3, -1.0), "timestamps do not increase"),
    "motion without end": ("frames", at("motion_px", 2, np.inf), "read"),
    "static beyond 1": ("frames", at("static", 2, 255), "read"),
    "camera not a number": ("frames", at("segment_K", (0, 0, 0), np.nan), "cannot be"),
    "name of no letters": ("frames", blobs("name", lambda _: b"\xff\n\x1b[2J\0"), "read"),
    "name of a megabyte": ("frames", blobs("name", lambda _: b"x" * 2**20), "read"),
    "clip of no letters": ("frames", blobs("clip", lambda _: b"\xff\xfe", 0), ""),
    "no image": ("frames", blobs("image", lambda _: b""), "cannot be decoded"),
    "half an image": ("frames", blobs("image", lambda data: data[: len(data) // 2]), "cannot be decoded"),
    "JPEG of 65535x65535": ("frames", blobs("image", lambda data: data.replace(
        struct.pack(">HH", H, W), b"\xff\xff\xff\xff", 1)), "cannot be decoded"),
    "JPEG of another size inside": ("frames", blobs("image", lambda data: data + data), "read"),
    "grey JPEG": ("frames", blobs("image", lambda _: simplejpeg.encode_jpeg(
        np.zeros((H, W, 1), np.uint8), colorspace="GRAY")), "read"),
    "JPEG of four inks": ("frames", blobs("image", lambda _: simplejpeg.encode_jpeg(
        np.zeros((H, W, 4), np.uint8), colorspace="CMYK", colorsubsampling="444")), ""),
    "JPEG of 20,000 scans": ("frames", blobs("image", lambda _: many_scans(20_000)), ""),
    "PNG for JPEG": ("frames", blobs("image", lambda _: png()), "cannot be decoded"),
    "JPEG for PNG": ("frames-png", blobs("image", lambda _: encode_image(examples.image(0), "jpeg")), "not a PNG"),
    "PNG of 65535x65535": ("frames-png", blobs("image", lambda _: png(size=(2, 2)).replace(
        struct.pack(">II", 2, 2), b"\0\0\xff\xff" * 2)), "65535x65535, expected"),
    "PNG with another head": ("frames-png", blobs("image", lambda _: png(
        (b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)))), ""),
    "PNG that lies on its side": ("frames-png", blobs("image", lambda _: png((b"eXIf", SIDEWAYS))), "read"),
    "PNG that moves": ("frames-png", blobs("image", lambda _: png(*ANIMATED)), ""),
    "grey PNG": ("frames-png", blobs("image", lambda _: png(colour=0)), "read"),
    "PNG with alpha": ("frames-png", blobs("image", lambda _: png(colour=6)), "read"),
    "PNG with a bomb of text": ("frames-png", blobs("image", lambda _: png(zlib_bomb(b"zTXt", b"x\0\0"))), ""),
    "PNG with a bomb of colours": ("frames-png", blobs("image", lambda _: png(zlib_bomb(b"iCCP", b"x\0\0"))), ""),
    "PNG with a bomb of pixels": ("frames-png", blobs("image", lambda _: png((b"IDAT", zlib.compress(bytes(1 << 27), 9)))), "without compression"),
    "PNG with a large chunk": ("frames-png", blobs("image", lambda _: png((b"teXt", bytes(7 << 20)))), "without compression"),
    "boxes not numbers": ("evidence", at("detection_box", 0, np.nan), "box is not finite"),
    "boxes of any size": ("evidence", at("detection_box", 0, [-3e38, -3e38, 3e38, 3e38]), "read"),
    "scores not numbers": ("evidence", at("detection_score", 0, np.nan), r"outside \[0, 1\]"),
    "scores out of order": ("evidence", at("detection_score", 0, 0.0), "not ordered"),
    "unknown class": ("evidence", at("detection_class", 0, 255), "class is unknown"),
    "grids of 4 billion cells": ("evidence", at("detection_grid", 0, [65535, 65535]), "at most"),
    "grids of nothing": ("evidence", at("detection_grid", 0, [0, 65535]), "declares"),
    "grids of another frame": ("evidence", at("detection_grid", 0, [28, 29]), "declares"),
    "overlap with nothing": ("evidence", at("overlap_prev", 0, 65535), "not there"),
    "overlap of nothing": ("evidence", at("overlap_next", 0, 65535), "not there"),
    "more intersection than union": ("evidence", at("overlap_pixels", (0, 0), 2**32 - 1), "exceeds its union"),
    "zstd bomb": ("evidence", blobs("mask", lambda _: compress(bytes(1 << 27))), "declares 134217728 bytes"),
    "zstd that hides its size": ("evidence", blobs("mask", lambda _: zstandard.ZstdCompressor(
        write_content_size=False).compress(bytes(1 << 24))), "declares"),
    "zstd that lies": ("evidence", blobs("mask", lambda data: compress(bytes(2 * 28 * 28))[:-9] + compress(bytes(1 << 24))[-9:]), ""),
    "zstd twice": ("evidence", blobs("mask", lambda data: data + compress(bytes(1 << 26))), "read"),
    "zstd to be skipped": ("evidence", blobs("mask", lambda data: b"\x50\x2a\x4d\x18\x04\0\0\0abcd" + data), ""),
    "no zstd": ("evidence", blobs("mask", lambda _: b"PK\x03\x04"), "cannot be read"),
    "flow of other digits": ("evidence-flow", flow_shape("²x16x24x2"), "flow_shape"),
    "flow of no size": ("evidence-flow", flow_shape("2x0x0x2"), "flow_shape"),
    "flow of a planet": ("evidence-flow", flow_shape("2x99999x99999x2"), "flow_shape"),
    "flow of three numbers": ("evidence-flow", flow_shape("2x16x24"), "flow_shape"),
    "flow with zeros before": ("evidence-flow", flow_shape("0002x0016x0024x0002"), "read"),
    "flow that is shorter": ("evidence-flow", blobs("flow", lambda _: compress(bytes(100))), "declares 100 bytes"),
    "flow with a line break": ("evidence-flow", flow_shape("2x16\n24x2"), "flow_shape"),
    "labels without instances": ("masks", blobs("labels", lambda _: compress(b"\xff" * (W * H))), "label without an instance"),
    "labels of another size": ("masks", blobs("labels", lambda _: compress(bytes(W * H - 1))), "declares"),
    "labels of two bytes": ("masks", at("label_bytes", 1, 2), "declares"),
    "labels of no bytes": ("masks", at("label_bytes", 1, 0), "other than 1 and 2"),
    "labels of 200 bytes": ("masks", at("label_bytes", 1, 200), "other than 1 and 2"),
    "no track": ("masks", at("instance_track", 2, 0), "has no track"),
    "a track twice": ("masks", at("instance_track", slice(2, 4), 7), "occurs twice"),
    "an area too large": ("masks", at("instance_area", 2, 2**32 - 1), "area differs"),
    "instance boxes not numbers": ("masks", at("instance_box", 2, np.nan), ""),
    "instance scores not numbers": ("masks", at("instance_score", 2, np.nan), ""),
    "instance of an unknown class": ("masks", at("instance_class", 2, 255), ""),
    "instance of no detection": ("masks", at("instance_detection", 2, 65535), ""),
    "pair of the background": ("masks", at("pair_prev", 0, 0), "not there"),
    "pair of nothing": ("masks", at("pair_next", 0, 65535), "not there"),
    "pair of one twice": ("masks", at("pair_next", 0, 2), "different tracks"),
    "pair at the beginning": ("masks", at("pair_offsets", slice(1, 2), 2), "pair"),
}  # fmt: skip


def build_sets(folder: Path, group: str) -> dict[str, tuple[Path, str]]:
    """The hostile sets of a layer, or of `contents`: name -> folder, and the words that are expected."""
    sets: dict[str, tuple[Path, str]] = {}

    def add(name: str, kind: str, data: bytes, words: str) -> None:
        place = folder / str(len(sets))
        write_set(place, kind, {**contents(kind), FILES[kind]: data})
        sets[name] = place, words

    if group == "contents":
        for name, (kind, alter, words) in CONTENTS.items():
            add(name, kind, rebuilt(folder, kind, alter), words)
        return sets
    for name, (change, words) in STRUCTURES.items():
        add(name, group, edited(group, change), words)
    for name, (options, words) in WHOLE_FILES.items():
        add(name, group, written(group, options), words)
    return sets


@pytest.mark.fault(Fault.HOSTILE_SHARD)
@pytest.mark.parametrize("group", [*HDF5_LAYERS, "contents"])
def test_hostile_sets_are_refused_for_what_they_are(tmp_path: Path, group: str) -> None:
    sets = build_sets(tmp_path, group)
    kinds = [CONTENTS[name][0] if group == "contents" else group for name in sets]
    for (name, (folder, _)), kind in zip(sets.items(), kinds, strict=True):
        assert (folder / FILES[kind]).read_bytes() != contents(kind)[FILES[kind]], f"{name}: nothing changed"
    outcomes = read_sets([folder for folder, _ in sets.values()])
    print(f"{group}: {summary(outcomes)}")
    wrong = [
        f"{name}: expected {words or 'an end'}, {outcome.ending}, {outcome.words[-300:]}"
        for (name, (_, words)), outcome in zip(sets.items(), outcomes, strict=True)
        if not as_expected(outcome, words)
    ]
    assert not wrong, "\n".join(wrong)


def as_expected(outcome: Outcome, words: str) -> bool:
    """`words`: of the refusal; "read": it is none; "": either."""
    if outcome.is_bug or outcome.peak_bytes > MEMORY_BYTES // 2:
        return False
    if words in ("", "read"):
        return words == "" or outcome.ending == "read"
    return outcome.ending == "refused" and re.search(words, outcome.words) is not None


def endless(data: bytes) -> bytes:
    """A data set's header that goes on in a block that goes on in itself; all checksums are right."""
    spoilt = bytearray(data)
    block = next(each for each in structures(data)[2:] if data[each.start : each.start + 4] == b"OHDR")
    place = block.start + 8  # the first message; the last one is padding, which has room
    while spoilt[place] != 0:
        place += 4 + int.from_bytes(spoilt[place + 1 : place + 3], "little")
    going_on = struct.pack("<QQ", len(data), 28)
    spoilt[place], spoilt[place + 4 : place + 20] = 16, going_on
    seal(spoilt, block)
    loop = b"OCHK" + struct.pack("<BHB", 16, 16, 0) + going_on
    return bytes(spoilt) + loop + struct.pack("<I", lookup3(loop))


@pytest.mark.fault(Fault.HOSTILE_SHARD)
def test_a_header_without_an_end_is_refused(tmp_path: Path) -> None:
    whole = contents("masks")
    write_set(tmp_path, "masks", {**whole, FILES["masks"]: endless(whole[FILES["masks"]])})
    (outcome,) = read_sets([tmp_path])
    assert outcome.ending == "refused"
    assert "goes on and on" in outcome.words
