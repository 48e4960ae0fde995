"""Leaks between training and test: small lists with the answer on paper, and the benchmarks' own lists."""

from __future__ import annotations

from pathlib import Path

import pytest

from evaluation.ground_truth.errors import GroundTruthError
from evaluation.leaks import (
    ODOMETRY_DRIVES,
    Image,
    Images,
    find_leaks,
    images_of_clips,
    leaks_text,
    read_images,
)
from pipeline.classes import CLASSES
from pipeline.errors import ConfigError, ShardError
from pipeline.shards.manifest import ClipEntry, FileEntry, Manifest, write_manifest

DRIVE, OTHER_DRIVE = "2011_09_26_drive_0002_sync", "2011_09_26_drive_0009_sync"


def written(folder: Path, *lines: str, name: str = "list.txt") -> Path:
    path = folder / name
    path.write_text("\n".join(lines) + "\n")
    return path


def kitti(*frames: int, drive: str = DRIVE, camera: int = 2) -> Images:
    return Images(images=frozenset(Image(recording=drive, frame=n, camera=camera) for n in frames))


def clip(name: str, frames: int) -> ClipEntry:
    K = ((100.0, 0.0, 10.0), (0.0, 100.0, 10.0), (0.0, 0.0, 1.0))
    return ClipEntry(name=name, frames=frames, K=K, fingerprint="", files=((0, 0, frames),))


def numbers(images: Images) -> list[int]:
    return sorted(image.frame for image in images.images)


def shard_set(folder: Path, clips: list[ClipEntry], source: dict[str, object] | None = None) -> Path:
    """A shard set of which only the manifest is there: more is not read."""
    entry = FileEntry(sha256="0" * 64, bytes=0, frames=max(each.frames for each in clips))
    folder.mkdir()
    write_manifest(
        folder,
        Manifest(
            set_id="0" * 64,
            size=(32, 16),
            codec="png",
            classes=CLASSES,
            config={"source": source} if source else {},
            clips=tuple(clips),
            quarantine=(),
            frames={"00000.h5": entry},
            evidence={"00000.h5": entry},
        ),
    )
    return folder


def test_same_and_near_images_are_told_apart() -> None:
    leaks = find_leaks(kitti(0, 4, 7, 10, 13, 14, 30), kitti(10, 50), near=3)
    assert [image.frame for image in leaks.same] == [10]
    assert [image.frame for image in leaks.near] == [7, 13]  # 3 away is near, 4 is not
    assert (leaks.train, leaks.test, leaks.test_near) == (7, 2, 1)
    (shared,) = leaks.recordings
    assert (shared.recording, shared.train, shared.test, shared.same, shared.near) == (DRIVE, 7, 2, 1, 2)
    assert leaks.found
    assert leaks.certain


def test_the_other_camera_at_the_same_time_is_near_and_not_the_same() -> None:
    leaks = find_leaks(kitti(5, camera=3), kitti(5), near=0)
    assert (leaks.same, len(leaks.near), leaks.test_near) == ((), 1, 1)


def test_other_recordings_do_not_leak_however_alike_their_numbers() -> None:
    leaks = find_leaks(kitti(5, drive=OTHER_DRIVE), kitti(5))
    assert not leaks.found
    assert not leaks.recordings
    assert leaks_text(leaks).endswith("no leak: no recording in common")


def test_a_common_recording_without_near_images_is_said() -> None:
    leaks = find_leaks(kitti(0), kitti(500), near=10)
    assert not leaks.found
    assert len(leaks.recordings) == 1
    assert leaks_text(leaks).endswith("no leak: nothing within 10 images, but recordings in common")


def test_near_must_not_be_below_zero() -> None:
    with pytest.raises(ConfigError, match="near is -1; expected 0 or more"):
        find_leaks(kitti(1), kitti(1), near=-1)


def test_a_clip_covers_its_images_from_the_first_on() -> None:
    assert numbers(images_of_clips([clip(f"{DRIVE}/image_02", 3)])) == [0, 1, 2]
    (after_a_gap,) = {i.camera for i in images_of_clips([clip(f"{DRIVE}/image_03/0000000040", 2)]).images}
    assert after_a_gap == 3
    assert numbers(images_of_clips([clip(f"{DRIVE}/image_03/0000000040", 2)])) == [40, 41]
    assert numbers(images_of_clips([clip(f"{DRIVE}/image_02-2", 2)])) == [0, 1]  # the name was taken
    city = images_of_clips([clip("train/bonn/bonn_000039_000010", 2)])
    assert city.images == {
        Image(recording="bonn_000039", frame=10),
        Image(recording="bonn_000039", frame=11),
    }


def test_a_stride_is_followed_and_a_frame_rate_leaves_images_unknown() -> None:
    clips = [clip(f"{DRIVE}/image_02/0000000010", 3)]
    assert numbers(images_of_clips(clips, {"stride": 4, "target_fps": None, "start_s": 0.0})) == [10, 14, 18]
    for source in ({"target_fps": 5.0}, {"start_s": 2.0}):
        found = images_of_clips(clips, source)
        assert (found.images, found.loose) == (frozenset(), {DRIVE})
        leaks = find_leaks(found, kitti(10))
        assert not leaks.found
        assert not leaks.certain
        assert "or more: images of a clip unknown" in leaks_text(leaks)
        assert leaks_text(leaks).endswith("no leak among what could be compared; the rest is not known")
    with pytest.raises(ConfigError, match="a stride of 'two'"):
        images_of_clips(clips, {"stride": "two"})


def test_clips_of_no_data_set_are_named_as_not_compared() -> None:
    found = images_of_clips([clip("holiday/dashcam", 9), clip(f"{DRIVE}/image_02", 1)])
    assert found.unplaced == ("holiday/dashcam",)
    leaks = find_leaks(found, kitti(500))
    assert not leaks.certain
    assert "NOT compared: 1 clips of no known data set, such as holiday/dashcam" in leaks_text(leaks)


def test_odometry_sequences_are_drives_under_other_names() -> None:
    found = images_of_clips([clip("08/image_2", 2), clip("09/image_3/000005", 1), clip("11/image_2", 1)])
    assert found.images == {
        Image(recording="2011_09_30_drive_0028_sync", frame=1100),  # 08 begins there
        Image(recording="2011_09_30_drive_0028_sync", frame=1101),
        Image(recording="2011_09_30_drive_0033_sync", frame=5, camera=3),
        Image(recording="odometry 11", frame=0),
    }


def test_one_who_has_an_odometry_layout_of_their_own_is_not_taken_for_kitti() -> None:
    assert not images_of_clips([clip("04/image_2", 271)]).unplaced
    assert images_of_clips([clip("04/image_2", 272)]).unplaced == ("04/image_2",)


def test_lists_of_every_data_set_are_read(tmp_path: Path) -> None:
    raw = written(tmp_path, "", f"2011_09_26/{DRIVE} 69 r")
    assert read_images(raw).images == {Image(recording=DRIVE, frame=69, camera=3)}
    city = written(tmp_path, "bonn bonn_000039_000019")
    assert read_images(city).images == {Image(recording="bonn_000039", frame=19)}
    odometry = written(tmp_path, "8 3 l", "8 3 r")
    drive = ODOMETRY_DRIVES["08"][0]
    assert read_images(odometry).images == {
        Image(recording=drive, frame=1103, camera=2),
        Image(recording=drive, frame=1103, camera=3),
    }


def test_a_list_and_a_shard_set_are_compared(tmp_path: Path) -> None:
    shards = shard_set(tmp_path / "set", [clip(f"{DRIVE}/image_02", 5), clip(f"{OTHER_DRIVE}/image_02", 5)])
    test = written(tmp_path, f"2011_09_26/{DRIVE} 6 l", f"2011_09_26/{DRIVE} 3 l")
    leaks = find_leaks(read_images(shards), read_images(test), near=1)
    assert [image.frame for image in leaks.same] == [3]
    assert [image.frame for image in leaks.near] == [2, 4]
    assert leaks.test_near == 1  # image 6 is two away from the last one
    text = leaks_text(leaks)
    assert text.startswith("# 10 training images, 2 test images")
    assert f"  {DRIVE}  train     5  test     2  in both     1  near     2" in text
    assert text.splitlines()[-1].startswith("LEAKS: ")
    assert len(find_leaks(read_images(shards), read_images(shards)).same) == 10


def test_the_selection_in_a_shard_sets_record_is_followed(tmp_path: Path) -> None:
    shards = shard_set(tmp_path / "set", [clip(f"{DRIVE}/image_02", 3)], {"stride": 5})
    assert numbers(read_images(shards)) == [0, 5, 10]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (("a cat",), "begins with 'a cat'; expected a list of images of KITTI raw"),
        (("",), "begins with ''"),
        ((f"2011_09_26/{DRIVE} 69 l", "9 0 l"), "line 2 is '9 0 l', expected <date>/<drive>"),
        (("9 0 l", "9 0"), "line 2 is '9 0', expected <sequence> <image> <l or r>"),
        (("4 270 l", "4 271 l"), "line 2 asks for image 271, past the end of sequence 04"),
        (("bonn bonn_000039_000019", "x"), "line 2 is 'x', expected <city>"),
    ],
)
def test_a_bad_list_is_one_line(lines: tuple[str, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(GroundTruthError) as found:
        read_images(written(tmp_path, *lines))
    assert message in str(found.value)
    assert "\n" not in str(found.value)


def test_what_is_missing_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(GroundTruthError, match="No such file or directory"):
        read_images(tmp_path / "none.txt")
    with pytest.raises(ShardError, match="no shard set"):
        read_images(tmp_path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(GroundTruthError, match="not text"):
        read_images(tmp_path / "binary")


def test_only_the_recordings_that_leak_most_are_listed() -> None:
    drives = [f"2011_09_26_drive_{n:04d}_sync" for n in range(30)]
    both = Images(
        images=frozenset().union(*(kitti(*range(n + 1), drive=d).images for n, d in enumerate(drives)))
    )
    text = leaks_text(find_leaks(both, both))
    assert drives[-1] in text
    assert drives[0] not in text
    assert "  and 10 more" in text


@pytest.fixture(scope="module")
def splits(test_data: Path) -> Path:
    folder = test_data / "splits"
    if not folder.is_dir():
        pytest.skip(f"no split lists at {folder}")
    return folder


@pytest.mark.parametrize(
    ("name", "count"),
    [("eigen_test_697", 697), ("eigen_improved_test_652", 652), ("cityscapes_test_1525", 1525)],
)
def test_a_benchmarks_list_against_itself_leaks_everything(name: str, count: int, splits: Path) -> None:
    images = read_images(splits / f"{name}.txt")
    leaks = find_leaks(images, images)
    assert (len(leaks.same), len(leaks.near), leaks.test_near) == (count, 0, count)


def test_benchmarks_of_different_places_share_nothing(splits: Path) -> None:
    eigen, city, nine, ten = (
        read_images(splits / f"{name}.txt")
        for name in ("eigen_test_697", "cityscapes_test_1525", "odometry_09", "odometry_10")
    )
    for train, test in ((eigen, city), (nine, ten), (eigen, nine), (eigen, ten)):
        leaks = find_leaks(train, test)
        assert leaks.certain
        assert not leaks.recordings


def test_training_on_odometry_leaks_into_eigens_test(splits: Path) -> None:
    eigen = read_images(splits / "eigen_test_697.txt")
    clips = [clip(f"{name}/image_2", last - first + 1) for name, (_, first, last) in ODOMETRY_DRIVES.items()]
    leaks = find_leaks(images_of_clips(clips), eigen)
    # Sequences 00, 04, 05 and 07 are drives of Eigen's test; 04 ends before the drive does.
    assert {shared.recording: shared.same for shared in leaks.recordings} == {
        "2011_10_03_drive_0027_sync": 25,
        "2011_09_30_drive_0016_sync": 24,
        "2011_09_30_drive_0018_sync": 25,
        "2011_09_30_drive_0027_sync": 25,
    }
    assert leaks.test_near == 100


def test_odometrys_sequences_have_as_many_images_as_poses(test_data: Path) -> None:
    poses = test_data / "kitti_odometry" / "poses"
    if not poses.is_dir():
        pytest.skip(f"no true poses at {poses}")
    for sequence, (_, first, last) in ODOMETRY_DRIVES.items():
        assert len((poses / f"{sequence}.txt").read_text().splitlines()) == last - first + 1
