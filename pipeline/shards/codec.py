"""Images, label maps and mask grids to bytes and back.

Decoders check the size that the bytes declare against the size that is expected before
they allocate anything, so that a damaged or hostile blob cannot ask for more.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Literal

import cv2
import numpy as np
import simplejpeg
import zstandard

from pipeline.errors import ShardError

ImageCodec = Literal["jpeg", "png"]
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
ZSTD_LEVEL = 9
MAX_BLOB = 1 << 28  # bytes after decompression; 100 full masks of a 1080p frame fit


def encode_image(image: np.ndarray, codec: ImageCodec, quality: int = 95) -> bytes:
    """(H, W, 3) uint8 RGB -> JPEG (4:2:0) at the given quality, or lossless PNG."""
    image = np.ascontiguousarray(image)
    if codec == "jpeg":
        return simplejpeg.encode_jpeg(image, quality=quality, colorsubsampling="420", fastdct=False)
    return cv2.imencode(".png", image[..., ::-1])[1].tobytes()


def decode_image(data: bytes, codec: ImageCodec, size: tuple[int, int]) -> np.ndarray:
    """Bytes of an image of `size` (width, height) -> (H, W, 3) uint8 RGB.

    Raises:
        ShardError: the bytes are not such an image.
    """
    try:
        raw = 3 * size[0] * size[1]
        if len(data) > 2 * raw + 4096:  # no encoder makes so much of it; decoding it would take long
            raise ShardError(f"image has {len(data)} bytes, {raw} without compression; rebuild the file")
        if codec == "jpeg":
            height, width, _, _ = simplejpeg.decode_jpeg_header(data)
            _require_size((width, height), size)
            return simplejpeg.decode_jpeg(data, colorspace="RGB", fastdct=False, fastupsample=False)
        if data[:8] != PNG_SIGNATURE:
            raise ShardError("not a PNG image; rebuild the file")
        _require_size(struct.unpack(">II", data[16:24]), size)
        flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
        if image is None:
            raise ShardError("PNG image cannot be decoded; rebuild the file")
        return np.ascontiguousarray(image[..., ::-1])
    except (ValueError, struct.error) as error:
        if isinstance(error, ShardError):
            raise
        raise ShardError(f"{codec} image cannot be decoded ({error}); rebuild the file") from None


def encode_labels(labels: np.ndarray) -> bytes:
    """(H, W) uint8 or uint16 label map -> zstd of its little-endian bytes."""
    return compress(labels.astype(labels.dtype.newbyteorder("<"), copy=False).tobytes())


def decode_labels(data: bytes, size: tuple[int, int], bytes_per_label: int) -> np.ndarray:
    """Bytes -> (H, W) label map of `size` (width, height), uint8 or uint16."""
    width, height = size
    raw = decompress(data, width * height * bytes_per_label)
    return np.frombuffer(raw, "<u1" if bytes_per_label == 1 else "<u2").reshape(height, width)


def encode_grids(grids: Sequence[np.ndarray]) -> bytes:
    """Mask grids (gh, gw) uint8 of one frame -> one zstd blob, one after the other."""
    return compress(b"".join(np.ascontiguousarray(grid, np.uint8).tobytes() for grid in grids))


def decode_grids(data: bytes, shapes: np.ndarray) -> tuple[np.ndarray, ...]:
    """One blob and the (D, 2) shapes (gh, gw) -> D grids uint8."""
    cells = shapes.astype(np.int64).prod(axis=1)
    raw = np.frombuffer(decompress(data, int(cells.sum())), np.uint8)
    ends = np.cumsum(cells)
    return tuple(
        raw[end - count : end].reshape(shape) for end, count, shape in zip(ends, cells, shapes, strict=True)
    )


def compress(raw: bytes) -> bytes:
    """Zstandard at one fixed level, so that equal input gives equal bytes."""
    return zstandard.ZstdCompressor(level=ZSTD_LEVEL, write_content_size=True).compress(raw)


def decompress(data: bytes, expected: int) -> bytes:
    """Undo `compress`; the length must be `expected`, and is checked before allocating."""
    try:
        declared = zstandard.frame_content_size(data)
        if expected > MAX_BLOB:
            raise ShardError(f"compressed data is said to hold {expected} bytes, at most {MAX_BLOB} are read")
        if declared != expected:
            raise ShardError(
                f"compressed data declares {declared} bytes, expected {expected}; rebuild the file"
            )
        return zstandard.ZstdDecompressor().decompress(data, max_output_size=expected)
    except zstandard.ZstdError as error:
        raise ShardError(f"compressed data cannot be read ({error}); rebuild the file") from None


def _require_size(found: tuple[int, ...], expected: tuple[int, int]) -> None:
    if tuple(found) != tuple(expected):
        raise ShardError(
            f"image is {found[0]}x{found[1]}, expected {expected[0]}x{expected[1]}; rebuild the file"
        )
