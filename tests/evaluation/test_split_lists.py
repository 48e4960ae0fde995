"""Split lists: the spellings in use, bad lines, and the benchmarks' own lists."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from evaluation.ground_truth.errors import GroundTruthError
from evaluation.ground_truth.split_lists import (
    CityscapesFrame,
    KittiFrame,
    read_cityscapes_split,
    read_kitti_split,
)

DRIVE = "2011_09_26/2011_09_26_drive_0002_sync"


def written(folder: Path, *lines: str) -> Path:
    path = folder / "split.txt"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize(
    ("line", "camera"),
    [
        (f"{DRIVE} 0000000069 l", 2),
        (f"{DRIVE} 69 l", 2),
        (f"{DRIVE} 69 r", 3),
        (f"{DRIVE}/image_02/data/0000000069.png", 2),
        (f"{DRIVE}/image_02/data/0000000069.jpg {DRIVE}/image_03/data/0000000069.jpg", 2),
    ],
)
def test_all_spellings_of_a_kitti_image(line: str, camera: int, tmp_path: Path) -> None:
    expected = KittiFrame(date="2011_09_26", drive="2011_09_26_drive_0002_sync", camera=camera, frame=69)
    assert read_kitti_split(written(tmp_path, line)) == (expected,)


@pytest.mark.parametrize(
    "line",
    [
        "leverkusen leverkusen_000039_000019",
        "leftImg8bit/test/leverkusen/leverkusen_000039_000019_leftImg8bit.png",
    ],
)
def test_all_spellings_of_a_cityscapes_image(line: str, tmp_path: Path) -> None:
    expected = CityscapesFrame(city="leverkusen", sequence=39, frame=19)
    assert read_cityscapes_split(written(tmp_path, line)) == (expected,)
    assert expected.stem == "leverkusen_000039_000019"


@pytest.mark.parametrize(
    "bad",
    [
        "9 0 l",  # a list of KITTI odometry
        f"{DRIVE} 69",
        f"{DRIVE} 69 m",
        f"{DRIVE} -1 l",
        f"{DRIVE} ٦٩ l",
        "2011_09_26/2011_09_28_drive_0002_sync 69 l",  # a drive of another day
        "../../2011_09_26_drive_0002_sync 69 l",
        "leverkusen leverkusen_000039_000019",
    ],
)
def test_a_bad_kitti_line_is_named_by_its_number(bad: str, tmp_path: Path) -> None:
    path = written(tmp_path, f"{DRIVE} 69 l", "", bad)
    with pytest.raises(GroundTruthError, match="line 3 is .*, expected <date>/<drive>") as found:
        read_kitti_split(path)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    "bad", ["leverkusen", "bonn leverkusen_000039_000019", "bonn bonn_39_19", "bonn/bonn_000039_000019.png"]
)
def test_a_bad_cityscapes_line_is_named_by_its_number(bad: str, tmp_path: Path) -> None:
    path = written(tmp_path, "bonn bonn_000001_000019", bad)
    with pytest.raises(GroundTruthError, match="line 2 is .*, expected <city>"):
        read_cityscapes_split(path)


@pytest.mark.parametrize("read", [read_kitti_split, read_cityscapes_split])
def test_a_list_that_is_missing_empty_or_no_text_is_one_line(
    read: Callable[[Path], object], tmp_path: Path
) -> None:
    with pytest.raises(GroundTruthError, match=r"split.txt: missing; give the benchmark's list"):
        read(tmp_path / "split.txt")
    with pytest.raises(GroundTruthError, match="lists no image"):
        read(written(tmp_path, "", " "))
    (tmp_path / "split.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(GroundTruthError, match="not text"):
        read(tmp_path / "split.txt")
    with pytest.raises(GroundTruthError, match="cannot be read"):
        read(tmp_path)


def test_a_kitti_image_is_found_in_clips_by_their_names() -> None:
    frame = KittiFrame(date="2011_09_26", drive="2011_09_26_drive_0002_sync", camera=2, frame=69)
    assert frame.recording == "2011_09_26_drive_0002_sync/image_02"
    assert KittiFrame.clip_start(frame.recording) == (frame.recording, 0)
    assert KittiFrame.clip_start(f"{frame.recording}/0000000040") == (frame.recording, 40)


def test_a_cityscapes_image_is_found_in_clips_by_their_names() -> None:
    frame = CityscapesFrame(city="bonn", sequence=39, frame=19)
    assert CityscapesFrame.clip_start("test/bonn/bonn_000039_000000") == (frame.recording, 0)
    assert CityscapesFrame.clip_start("test/bonn/bonn_000039_000030") == (frame.recording, 30)
    assert CityscapesFrame.clip_start("elsewhere") == ("elsewhere", 0)


def test_the_lists_of_the_benchmarks(test_data: Path) -> None:
    folder = test_data / "splits"
    if not folder.is_dir():
        pytest.skip(f"no split lists at {folder}")
    eigen = read_kitti_split(folder / "eigen_test_697.txt")
    improved = read_kitti_split(folder / "eigen_improved_test_652.txt")
    city = read_cityscapes_split(folder / "cityscapes_test_1525.txt")
    for frames, count in ((eigen, 697), (improved, 652), (city, 1525)):
        assert len(frames) == len(set(frames)) == count
    assert (
        eigen[0]
        == improved[0]
        == KittiFrame(date="2011_09_26", drive="2011_09_26_drive_0002_sync", camera=2, frame=69)
    )
    assert set(improved) <= set(eigen)  # the others have no annotated depth
    assert {frame.city for frame in city} == {
        "berlin", "bielefeld", "bonn", "leverkusen", "mainz", "munich"
    }  # fmt: skip
