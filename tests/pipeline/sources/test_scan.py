"""Scanning: every kind of source gives its clips, bad ones are set aside, and errors say what to do."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import ConfigError, SourceError
from pipeline.sources.clip import BadClip, Clip
from pipeline.sources.scan import SourceConfig, detect_kind, scan
from tests.faults.table import Fault
from tests.pipeline.sources.videos import encode, number_of, numbered_frames

FOV: dict[str, Any] = {"fov_deg": 60.0}


def images(folder: Path, names: list[str], size: tuple[int, int] = (64, 48)) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        Image.fromarray(np.full((size[1], size[0], 3), number, np.uint8)).save(folder / name)


def good(results: list[Clip | BadClip]) -> list[Clip]:
    assert [result for result in results if isinstance(result, BadClip)] == []
    return [result for result in results if isinstance(result, Clip)]


def grey_values(clip: Clip) -> list[int]:
    return [int(frame[0, 0, 0]) for frame in clip.reader.frames(0, len(clip))]


# --- video ---------------------------------------------------------------------------------------


@pytest.mark.fault(Fault.DAMAGED_VIDEO)
def test_a_folder_of_videos_with_a_bad_one(tmp_path):
    frames = numbered_frames(12)
    for name in ["ride 10.mp4", "ride 9.mp4", "day2/ride.mp4", "day2/ride.mkv"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        encode(tmp_path / name, frames, container="matroska" if name.endswith("mkv") else "mp4")
    (tmp_path / "ride 9b.mp4").write_bytes((tmp_path / "ride 9.mp4").read_bytes()[:500])
    (tmp_path / "notes.txt").touch()

    results = scan(tmp_path, SourceConfig(**FOV))
    assert [result.name for result in results] == [
        "day2/ride",
        "day2/ride-2",
        "ride%209",
        "ride%209b",
        "ride%2010",
    ]
    bad = results.pop(3)
    assert isinstance(bad, BadClip)
    assert "ride 9b.mp4" in bad.reason
    clips = good(results)
    assert all(clip.frame_names == tuple(f"{n:06d}" for n in range(12)) for clip in clips)
    assert [number_of(frame) for frame in clips[2].reader.frames(4, 6)] == [4, 5]
    assert pickle.loads(pickle.dumps(clips[0])).name == "day2/ride"  # noqa: S301 (our own bytes)


def test_one_video_file_with_stride_span_and_cut_bottom(tmp_path):
    path = encode(tmp_path / "a.mp4", numbered_frames(30))
    (clip,) = good(scan(path, SourceConfig(stride=4, start_s=0.2, end_s=1.0, drop_bottom=0.25, **FOV)))
    assert clip.frame_names == ("000005", "000009", "000013", "000017", "000021")
    np.testing.assert_allclose(clip.timestamps_s, np.arange(5, 25, 4) / 25)
    assert clip.camera.size == (96, 48)
    assert clip.camera.K[1, 2] == pytest.approx(31.5)  # of the whole frame of 64 rows
    assert [number_of(frame) for frame in clip.reader.frames(1, 3)] == [9, 13]
    (slow,) = good(scan(path, SourceConfig(target_fps=5, **FOV)))
    assert slow.frame_names == ("000000", "000005", "000010", "000015", "000020", "000025")


@pytest.mark.fault(Fault.ODD_INPUT)
def test_a_span_that_leaves_one_frame_is_a_bad_clip(tmp_path):
    encode(tmp_path / "a.mp4", numbered_frames(5))
    (bad,) = scan(tmp_path, SourceConfig(start_s=0.15, **FOV))
    assert isinstance(bad, BadClip)
    assert "at least 2" in bad.reason


def test_fingerprints_follow_content_and_choice_not_place_or_time(tmp_path):
    (tmp_path / "one").mkdir()
    path = encode(tmp_path / "one" / "a.mp4", numbered_frames(12))
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    (tmp_path / "two" / "a.mp4").touch()

    def printed(folder: str, **config) -> str:
        (clip,) = good(scan(tmp_path / folder, SourceConfig(**{**FOV, **config})))
        return clip.fingerprint

    first = printed("one")
    assert first == printed("two")
    assert (
        len({first, printed("one", stride=2), printed("one", fov_deg=70.0), printed("one", drop_bottom=0.5)})
        == 4
    )
    encode(path, numbered_frames(13))
    assert printed("one") != first


def test_a_missing_or_wrong_camera_is_one_error_for_the_source(tmp_path):
    for name in "abcdefgh":
        encode(tmp_path / f"{name}.mp4", numbered_frames(3))
    with pytest.raises(SourceError, match="camera is unknown"):
        scan(tmp_path, SourceConfig())
    with pytest.raises(SourceError, match="implausible"):
        scan(tmp_path, SourceConfig(intrinsics="9000,9000,48,32"))
    with pytest.raises(SourceError, match=r"no\.json: cannot be read"):
        scan(tmp_path, SourceConfig(intrinsics="no.json"))


def test_a_camera_that_fits_some_clips_sets_the_others_aside(tmp_path):
    encode(tmp_path / "a.mp4", numbered_frames(3, width=64, height=96))
    encode(tmp_path / "b.mp4", numbered_frames(3, width=96, height=64))
    camera = {"fx": 90, "fy": 90, "cx": 48, "cy": 32, "width": 96, "height": 64}
    (tmp_path / "camera.json").write_text(json.dumps(camera))
    bad, clip = scan(tmp_path, SourceConfig(kind="video"))
    assert isinstance(bad, BadClip)
    assert "another shape" in bad.reason
    assert isinstance(clip, Clip)
    assert clip.camera.K[0, 0] == 90


# --- images --------------------------------------------------------------------------------------


def test_image_folders_in_natural_order(tmp_path):
    images(tmp_path / "cam 1", ["1.png", "2.png", "10.png"])
    images(tmp_path / "cam 1" / "more", ["a.jpg", "b.jpg"])
    clips = good(scan(tmp_path, SourceConfig(fps=5, **FOV)))
    assert [clip.name for clip in clips] == ["cam%201", "cam%201/more"]
    assert clips[0].frame_names == ("1", "2", "10")
    np.testing.assert_allclose(clips[0].timestamps_s, [0, 0.2, 0.4])
    assert grey_values(clips[0]) == [0, 1, 2]
    (strided,) = good(scan(tmp_path, SourceConfig(stride=2, include=("cam%201",), **FOV)))
    assert strided.frame_names == ("1", "10")
    assert grey_values(strided) == [0, 2]


def test_images_directly_in_the_root_are_named_after_it(tmp_path):
    images(tmp_path / "drive", ["1.png", "2.png"])
    (clip,) = good(scan(tmp_path / "drive", SourceConfig(**FOV)))
    assert clip.name == "drive"
    np.testing.assert_allclose(clip.timestamps_s, [0, 0.1])


@pytest.mark.fault(Fault.ODD_INPUT)
def test_times_beside_the_images(tmp_path):
    images(tmp_path / "a", ["1.png", "2.png", "3.png"])
    times = tmp_path / "a" / "timestamps.txt"
    times.write_text("100.0\n100.5\n100.75")
    (clip,) = good(scan(tmp_path, SourceConfig(**FOV)))
    np.testing.assert_allclose(clip.timestamps_s, [0, 0.5, 0.75])
    for text, words in [
        ("1\n2\n", "2 times for 3"),
        ("1\n2\nx\n", "'x' is no time"),
        ("1\n1\n2\n", "increase"),
    ]:
        times.write_text(text)
        (bad,) = scan(tmp_path, SourceConfig(**FOV))
        assert isinstance(bad, BadClip)
        assert words in bad.reason


@pytest.mark.fault(Fault.ODD_INPUT)
def test_odd_images_are_named(tmp_path):
    images(tmp_path / "a", ["1.png", "2.png", "3.png"])
    images(tmp_path / "a", ["2.png"], size=(65, 48))
    images(tmp_path / "b", ["1.png", "1.jpg"])
    images(tmp_path / "c", ["1.png"])
    images(tmp_path / "d", ["1.png", "2.png"])
    (tmp_path / "d" / "2.png").write_bytes(b"")
    reasons = [result.reason for result in scan(tmp_path, SourceConfig(**FOV)) if isinstance(result, BadClip)]
    for reason, words in zip(
        reasons, ["2.png: is 65x48", "same name", "at least 2", "2.png: is empty"], strict=True
    ):
        assert words in reason


# --- KITTI ---------------------------------------------------------------------------------------

RAW_CALIBRATION = """calib_time: 09-Jan-2012 13:57:47
S_rect_02: 6.400000e+01 4.800000e+01
P_rect_02: 60.0 0 31.0 44.8 0 61.0 23.0 0.2 0 0 1 0.0027
S_rect_03: 6.400000e+01 4.800000e+01
P_rect_03: 62.0 0 30.0 -339.5 0 63.0 22.0 2.2 0 0 1 0.0027
"""


def kitti_raw(root: Path, frames: list[int], cameras: tuple[str, ...] = ("image_02", "image_03")) -> Path:
    drive = root / "2011_09_26" / "2011_09_26_drive_0001_sync"
    for camera in cameras:
        images(drive / camera / "data", [f"{n:010d}.png" for n in frames])
    (root / "2011_09_26" / "calib_cam_to_cam.txt").write_text(RAW_CALIBRATION)
    return drive


def test_kitti_raw_at_every_level(tmp_path):
    drive = kitti_raw(tmp_path, [0, 1, 2])
    lines = [f"2011-09-26 13:02:{59 + n // 2:02d}.{500000000 * (n % 2):09d}" for n in (0, 1)]
    (drive / "image_02" / "timestamps.txt").write_text("\n".join([*lines, "2011-09-26 13:03:00.250000001"]))
    for level in (tmp_path, tmp_path / "2011_09_26", drive):
        left, right = good(scan(level, SourceConfig()))
        assert left.name == "2011_09_26_drive_0001_sync/image_02"
        assert right.name == "2011_09_26_drive_0001_sync/image_03"
        np.testing.assert_allclose(left.camera.K, [[60, 0, 31], [0, 61, 23], [0, 0, 1]])
        np.testing.assert_allclose(right.camera.K, [[62, 0, 30], [0, 63, 22], [0, 0, 1]])
        np.testing.assert_allclose(left.timestamps_s, [0, 0.5, 1.25], atol=1e-6)
        np.testing.assert_allclose(right.timestamps_s, [0, 0.1, 0.2])
        assert left.frame_names == ("0000000000", "0000000001", "0000000002")
    (own,) = good(scan(drive, SourceConfig(intrinsics="70,70,32,24", include=("*/image_02",))))
    assert own.camera.K[0, 0] == 70


def test_kitti_gaps_split_the_drive_and_keep_the_times(tmp_path):
    drive = kitti_raw(tmp_path, [3, 4, 5, 9, 10], cameras=("image_02",))
    (drive / "image_02" / "timestamps.txt").write_text("\n".join(str(n * n) for n in range(11)))
    first, second = good(scan(tmp_path, SourceConfig()))
    assert first.name.endswith("image_02/0000000003")
    assert second.name.endswith("image_02/0000000009")
    np.testing.assert_allclose(first.timestamps_s, [0, 7, 16])
    np.testing.assert_allclose(second.timestamps_s, [0, 19])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: None, "calib_cam_to_cam.txt: missing; it comes with KITTI"),
        (lambda text: text.replace("P_rect_02", "P_02"), "holds no P_rect_02"),
        (lambda text: text.replace("6.400000e+01", "1392"), "made for 1392x48 frames"),
        (lambda text: text.replace("60.0 0 31.0", "0 0 31.0"), "implausible"),
    ],
)
def test_kitti_calibration_that_is_missing_or_wrong_names_the_file(tmp_path, change, words):
    kitti_raw(tmp_path, [0, 1], cameras=("image_02",))
    path = tmp_path / "2011_09_26" / "calib_cam_to_cam.txt"
    text = change(path.read_text())
    path.unlink()
    if text is not None:
        path.write_text(text)
    (bad,) = scan(tmp_path, SourceConfig())
    assert isinstance(bad, BadClip)
    assert words in bad.reason


def test_kitti_odometry_at_every_level(tmp_path):
    sequence = tmp_path / "dataset" / "sequences" / "09"
    for camera in ("image_2", "image_3"):
        images(sequence / camera, [f"{n:06d}.png" for n in range(3)])
    rows = [f"P{n}: {60 + n} 0 31 {n}.5 0 {60 + n} 23 0.1 0 0 1 0.004" for n in range(4)]
    (sequence / "calib.txt").write_text("\n".join(rows))
    (sequence / "times.txt").write_text("0.0\n1.036224e-01\n2.072345e-01\n")
    for level in (tmp_path / "dataset", tmp_path / "dataset" / "sequences", sequence):
        left, right = good(scan(level, SourceConfig()))
        assert (left.name, right.name) == ("09/image_2", "09/image_3")
        assert (left.camera.K[0, 0], right.camera.K[0, 0]) == (62, 63)
        np.testing.assert_allclose(left.timestamps_s, [0, 0.1036224, 0.2072345])
    (sequence / "times.txt").write_text("0.0\n0.1\n")
    assert all(
        "frame 000002.png" in bad.reason for bad in scan(sequence, SourceConfig()) if isinstance(bad, BadClip)
    )


def test_kitti_scene_flow_pairs_are_clips_of_two(tmp_path):
    for part, pairs in (("training", (0, 7)), ("testing", (3,))):
        folder = tmp_path / "kitti2015" / part
        images(folder / "image_2", [f"{pair:06d}_{frame}.png" for pair in pairs for frame in (10, 11)])
        (folder / "calib_cam_to_cam").mkdir()
        for pair in pairs:
            (folder / "calib_cam_to_cam" / f"{pair:06d}.txt").write_text(RAW_CALIBRATION)
    for level in (tmp_path / "kitti2015", tmp_path / "kitti2015" / "training"):
        first, second = good(scan(level, SourceConfig()))
        assert (first.name, second.name) == ("000000", "000007")
        assert first.frame_names == ("000000_10", "000000_11")
        np.testing.assert_allclose(first.camera.K, [[60, 0, 31], [0, 61, 23], [0, 0, 1]])
        np.testing.assert_allclose(first.timestamps_s, [0, 0.1])
    training = tmp_path / "kitti2015" / "training"
    (training / "image_2" / "000007_11.png").unlink()
    (training / "calib_cam_to_cam" / "000000.txt").write_text(RAW_CALIBRATION.replace("6.400000e+01", "1392"))
    size, missing = scan(training, SourceConfig())
    assert isinstance(size, BadClip)
    assert "made for 1392x48 frames" in size.reason
    assert isinstance(missing, BadClip)
    assert "000007_11.png: missing" in missing.reason
    with pytest.raises(SourceError, match="holds no image_2 beside calib_cam_to_cam"):
        scan(tmp_path / "kitti2015" / "testing" / "image_2", SourceConfig(kind="kitti-scene-flow"))


def test_the_real_kitti_drive(test_data):
    if not (test_data / "kitti_raw").is_dir():
        pytest.skip(f"no {test_data / 'kitti_raw'}")
    (clip,) = good(scan(test_data / "kitti_raw", SourceConfig()))
    assert clip.name == "2011_09_26_drive_0052_sync/image_02"
    assert len(clip) == 78
    assert clip.camera.size == (1242, 375)
    np.testing.assert_allclose(
        clip.camera.K[[0, 1, 0, 1], [0, 1, 2, 2]], [721.5377, 721.5377, 609.5593, 172.854]
    )
    np.testing.assert_allclose(clip.timestamps_s, np.arange(78) / 10)
    assert next(clip.reader.frames(77, 78)).shape == (375, 1242, 3)


# --- Cityscapes ----------------------------------------------------------------------------------


def cityscapes(root: Path) -> None:
    folder = root / "leftImg8bit_sequence" / "val" / "lindau"
    names = [f"lindau_000000_{n:06d}_leftImg8bit.png" for n in [0, 1, 2, 3, 7, 8]]
    images(folder, [*names, "lindau_000001_000000_leftImg8bit.png", "lindau_000001_000001_leftImg8bit.png"])
    cameras = root / "camera" / "val" / "lindau"
    cameras.mkdir(parents=True)
    for frame, fx in [(2, 62.0), (8, 68.0)]:
        intrinsic = {"intrinsic": {"fx": fx, "fy": 61.0, "u0": 31.0, "v0": 23.0}, "extrinsic": {}}
        (cameras / f"lindau_000000_{frame:06d}_camera.json").write_text(json.dumps(intrinsic))


def test_cityscapes_snippets(tmp_path):
    cityscapes(tmp_path)
    for level in (tmp_path, tmp_path / "leftImg8bit_sequence"):
        first, second, bad = scan(level, SourceConfig())
        assert isinstance(first, Clip)
        assert isinstance(second, Clip)
        assert (first.name, second.name) == (
            "val/lindau/lindau_000000_000000",
            "val/lindau/lindau_000000_000007",
        )
        assert (len(first), len(second)) == (4, 2)
        np.testing.assert_allclose(first.timestamps_s, np.arange(4) / 17)
        # The bonnet is cut off, K is that of the whole frame, from the camera file nearest to the snippet.
        assert first.camera.size == (64, 36)
        np.testing.assert_allclose(first.camera.K, [[62, 0, 31], [0, 61, 23], [0, 0, 1]])
        assert second.camera.K[0, 0] == 68
        assert next(first.reader.frames(2, 3)).shape == (36, 64, 3)
        assert isinstance(bad, BadClip)
        assert "lindau_000001_<frame>_camera.json" in bad.reason
        assert "camera_trainvaltest.zip" in bad.reason
    whole = scan(tmp_path, SourceConfig(drop_bottom=0.0, include=("val/lindau/lindau_000000_*",)))
    assert [clip.camera.size for clip in good(whole)] == [(64, 48), (64, 48)]


# --- which kind, which clips, which settings -----------------------------------------------------


def test_kinds_are_detected(tmp_path):
    kitti_raw(tmp_path / "raw", [0, 1])
    cityscapes(tmp_path / "city")
    images(tmp_path / "pictures" / "a", ["1.png"])
    (tmp_path / "movies").mkdir()
    (tmp_path / "movies" / "a.MP4").touch()
    (tmp_path / "streets" / "000").mkdir(parents=True)
    (tmp_path / "streets" / "000" / "video.mp4").touch()
    (tmp_path / "streets" / "000" / "camera.json").write_text(
        '{"format": "streetworld-camera", "version": 1}'
    )
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "video.mp4").touch()
    (tmp_path / "mine" / "camera.json").write_text('{"fx": 700, "fy": 700, "cx": 600, "cy": 170}')
    kinds = {folder.name: detect_kind(folder) for folder in tmp_path.iterdir()}
    assert kinds == {
        "raw": "kitti-raw",
        "city": "cityscapes",
        "pictures": "images",
        "movies": "video",
        "streets": "streetworld",
        "mine": "video",
    }
    assert detect_kind(tmp_path / "movies" / "a.MP4") == "video"


def test_nothing_and_too_much_are_errors(tmp_path):
    with pytest.raises(SourceError, match="does not exist"):
        scan(tmp_path / "absent", SourceConfig())
    (tmp_path / "readme.txt").touch()
    with pytest.raises(SourceError, match=r"looked for streetworld.*leftImg8bit_sequence.*\.mp4.*\.png"):
        scan(tmp_path, SourceConfig(**FOV))
    with pytest.raises(SourceError, match="no clips of kind cityscapes"):
        scan(tmp_path, SourceConfig(kind="cityscapes"))
    images(tmp_path / "a", ["1.png"])
    (tmp_path / "a.mp4").touch()
    with pytest.raises(SourceError, match="video or images; say which"):
        scan(tmp_path, SourceConfig(**FOV))
    with pytest.raises(SourceError, match="is a file"):
        scan(tmp_path / "a.mp4", SourceConfig(kind="images", **FOV))


def test_a_pattern_that_fits_nothing_is_a_spelling_mistake(tmp_path):
    images(tmp_path / "a", ["1.png", "2.png"])
    with pytest.raises(ConfigError, match=r"'b\*' fits none of 1 clips, such as 'a'"):
        scan(tmp_path, SourceConfig(include=("b*",), **FOV))


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "webcam"},
        {"stride": 0},
        {"stride": 2, "target_fps": 5.0},
        {"target_fps": -1.0},
        {"fps": 0.0},
        {"fps": float("nan")},
        {"start_s": -1.0},
        {"start_s": 3.0, "end_s": 2.0},
        {"drop_bottom": 1.0},
    ],
)
def test_impossible_settings_cannot_be_constructed(wrong):
    with pytest.raises(ConfigError):
        SourceConfig(**wrong)


def test_streetworld_clips_are_chosen_from_and_keep_their_cameras(tmp_path, monkeypatch):
    images(tmp_path / "2", ["1.png", "2.png", "3.png"])
    (clip,) = good(scan(tmp_path, SourceConfig(**FOV)))
    broken = BadClip(name="10", reason="damaged")
    monkeypatch.setattr("pipeline.sources.streetworld.scan", lambda path: iter([broken, clip]))

    chosen, bad = scan(tmp_path, SourceConfig(kind="streetworld", stride=2))
    assert isinstance(chosen, Clip)
    assert (chosen.name, chosen.frame_names) == ("2", ("1", "3"))
    assert bad is broken
    assert scan(tmp_path, SourceConfig(kind="streetworld", include=("2",)))[0].name == "2"
    with pytest.raises(ConfigError, match="own exact cameras"):
        scan(tmp_path, SourceConfig(kind="streetworld", **FOV))
