"""Image files, read strictly: whole and undamaged as far as their format can tell, or an error.

JPEG decoders fill what is missing with grey and carry on, so their warnings are made errors
here; every chunk of a PNG is checked against its CRC. Files are opened by Python: OpenCV
only ever sees bytes, because it cannot take every file name. EXIF orientation is ignored:
calibrations speak of pixels as they are stored.
"""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from pipeline.errors import SourceError
from pipeline.sources.naming import open_file, show

IMAGE_SUFFIXES = frozenset([".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"])

_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
_HEADER_BYTES = 33  # PNG signature and IHDR, which hold the size
_MAX_PIXELS = 1 << 28
_MEND = "copy it again or leave it out"


@dataclass(frozen=True, kw_only=True)
class ImageReader:
    """Reads frames stored as one image file each; a `FrameReader`.

    size: (width, height) that every image must have
    """

    paths: tuple[Path, ...]
    size: tuple[int, int]

    def frames(self, start: int, stop: int) -> Iterator[np.ndarray]:
        """Yield frames start..stop-1, (H, W, 3) uint8 RGB, in order.

        Raises:
            SourceError: an image is missing, damaged or of another size; it is named.
        """
        if not 0 <= start <= stop <= len(self.paths):
            raise IndexError(f"frames {start}..{stop} of a clip of {len(self.paths)}")
        for path in self.paths[start:stop]:
            image = read_image(path)
            if image.shape[1::-1] != self.size:
                raise SourceError(_other_size(path, image.shape[1::-1], self.size))
            yield image

    def part(self, start: int, stop: int) -> ImageReader:
        """A reader of frames start..stop-1 alone."""
        return replace(self, paths=self.paths[start:stop])


def read_image(path: Path) -> np.ndarray:
    """Read an image as (H, W, 3) uint8 RGB.

    Grey is repeated, 16 bits are divided by 257 and rounded, opacity is dropped.

    Raises:
        SourceError: not readable, not an image, truncated, damaged or of floating point.
    """
    data = _bytes(path)
    try:
        if data.startswith(_JPEG):
            return simplejpeg.decode_jpeg(data, "RGB", strict=True)
        if data.startswith(_PNG):
            _check_png(data)
        decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except (ValueError, cv2.error) as error:
        raise SourceError(
            f"{show(path)}: damaged or cut ({' '.join(str(error).split())}); {_MEND}"
        ) from error
    if decoded is None:
        raise SourceError(f"{show(path)}: cannot be decoded; it is damaged, cut or no image; {_MEND}")
    return _rgb8(path, decoded)


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) from the header alone."""
    head = _bytes(path, _HEADER_BYTES)
    if head.startswith(_PNG) and len(head) == _HEADER_BYTES:
        width, height = struct.unpack(">II", head[16:24])
        if width * height > _MAX_PIXELS:
            raise SourceError(_too_large(path, f"{width}x{height} pixels"))
        return width, height
    try:
        with warnings.catch_warnings(), open_file(path) as file:
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the header is all we read
            with Image.open(file) as image:
                return image.size
    except Image.DecompressionBombError as error:
        raise SourceError(_too_large(path, "more pixels than anybody records")) from error
    except (OSError, UnidentifiedImageError, ValueError) as error:
        raise SourceError(f"{show(path)}: no image, damaged or cut; {_MEND}") from error


def common_size(paths: Sequence[Path]) -> tuple[int, int]:
    """The one size of all images, or a SourceError that names the first odd one."""
    size = image_size(paths[0])
    for path in paths[1:]:
        if (other := image_size(path)) != size:
            raise SourceError(_other_size(path, other, size))
    return size


def _bytes(path: Path, count: int = -1) -> bytes:
    try:
        with open_file(path) as file:
            data = file.read(count)
    except OSError as error:
        raise SourceError(
            f"{show(path)}: cannot be read ({error.strerror}); put it back or leave it out"
        ) from error
    if not data:
        raise SourceError(f"{show(path)}: is empty; {_MEND}")
    return data


def _check_png(data: bytes) -> None:
    """Walk all chunks to IEND and compare their CRC-32."""
    stream, position = memoryview(data), len(_PNG)
    while True:
        if position + 12 > len(data):
            raise ValueError("PNG ends before its IEND chunk")
        (length,) = struct.unpack_from(">I", stream, position)
        end = position + 8 + length
        if end + 4 > len(data):
            raise ValueError("PNG ends within a chunk")
        if zlib.crc32(stream[position + 4 : end]) != struct.unpack_from(">I", stream, end)[0]:
            raise ValueError("PNG checksum does not fit")
        if stream[position + 4 : position + 8] == b"IEND":
            return
        position = end + 4


def _rgb8(path: Path, image: np.ndarray) -> np.ndarray:
    """OpenCV's order and depth -> (H, W, 3) uint8 RGB."""
    if image.dtype == np.uint16:
        image = ((image.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if (
        image.dtype != np.uint8
        or image.ndim not in (2, 3)
        or (image.ndim == 3 and image.shape[2] not in (1, 3, 4))
    ):
        raise SourceError(
            f"{show(path)}: {image.dtype} pixels of shape {image.shape}; expected 8 or 16 bits, grey or RGB"
        )
    if image.ndim == 2 or image.shape[2] == 1:
        return cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)
    return cv2.cvtColor(image, cv2.COLOR_BGRA2RGB if image.shape[2] == 4 else cv2.COLOR_BGR2RGB)


def _too_large(path: Path, claim: str) -> str:
    return f"{show(path)}: claims {claim}; it is damaged, or to be scaled down before it is given here"


def _other_size(path: Path, found: Sequence[int], expected: Sequence[int]) -> str:
    return (
        f"{show(path)}: is {found[0]}x{found[1]} where the frames before are {expected[0]}x{expected[1]}; "
        f"one folder holds one camera: move it to a folder of its own"
    )
