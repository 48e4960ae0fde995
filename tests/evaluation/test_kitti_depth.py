"""KITTI's true depth: constructed scans with the answer on paper, files, and real scans."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from evaluation.ground_truth.errors import GroundTruthError
from evaluation.ground_truth.kitti_depth import (
    LidarCamera,
    improved_depth,
    project_scan,
    raw_depth,
    read_depth_png,
    read_lidar_camera,
    read_scan,
)
from evaluation.ground_truth.split_lists import KittiFrame, read_kitti_split

F, CX, CY = 100.0, 20.0, 10.0
SIZE = 40, 20
# Camera axes (right, down, forward) out of the LiDAR's (forward, left, up).
R = np.array([[0, -1, 0], [0, 0, -1], [1, 0, 0]], np.float64)
FRAME = KittiFrame(date="2011_09_26", drive="2011_09_26_drive_0001_sync", camera=2, frame=7)


def lidar_camera(ahead_m: float = 0.0) -> LidarCamera:
    """A camera `ahead_m` in front of the LiDAR, which looks the same way."""
    K = np.array([[F, 0, CX], [0, F, CY], [0, 0, 1]])
    return LidarCamera(projection=K @ np.column_stack([R, [0, 0, -ahead_m]]), K=K, size=SIZE)


def points(*xyz: tuple[float, float, float]) -> np.ndarray:
    scan = np.zeros((len(xyz), 4), np.float32)
    scan[:, :3] = xyz
    return scan


def seen(depth: np.ndarray) -> dict[tuple[int, int], float]:
    """(column, row) -> depth of all pixels with truth."""
    return {(int(u), int(v)): float(depth[v, u]) for v, u in np.argwhere(depth > 0)}


def test_a_point_straight_ahead_lies_one_pixel_up_and_left_of_the_principal_point() -> None:
    assert seen(project_scan(points((5, 0, 0)), lidar_camera())) == {(19, 9): 5}


def test_left_is_left_and_up_is_up() -> None:
    # 0.2 m to the left at 10 m are f 0.2 / 10 = 2 px; 0.5 m up are 5 px.
    assert seen(project_scan(points((10, 0.2, 0.5)), lidar_camera())) == {(17, 4): 10}


def test_depth_is_the_lidars_forward_x_or_the_cameras_z() -> None:
    camera = lidar_camera(ahead_m=0.25)
    assert seen(project_scan(points((8, 0, 0)), camera)) == {(19, 9): 8}
    assert seen(project_scan(points((8, 0, 0)), camera, "z")) == {(19, 9): 7.75}


def test_the_nearest_of_two_points_in_a_pixel_wins_in_either_order() -> None:
    two = points((5, 0, 0), (9, 0, 0))
    for scan in (two, two[::-1]):
        assert seen(project_scan(scan, lidar_camera())) == {(19, 9): 5}


def test_points_behind_are_dropped() -> None:
    # The second lies ahead of the LiDAR and behind the camera, which would see it mirrored.
    scan = points((-5, 0, 0), (0.1, 0, 0))
    assert not project_scan(scan, lidar_camera(ahead_m=0.25)).any()
    # Behind the LiDAR, and ahead of a camera that were behind it.
    assert not project_scan(points((-0.1, 0, 0)), lidar_camera(ahead_m=-0.5)).any()


def test_pixels_are_rounded_to_even_before_one_is_taken_off() -> None:
    # u = 20 + 0.5 and 20 + 1.5: as numpy rounds, to 20 and 22. 1/1024 more goes up.
    def column(offset_px: float) -> int:
        ((u, _),) = seen(project_scan(points((100, -offset_px, 0)), lidar_camera()))
        return u

    assert [column(each) for each in (0.5, 0.5 + 1 / 1024, 1.5)] == [19, 20, 21]


def test_the_borders_of_the_image() -> None:
    # Pixel 0 takes u from 0.5 to 1.5, the last one (39) u from 39.5 to 40.5.
    inside = points((100, 19.4, 0), (100, -20.4, 0), (100, 0, 9.4), (100, 0, -10.4))
    outside = points((100, 19.6, 0), (100, -20.6, 0), (100, 0, 9.6), (100, 0, -10.6))
    assert set(seen(project_scan(inside, lidar_camera()))) == {(0, 9), (39, 9), (19, 0), (19, 19)}
    assert not project_scan(outside, lidar_camera()).any()


def test_a_scan_without_points_is_a_map_without_truth() -> None:
    depth = project_scan(np.zeros((0, 4), np.float32), lidar_camera())
    assert (depth.shape, depth.dtype, depth.any()) == (SIZE[::-1], np.float32, False)


def line(key: str, values: np.ndarray) -> str:
    return f"{key}: {' '.join(f'{value:e}' for value in np.ravel(values))}\n"


def write_day(root: Path) -> Path:
    """A day's calibration; the rectification turns the camera by 90 degrees about z."""
    folder = root / FRAME.date
    folder.mkdir(parents=True)
    turn = np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1]])
    K = np.array([[F, 0, CX], [0, F, CY], [0, 0, 1]])
    (folder / "calib_cam_to_cam.txt").write_text(
        "calib_time: 09-Jan-2012 13:57:47\n"
        + line("S_00", np.array([99, 99]))
        + line("R_rect_00", turn)
        + line("P_rect_02", np.column_stack([K, [F * 0.1, 0, 0]]))
        + line("S_rect_02", np.array(SIZE))
    )
    (folder / "calib_velo_to_cam.txt").write_text(line("R", R) + line("T", np.array([0, 0, -0.25])))
    return folder


def write_scan(root: Path, scan: np.ndarray) -> Path:
    path = root / FRAME.date / FRAME.drive / "velodyne_points" / "data" / "0000000007.bin"
    path.parent.mkdir(parents=True)
    path.write_bytes(scan.astype("<f4").tobytes())
    return path


def test_calibration_and_scan_are_read_and_put_together(tmp_path: Path) -> None:
    write_day(tmp_path)
    write_scan(tmp_path, points((10.25, 0, -0.3)))
    # In the camera (0, 0.3, 10); turned, (-0.3, 0, 10); camera 2 is 0.1 m to the left: u = 20 - 3 + 1.
    assert seen(raw_depth(tmp_path, FRAME)) == {(17, 9): 10.25}
    assert seen(raw_depth(tmp_path, FRAME, "z")) == {(17, 9): 10}
    assert read_lidar_camera(tmp_path / FRAME.date).size == SIZE


def test_what_is_missing_is_named_with_its_download(tmp_path: Path) -> None:
    def message() -> str:
        with pytest.raises(GroundTruthError) as found:
            raw_depth(tmp_path, FRAME)
        return str(found.value).removeprefix(str(tmp_path))

    assert message() == (
        "/2011_09_26/calib_cam_to_cam.txt: missing; it comes with KITTI raw's calibration archive, "
        "<date>_calib.zip"
    )
    lidar = write_day(tmp_path) / "calib_velo_to_cam.txt"
    assert message() == (
        "/2011_09_26/2011_09_26_drive_0001_sync/velodyne_points/data/0000000007.bin: missing; it comes "
        "with KITTI raw's <drive>.zip (synced and rectified data), folder velodyne_points"
    )
    lidar.write_text(line("R", R[:2]))
    assert message().startswith("/2011_09_26/calib_velo_to_cam.txt: holds no R of 9 numbers; it comes")
    lidar.write_text(line("R", R * np.nan))
    assert "holds no R of 9 numbers" in message()
    lidar.write_text(line("R", R))
    assert "holds no T of 3 numbers" in message()


def test_a_damaged_scan_is_refused(tmp_path: Path) -> None:
    path = write_scan(tmp_path, points((10, 0, 0)))
    np.testing.assert_array_equal(read_scan(path), points((10, 0, 0)))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(GroundTruthError, match="15 bytes are no whole points of 16"):
        read_scan(path)
    path.write_bytes(points((np.nan, 0, 0)).tobytes())
    with pytest.raises(GroundTruthError, match="not finite"):
        read_scan(path)


def write_png(path: Path, image: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".png", image)[1].tobytes())
    return path


def test_a_depth_png_holds_256ths_of_a_metre(tmp_path: Path) -> None:
    path = write_png(tmp_path / "a.png", np.array([[0, 1, 256, 65535]], np.uint16))
    depth = read_depth_png(path, "")
    assert depth.dtype == np.float32
    assert depth.tolist() == [[0, 1 / 256, 1, 255.99609375]]


@pytest.mark.parametrize("place", ["train", "val", "2011_09_26", "."])
def test_improved_truth_is_found_as_it_unpacks_and_beside_the_images(place: str, tmp_path: Path) -> None:
    below = f"{FRAME.drive}/proj_depth/groundtruth/image_02/0000000007.png"
    write_png(tmp_path / place / below, np.full((2, 3), 512, np.uint16))
    np.testing.assert_array_equal(improved_depth(tmp_path, FRAME), np.full((2, 3), 2, np.float32))
    with pytest.raises(
        GroundTruthError, match="holds no .*image_02/0000000007.png .*data_depth_annotated.zip"
    ):
        improved_depth(tmp_path / "nowhere", FRAME)


def test_a_png_of_another_kind_or_a_damaged_one_is_refused(tmp_path: Path) -> None:
    for image in (np.zeros((2, 2), np.uint8), np.zeros((2, 2, 3), np.uint8)):
        with pytest.raises(GroundTruthError, match="expected 16-bit grey"):
            read_depth_png(write_png(tmp_path / "a.png", image), "")
    noise = np.random.default_rng(0).integers(0, 65535, (64, 64)).astype(np.uint16)
    path = write_png(tmp_path / "a.png", noise)
    path.write_bytes(path.read_bytes()[:4000])
    with pytest.raises(GroundTruthError, match="damaged or cut"):
        read_depth_png(path, "")
    path.write_bytes(b"no image")
    with pytest.raises(GroundTruthError, match="damaged or cut"):
        read_depth_png(path, "")
    with pytest.raises(GroundTruthError, match="missing; ask the maker"):
        read_depth_png(tmp_path / "b.png", "ask the maker")


# Real scans, and the same by other means.


def real_frames(test_data: Path) -> list[KittiFrame]:
    split = test_data / "splits" / "eigen_test_697.txt"
    scans = test_data / "kitti_raw" / "2011_09_26" / "2011_09_26_drive_0052_sync" / "velodyne_points"
    for needed in (split, scans):
        if not needed.exists():
            pytest.skip(f"no real scans: {needed} is missing")
    frames = [each for each in read_kitti_split(split) if each.drive == "2011_09_26_drive_0052_sync"]
    assert len(frames) == 25
    return frames


def test_real_scans_give_plausible_depth(test_data: Path) -> None:
    root = test_data / "kitti_raw"
    for frame in real_frames(test_data):
        depth, z = raw_depth(root, frame), raw_depth(root, frame, "z")
        assert depth.shape == z.shape == (375, 1242)
        there = depth > 0
        assert 15_000 < there.sum() < 17_500  # 3 to 4 % of the pixels
        assert 3 < depth[there].min() < 5
        assert 75 < depth.max() < 80  # as far as this scanner goes
        assert not depth[:70].any()  # it looks 2 degrees up
        np.testing.assert_array_equal(z > 0, there)
        # The camera is 0.27 m ahead, and looks the same way within a degree.
        assert 0.2 < np.median(depth[there] - z[there]) < 0.3


def by_sorting(scan: np.ndarray, camera: LidarCamera) -> np.ndarray:
    """The usual truth: points from far to near, each written over those before it."""
    kept = scan[scan[:, 0] >= 0].astype(np.float64)
    kept = kept[np.argsort(-kept[:, 0], kind="stable")]
    kept[:, 3] = 1
    uvz = camera.projection @ kept.T
    u, v = np.round(uvz[:2] / uvz[2]) - 1
    depth = np.zeros(camera.size[::-1])
    for column, row, x in zip(u.tolist(), v.tolist(), kept[:, 0].tolist(), strict=True):
        if 0 <= column < camera.size[0] and 0 <= row < camera.size[1]:
            depth[int(row), int(column)] = x
    return depth.astype(np.float32)


def test_a_real_scan_agrees_exactly_with_a_second_implementation(test_data: Path) -> None:
    folder = test_data / "kitti_raw" / "2011_09_26"
    camera = read_lidar_camera(folder)
    for frame in real_frames(test_data)[::12]:
        scan = read_scan(folder / frame.drive / "velodyne_points" / "data" / f"{frame.frame:010d}.bin")
        np.testing.assert_array_equal(project_scan(scan, camera), by_sorting(scan, camera))


def test_a_real_scan_agrees_exactly_with_the_three_transforms_one_by_one(test_data: Path) -> None:
    """Calibration read anew, LiDAR -> camera 0 -> rectified -> image, a point at a time."""
    folder, frame = test_data / "kitti_raw" / "2011_09_26", real_frames(test_data)[0]
    values = {}
    for name in ("calib_cam_to_cam.txt", "calib_velo_to_cam.txt"):
        for row in (folder / name).read_text().splitlines()[1:]:
            key, numbers = row.split(":")
            values[key] = [float(number) for number in numbers.split()]
    scan = np.fromfile(
        folder / frame.drive / "velodyne_points" / "data" / f"{frame.frame:010d}.bin", np.float32
    ).reshape(-1, 4)

    def turned(matrix: list[float], width: int, vector: list[float]) -> list[float]:
        return [sum(matrix[width * i + k] * vector[k] for k in range(width)) for i in range(3)]

    found: dict[tuple[int, int], float] = {}
    for x, y, z, _ in scan.tolist():
        if x < 0:
            continue
        in_camera = [a + b for a, b in zip(turned(values["R"], 3, [x, y, z]), values["T"], strict=True)]
        rectified = turned(values["R_rect_00"], 3, in_camera)
        a, b, c = turned(values["P_rect_02"], 4, [*rectified, 1.0])
        pixel = round(a / c) - 1, round(b / c) - 1
        if 0 <= pixel[0] < 1242 and 0 <= pixel[1] < 375:
            found[pixel] = min(x, found.get(pixel, np.inf))
    assert seen(raw_depth(test_data / "kitti_raw", frame)) == found
