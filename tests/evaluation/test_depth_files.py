"""Predicted depth in the formats of the field: what goes in comes out, and what cannot is one line."""

from __future__ import annotations

import pickle
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
import pytest

from evaluation.depth_files import (
    Frame,
    PredictedMap,
    own_frames,
    read_arrays,
    read_maps,
    read_own,
    read_pngs,
    read_stack,
)
from evaluation.ground_truth.split_lists import CityscapesFrame, KittiFrame
from evaluation.predictions import (
    ClipPrediction,
    ObjectMotions,
    PredictionError,
    PredictionIndex,
    write_clip,
    write_index,
)
from pipeline.errors import ConfigError, InstanceMotionError

DRIVE = "2011_09_26_drive_0002_sync"
FRAMES = [KittiFrame(date="2011_09_26", drive=DRIVE, camera=2, frame=n) for n in (7, 5, 12)]
CITY = [CityscapesFrame(city="bonn", sequence=n, frame=19) for n in (3, 1)]
# Exact in half precision, and so are their inverses.
STACK = np.exp2(np.arange(3 * 2 * 4) % 7 - 3).reshape(3, 2, 4).astype(np.float32)


def maps(found: Iterable[PredictedMap]) -> np.ndarray:
    return np.stack([each.inverse_depth for each in found])


def one_line(error: pytest.ExceptionInfo[InstanceMotionError]) -> bool:
    return "\n" not in str(error.value)


@pytest.mark.parametrize("shape", [(3, 2, 4), (3, 1, 2, 4), (3, 2, 4, 1)])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_one_array_holds_the_whole_split_in_its_order(
    shape: tuple[int, ...], dtype: type, tmp_path: Path
) -> None:
    path = tmp_path / "all.npy"
    np.save(path, STACK.reshape(shape).astype(dtype))
    np.testing.assert_array_equal(maps(read_maps(path, FRAMES, "disparity")), STACK)
    np.testing.assert_array_equal(maps(read_maps(path, FRAMES, "depth")), 1 / STACK)
    first = next(read_maps(path, FRAMES, "depth"))
    assert (first.size, first.K) == ((4, 2), None)


def test_the_array_of_an_npz_file_is_chosen_by_its_key(tmp_path: Path) -> None:
    path = tmp_path / "all.npz"
    np.savez(path, data=STACK)
    np.testing.assert_array_equal(maps(read_maps(path, FRAMES, "disparity")), STACK)
    np.savez(path, depth=1 / STACK, other=STACK[:1])
    np.testing.assert_array_equal(maps(read_maps(path, FRAMES, "depth", "depth")), STACK)
    for key in ("", "disparity"):
        with pytest.raises(PredictionError, match="holds depth, other; choose one of them as the key"):
            read_maps(path, FRAMES, "depth", key)
    np.save(tmp_path / "all.npy", STACK)
    with pytest.raises(PredictionError, match="is one array, and has no 'depth'"):
        read_maps(tmp_path / "all.npy", FRAMES, "depth", "depth")


@pytest.mark.parametrize("kind", [None, "inverse"])
def test_arrays_need_a_kind(kind: str | None, tmp_path: Path) -> None:
    np.save(tmp_path / "all.npy", STACK)
    with pytest.raises(ConfigError, match="state the kind: depth or disparity") as found:
        read_maps(tmp_path / "all.npy", FRAMES, kind)  # type: ignore[arg-type]
    assert one_line(found)
    np.save(tmp_path / "0000000000.npy", STACK[0])
    with pytest.raises(ConfigError, match="state the kind"):
        read_maps(tmp_path, FRAMES, kind)  # type: ignore[arg-type]


def test_a_split_of_another_length_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "all.npy", STACK)
    with pytest.raises(PredictionError, match=r"\(3, 2, 4\), expected \(N, H, W\) with N = 2") as found:
        read_stack(tmp_path / "all.npy", 2, "depth")
    assert one_line(found)
    np.save(tmp_path / "all.npy", STACK[0])
    with pytest.raises(PredictionError, match="expected"):
        read_stack(tmp_path / "all.npy", 2, "depth")


def test_a_pickle_is_never_loaded(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (tmp_path / "sprung",)

    plain, inside, zipped = tmp_path / "plain.npy", tmp_path / "inside.npy", tmp_path / "all.npz"
    plain.write_bytes(pickle.dumps(Trap()))
    objects = np.array([Trap(), Trap(), Trap()], object)
    np.save(inside, objects, allow_pickle=True)
    np.savez(zipped, objects)
    for path in (plain, inside, zipped):
        with pytest.raises(PredictionError, match="save floating numbers with numpy.save") as found:
            read_stack(path, 3, "depth")
        assert one_line(found)
    assert not (tmp_path / "sprung").exists()


def test_damaged_and_missing_arrays_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "all.npy"
    with pytest.raises(PredictionError, match="all.npy: missing"):
        read_maps(path, FRAMES, "depth")
    np.save(path, STACK)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(PredictionError, match="damaged") as found:
        read_maps(path, FRAMES, "depth")
    assert one_line(found)
    path.write_bytes(b"")
    with pytest.raises(PredictionError, match="damaged"):
        read_maps(path, FRAMES, "depth")
    np.save(path, STACK)
    path.write_bytes(path.read_bytes().replace(b"(3, 2, 4)", b"(3, 2, 4 "))  # a bracket that never ends
    with pytest.raises(PredictionError, match="damaged") as found:
        read_maps(path, FRAMES, "depth")
    assert one_line(found)
    np.savez(tmp_path / "all.npz", STACK)
    data = bytearray((tmp_path / "all.npz").read_bytes())
    data[200] ^= 0xFF
    (tmp_path / "all.npz").write_bytes(data)
    with pytest.raises(PredictionError, match="damaged"):
        read_maps(tmp_path / "all.npz", FRAMES, "depth")


@pytest.mark.parametrize(
    "bad", [np.ones((3, 2, 4), int), np.ones((3, 2, 4, 2)), np.ones((3, 2, 2, 4)), np.ones((3, 0, 4))]
)
def test_what_is_no_map_is_refused(bad: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "all.npy", bad)
    with pytest.raises(PredictionError, match=r"for an image, expected floating \(H, W\)"):
        list(read_stack(tmp_path / "all.npy", 3, "depth"))


@pytest.mark.parametrize("kind", ["depth", "disparity"])
def test_holes_become_zero_and_impossible_values_are_refused(kind: str, tmp_path: Path) -> None:
    stack = STACK.copy()
    stack[0, 0, :2] = 0, np.nan
    np.save(tmp_path / "all.npy", stack)
    with np.errstate(all="raise"):
        found = maps(read_stack(tmp_path / "all.npy", 3, kind))  # type: ignore[arg-type]
    assert found[0, 0, :2].tolist() == [0, 0]
    assert (found > 0).sum() == STACK.size - 2
    for bad in (-1, np.inf):
        stack[0, 0, 0] = bad
        np.save(tmp_path / "all.npy", stack)
        with pytest.raises(PredictionError, match=f"holds a {kind} below 0 or infinite"):
            list(read_stack(tmp_path / "all.npy", 3, kind))  # type: ignore[arg-type]


def names(frames: list[Frame]) -> list[list[str]]:
    """All ways to call the files of a split."""
    spellings = [[frame.file_names[n] for frame in frames] for n in range(len(frames[0].file_names))]
    return [*spellings, *([f"{n:0{digits}d}" for n in range(len(frames))] for digits in (1, 6, 10))]


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".png"])
@pytest.mark.parametrize("frames", [FRAMES, CITY])
def test_one_file_an_image_under_all_names(frames: list[Frame], suffix: str, tmp_path: Path) -> None:
    for n, stems in enumerate(names(frames)):
        for stem, inverse in zip(stems, STACK, strict=False):
            path = tmp_path / str(n) / f"{stem}{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            if suffix == ".npy":
                np.save(path, 1 / inverse[None])
            elif suffix == ".npz":
                np.savez(path, depth=1 / inverse)
            else:
                path.write_bytes(cv2.imencode(".png", (256 / inverse).astype(np.uint16))[1].tobytes())
        found = maps(read_maps(tmp_path / str(n), frames, "depth"))
        np.testing.assert_array_equal(found, STACK[: len(frames)])


def test_names_are_those_of_the_field() -> None:
    assert FRAMES[0].file_names == (
        f"2011_09_26/{DRIVE}/image_02/data/0000000007",
        f"{DRIVE}_image_0000000007_image_02",
        f"{DRIVE}_image_02_0000000007",
    )
    assert CITY[0].file_names[0] == "bonn_000003_000019"


def test_a_folder_with_a_file_missing_or_none_at_all_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(PredictionError, match="holds no prediction for the split's first image") as found:
        read_maps(tmp_path, FRAMES, "depth")
    assert one_line(found)
    for n in (0, 1):
        np.save(tmp_path / f"{n:06d}.npy", STACK[n])
    with pytest.raises(PredictionError, match="000002.npy: missing"):
        list(read_maps(tmp_path, FRAMES, "depth"))
    with pytest.raises(PredictionError, match="9.npy: missing"):
        list(read_arrays(tmp_path, ["9"], ".npy", "depth"))
    with pytest.raises(ValueError, match="a split without images"):
        read_maps(tmp_path, [], "depth")


def test_pngs_hold_depth_in_256ths_and_0_is_no_prediction(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(cv2.imencode(".png", np.array([[0, 512]], np.uint16))[1].tobytes())
    (found,) = read_maps(tmp_path, FRAMES[:1])
    assert found.inverse_depth.tolist() == [[0, 0.5]]
    with pytest.raises(ConfigError, match="depth PNGs hold depth, and are not disparity"):
        read_maps(tmp_path, FRAMES[:1], "disparity")
    (tmp_path / "1.png").write_bytes(cv2.imencode(".png", np.zeros((2, 2), np.uint8))[1].tobytes())
    for stem, message in (("1", "expected 16-bit grey"), ("2", "missing; write every image's depth")):
        with pytest.raises(PredictionError, match=message) as error:
            list(read_pngs(tmp_path, [stem]))
        assert one_line(error)


def write_own(folder: Path, clips: dict[str, int]) -> None:
    """Predictions of clips of some frames; frame n of clip c has inverse depth 100 c + n + 1."""
    index = PredictionIndex(checkpoint="made", size=(4, 2), clips=tuple(clips))
    for number, (name, count) in enumerate(clips.items()):
        clip = ClipPrediction(
            name=name,
            inverse_depth=np.ones((count, 2, 4)) * (100 * number + 1 + np.arange(count))[:, None, None],
            labels=np.zeros((count, 2, 4), np.uint8),
            later_T_earlier=np.tile(np.eye(4), (count - 1, 1, 1)),
            objects=ObjectMotions.empty(),
            K=np.array([[3, 0, 2], [0, 3, 1], [0, 0, 1.0]]),
            timestamps_s=np.arange(count) / 10.0,
        )
        write_clip(folder, clip, index)
    write_index(folder, index)


def test_own_predictions_are_found_by_clip_and_frame(tmp_path: Path) -> None:
    write_own(tmp_path, {f"{DRIVE}/image_02": 13, f"{DRIVE}/image_03": 2})
    found = list(read_maps(tmp_path, FRAMES))
    assert [each.inverse_depth[0, 0] for each in found] == [8, 6, 13]  # frames 7, 5 and 12
    both = read_own(tmp_path, [(f"{DRIVE}/image_02", 5), (f"{DRIVE}/image_03", 1)])
    assert [each.inverse_depth[0, 0] for each in both] == [6, 102]
    assert found[0].K is not None
    assert (found[0].size, found[0].K[0, 0]) == ((4, 2), 3)
    with pytest.raises(ConfigError, match="predictions of this project say what they hold"):
        read_maps(tmp_path, FRAMES, "disparity")


def test_clips_of_a_drive_with_gaps_begin_where_their_names_say() -> None:
    clips = [f"{DRIVE}/image_02/0000000002", f"{DRIVE}/image_02/0000000010", "other/image_02"]
    assert own_frames(clips, FRAMES) == [(clips[0], 5), (clips[0], 3), (clips[1], 2)]
    with pytest.raises(PredictionError, match="hold no clip with 2011_09_26/.*0000000007; predict"):
        own_frames(clips[1:], FRAMES)


def test_clips_of_cityscapes_begin_where_their_names_say() -> None:
    clips = ["test/bonn/bonn_000001_000000", "test/bonn/bonn_000003_000010", "test/bonn/bonn_000003_000030"]
    assert own_frames(clips, CITY) == [(clips[1], 9), (clips[0], 19)]


def test_a_frame_that_was_not_predicted_is_one_line(tmp_path: Path) -> None:
    write_own(tmp_path, {f"{DRIVE}/image_02": 7})
    with pytest.raises(PredictionError, match="has 7 frames, but the split asks for number 7") as found:
        list(read_maps(tmp_path, FRAMES))
    assert one_line(found)
    with pytest.raises(PredictionError, match="is missing"):
        list(read_own(tmp_path, [("elsewhere", 0)]))
