"""Every layer comes back as it went in, equal content gives equal bytes, and damage is named."""

from __future__ import annotations

import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from pipeline.errors import ShardError
from pipeline.shards import codec
from pipeline.shards.evidence import EvidenceFile, encode_evidence
from pipeline.shards.frames import FramesFile, encode_frames
from pipeline.shards.hdf5 import publish
from pipeline.shards.masks import MasksFile, encode_masks
from tests.faults.table import Fault
from tests.pipeline.shards import examples

SET_ID, DIGEST = "a" * 64, "b" * 64


def write_frames(path: Path, codec_name: str = "jpeg", **changes: object) -> Path:
    options = {
        "set_id": SET_ID,
        "codec": codec_name,
        "size": examples.SIZE,
        "static_below_px": 0.25,
    } | changes
    publish(path, encode_frames(examples.frames_table(codec=codec_name), **options))  # type: ignore[arg-type]
    return path


def open_frames(path: Path, codec_name: str = "jpeg") -> FramesFile:
    return FramesFile(path, set_id=SET_ID, codec=codec_name, size=examples.SIZE)  # type: ignore[arg-type]


def write_evidence(path: Path) -> Path:
    publish(
        path, encode_evidence(examples.evidence_frames(), set_id=SET_ID, size=examples.SIZE, flow_shape=None)
    )
    return path


def test_frames_come_back_with_their_times_names_and_camera(tmp_path: Path) -> None:
    file = open_frames(write_frames(tmp_path / "f.h5"))
    table = examples.frames_table()
    assert len(file) == 4
    assert [file.encoded(row) for row in range(4)] == list(table.images)
    assert [file.name(row) for row in range(4)] == list(table.names)
    np.testing.assert_array_equal(file.timestamps_s, table.timestamps_s)
    np.testing.assert_array_equal(file.segments[0].K, examples.K)
    assert (file.segments[0].clip, file.segments[0].first, file.segments[0].count) == ("drive/one", 0, 4)


def test_a_frame_is_static_below_the_threshold_and_never_at_a_clips_first_frame(tmp_path: Path) -> None:
    file = open_frames(write_frames(tmp_path / "f.h5"))
    assert file.static.tolist() == [False, False, True, False]


def test_jpeg_stays_close_and_png_is_exact(tmp_path: Path) -> None:
    jpeg = open_frames(write_frames(tmp_path / "j.h5"))
    png = open_frames(write_frames(tmp_path / "p.h5", "png"), "png")
    np.testing.assert_array_equal(png.image(2), examples.image(2))
    assert np.abs(jpeg.image(2).astype(int) - examples.image(2)).mean() < 4
    assert not np.array_equal(jpeg.image(2), examples.image(2))


def test_evidence_comes_back_exactly(tmp_path: Path) -> None:
    file = EvidenceFile(write_evidence(tmp_path / "e.h5"), set_id=SET_ID, size=examples.SIZE)
    for row, want in enumerate(examples.evidence_frames()):
        have = file[row]
        np.testing.assert_array_equal(have.detections.boxes, want.detections.boxes)
        np.testing.assert_array_equal(have.detections.scores, want.detections.scores)
        np.testing.assert_array_equal(have.detections.classes, want.detections.classes)
        assert all(map(np.array_equal, have.detections.masks, want.detections.masks))
        np.testing.assert_array_equal(have.overlaps.pixels, want.overlaps.pixels)
        assert have.flow is None
    np.testing.assert_allclose(file.overlaps(1).iou, [[0.6, 0.5], [1 / 9, 2 / 9]])


def test_kept_flow_comes_back_exactly(tmp_path: Path) -> None:
    frames = examples.evidence_frames()
    shape = (2, examples.SIZE[1] // 2, examples.SIZE[0] // 2, 2)
    flow = np.random.default_rng(0).integers(-9000, 9000, shape).astype(np.int16)
    frames[1] = type(frames[1])(detections=frames[1].detections, overlaps=frames[1].overlaps, flow=flow)
    publish(tmp_path / "e.h5", encode_evidence(frames, set_id=SET_ID, size=examples.SIZE, flow_shape=shape))
    file = EvidenceFile(tmp_path / "e.h5", set_id=SET_ID, size=examples.SIZE)
    np.testing.assert_array_equal(file.flow(1), flow)
    assert file.flow(0) is None


def test_masks_come_back_exactly(tmp_path: Path) -> None:
    data = encode_masks(
        examples.masks_frames(),
        set_id=SET_ID,
        mask_digest=DIGEST,
        evidence_sha256="c" * 64,
        size=examples.SIZE,
    )
    publish(tmp_path / "m.h5", data)
    file = MasksFile(tmp_path / "m.h5", set_id=SET_ID, mask_digest=DIGEST, size=examples.SIZE)
    assert file.evidence_sha256 == "c" * 64
    assert np.bincount(file.labels(3).ravel()).tolist() == [48 * 32 - 140, 60, 80]
    assert file.instances(0).track.tolist() == [1, 2]
    assert len(file.pairs(0)) == 0
    assert file.pairs(1).prev.tolist() == [1, 2]


def test_equal_content_gives_equal_bytes_at_another_time() -> None:
    def encode() -> bytes:
        return encode_evidence(examples.evidence_frames(), set_id=SET_ID, size=examples.SIZE, flow_shape=None)

    first = encode()
    time.sleep(1.1)  # HDF5 time stamps count seconds
    assert encode() == first


@pytest.mark.fault(Fault.BIT_ROT)
@pytest.mark.parametrize("blob", ["image", "name", "clip"])
def test_a_flipped_bit_in_a_blob_is_found_when_it_is_read(tmp_path: Path, blob: str) -> None:
    path = write_frames(tmp_path / "f.h5")
    with h5py.File(path) as file:
        at = file[f"{blob}_data"].id.get_offset() + 1
    damaged = bytearray(path.read_bytes())
    damaged[at] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(ShardError, match=rf"f\.h5: {blob} of row 0 is damaged"):
        file = open_frames(path)
        file.image(0), file.name(0)


@pytest.mark.fault(Fault.WRONG_VERSION)
def test_another_version_format_or_set_is_refused_with_a_remedy(tmp_path: Path) -> None:
    path = write_frames(tmp_path / "f.h5")
    with pytest.raises(ShardError, match="set_id is .* belongs to another shard set"):
        FramesFile(path, set_id="d" * 64, codec="jpeg", size=examples.SIZE)
    with pytest.raises(
        ShardError, match="format is 'instance-motion frames', expected 'instance-motion evidence'"
    ):
        EvidenceFile(path, set_id=SET_ID, size=examples.SIZE)
    with h5py.File(path, "r+") as file:
        file.attrs["version"] = 2
    with pytest.raises(ShardError, match="version is 2, expected 1; install the release"):
        open_frames(path)


def test_a_missing_or_foreign_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="expected a regular file"):
        open_frames(tmp_path / "no.h5")
    (tmp_path / "text.h5").write_text("hello")
    with pytest.raises(ShardError, match="not a readable HDF5 file") as caught:
        open_frames(tmp_path / "text.h5")
    assert "\n" not in str(caught.value)


HOSTILE = {
    "external link": (lambda f, name: f.__setitem__(name, h5py.ExternalLink("other.h5", "/x")), "is a link"),
    "soft link": (lambda f, name: f.__setitem__(name, h5py.SoftLink("/hidden/x")), "is a link"),
    "group": (lambda f, name: f.create_group(name), "is a group"),
    "external storage": (
        lambda f, name: f.create_dataset(
            name, (4,), "f8", external=[("/etc/hostname", 0, h5py.h5f.UNLIMITED)]
        ),
        "not stored as plain data",
    ),
    "virtual": (
        lambda f, name: f.create_virtual_dataset(name, h5py.VirtualLayout((4,), "f8")),
        "not stored as plain data",
    ),
    "absurd shape": (
        lambda f, name: f.create_dataset(name, (1 << 40,), "f8"),
        "declares 8796093022208 bytes",
    ),
    "chunked": (
        lambda f, name: f.create_dataset(name, (1 << 40,), "f8", chunks=(1024,)),
        "not stored as plain data",
    ),
    "other type": (lambda f, name: f.create_dataset(name, (4,), "f4"), "holds float32, expected f8"),
    "other rank": (lambda f, name: f.create_dataset(name, (4, 1), "f8"), "has shape"),
    "missing": (lambda f, name: None, "is missing"),
    "additional": (lambda f, name: f.create_dataset("more", (4,), "f8"), "timestamps_s|more"),
    "too short": (lambda f, name: f.create_dataset(name, data=np.arange(3.0)), "items|disagree"),
}


@pytest.mark.fault(Fault.HOSTILE_SHARD)
@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_files_are_refused_for_what_they_are(tmp_path: Path, kind: str) -> None:
    path = write_frames(tmp_path / "f.h5")
    with h5py.File(tmp_path / "other.h5", "w") as other:  # what links point to would pass as data
        other["x"] = np.arange(4.0)
    make, message = HOSTILE[kind]
    with h5py.File(path, "r+") as file:
        if kind == "soft link":
            file.create_group("hidden")["x"] = np.arange(4.0)
        del file["timestamps_s"]
        make(file, "timestamps_s")
        if kind == "soft link":
            del file["hidden"]  # the name may dangle: it is refused before it is followed
    with pytest.raises(ShardError, match=message):
        open_frames(path)


@pytest.mark.fault(Fault.HOSTILE_SHARD)
def test_a_symbolic_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "link.h5").symlink_to(write_frames(tmp_path / "f.h5"))
    with pytest.raises(ShardError, match="regular file"):
        open_frames(tmp_path / "link.h5")


@pytest.mark.fault(Fault.MUTATED_SHARD)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_mutated_evidence_file_is_read_or_refused_but_never_crashes(tmp_path_factory, data) -> None:  # type: ignore[no-untyped-def]
    folder = tmp_path_factory.mktemp("mutated")
    path = write_evidence(folder / "e.h5")
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        raw = raw[: data.draw(st.integers(0, len(raw)))]
    path.write_bytes(raw)
    try:
        file = EvidenceFile(path, set_id=SET_ID, size=examples.SIZE)
        for row in range(len(file)):
            _ = file[row]
    except ShardError as error:
        assert "\n" not in str(error)


@given(labels=npst.arrays(st.sampled_from([np.uint8, np.uint16]), npst.array_shapes(min_dims=2, max_dims=2)))
def test_label_maps_of_any_shape_come_back(labels: np.ndarray) -> None:
    size = labels.shape[::-1]
    back = codec.decode_labels(codec.encode_labels(labels), size, labels.dtype.itemsize)
    np.testing.assert_array_equal(back, labels)


@pytest.mark.fault(Fault.HOSTILE_SHARD)
def test_a_blob_cannot_ask_for_more_memory_than_expected() -> None:
    bomb = codec.compress(bytes(1 << 24))
    with pytest.raises(ShardError, match="declares 16777216 bytes, expected 100"):
        codec.decompress(bomb, 100)
    large = codec.encode_image(np.zeros((400, 400, 3), np.uint8), "png")
    with pytest.raises(ShardError, match="400x400, expected 48x32"):
        codec.decode_image(large, "png", examples.SIZE)


@pytest.mark.fault(Fault.DISK_FULL)
def test_publishing_leaves_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    publish(path, b"old")
    with pytest.raises(TypeError):
        publish(path, None)  # type: ignore[arg-type]
    assert path.read_bytes() == b"old"
    publish(path, b"new")
    assert path.read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["a.h5"]
