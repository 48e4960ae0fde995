"""KITTI 2015's scene flow truth: files in its layout, written here, and every way in which they can be wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from evaluation.ground_truth.errors import GroundTruthError
from evaluation.ground_truth.scene_flow import (
    SceneFlowTruth,
    read_disparity_png,
    read_flow_png,
    read_pair,
    read_pairs,
    read_stereo_calibration,
)

WIDTH, HEIGHT = 6, 4
F, CX, CY = 721.5, 609.5, 172.75
PAGE = "http://www.cvlibs.net/datasets/kitti/eval_scene_flow.php"
LEFT = [F, 0, CX, 45.0, 0, F, CY, 0.25, 0, 0, 1, 0.00390625]
RIGHT = [F, 0, CX, 45.0 - 0.5 * F, 0, F, CY, 2.25, 0, 0, 1, 0.00390625]


def write_png(path: Path, image: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".png", image)[1].tobytes())
    return path


def write_calibration(root: Path, pair: int, **lines: list[float]) -> Path:
    path = root / "training" / "calib_cam_to_cam" / f"{pair:06d}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = {"S_02": [1392, 512], "P_rect_02": LEFT, "P_rect_03": RIGHT, **lines}
    text = "".join(f"{key}: {' '.join(f'{each:e}' for each in values)}\n" for key, values in rows.items())
    path.write_text("calib_time: 09-Jan-2012 13:57:47\n" + text)
    return path


def stored_values() -> dict[str, np.ndarray]:
    """What the PNGs of one pair hold; flow as R, G, B."""
    rng = np.random.default_rng(0)
    shape = HEIGHT, WIDTH
    return {
        "disp_occ_0": rng.integers(0, 65536, shape).astype(np.uint16),
        "disp_occ_1": rng.integers(0, 65536, shape).astype(np.uint16),
        "flow_occ": np.dstack([rng.integers(0, 65536, (*shape, 2)), rng.integers(0, 2, shape)]).astype(
            np.uint16
        ),
        "obj_map": rng.integers(0, 4, shape).astype(np.uint8),
    }


def write_pair(root: Path, pair: int = 0, **changed: np.ndarray) -> None:
    training, name = root / "training", f"{pair:06d}_10.png"
    for folder, values in {**stored_values(), **changed}.items():
        write_png(training / folder / name, values[..., ::-1] if values.ndim == 3 else values)
    write_png(training / "image_2" / name, np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    write_calibration(root, pair)


def test_what_is_written_in_kittis_layout_is_read_back(tmp_path: Path) -> None:
    write_pair(tmp_path, 7)
    stored, truth = stored_values(), read_pair(tmp_path, 7)
    assert (truth.pair, truth.name, truth.size) == (7, "000007", (WIDTH, HEIGHT))
    for found, folder in ((truth.disparity_0_px, "disp_occ_0"), (truth.disparity_1_px, "disp_occ_1")):
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found * 256, stored[folder])
    valid = stored["flow_occ"][..., 2] == 1
    np.testing.assert_array_equal(truth.flow_valid, valid)
    assert truth.flow_px.dtype == np.float32
    np.testing.assert_array_equal(truth.flow_px[valid] * 64 + 2**15, stored["flow_occ"][valid][:, :2])
    assert not truth.flow_px[~valid].any()
    np.testing.assert_array_equal(truth.object_map, stored["obj_map"])
    np.testing.assert_array_equal(truth.foreground, stored["obj_map"] > 0)
    np.testing.assert_array_equal(truth.K, [[F, 0, CX], [0, F, CY], [0, 0, 1]])
    assert truth.baseline_m == 0.5


def test_the_encoding_is_the_benchmarks(tmp_path: Path) -> None:
    disparity = np.zeros((HEIGHT, WIDTH), np.uint16)
    disparity[0, :4] = 0, 1, 256, 65535
    flow = np.zeros((HEIGHT, WIDTH, 3), np.uint16)
    # u is R and v is G, whatever OpenCV calls them; the valid channel is B.
    flow[0, 0] = 2**15 + 64, 2**15 - 128, 1
    flow[0, 1] = 2**15 + 1, 2**15, 1
    flow[0, 2] = 2**15 + 64, 2**15 + 64, 0
    write_pair(tmp_path, disp_occ_0=disparity, flow_occ=flow)
    truth = read_pair(tmp_path, 0)
    assert truth.disparity_0_px[0, :4].tolist() == [0, 1 / 256, 1, 255.99609375]
    assert truth.valid_0[0, :4].tolist() == [False, True, True, True]
    assert truth.flow_px[0, :3].tolist() == [[1, -2], [1 / 64, 0], [0, 0]]
    assert truth.flow_valid[0, :4].tolist() == [True, True, False, False]
    np.testing.assert_allclose(truth.depth_m[0, :4], [0, 256 * F * 0.5, F * 0.5, F * 0.5 / 255.99609375])


def test_both_extents_are_read_from_folders_of_their_own(tmp_path: Path) -> None:
    write_pair(tmp_path)
    for folder, values in stored_values().items():
        if folder.endswith("map"):
            continue
        some = values.copy()
        some[1:] = 0
        name = f"{folder.replace('occ', 'noc')}/000000_10.png"
        write_png(tmp_path / "training" / name, some[..., ::-1] if some.ndim == 3 else some)
    every, seen = read_pair(tmp_path, 0), read_pair(tmp_path, 0, "noc")
    for name in ("disparity_0_px", "disparity_1_px", "flow_px", "flow_valid"):
        np.testing.assert_array_equal(getattr(seen, name)[0], getattr(every, name)[0])
        assert not getattr(seen, name)[1:].any()
    np.testing.assert_array_equal(seen.object_map, every.object_map)


def test_pairs_come_one_after_the_other_and_all_200_are_asked_for(tmp_path: Path) -> None:
    for pair in (0, 3):
        write_pair(tmp_path, pair)
    assert [truth.pair for truth in read_pairs(tmp_path, pairs=[3, 0])] == [3, 0]
    assert [truth.pair for truth in read_pairs(tmp_path / "training", pairs=[0])] == [0]
    benchmark = read_pairs(tmp_path)
    assert next(benchmark).pair == 0
    with pytest.raises(GroundTruthError, match="000001_10.png: missing"):
        next(benchmark)


def message(root: Path, extent: str = "occ") -> str:
    with pytest.raises(GroundTruthError) as found:
        read_pair(root, 0, extent)  # type: ignore[arg-type]
    text = str(found.value)
    assert "\n" not in text
    assert text.endswith(PAGE)
    return text.removeprefix(str(root)).removesuffix(f", {PAGE}")


FROM_TRUTH, FROM_CALIBRATION = "it comes with data_scene_flow.zip", "it comes with data_scene_flow_calib.zip"


def test_a_missing_folder_is_named_with_its_download(tmp_path: Path) -> None:
    assert message(tmp_path) == f": holds no folder image_2; {FROM_TRUTH}"
    for folder in ("image_2", "disp_occ_0", "disp_occ_1", "flow_occ", "obj_map"):
        assert message(tmp_path).endswith(f": holds no folder {folder}; {FROM_TRUTH}")
        (tmp_path / "training" / folder).mkdir(parents=True)
    assert message(tmp_path) == f"/training: holds no folder calib_cam_to_cam; {FROM_CALIBRATION}"
    assert message(tmp_path, "noc") == f"/training: holds no folder disp_noc_0; {FROM_TRUTH}"


def test_a_missing_file_is_named_with_its_download(tmp_path: Path) -> None:
    write_pair(tmp_path)
    for folder in ("image_2", *stored_values()):
        path = tmp_path / "training" / folder / "000000_10.png"
        data = path.read_bytes()
        path.unlink()
        assert message(tmp_path) == f"/training/{folder}/000000_10.png: missing; {FROM_TRUTH}"
        path.mkdir()
        assert (
            message(tmp_path)
            == f"/training/{folder}/000000_10.png: cannot be read (Is a directory); {FROM_TRUTH}"
        )
        path.rmdir()
        path.write_bytes(data)
    (tmp_path / "training" / "calib_cam_to_cam" / "000000.txt").unlink()
    assert message(tmp_path) == f"/training/calib_cam_to_cam/000000.txt: missing; {FROM_CALIBRATION}"


GREY_8, GREY_16 = np.zeros((HEIGHT, WIDTH), np.uint8), np.zeros((HEIGHT, WIDTH), np.uint16)
RGB_8, RGB_16 = np.zeros((HEIGHT, WIDTH, 3), np.uint8), np.zeros((HEIGHT, WIDTH, 3), np.uint16)


@pytest.mark.parametrize(
    ("folder", "image", "found"),
    [
        ("disp_occ_0", GREY_8, "8-bit grey PNG, expected 16-bit grey"),
        ("disp_occ_1", RGB_8, "8-bit RGB PNG, expected 16-bit grey"),
        ("flow_occ", RGB_8, "8-bit RGB PNG, expected 16-bit RGB"),
        ("flow_occ", GREY_16, "16-bit grey PNG, expected 16-bit RGB"),
        ("obj_map", GREY_16, "16-bit grey PNG, expected 8-bit grey"),
        (
            "disp_occ_0",
            GREY_16[1:],
            f"{WIDTH}x{HEIGHT - 1} pixels, expected {WIDTH}x{HEIGHT} as the image has",
        ),
        (
            "flow_occ",
            np.dstack([GREY_16, GREY_16, GREY_16, GREY_16]),
            "16-bit RGB and opacity PNG, expected 16-bit RGB",
        ),
        ("obj_map", GREY_8.T, f"{HEIGHT}x{WIDTH} pixels, expected {WIDTH}x{HEIGHT} as the image has"),
    ],
)
def test_an_image_of_another_kind_or_size_says_which(
    folder: str, image: np.ndarray, found: str, tmp_path: Path
) -> None:
    write_pair(tmp_path)
    write_png(tmp_path / "training" / folder / "000000_10.png", image)
    assert message(tmp_path) == f"/training/{folder}/000000_10.png: {found}; {FROM_TRUTH}"


def flip(data: bytes) -> bytes:
    """One bit of the pixels, which only a checksum can tell."""
    position = data.index(b"IDAT") + 6
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (lambda data: b"", "no PNG"),
        (lambda data: b"\xff\xd8\xff" + data, "no PNG"),
        (lambda data: data[:20], "no PNG"),
        (lambda data: data[:40], "a damaged or cut PNG"),
        (lambda data: data[:-20], "a damaged or cut PNG"),
        (lambda data: data[:-6], "a damaged or cut PNG"),
        (flip, "a damaged or cut PNG"),
    ],
)
def test_a_damaged_or_cut_png_is_refused(
    damage: Callable[[bytes], bytes], found: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_pair(tmp_path)
    for folder in stored_values():
        path = tmp_path / "training" / folder / "000000_10.png"
        data = path.read_bytes()
        path.write_bytes(damage(data))
        assert message(tmp_path) == f"/training/{folder}/000000_10.png: {found}; {FROM_TRUTH}"
        path.write_bytes(data)
    assert capfd.readouterr() == ("", "")  # the decoder is not asked, which would print its own lines


def test_pngs_of_this_format_from_elsewhere_say_where_they_come_from(tmp_path: Path) -> None:
    disparity, flow = np.full((HEIGHT, WIDTH), 512, np.uint16), RGB_16.copy()
    flow[1, 2] = 1, 2**15, 2**15 + 96  # OpenCV's order: valid, v, u
    path = write_png(tmp_path / "a.png", disparity)
    assert (read_disparity_png(path, (WIDTH, HEIGHT)) == 2).all()
    found, valid = read_flow_png(write_png(path, flow), (WIDTH, HEIGHT))
    assert np.argwhere(valid).tolist() == [[1, 2]]
    assert found[1, 2].tolist() == [1.5, 0]
    for read in (read_disparity_png, read_flow_png):
        with pytest.raises(GroundTruthError, match=r"b\.png: missing; ask its maker$"):
            read(tmp_path / "b.png", (WIDTH, HEIGHT), "ask its maker")
        with pytest.raises(GroundTruthError, match=r"a\.png: .*; ask its maker$"):
            read(path, (WIDTH, HEIGHT + 1), "ask its maker")


def test_only_the_header_of_the_image_is_read(tmp_path: Path) -> None:
    write_pair(tmp_path)
    path = tmp_path / "training" / "image_2" / "000000_10.png"
    path.write_bytes(path.read_bytes()[:26])
    read_pair(tmp_path, 0)
    path.write_bytes(path.read_bytes()[:25])
    assert message(tmp_path) == f"/training/image_2/000000_10.png: no PNG; {FROM_TRUTH}"


def test_an_absurd_size_is_refused_before_anything_is_allocated(tmp_path: Path) -> None:
    write_pair(tmp_path)
    path = tmp_path / "training" / "image_2" / "000000_10.png"
    for width, height in ((1 << 30, 4), (4, 1 << 30), (0, 4)):
        data = path.read_bytes()
        path.write_bytes(data[:16] + width.to_bytes(4, "big") + height.to_bytes(4, "big") + data[24:])
        assert message(tmp_path) == (
            f"/training/image_2/000000_10.png: {width}x{height} pixels, expected sides in [1, 16384]; {FROM_TRUTH}"
        )


def test_wrong_calibrations_say_what_they_lack(tmp_path: Path) -> None:
    write_pair(tmp_path)
    path = "/training/calib_cam_to_cam/000000.txt"

    def found(**lines: list[float]) -> str:
        write_calibration(tmp_path, 0, **lines)
        text = message(tmp_path)
        assert text.startswith(f"{path}: ")
        assert text.endswith(f"; {FROM_CALIBRATION}")
        return text.removeprefix(f"{path}: ").removesuffix(f"; {FROM_CALIBRATION}")

    assert found(P_rect_02=LEFT[:-1]) == "holds no P_rect_02 of 12 numbers"
    assert found(P_rect_03=[float("nan"), *RIGHT[1:]]) == "holds no P_rect_03 of 12 numbers"
    assert found(P_rect_02=[-F, *LEFT[1:]]) == "P_rect_02 is no camera's"
    assert found(P_rect_02=[*LEFT[:8], 0, 0, 2, 0]) == "P_rect_02 is no camera's"
    exchanged = found(P_rect_02=RIGHT, P_rect_03=LEFT)
    assert exchanged == "baseline -0.5 m, expected camera 3 to the right of camera 2"
    (tmp_path / path[1:]).write_text("P_rect_02: many numbers\n")
    assert message(tmp_path) == f"{path}: holds no P_rect_02 of 12 numbers; {FROM_CALIBRATION}"
    (tmp_path / path[1:]).write_bytes(b"\xff\0\n")
    assert message(tmp_path) == f"{path}: holds no P_rect_02 of 12 numbers; {FROM_CALIBRATION}"


def test_a_real_calibration_has_kittis_focal_length_and_baseline(test_data: Path) -> None:
    path = test_data / "kitti_raw" / "2011_09_26" / "calib_cam_to_cam.txt"
    if not path.is_file():
        pytest.skip(f"no real calibration: {path} is missing")
    K, baseline_m = read_stereo_calibration(path)
    assert K.tolist() == [[721.5377, 0, 609.5593], [0, 721.5377, 172.854], [0, 0, 1]]
    assert baseline_m == pytest.approx(0.5327, abs=1e-4)  # about 54 cm, as KITTI's rig was built


def test_truth_that_contradicts_itself_cannot_be_made(tmp_path: Path) -> None:
    write_pair(tmp_path)
    truth = read_pair(tmp_path, 0)

    def refused(pattern: str, **changed: object) -> None:
        with pytest.raises(GroundTruthError, match=pattern):
            replace(truth, **changed)  # type: ignore[arg-type]

    refused(r"pair 000000: disparity_1_px is \(3, 6\), expected \(4, 6\)", disparity_1_px=GREY_16[1:])
    refused(r"flow_px is \(4, 6, 3\), expected \(4, 6, 2\)", flow_px=RGB_16)
    refused(r"flow_valid is", flow_valid=GREY_8[0])
    refused(r"object_map is", object_map=GREY_8.T)
    refused(r"K is \(2, 3\)", K=truth.K[:2])
    refused(r"baseline 0 m, focal length 721.5 px; expected both above 0", baseline_m=0.0)
    with pytest.raises(GroundTruthError, match=r"disparity_0_px is \(6,\), expected \(H, W\)"):
        SceneFlowTruth(
            pair=0,
            disparity_0_px=GREY_16[0],
            disparity_1_px=GREY_16[0],
            flow_px=GREY_16[:2].T,
            flow_valid=GREY_8[0],
            object_map=GREY_8[0],
            K=truth.K,
            baseline_m=0.5,
        )
