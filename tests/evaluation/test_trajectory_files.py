"""Readers of trajectories: every format, and every error line."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.spatial.transform import Rotation

from evaluation import trajectory_files
from evaluation.predictions import PredictionError
from evaluation.trajectories import kitti_text, tum_text
from evaluation.trajectory_files import Trajectory, associate, read_trajectory
from pipeline.errors import ConfigError
from tests.evaluation.made import rigid

POSES = np.stack([rigid((0.5 * k, -0.1 * k, 2 * k), 17 * k, 5 * k) for k in range(6)])
TIMES = 1305031102.175304 + 0.1 * np.arange(6)
ONE = "1 0 0 0 0 1 0 0 0 0 1 0"
TUM = "0 0 0 0 0 0 1"


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def npz(compress: bool = False, **arrays: np.ndarray) -> bytes:
    stream = io.BytesIO()
    (np.savez_compressed if compress else np.savez)(stream, **arrays)  # type: ignore[operator]
    return stream.getvalue()


def read(tmp_path: Path, content: str | bytes) -> Trajectory:
    path = tmp_path / "trajectory"  # no suffix: the content says what it is
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_trajectory(path)


def refusal(tmp_path: Path, content: str | bytes) -> str:
    """The error line, without the file's name."""
    with pytest.raises(PredictionError) as caught:
        read(tmp_path, content)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'trajectory'}: ")
    assert "\n" not in message
    return message.removeprefix(f"{tmp_path / 'trajectory'}: ")


def test_kitti_text_comes_back(tmp_path: Path) -> None:
    found = read(tmp_path, kitti_text(POSES))
    np.testing.assert_allclose(found.world_T_camera, POSES, atol=1e-8)
    assert found.index.tolist() == list(range(6))
    assert found.times_s is None
    assert len(found) == 6


def test_tum_text_comes_back(tmp_path: Path) -> None:
    found = read(tmp_path, "# time tx ty tz qx qy qz qw\n" + tum_text(POSES, TIMES))
    np.testing.assert_allclose(found.world_T_camera, POSES, atol=1e-8)
    assert found.times_s is not None
    np.testing.assert_allclose(found.times_s, TIMES, atol=1e-6, rtol=0)
    assert found.index.tolist() == list(range(6))


def test_a_frame_number_may_stand_first(tmp_path: Path) -> None:
    index = [2, 3, 7, 8, 100, 4540]
    lines = [f"{i} {line}\n" for i, line in zip(index, kitti_text(POSES).splitlines(), strict=True)]
    found = read(tmp_path, "".join(lines))
    np.testing.assert_allclose(found.world_T_camera, POSES, atol=1e-8)
    assert found.index.tolist() == index
    assert read(tmp_path, f"2.000e+00 {ONE}").index.tolist() == [2]


@pytest.mark.parametrize(
    "make",
    [
        lambda: npy(POSES),
        lambda: npy(POSES[:, :3]),
        lambda: npy(np.asfortranarray(POSES)),
        lambda: npy(POSES.astype(">f8")),
        lambda: npz(anything=POSES),
        lambda: npz(compress=True, times=TIMES, world_T_camera=POSES),
    ],
)
def test_arrays_come_back(tmp_path: Path, make: Callable[[], bytes]) -> None:
    found = read(tmp_path, make())
    np.testing.assert_allclose(found.world_T_camera, POSES, atol=1e-15)
    assert found.world_T_camera.flags.writeable
    assert found.index.tolist() == list(range(6))
    assert found.times_s is None


@given(
    hnp.arrays(np.float64, (4, 3), elements=st.floats(-1e6, 1e6)),
    hnp.arrays(np.float64, (4, 3), elements=st.floats(-3, 3)),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_pose_comes_back(tmp_path: Path, positions: np.ndarray, turns: np.ndarray) -> None:
    poses = np.tile(np.eye(4), (4, 1, 1))
    poses[:, :3, 3] = positions
    poses[:, :3, :3] = Rotation.from_rotvec(turns).as_matrix()
    for content in (kitti_text(poses), tum_text(poses, np.arange(4.0))):
        np.testing.assert_allclose(read(tmp_path, content).world_T_camera, poses, rtol=1e-8, atol=1e-8)
    np.testing.assert_array_equal(read(tmp_path, npy(poses)).world_T_camera[:, :3, 3], positions)


def test_comments_ends_of_lines_and_a_mark_of_utf_8_are_skipped(tmp_path: Path) -> None:
    for content in (
        f"# été\n{ONE}\n  # more\n\t{ONE}  \n\n\n",
        f"\ufeff{ONE}\r\n{ONE}\r\n",
        f"{ONE}\n{ONE}",
    ):
        assert len(read(tmp_path, content)) == 2


def test_printed_digits_stay_and_sloppy_rotations_become_exact(tmp_path: Path) -> None:
    printed = read(tmp_path, "\n".join(" ".join(f"{v:.6e}" for v in pose[:3].ravel()) for pose in POSES))
    np.testing.assert_array_equal(
        printed.world_T_camera[:, :3],
        [[[float(f"{v:.6e}") for v in row] for row in pose[:3]] for pose in POSES],
    )
    sloppy = POSES.copy()
    sloppy[3, :3, :3] *= 1.0003  # R^T R is off by 6e-4
    found = read(tmp_path, npy(sloppy)).world_T_camera
    np.testing.assert_allclose(found, POSES, atol=1e-12)
    np.testing.assert_array_equal(found[[0, 1, 2, 4, 5]], POSES[[0, 1, 2, 4, 5]])


def test_quaternions_are_normalised_and_either_sign_is_right(tmp_path: Path) -> None:
    half = np.sqrt(0.5)
    for sign in (1.0005, -1.0005):
        found = read(tmp_path, f"0 1 2 3 0 {sign * half} 0 {sign * half}")
        np.testing.assert_allclose(found.world_T_camera[0], rigid((1, 2, 3), 90), atol=1e-12)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        # what it is
        ("", "holds no pose; expected a line a pose of 12 (KITTI"),
        ("# only a comment\n\n", "holds no pose; expected"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\r", "neither text nor an array of numpy; expected"),
        (b"\xff\xfe1\0 \0", "neither text nor an array of numpy; expected"),
        ("time,tx,ty\n", "line 1: 'time,tx,ty' is no number; expected numbers separated by spaces"),
        (f"{ONE}\n1 0 0 0 0 1 0 0 0 0 1 x\n", "line 2: 'x' is no number"),
        ("1 2 3\n", "line 1 has 3 columns; expected a line a pose of 12 (KITTI"),
        (f"{ONE}\n3 {ONE}\n", "line 2 has 13 columns, the lines before it 12; write every pose"),
        (f"{ONE}\n1 0 0 0 0 1\n", "line 2 has 6 columns, the lines before it 12"),
        ("1 " * 5000, "line 1 is longer than 4096 characters; expected"),
        (f"{ONE}\n\n{ONE}\n", "line 2 is empty, but in KITTI's format every line is a frame; where poses"),
        # numbers
        (f"{ONE}\n{ONE.replace('1', 'nan')}\n", "line 2 holds a number that is not finite or above 1e+100"),
        ("1 0 0 inf 0 1 0 0 0 0 1 0", "line 1 holds a number that is not finite"),
        ("1 0 0 1e200 0 1 0 0 0 0 1 0", "line 1 holds a number that is not finite or above"),
        (f"nan {TUM}", "line 1 holds a number that is not finite"),
        # rotations
        (f"{ONE}\n# c\n1 0 0 0 0 1 0 0 0 0 2 0", "line 3: the pose's left 3x3 is no rotation (R^T R is off by 3"),
        ("1 0 0 0 0 1 0 0 0 0 -1 0", "line 1: the pose's left 3x3 mirrors (R^T R is off by 0"),
        ("0 " * 12, "line 1: the pose's left 3x3 is no rotation"),
        (f"0 {TUM}\n1 0 0 0 0 0 0 0", "line 2: the quaternion has length 0, expected 1; write tx ty tz qx"),
        ("0 0 0 0 0 0 1 1", "line 1: the quaternion has length 1.41421, expected 1"),
        # order
        (f"3 {ONE}\n3 {ONE}", "line 2: frame 3 a second time; keep one pose of it"),
        (f"7 {ONE}\n# c\n3 {ONE}", "line 3: frame 3 after 7; sort the poses"),
        (f"2.5 {ONE}", "line 1: frame number 2.5, expected a whole number from 0 on in the first of 13"),
        (f"-1 {ONE}", "line 1: frame number -1, expected"),
        (f"1e300 {ONE}", "line 1 holds a number that is not finite or above"),
        (f"1e50 {ONE}", "line 1: frame number 1e+50, expected"),
        (f"0.5 {TUM}\n0.5 {TUM}", "line 2: time 0.5 a second time"),
        (f"0.5 {TUM}\n0.25 {TUM}", "line 2: time 0.25 after 0.5; sort the poses"),
    ],
)  # fmt: skip
def test_every_error_of_a_text_says_where_what_and_what_to_do(
    tmp_path: Path, content: str | bytes, expected: str
) -> None:
    assert refusal(tmp_path, content).startswith(expected)


def _broken(change: Callable[[np.ndarray], object]) -> bytes:
    poses = POSES.copy()
    change(poses)
    return npy(poses)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: npy(POSES[0]), "holds float64 (4, 4); save world_T_camera, floating (N, 4, 4), with numpy"),
        (lambda: npy(POSES[:0]), "holds no pose; save"),
        (lambda: npy(POSES.astype(int)), "holds int64 (6, 4, 4); save"),
        (lambda: npy(np.zeros(3, [("x", "f8")])), "holds [('x', '<f8')] (3,); save"),
        (lambda: npy(POSES)[:-1], "no array of numbers, or damaged (float64 (6, 4, 4) in 767 bytes); save"),
        (lambda: npy(POSES) + b"x", "no array of numbers, or damaged (float64 (6, 4, 4) in 769 bytes)"),
        (lambda: npy(POSES)[:20], "no array of numbers, or damaged"),
        (lambda: npy(POSES).replace(b"(6, 4, 4)", b"(-6,-4,4)"), "no array of numbers, or damaged"),
        (lambda: npy(POSES).replace(b"NUMPY\1", b"NUMPY\7"), "no array of numbers, or damaged (npy version 7.0"),
        (lambda: npy(POSES).replace(b"(6, 4, 4)", b"(6, 4, 4 "), "no array of numbers, or damaged"),
        (lambda: npy(POSES).replace(b"'<f8'", b"'|O8'"), "no array of numbers, or damaged (cannot create an OBJ"),
        (lambda: npy(np.array([POSES, None], object)), "no array of numbers, or damaged (object"),
        (lambda: _broken(lambda p: p.__setitem__((4, 0, 0), np.nan)), "pose 4 (from 0) holds a number that"),
        (lambda: _broken(lambda p: p.__imul__(2)), "pose 0 (from 0): the last row is [0.0, 0.0, 0.0, 2.0], exp"),
        (lambda: npy(POSES.swapaxes(1, 2)), "pose 1 (from 0): the last row is [0.5, -0.1, 2.0, 1.0], expected"),
        (lambda: npz(a=POSES, b=POSES), "holds 'a, b' and no 'world_T_camera'; save"),
        (lambda: npz(), "holds 'no array' and no 'world_T_camera'; save"),
        (lambda: npz(a=POSES)[:-40], "damaged (File is not a zip file); save"),
        (lambda: npz(a=POSES).replace(POSES[1].tobytes()[:16], b"\0" * 16), "damaged (Bad CRC-32 for file"),
    ],
)  # fmt: skip
def test_every_error_of_an_array_says_what_and_what_to_do(
    tmp_path: Path, make: Callable[[], bytes], expected: str
) -> None:
    assert refusal(tmp_path, make()).startswith(expected)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.txt"):
        with pytest.raises(PredictionError, match=r"no such file; expected a line a pose of 12"):
            read_trajectory(path)
    with pytest.raises(PredictionError, match=r"cannot be read \(File name too long\)"):
        read_trajectory(tmp_path / ("x" * 300))


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read everything")
def test_a_file_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "closed.txt"
    path.write_text(ONE)
    path.chmod(0)
    with pytest.raises(PredictionError, match=r"cannot be read \(Permission denied\)"):
        read_trajectory(path)


class _Bomb:
    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        return pytest.fail, ()  # type: ignore[return-value]


def test_nothing_in_a_file_is_run(tmp_path: Path) -> None:
    for content in (
        pickle.dumps(_Bomb()),
        npy(np.array([_Bomb()], object)),
        npz(a=np.array([_Bomb()], object)),
    ):
        refusal(tmp_path, content)


def test_large_files_are_not_read(tmp_path: Path) -> None:
    with (tmp_path / "trajectory").open("wb") as file:
        file.truncate(trajectory_files.MAX_BYTES + 1)
    with pytest.raises(PredictionError, match="larger than 64 MiB; give one sequence's trajectory"):
        read_trajectory(tmp_path / "trajectory")


@pytest.mark.parametrize("said", [1 << 27, 100])
def test_an_archive_that_unpacks_to_more_than_it_may_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: int
) -> None:
    monkeypatch.setattr(trajectory_files, "MAX_BYTES", 1 << 20)
    content = npz(compress=True, a=np.zeros((1 << 20, 4, 4)))  # 128 MiB in 128 KiB
    size = ((1 << 27) + 128).to_bytes(4, "little")
    assert size in content  # what the archive says of its size, truly or not
    content = content.replace(size, said.to_bytes(4, "little"))
    message = refusal(tmp_path, content)
    assert message.startswith("holds more than 1 MiB" if said > 1 << 20 else "damaged (Bad CRC-32")


def test_other_packings_than_numpys_are_refused(tmp_path: Path) -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("a.npy", npy(POSES))
    assert refusal(tmp_path, stream.getvalue()).startswith("damaged (packed otherwise than numpy does)")


@given(st.data())
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damage_is_an_error_line_or_a_trajectory(tmp_path: Path, data: st.DataObject) -> None:
    whole = data.draw(st.sampled_from([npy(POSES), npz(a=POSES), npz(True, a=POSES), kitti_text(POSES).encode(),
                                       tum_text(POSES, TIMES).encode()]))  # fmt: skip
    content = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(whole)))] if data.draw(st.booleans()) else content
    try:
        found = read(tmp_path, bytes(content))
    except PredictionError as error:
        assert "\n" not in str(error)
    else:
        assert np.isfinite(found.world_T_camera).all()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"world_T_camera": POSES[:2]}, "6 frame numbers for poses (2, 4, 4)"),
        ({"index": np.arange(0), "world_T_camera": POSES[:0]}, "0 frame numbers"),
        ({"index": np.arange(6.0)}, "frame numbers must be a row of int64 from 0 on"),
        ({"index": np.arange(-1, 5)}, "frame numbers must be a row of int64 from 0 on"),
        ({"index": np.array([0, 1, 1, 2, 3, 4])}, "pose 2 (from 0): frame 1 a second time"),
        ({"times_s": TIMES[:5]}, "6 poses, but times (5,)"),
        ({"times_s": TIMES[::-1]}, "pose 1 (from 0): time 1305031102.575304 after 1305031102.675304; sort"),
        ({"times_s": TIMES * np.nan}, "pose 0 (from 0) holds a number that is not finite"),
        ({"world_T_camera": POSES * [[[1], [1], [1], [2]]]}, "pose 0 (from 0): the last row is [0.0, 0.0, 0.0, 2"),
        ({"world_T_camera": POSES * [[[1], [1], [2], [1]]]}, "pose 0 (from 0): the pose's left 3x3 is no rot"),
    ],
)  # fmt: skip
def test_a_trajectory_that_contradicts_itself_cannot_be_made(change: dict, expected: str) -> None:
    with pytest.raises(PredictionError) as caught:
        Trajectory(**{"index": np.arange(6), "times_s": TIMES, "world_T_camera": POSES, **change})
    assert str(caught.value).startswith(expected)


def test_rows_of_one_time_belong_together() -> None:
    a, b = associate(np.array([0.0, 0.1, 0.2, 0.3]), np.array([0.101, 0.19, 0.25, 0.4]), 0.02)
    assert (a.tolist(), b.tolist()) == ([1, 2], [0, 1])
    a, b = associate(np.array([5.0]), np.array([4.75]), 0.25)  # the tolerance is allowed
    assert (a.tolist(), b.tolist()) == ([0], [0])


def test_no_row_is_used_twice_and_the_earlier_of_two_wins() -> None:
    a, b = associate(np.array([0.0, 1.0]), np.array([0.5]), 1)
    assert (a.tolist(), b.tolist()) == ([0], [0])
    a, b = associate(np.array([0.5]), np.array([0.0, 1.0]), 1)
    assert (a.tolist(), b.tolist()) == ([0], [0])


@given(
    st.lists(st.integers(0, 200), min_size=1, max_size=20, unique=True).map(sorted),
    st.lists(st.integers(0, 200), min_size=1, max_size=20, unique=True).map(sorted),
    st.integers(0, 30),
)
def test_pairs_are_mutual_rising_and_near(mine: list[int], yours: list[int], tolerance: int) -> None:
    a_times, b_times = np.array(mine, np.float64), np.array(yours, np.float64)
    expected = []
    for i, a in enumerate(mine):  # min takes the first of equals
        j = min(range(len(yours)), key=lambda j: abs(yours[j] - a))
        back = min(range(len(mine)), key=lambda i: abs(mine[i] - yours[j]))
        if back == i and abs(yours[j] - a) <= tolerance:
            expected.append((i, j))
    if not expected:
        with pytest.raises(PredictionError, match="none are within"):
            associate(a_times, b_times, tolerance)
        return
    a_rows, b_rows = associate(a_times, b_times, tolerance)
    assert list(zip(a_rows.tolist(), b_rows.tolist(), strict=True)) == expected
    assert (np.diff(a_rows) > 0).all()
    assert (np.diff(b_rows) > 0).all()


def test_times_that_do_not_meet_are_named() -> None:
    with pytest.raises(
        PredictionError, match=r"times 0.000 to 9.000 s and 100.000 to 109.000 s: none are within"
    ):
        associate(np.arange(10.0), np.arange(100.0, 110), 0.02)
    for tolerance in (-0.1, np.nan, np.inf):
        with pytest.raises(ConfigError, match="time tolerance .* s; expected a number from 0 on"):
            associate(np.arange(10.0), np.arange(10.0), tolerance)
    with pytest.raises(ValueError, match="b_times must be a row of rising times"):
        associate(np.arange(10.0), np.zeros(3), 0.02)
    with pytest.raises(ValueError, match="a_times must be a row of rising times"):
        associate(np.arange(0.0), np.zeros(1), 0.02)
