"""Predictions go to disk and come back, and what contradicts itself is refused."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from evaluation.predictions import (
    INDEX,
    ClipPrediction,
    ObjectMotions,
    PredictionError,
    PredictionIndex,
    clip_path,
    read_clip,
    read_clips,
    read_index,
    write_clip,
    write_index,
)
from pipeline.errors import ConfigError
from tests.evaluation.made import object_rows, rigid, small_prediction

STORED = Path(__file__).parent / "stored"
SHA = "ab" * 32


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    index = PredictionIndex(checkpoint=SHA, size=(6, 4), clips=("drive/a 1",))
    write_clip(tmp_path, small_prediction(), index)
    write_index(tmp_path, index)
    return tmp_path


def require_equal(found: ClipPrediction, clip: ClipPrediction, rtol: float) -> None:
    assert found.name == clip.name
    np.testing.assert_allclose(found.inverse_depth, clip.inverse_depth, rtol=rtol)
    for name in ("labels", "later_T_earlier", "K", "timestamps_s"):
        np.testing.assert_array_equal(getattr(found, name), getattr(clip, name))
    for field in fields(ObjectMotions):
        np.testing.assert_array_equal(getattr(found.objects, field.name), getattr(clip.objects, field.name))


@pytest.mark.parametrize(("depth_type", "rtol"), [("float16", 2**-11), ("float32", 2**-24)])
def test_a_clip_comes_back_as_it_was_to_the_stored_precision(
    tmp_path: Path, depth_type: str, rtol: float
) -> None:
    index = PredictionIndex(checkpoint=SHA, size=(6, 4), depth_type=depth_type, clips=("drive/a 1",))  # type: ignore[arg-type]
    path = write_clip(tmp_path, small_prediction(), index)
    write_index(tmp_path, index)
    assert path == tmp_path / "drive" / "a 1.h5"
    assert read_index(tmp_path) == index
    (found,) = read_clips(tmp_path)
    assert found.inverse_depth.dtype == depth_type
    require_equal(found, small_prediction(), rtol)


def test_a_clip_without_objects_and_of_one_frame_comes_back(tmp_path: Path) -> None:
    clip = small_prediction("still")
    clip = replace(
        clip,
        inverse_depth=clip.inverse_depth[:1],
        labels=np.zeros((1, 4, 6), np.uint16),
        later_T_earlier=np.zeros((0, 4, 4)),
        objects=ObjectMotions.empty(),
        timestamps_s=clip.timestamps_s[:1],
    )
    index = PredictionIndex(checkpoint=SHA, size=(6, 4), clips=("still",))
    write_clip(tmp_path, clip, index)
    write_index(tmp_path, index)
    require_equal(read_clip(tmp_path, "still"), clip, 2**-11)


def test_the_stored_folder_of_version_1_can_be_read() -> None:
    (found,) = read_clips(STORED / "v1")
    require_equal(found, small_prediction(), 2**-11)


def test_equal_predictions_give_equal_bytes(folder: Path, tmp_path: Path) -> None:
    first = clip_path(folder, "drive/a 1").read_bytes()
    write_clip(folder, small_prediction(), read_index(folder))
    assert clip_path(folder, "drive/a 1").read_bytes() == first


def test_a_folder_without_its_index_is_unfinished(folder: Path) -> None:
    (folder / INDEX).unlink()
    with pytest.raises(PredictionError, match=r"predictions\.json is missing.*predict"):
        next(read_clips(folder))


def test_a_missing_clip_is_named(folder: Path) -> None:
    clip_path(folder, "drive/a 1").unlink()
    with pytest.raises(PredictionError, match=r"a 1\.h5 is missing"):
        list(read_clips(folder))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("version", 2, "version 2, expected"),
        ("format", "else", "'else' version 1"),
        ("depth_type", "float8", "damaged"),
        ("clips", 3, "damaged"),
        ("clips", ["../x"], "clip name '../x'"),
        ("size", [0, 4], "size 0x4"),
        ("more", 1, "unknown key 'more'"),
    ],
)
def test_an_index_that_is_not_ours_is_refused_with_one_line(
    folder: Path, key: str, value: object, message: str
) -> None:
    data = json.loads((folder / INDEX).read_text())
    (folder / INDEX).write_text(json.dumps({**data, key: value}))
    with pytest.raises(PredictionError, match=message) as caught:
        read_index(folder)
    assert "\n" not in str(caught.value)


def test_text_that_is_no_json_is_refused(folder: Path) -> None:
    (folder / INDEX).write_text("{")
    with pytest.raises(PredictionError, match="damaged"):
        read_index(folder)


def test_a_clip_of_another_checkpoint_is_refused(folder: Path) -> None:
    other = replace(read_index(folder), checkpoint="cd" * 32)
    with pytest.raises(PredictionError, match="checkpoint is .*expected 'cdcd.*predict"):
        read_clip(folder, "drive/a 1", other)


def test_damage_in_a_file_is_found(folder: Path) -> None:
    path = clip_path(folder, "drive/a 1")
    with h5py.File(path, "r+") as file:
        file["labels_data"][3] ^= 255
    with pytest.raises(PredictionError, match="CRC-32C"):
        read_clip(folder, "drive/a 1")
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(PredictionError, match="not a readable HDF5 file"):
        read_clip(folder, "drive/a 1")


def test_a_file_with_more_than_the_tables_is_refused(folder: Path) -> None:
    with h5py.File(clip_path(folder, "drive/a 1"), "r+") as file:
        file["elsewhere"] = h5py.ExternalLink("/etc/passwd", "/")
    with pytest.raises(PredictionError, match="'elsewhere' is unknown"):
        read_clip(folder, "drive/a 1")


def test_nothing_is_left_behind_beside_a_clip(folder: Path) -> None:
    assert sorted(p.name for p in folder.rglob("*") if p.is_file()) == ["a 1.h5", INDEX]


def test_another_size_or_a_depth_beyond_float16_is_not_written(tmp_path: Path) -> None:
    clip = small_prediction()
    with pytest.raises(PredictionError, match="predicted at"):
        write_clip(tmp_path, clip, PredictionIndex(checkpoint=SHA, size=(4, 6)))
    tiny = replace(clip, inverse_depth=np.full((3, 4, 6), 1e-9))
    with pytest.raises(PredictionError, match="float16"):
        write_clip(tmp_path, tiny, PredictionIndex(checkpoint=SHA, size=(6, 4)))
    assert not list(tmp_path.rglob("*.h5"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inverse_depth": np.zeros((3, 4, 6))}, "above 0"),
        ({"inverse_depth": np.full((3, 4, 6), np.nan)}, "finite"),
        ({"inverse_depth": np.ones((4, 6))}, "not \\(N, H, W\\)"),
        ({"labels": np.zeros((3, 4, 5), np.uint8)}, "labels is"),
        ({"labels": np.zeros((3, 4, 6), np.uint8)}, "label that frame 0 lacks"),
        ({"labels": np.zeros((3, 4, 6), np.int64)}, "labels are int64"),
        ({"later_T_earlier": np.zeros((3, 4, 4))}, "later_T_earlier is"),
        ({"later_T_earlier": np.stack([2 * np.eye(4)] * 2)}, "no rigid motion"),
        ({"later_T_earlier": np.stack([np.diag([1.01, 1, 1, 1])] * 2)}, "no rigid motion"),
        ({"later_T_earlier": np.stack([np.diag([1.0, 1, -1, 1])] * 2)}, "no rigid motion"),
        ({"timestamps_s": np.array([0, 0.2, 0.2])}, "must rise"),
        ({"K": np.eye(4)}, "K is"),
        ({"K": np.zeros((3, 3))}, "no camera"),
        ({"name": "../up"}, "clip name"),
        ({"name": "/root"}, "clip name"),
        ({"name": ""}, "clip name"),
        ({"objects": object_rows((2, 3, 3, 1, np.eye(4), (0, 0, 0)))}, "pair of frames that is not there"),
    ],
)
def test_a_prediction_that_contradicts_itself_cannot_be_made(change: dict, message: str) -> None:
    with pytest.raises(PredictionError, match=message):
        replace(small_prediction(), **change)


def test_object_rows_are_checked() -> None:
    rows = small_prediction().objects
    for change, message in (
        ({"motion": rows.motion[:1]}, "motion has shape"),
        ({"motion": np.full((2, 4, 4), np.nan)}, "not finite"),
        ({"centre": np.full((2, 3), np.inf)}, "centres must be finite"),
        ({"frame": rows.frame[::-1]}, "order of their frames"),
        ({"class_index": np.array([99, 0], np.uint8)}, "class indices"),
        ({"label": np.array([70000, 1])}, "leaves the range of uint16"),
        ({"track": np.array([-1, 1])}, "leaves the range of uint32"),
    ):
        with pytest.raises(PredictionError, match=message):
            replace(rows, **change)


def test_the_next_label_must_be_in_the_next_frame() -> None:
    with pytest.raises(PredictionError, match="label that frame 1 lacks"):
        replace(small_prediction(), objects=object_rows((0, 3, 4, 1, rigid(), (0, 0, 0))))


def test_an_absurd_size_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match="expected sides"):
        PredictionIndex(checkpoint=SHA, size=(0, 4))


def test_depth_is_one_over_what_is_stored() -> None:
    clip = small_prediction()
    np.testing.assert_allclose(clip.depth(0) * clip.inverse_depth[0], 1)
    assert clip.size == (6, 4)
