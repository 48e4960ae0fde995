"""Image files: right pixels from every format, and damage is an error that names the file."""

from __future__ import annotations

import os
import pickle
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from pipeline.errors import SourceError
from pipeline.sources.images import ImageReader, common_size, image_size, read_image
from tests.faults.table import Fault

RNG = np.random.default_rng(0)
SMOOTH = cv2.resize(RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8), (90, 60))
FORMATS = ["png", "jpg", "bmp", "webp", "tif"]


def save(path: Path, image: np.ndarray, **options) -> Path:
    Image.fromarray(image).save(path, **options)
    return path


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_gives_rgb(tmp_path, suffix):
    path = save(tmp_path / f"a.{suffix}", SMOOTH, **({"lossless": True} if suffix == "webp" else {}))
    image = read_image(path)
    assert image.shape == (60, 90, 3)
    assert image.dtype == np.uint8
    assert np.abs(image.astype(int) - SMOOTH).max() <= (48 if suffix == "jpg" else 0)
    assert image_size(path) == (90, 60)


@pytest.mark.fault(Fault.ODD_INPUT)
def test_grey_palette_opacity_and_one_bit(tmp_path):
    grey = SMOOTH[..., 0]
    expected = np.repeat(grey[..., None], 3, axis=2)
    np.testing.assert_array_equal(read_image(save(tmp_path / "grey.png", grey)), expected)
    opaque = np.dstack([SMOOTH, grey])
    np.testing.assert_array_equal(read_image(save(tmp_path / "rgba.png", opaque)), SMOOTH)
    palette = Image.fromarray(SMOOTH).convert("P")
    palette.save(tmp_path / "palette.png")
    np.testing.assert_array_equal(read_image(tmp_path / "palette.png"), np.asarray(palette.convert("RGB")))
    Image.fromarray(grey > 100).save(tmp_path / "bit.png")
    np.testing.assert_array_equal(read_image(tmp_path / "bit.png")[..., 1], np.where(grey > 100, 255, 0))
    assert read_image(save(tmp_path / "grey.jpg", grey)).shape == (60, 90, 3)


@pytest.mark.fault(Fault.ODD_INPUT)
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_are_scaled_by_257_and_rounded(tmp_path, suffix):
    values = np.array([[0, 128, 129, 257, 385, 386, 65406, 65407, 65535]], np.uint16).repeat(4, axis=0)
    path = tmp_path / f"deep.{suffix}"
    path.write_bytes(cv2.imencode(f".{suffix}", values)[1].tobytes())
    np.testing.assert_array_equal(read_image(path)[0, :, 0], np.rint(values[0] / 257).astype(np.uint8))
    colour = np.dstack([values, values // 2, values // 3])
    path.write_bytes(cv2.imencode(f".{suffix}", colour)[1].tobytes())
    np.testing.assert_array_equal(read_image(path), np.rint(colour[..., ::-1] / 257).astype(np.uint8))


@pytest.mark.fault(Fault.ODD_INPUT)
def test_floating_point_images_are_refused(tmp_path):
    path = tmp_path / "float.tif"
    path.write_bytes(cv2.imencode(".tif", SMOOTH.astype(np.float32))[1].tobytes())
    with pytest.raises(SourceError, match=r"float.tif: float32 pixels"):
        read_image(path)


@pytest.mark.fault(Fault.DAMAGED_VIDEO)
@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("keep", [0.0, 0.1, 0.6, -4])
def test_truncated_images_are_errors(tmp_path, suffix, keep):
    path = save(tmp_path / f"cut.{suffix}", SMOOTH)
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data))] if keep >= 0 else data[: int(keep)])
    with pytest.raises(SourceError, match=rf"cut\.{suffix}: .*(empty|cut)"):
        read_image(path)


@pytest.mark.fault(Fault.DAMAGED_VIDEO)
def test_every_flipped_bit_of_a_png_is_noticed(tmp_path):
    path = save(tmp_path / "a.png", SMOOTH)
    data = path.read_bytes()
    for position in RNG.integers(8, len(data), 60):
        broken = bytearray(data)
        broken[position] ^= 1 << int(RNG.integers(8))
        path.write_bytes(broken)
        with pytest.raises(SourceError, match=r"a\.png"):
            read_image(path)


@pytest.mark.fault(Fault.DAMAGED_VIDEO)
def test_holes_in_a_jpeg_are_noticed(tmp_path):
    path = save(tmp_path / "a.jpg", cv2.resize(RNG.integers(0, 256, (60, 90, 3), dtype=np.uint8), (360, 240)))
    data = path.read_bytes()
    middle = len(data) // 2
    path.write_bytes(data[:middle] + b"\xff\xd9" + data[middle + 2 :])  # ends early
    with pytest.raises(SourceError, match=r"a\.jpg: damaged or cut"):
        read_image(path)
    path.write_bytes(data[:middle] + data[middle + 500 :])
    with pytest.raises(SourceError, match=r"a\.jpg: damaged or cut"):
        read_image(path)


@pytest.mark.fault(Fault.DAMAGED_VIDEO)
def test_not_an_image(tmp_path):
    path = tmp_path / "a.png"
    with pytest.raises(SourceError, match="cannot be read"):
        read_image(path)
    path.write_text("no image")
    for reads in (read_image, image_size):
        with pytest.raises(SourceError, match="no image"):
            reads(path)


@pytest.mark.fault(Fault.ODD_INPUT)
def test_an_absurdly_large_image_is_an_error_not_an_allocation(tmp_path):
    header = struct.pack(">IIBBBBB", 2**31 - 1, 2**31 - 1, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    data = b"".join(
        struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in chunks
    )
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    with pytest.raises(SourceError, match=r"bomb\.png"):
        read_image(tmp_path / "bomb.png")


@pytest.mark.fault(Fault.ODD_NAMES)
@pytest.mark.parametrize("name", [b"\xff\xfe.png", b"new\nline.png", b'it\'s "q".png', "日本.png".encode()])
def test_odd_file_names(tmp_path, name):
    path = save(tmp_path / "plain.png", SMOOTH).rename(tmp_path / os.fsdecode(name))
    np.testing.assert_array_equal(read_image(path), SMOOTH)
    assert image_size(path) == (90, 60)
    path.write_bytes(b"broken")
    with pytest.raises(SourceError) as error:
        read_image(path)
    assert str(error.value).isprintable()


def test_reader_gives_ranges_travels_and_names_the_odd_one(tmp_path):
    paths = tuple(save(tmp_path / f"{n}.png", np.full((4, 6, 3), n, np.uint8)) for n in range(5))
    reader = pickle.loads(pickle.dumps(ImageReader(paths=paths, size=(6, 4))))  # noqa: S301 (our own bytes)
    assert [frame[0, 0, 0] for frame in reader.frames(1, 4)] == [1, 2, 3]
    with pytest.raises(IndexError):
        list(reader.frames(3, 6))

    save(paths[3], np.zeros((4, 7, 3), np.uint8))
    with pytest.raises(SourceError, match=r"3\.png: is 7x4 where the frames before are 6x4"):
        common_size(paths)
    with pytest.raises(SourceError, match=r"3\.png: is 7x4"):
        list(reader.frames(0, 5))
