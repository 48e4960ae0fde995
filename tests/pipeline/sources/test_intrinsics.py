"""Intrinsics as users give them: a field of view, numbers, files, and what is wrong with them."""

from __future__ import annotations

import json
from fractions import Fraction

import numpy as np
import pytest

from pipeline.camera import Distortion, FrameTransform, pinhole
from pipeline.errors import SourceError
from pipeline.sources.intrinsics import Intrinsics, IntrinsicsError, intrinsics_from, require_intrinsics

SIZE = (1242, 375)
LENS = '{"fx": 700, "fy": 700, "cx": 600, "cy": 170, "distortion": %s}'


def given(text: str | None = None, fov_deg: float | None = None) -> Intrinsics:
    intrinsics = intrinsics_from(text, fov_deg)
    assert intrinsics is not None
    return intrinsics


def test_field_of_view_reaches_from_edge_to_edge():
    K = given(fov_deg=90).camera((1000, 500)).K
    # The left edge is at u = -0.5: (u - cx) / fx must be -tan(45 deg).
    np.testing.assert_allclose(K, pinhole(500, 500, 499.5, 249.5))
    assert (-0.5 - K[0, 2]) / K[0, 0] == pytest.approx(-1)


def test_pixels_twice_as_wide_as_high_double_fy():
    K = given(fov_deg=60).camera((720, 576), Fraction(3, 2)).K
    assert K[1, 1] / K[0, 0] == pytest.approx(1.5)


@pytest.mark.parametrize(
    "text", ["721.5,721.5,609.6,172.9", "721.5 721.5 609.6 172.9", " 721.5, 721.5, 609.6, 172.9 "]
)
def test_four_numbers(text):
    np.testing.assert_allclose(given(text).camera(SIZE).K, pinhole(721.5, 721.5, 609.6, 172.9))


@pytest.mark.parametrize("form", ["json", "yaml"])
def test_a_file_with_numbers_or_a_matrix_and_distortion(tmp_path, form):
    K = pinhole(721.5, 721.5, 609.6, 172.9)
    flat = {"fx": 721.5, "fy": 721.5, "cx": 609.6, "cy": 172.9}
    lens = {"model": "radtan", "coefficients": [-0.3, 0.1, 0, 0.001]}
    for values in [flat, {"K": K.tolist()}, {"K": K.ravel().tolist()}]:
        path = tmp_path / f"camera.{form}"
        path.write_text(json.dumps({**values, "distortion": lens}))  # JSON is YAML too
        camera = given(str(path)).camera(SIZE)
        np.testing.assert_allclose(camera.K, K)
        assert camera.distortion == Distortion(model="radtan", coefficients=(-0.3, 0.1, 0.0, 0.001))


def test_another_resolution_of_the_same_view_is_rescaled_like_a_resize(tmp_path):
    path = tmp_path / "camera.json"
    path.write_text(json.dumps({"fx": 1000, "fy": 1010, "cx": 955, "cy": 545, "width": 1920, "height": 1080}))
    small = given(str(path)).camera((960, 540))
    full = given(str(path)).camera((1920, 1080))
    np.testing.assert_allclose(small.K, FrameTransform.cover((1920, 1080), (960, 540)).camera(full).K)
    with pytest.raises(
        IntrinsicsError, match=r"camera.json: measured for 1920x1080 frames, these are 960x600"
    ):
        given(str(path)).camera((960, 600))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[1, 2]", "no named values"),
        ("{", "neither JSON nor YAML"),
        ('{"fx": 700}', "needs either"),
        ('{"fx": 700, "fy": 700, "cx": 600, "cy": 170, "focal": 3}', "unknown entries .'focal'"),
        ('{"fx": "wide", "fy": 700, "cx": 600, "cy": 170}', "fx must be 1 finite"),
        ('{"fx": [], "fy": 700, "cx": 600, "cy": 170}', "fx must be 1 finite"),
        ('{"fx": 700, "fy": 700, "cx": 600, "cy": 170, "width": 1242}', "one of width and height"),
        ('{"K": [[1, 2], [3, 4]]}', "K must be 9"),
        (LENS % "[0.1]", "distortion must be"),
        (LENS % '{"model": ["x"], "coefficients": [0]}', "unknown"),
        (LENS % '{"model": "radtan", "coefficients": [0]}', "4 or 5"),
        ('{"fx": 70000, "fy": 70000, "cx": 600, "cy": 170}', "implausible"),
        ('{"fx": 1443, "fy": 1443, "cx": 1219, "cy": 346}', "another size"),
        ("!!python/object/apply:os.system ['true']", "neither JSON nor YAML"),
    ],
)  # fmt: skip
def test_wrong_files_are_named_with_what_is_expected(tmp_path, content, words):
    path = tmp_path / ("camera.yaml" if content.startswith("!!") else "camera.json")
    path.write_text(content)
    with pytest.raises(IntrinsicsError, match=words) as error:
        given(str(path)).camera(SIZE)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "fov", "words"),
    [
        ("700,700,600", None, "3 numbers, expected 4"),
        ("nowhere.json", None, "nowhere.json: cannot be read"),
        ("700,700,600,170", 60.0, "give one of them"),
        (None, 0.0, "1..170"),
        (None, 180.0, "1..170"),
        (None, float("nan"), "1..170"),
    ],
)
def test_wrong_options(text, fov, words):
    with pytest.raises(SourceError, match=words):
        intrinsics_from(text, fov)


def test_a_camera_file_beside_the_clips_or_above_is_used_up_to_the_source(tmp_path):
    root, inner = tmp_path / "source", tmp_path / "source" / "a" / "b"
    inner.mkdir(parents=True)
    (tmp_path / "camera.json").write_text("outside the source")
    with pytest.raises(IntrinsicsError, match=r"camera is unknown.*--intrinsics.*--fov-deg"):
        require_intrinsics(None, inner, root)

    (root / "camera.yaml").write_text("{fx: 700, fy: 700, cx: 600, cy: 170}")
    found = require_intrinsics(None, inner, root).K
    assert found is not None
    assert found[0, 0] == 700
    (inner / "camera.json").write_text('{"fx": 800, "fy": 800, "cx": 600, "cy": 170}')
    found = require_intrinsics(None, inner, root).K
    assert found is not None
    assert found[0, 0] == 800
    assert require_intrinsics(given(fov_deg=50), inner, root).fov_deg == 50
