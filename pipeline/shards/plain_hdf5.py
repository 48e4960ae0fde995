"""The little of HDF5 that our files are made of, read without the HDF5 library.

The library's parser is large: of files damaged at random in its structures about one in a
hundred crashes or hangs it (`python -m tests.faults.campaign`, HDF5 2.0). Ours are written by it
in one plain layout, which is read here by its published specification (HDF5 File Format 3.0; the
Roman numerals below are its sections): superblock 2 or 3, object headers 1 or 2, links in the root
group's header or in a fractal heap of one block, contiguous data of plain numbers, attributes
that are strings or int64. Whatever else a file holds is refused. Nothing is allocated before
it is known to lie within the file; checksums are verified wherever the format has them.
"""

from __future__ import annotations

import math
import os
import struct
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

MAX_STRUCTURE = 1 << 16  # bytes; ours have less than 4096
MAX_PARTS, MAX_ATTRIBUTES, MAX_NAME = 8, 64, 255  # of one object header, of the root, bytes
_NOWHERE, _MASK = (1 << 64) - 1, (1 << 32) - 1
_DATASPACE, _LINK_INFO, _DATATYPE, _LINK, _EXTERNAL, _LAYOUT = 1, 2, 3, 6, 7, 8
_FILTERS, _ATTRIBUTE, _CONTINUATION, _SYMBOL_TABLE = 11, 12, 16, 17
_CONTIGUOUS = 1
_FLOATS = {  # IV.A.2.d: bit field and properties
    "f2": bytes.fromhex("200f00 02000000 00001000 0a05000a 0f000000"),
    "f4": bytes.fromhex("201f00 04000000 00002000 17080017 7f000000"),
    "f8": bytes.fromhex("203f00 08000000 00004000 340b0034 ff030000"),
}
_DTYPES = {b"\x01" + code: np.dtype(f"<{name}") for name, code in _FLOATS.items()} | {
    struct.pack("<4BIHH", 0, sign, 0, 0, size, 0, 8 * size): np.dtype(f"<{kind}{size}")
    for kind, sign in (("u", 0), ("i", 8))
    for size in (1, 2, 4, 8)
}


class FormatError(ValueError):
    """The file is damaged, or not of the layout that ours have."""


@dataclass(frozen=True)
class PlainData:
    """Where a data set's numbers stand; nothing has been read yet."""

    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        return self.dtype.itemsize * math.prod(self.shape)


class PlainFile:
    """An open file: its root's attributes and links are read at once, data sets when asked for.

    attrs: strings and integers; attributes of other types are left out
    links: name -> address, None where a link is not to an object of this file

    Raises:
        ValueError: from every method: damaged (UnicodeDecodeError), or not of our layout (FormatError).
        OSError: from every method: the disk cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.filename = str(path)
        self._handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        self._close = weakref.finalize(self, os.close, self._handle)
        self.size = os.fstat(self._handle).st_size
        self._data: dict[str, PlainData] = {}
        try:
            root = self._header(self._root())
            attributes = [body for kind, body in root if kind == _ATTRIBUTE]
            if len(attributes) > MAX_ATTRIBUTES:
                raise FormatError(f"{len(attributes)} attributes")
            self.attrs = dict(map(self._attribute, attributes))
            self.links = dict(self._links(root))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> PlainFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._close()
        self._handle = -1  # the number may soon be another file's

    def __getitem__(self, name: str) -> PlainData:
        """Type, shape and place of a data set."""
        if name not in self._data:
            self._data[name] = self._data_set(name)
        return self._data[name]

    def check_place(self, name: str) -> None:
        """A data set must lie within the file, and an empty one must not be of an absurd shape."""
        data = self[name]
        if data.nbytes and data.offset + data.nbytes > self.size:
            raise FormatError(f"{name} declares {data.nbytes} bytes in a file of {self.size}")
        if data.dtype.itemsize * math.prod(max(length, 1) for length in data.shape) >= 1 << 62:
            raise FormatError(f"{name} has the shape {data.shape}")

    def read(self, name: str, start: int | None = None, stop: int | None = None) -> np.ndarray:
        """Rows start..stop-1 of a data set, as a new array."""
        data = self[name]
        self.check_place(name)
        first, last, _ = slice(start, stop).indices(data.shape[0])
        array = np.empty((max(last - first, 0), *data.shape[1:]), data.dtype)
        view = memoryview(array.data).cast("B") if array.size else memoryview(b"")
        at = data.offset + (first * (data.nbytes // data.shape[0]) if view else 0)
        while view:
            count = os.preadv(self._handle, [view], at)
            if not count:
                raise FormatError("the file was cut while it was open")
            view, at = view[count:], at + count
        return array

    def _take(self, at: int, count: int) -> bytes:
        if count > MAX_STRUCTURE or at + count > self.size:
            raise FormatError(f"a structure of {count} bytes at {at} in a file of {self.size}")
        data = os.pread(self._handle, count, at)
        if len(data) < count:
            raise FormatError("the file was cut while it was open")
        return data

    def _sealed(self, at: int, count: int, signature: bytes) -> _Reader:
        """A structure that begins with a signature and ends with its checksum."""
        data = self._take(at, count)
        name = signature.decode("ascii", "ignore")
        if data[:4] != signature:
            raise FormatError(f"no {name} at {at}")
        if struct.pack("<I", lookup3(data[:-4])) != data[-4:]:
            raise FormatError(f"checksum of {name} at {at} differs")
        return _Reader(data[4:-4])

    def _root(self) -> int:
        """II.A: the address of the root group's header."""
        start = self._take(0, 9)
        if start[:8] != b"\x89HDF\r\n\x1a\n":
            raise FormatError("file signature not found")
        if start[8] not in (2, 3):
            raise FormatError(f"superblock of version {start[8]}, not 2 or 3")
        block = self._sealed(0, 48, b"\x89HDF")
        offsets, lengths, base, extension, end, root = block.unpack("<5xBBx4Q")
        if (offsets, lengths, base, extension) != (8, 8, 0, _NOWHERE):
            raise FormatError("its superblock is not like ours")
        if end > self.size:
            raise FormatError(f"file is cut: {self.size} bytes, {end} written")
        return root

    def _header(self, at: int) -> list[tuple[int, bytes]]:
        """IV.A.1: an object header's messages, type and body, from all its parts."""
        old = self._take(at, 4) != b"OHDR"
        if old:
            version, size = _Reader(self._take(at, 16)).unpack("<B7xI")
            if version != 1:
                raise FormatError(f"no object header at {at}")
            head, parts = "<HHB3x", [_Reader(self._take(at + 16, size))]
        else:
            flags = self._take(at, 6)[5]
            width, skip = 1 << (flags & 3), 6 + (16 if flags & 0x20 else 0) + (4 if flags & 0x10 else 0)
            size = int.from_bytes(self._take(at + skip, width), "little")
            head = "<BHB2x" if flags & 4 else "<BHB"
            parts = [self._sealed(at, skip + width + size + 4, b"OHDR")]
            parts[0].take(skip + width - 4)
        messages = []
        for part in parts:  # which grow
            while part.left >= struct.calcsize(head):
                kind, size, shared = part.unpack(head)
                body = part.take(size)
                if shared & 2:
                    raise FormatError(f"a message of the object header at {at} stands elsewhere")
                messages.append((kind, body))
                if kind == _CONTINUATION:
                    if len(parts) == MAX_PARTS:
                        raise FormatError(f"object header at {at} goes on and on")
                    place, size = _Reader(body).unpack("<QQ")
                    parts.append(
                        _Reader(self._take(place, size)) if old else self._sealed(place, size, b"OCHK")
                    )
        return messages

    def _attribute(self, body: bytes) -> tuple[str, str | int | None]:
        """IV.A.2.m: name and value, None if it is neither a string nor an int64."""
        reader = _Reader(body)
        version, shared, *sizes = reader.unpack("<BB3H")
        if version not in (1, 3) or shared:
            raise FormatError(f"an attribute of version {version} is not one of ours")
        reader.take(1 if version == 3 else 0)  # character set
        pad = 8 if version == 1 else 1
        name, kind, space = (reader.take(-(-size // pad) * pad)[:size] for size in sizes)
        text = name.rstrip(b"\0").decode()
        if _shape(_Reader(space)) != ():
            return text, None
        if _dtype(_Reader(kind)) == np.int64:
            return text, int.from_bytes(reader.take(8), "little", signed=True)
        if [code & 15 for code in kind[:2]] != [9, 1]:  # characters, of any number
            return text, None
        length, collection, index = reader.unpack("<IQI")
        return text, self._heap_object(collection, index)[:length].decode()

    def _heap_object(self, at: int, index: int) -> bytes:
        """III.E: one object of a global heap collection."""
        signature, version, size = _Reader(self._take(at, 16)).unpack("<4sB3xQ")
        if (signature, version) != (b"GCOL", 1):
            raise FormatError(f"no heap at {at}")
        heap = _Reader(self._take(at, size)[16:])
        while heap.left >= 16:
            found, size = heap.unpack("<H6xQ")
            data = heap.take(-(-size // 8) * 8)[:size]
            if found == index and found:
                return data
        raise FormatError(f"heap at {at} has no object {index}")

    def _links(self, root: list[tuple[int, bytes]]) -> Iterator[tuple[str, int | None]]:
        """Names and addresses of everything in the root group."""
        for kind, body in root:
            if kind == _SYMBOL_TABLE:
                raise FormatError("its groups are of an old kind, not like ours")
            if kind == _LINK:
                yield _link(body)
            if kind == _LINK_INFO:  # IV.A.2.c
                heap, tree = _Reader(body).unpack("<10xQQ" if body[1:2] > b"\0" else "<2xQQ")
                if heap != _NOWHERE:
                    yield from map(_link, self._heap_objects(heap, tree))

    def _heap_objects(self, heap_at: int, tree_at: int) -> Iterator[bytes]:
        """III.G and III.A.2: a fractal heap of one block, and a tree of one leaf that lists its objects."""
        heap = self._sealed(heap_at, 146, b"FRHP")
        version, id_bytes, filters, size, address, rows = heap.unpack("<BHH103xQ12xQH")
        tree = self._sealed(tree_at, 38, b"BTHD")
        kind, width, depth, leaf_at, count = tree.unpack("<xB4xHH2xQH")
        if (version, id_bytes, filters, rows, kind, width, depth) != (0, 7, 0, 0, 5, 11, 0):
            raise FormatError("its list of data sets is not like ours")
        block = self._take(address, size)
        if (
            block[:4] != b"FHDB"
            or struct.pack("<I", lookup3(block[:17] + bytes(4) + block[21:])) != block[17:21]
        ):
            raise FormatError(f"no FHDB at {address}, or its checksum differs")
        leaf = self._sealed(leaf_at, 10 + 11 * count, b"BTLF")
        leaf.take(2)
        for _ in range(count):
            offset, length = leaf.unpack("<5xIH")
            yield _Reader(block[offset:]).take(length)

    def _data_set(self, name: str) -> PlainData:
        at = self.links[name]
        if at is None:
            raise FormatError(f"{name} is a link, expected data")
        messages = {kind: _Reader(body) for kind, body in self._header(at)}
        if _LINK_INFO in messages or _SYMBOL_TABLE in messages:
            raise FormatError(f"{name} is a group, expected data")
        if not {_DATASPACE, _DATATYPE, _LAYOUT} <= set(messages):
            raise FormatError(f"{name} is no data set")
        shape, dtype = _shape(messages[_DATASPACE]), _dtype(messages[_DATATYPE])
        version, layout = messages[_LAYOUT].unpack("<BB")
        if version not in (3, 4) or layout != _CONTIGUOUS or {_EXTERNAL, _FILTERS} & set(messages):
            raise FormatError(f"{name} is not stored as plain data in this file")
        if shape is None or dtype is None:
            raise FormatError(f"{name} holds something other than plain numbers")
        address, size = messages[_LAYOUT].unpack("<QQ")
        if size != dtype.itemsize * math.prod(shape):
            raise FormatError(f"{name} has the shape {shape} in {size} bytes")
        return PlainData(dtype, shape, address)


def sealed(image: bytes) -> bytes:
    """A file image as HDF5 gives it, with a checksum of its superblock that fits.

    HDF5 before 2.0 clears a flag in the image and leaves the checksum of before: not even HDF5
    itself opens such a file.
    """
    return image[:44] + struct.pack("<I", lookup3(image[:44])) + image[48:]


class _Reader:
    """Bytes that are taken from the front; taking more than there are is an error."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def take(self, count: int) -> bytes:
        if count > self.left:
            raise FormatError(f"{count} bytes expected where {self.left} are left")
        self._at += count
        return self._data[self._at - count : self._at]

    def unpack(self, layout: str) -> tuple[Any, ...]:
        return struct.unpack(layout, self.take(struct.calcsize(layout)))

    def uint(self, count: int) -> int:
        return int.from_bytes(self.take(count), "little")


def _link(body: bytes) -> tuple[str, int | None]:
    """IV.A.2.g: name, and address unless it is a soft, external or other link."""
    reader = _Reader(body)
    version, flags = reader.unpack("<BB")
    if version != 1:
        raise FormatError(f"a link of version {version}")
    kind = reader.uint(1) if flags & 8 else 0
    reader.take((8 if flags & 4 else 0) + (1 if flags & 16 else 0))
    length = reader.uint(1 << (flags & 3))
    if length > MAX_NAME:
        raise FormatError(f"a name of {length} bytes")
    name = reader.take(length).decode()
    return name, reader.uint(8) if kind == 0 else None


def _shape(space: _Reader) -> tuple[int, ...] | None:
    """IV.A.2.b: the shape, () of a scalar, None of nothing."""
    version, rank, _, kind = space.unpack("<4B")
    if version not in (1, 2) or rank > 32:
        raise FormatError(f"a data space of version {version} and rank {rank}")
    space.take(4 if version == 1 else 0)
    return None if (version, kind) == (2, 2) else space.unpack(f"<{rank}Q")


def _dtype(kind: _Reader) -> np.dtype | None:
    """IV.A.2.d: the type of little-endian numbers; None of anything else."""
    # The version, in the upper half of the first byte, changes nothing for numbers.
    code = bytes([kind.uint(1) & 15]) + kind.take(kind.left)
    return next((dtype for plain, dtype in _DTYPES.items() if code[: len(plain)] == plain), None)


def lookup3(data: bytes) -> int:
    """Bob Jenkins's 32-bit hash, the checksum of HDF5's structures."""
    a = b = c = (0xDEADBEEF + len(data)) & _MASK
    words = struct.unpack(f"<{-(-len(data) // 12) * 3}I", data + bytes(-len(data) % 12))
    for i in range(0, len(words) - 3, 3):
        a, b, c = a + words[i], b + words[i + 1], c + words[i + 2] & _MASK
        for shift in (4, 6, 8, 16, 19, 4):
            a = (a - c ^ (c << shift | c >> 32 - shift)) & _MASK
            a, b, c = b, c + b & _MASK, a
    if words:
        a, b, c = a + words[-3] & _MASK, b + words[-2] & _MASK, c + words[-1] & _MASK
        for shift in (14, 11, 25, 16, 4, 14, 24):
            c = (c ^ b) - (b << shift | b >> 32 - shift) & _MASK
            a, b, c = b, c, a
        c = b
    return c
