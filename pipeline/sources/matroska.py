"""Matroska and WebM files, checked element by element before they are read (RFC 9559, RFC 8794).

FFmpeg's demuxer looks for the next block behind whatever it cannot parse, so a damaged or cut
file gives fewer frames and no error. Here every element must lie where the one before it ends,
and where the writer left checksums (FFmpeg and others do, for everything but the outermost
frame of the file) they must fit: a flipped bit is noticed even where it would decode.

Files of unknown length (live recordings) and what lies behind an element of unknown length
state nothing that could be checked.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import IO

from pipeline.errors import SourceError
from pipeline.sources.naming import open_file, show

_EBML, _SEGMENT, _CLUSTER, _CRC, _VOID = 0x1A45DFA3, 0x18538067, 0x1F43B675, 0xBF, 0xEC
_SEEK_HEAD, _INFO, _TRACKS, _CUES = 0x114D9B74, 0x1549A966, 0x1654AE6B, 0x1C53BB6B
_ATTACHMENTS, _CHAPTERS, _TAGS = 0x1941A469, 0x1043A770, 0x1254C367
_IN_SEGMENT = frozenset(
    {_CLUSTER, _SEEK_HEAD, _INFO, _TRACKS, _CUES, _ATTACHMENTS, _CHAPTERS, _TAGS, _VOID, _CRC}
)
# Timestamp, SilentTracks, Position, PrevSize, SimpleBlock, BlockGroup, EncryptedBlock
_IN_CLUSTER = frozenset({0xE7, 0x5854, 0xA7, 0xAB, 0xA3, 0xA0, 0xAF, _VOID, _CRC})
_CHUNK_BYTES = 1 << 20


class _Damage(Exception):
    """What is wrong, and at which byte."""


class _Unknown(Exception):
    """An element of unknown length: nothing behind it can be checked."""


def require_whole_matroska(path: Path) -> None:
    """Raise a SourceError if a Matroska or WebM file is cut, or damaged where that can be seen."""
    try:
        with open_file(path) as file:
            end = file.seek(0, 2)
            file.seek(0)
            _check_file(file, end)
    except _Unknown:
        return
    except _Damage as damage:
        raise SourceError(
            f"{show(path)}: truncated or damaged: {damage}; copy it again or leave it out"
        ) from None


def _check_file(file: IO[bytes], end: int) -> None:
    head, size = _element(file, end)
    if head != _EBML:
        raise _Damage("it does not begin as a Matroska file")
    file.seek(size, 1)
    while file.tell() < end:
        identity, size = _element(file, end)
        if identity == _SEGMENT:
            _check_children(file, size, _IN_SEGMENT)
            return  # others after the first are not read
        file.seek(size, 1)
    raise _Damage("it holds no segment")


def _check_children(file: IO[bytes], size: int, known: frozenset[int]) -> None:
    """The elements within an element of `size` bytes that begin where the file stands."""
    end = file.tell() + size
    first = True
    while (at := file.tell()) < end:
        identity, inner = _element(file, end)
        begin = file.tell()
        if identity not in known:
            raise _Damage(f"unknown element {identity:X} at byte {at}")
        if identity == _CRC and first:
            _check_crc(file, inner, end)
        elif identity == _CLUSTER:
            _check_children(file, inner, _IN_CLUSTER)
        elif known is _IN_SEGMENT and identity not in (_CRC, _VOID):
            _check_first_crc(file, inner)
        file.seek(begin + inner)
        first = False


def _check_first_crc(file: IO[bytes], size: int) -> None:
    """The checksum of an element, if it begins with one; what it holds besides is the demuxer's."""
    end = file.tell() + size
    if size and file.read(1) == bytes([_CRC]):
        file.seek(-1, 1)
        _, inner = _element(file, end)
        _check_crc(file, inner, end)


def _check_crc(file: IO[bytes], size: int, end: int) -> None:
    """Compare a checksum, which stands first in its element, with the bytes from behind it to `end`."""
    at = file.tell()
    stated = int.from_bytes(file.read(size), "little")
    found, rest = 0, end - file.tell()
    while rest > 0:
        data = file.read(min(rest, _CHUNK_BYTES))
        if not data:
            raise _Damage("it ends before its last element")
        found, rest = zlib.crc32(data, found), rest - len(data)
    if size != 4 or found != stated:
        raise _Damage(f"a checksum at byte {at} does not fit")


def _element(file: IO[bytes], end: int) -> tuple[int, int]:
    """Identity and size of the element at which the file stands; it then stands at its content."""
    at = file.tell()
    identity, _ = _number(file, 4)
    size, length = _number(file, 8)
    unknown = (1 << 7 * length) - 1
    size &= unknown
    if size == unknown:
        raise _Unknown
    if file.tell() + size > end:
        raise _Damage(f"an element at byte {at} is longer than what holds it")
    return identity, size


def _number(file: IO[bytes], longest: int) -> tuple[int, int]:
    """EBML's variable-length number with its length marker, and how many bytes it has."""
    at = file.tell()
    first = file.read(1)
    length = 9 - first[0].bit_length() if first else 9
    if length > longest:
        raise _Damage(f"no element at byte {at}")
    data = first + file.read(length - 1)
    if len(data) < length:
        raise _Damage("it ends within an element")
    return int.from_bytes(data, "big"), length
