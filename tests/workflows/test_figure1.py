"""Figure 1: with true depth and motion only the forward warp gives the intermediate frame."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch.testing import assert_close

from pipeline.streetworld.render import render_frames
from pipeline.streetworld.scene import draw_scene
from pipeline.streetworld.world import Scene
from workflows import figure1
from workflows.figure1 import DEFAULTS, Frame, Views

SIZE = (208, 64)
WARPS = {
    "inverse": figure1.inverse_view,
    "reversed": figure1.reversed_flow_view,
    "forward": figure1.forward_view,
}


@pytest.fixture(scope="module")
def scene() -> Scene:
    return draw_scene(DEFAULTS.seed, DEFAULTS.frames, SIZE)


@pytest.fixture(scope="module")
def views(scene: Scene) -> Views:
    return figure1.render_views(scene, DEFAULTS.source, DEFAULTS.target)


def test_the_forward_warp_is_nearest_to_the_truth_on_a_turning_car(scene: Scene, views: Views) -> None:
    car = figure1.find_car(scene, views, DEFAULTS.source, DEFAULTS.target)
    assert car.label == "car"
    assert figure1.turned_deg(car, DEFAULTS.source, DEFAULTS.target) > 10
    region = figure1.car_region(views, car.id)
    score = {name: figure1.measure(warp(views), views.intermediate, region) for name, warp in WARPS.items()}
    assert score["forward"].mae < 0.9 * min(score["reversed"].mae, score["inverse"].mae)
    assert score["forward"].photometric < 0.8 * min(
        score["reversed"].photometric, score["inverse"].photometric
    )
    assert score["forward"].holes < 0.05


def test_the_final_view_is_the_target_when_motions_are_true(scene: Scene, views: Views) -> None:
    car = figure1.find_car(scene, views, DEFAULTS.source, DEFAULTS.target)
    body = views.target.ids == car.id
    final = figure1.measure(figure1.final_view(views), views.target, body)
    by_camera_alone = figure1.measure(figure1.inverse_view(views), views.target, body)
    assert final.mae < 0.5 * by_camera_alone.mae


@pytest.mark.parametrize("name", WARPS)
def test_without_camera_motion_every_warp_is_the_source(scene: Scene, name: str) -> None:
    poses = scene.world_T_camera.copy()
    poses[DEFAULTS.source] = poses[DEFAULTS.target]
    views = figure1.render_views(replace(scene, world_T_camera=poses), DEFAULTS.source, DEFAULTS.target)
    np.testing.assert_array_equal(views.intermediate.image, views.source.image)
    assert (views.target.image != views.source.image).any()  # the car has moved
    warped = WARPS[name](views)
    assert_close(warped.image * 255, figure1._image(views.source) * 255, atol=0.1, rtol=0)
    # Rounding may put the outermost pixels a hair outside.
    assert warped.filled[..., 1:-1, 1:-1].all()


def test_the_frames_are_the_clips_own() -> None:
    scene = draw_scene(DEFAULTS.seed, DEFAULTS.frames, (64, 32))
    views = figure1.render_views(scene, 1, 3)
    clip = render_frames(scene)
    frames = [next(clip) for _ in range(4)]
    for frame, expected in ((views.source, frames[1]), (views.target, frames[3])):
        np.testing.assert_array_equal(frame.ids, expected.ids)
        np.testing.assert_allclose(frame.depth_m, expected.depth_m, rtol=1e-5)
        # The map of the road is cut to the course, so its last digits differ.
        np.testing.assert_allclose(frame.image.astype(int), expected.image, atol=1)


def test_splatting_shares_a_value_and_averages_what_meets() -> None:
    values = torch.zeros(1, 3, 1)
    values[0, :2, 0] = torch.tensor([1.0, 4.0])
    positions = torch.tensor([[[0.25, 0.0], [1.0, 0.0], [7.0, 0.0]]])
    mean, weight = figure1.splat(values, positions, torch.ones(1, 3, dtype=torch.bool))
    # Pixel 0 has 3/4 of the first; pixel 1 a quarter of it and all of the second; the third is outside.
    assert_close(weight, torch.tensor([[0.75, 1.25, 0.0]]))
    assert_close(mean[0, :, 0], torch.tensor([1.0, (0.25 * 1 + 4) / 1.25, 0.0]))


def test_the_region_is_the_car_with_a_margin_and_its_ghost() -> None:
    def frame(columns: slice) -> Frame:
        ids = np.zeros((9, 20), np.uint16)
        ids[4, columns] = 3
        return Frame(image=np.zeros((9, 20, 3), np.uint8), depth_m=np.ones((9, 20), np.float32), ids=ids)

    views = Views(
        source=frame(slice(2, 4)), target=frame(slice(8, 12)), intermediate=frame(slice(5, 9)),
        s_T_t=torch.eye(4), composite=torch.eye(4)[None], K=torch.eye(3),
    )  # fmt: skip
    region = figure1.car_region(views, 3, margin_px=2)
    expected = np.zeros((9, 20), bool)
    expected[2:7, 3:11] = True
    expected[4, 11] = True  # the ghost beyond the margin
    np.testing.assert_array_equal(region, expected)


def test_holes_count_in_no_error_but_are_stated() -> None:
    truth = Frame(
        image=np.full((4, 4, 3), 51, np.uint8),
        depth_m=np.ones((4, 4), np.float32),
        ids=np.zeros((4, 4), np.uint16),
    )
    filled = torch.ones(1, 1, 4, 4, dtype=torch.bool)
    filled[..., 0] = False
    image = torch.full((1, 3, 4, 4), 61 / 255) * filled
    score = figure1.measure(figure1.Warped(image=image, filled=filled), truth, np.ones((4, 4), bool))
    assert score.mae == pytest.approx(10, abs=1e-4)
    assert score.holes == 0.25


def test_the_command_writes_the_picture_and_prints_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "figure.png"
    assert figure1.main([str(out), "--size", "208", "64"]) == 0
    printed = capsys.readouterr().out
    assert "| (c) forward warp (ours) |" in printed
    assert f"seed {DEFAULTS.seed}" in printed
    picture = cv2.imread(str(out))
    assert picture is not None
    assert picture.std() > 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--source", "40"), "source 40 and target 17 must lie in [0, 23]"),
        (("--source", "17"), "source and target are both frame 17"),
        (("--actor", "999"), "has no actor 999"),
        (("--seed", "200009"), "no vehicle turns"),
    ],
)
def test_an_impossible_wish_is_one_line(
    options: tuple[str, str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert figure1.main([str(tmp_path / "x.png"), "--size", "64", "32", *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
