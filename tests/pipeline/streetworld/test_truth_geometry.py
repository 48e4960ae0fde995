"""Pictures, depth, ids, motion and flow of rendered clips agree with each other."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.streetworld.clip import ClipConfig, assemble_truth
from pipeline.streetworld.raycast import (
    FIRST_FACE,
    ROAD,
    RoadMap,
    build_model,
    cast,
    cast_ground,
    make_rays,
    see,
)
from pipeline.streetworld.render import Jitter, render_frames
from pipeline.streetworld.scene import draw_scene
from pipeline.streetworld.truth import FLOW_DEFINED, FLOW_INSIDE, FLOW_VISIBLE

SIZE = (208, 64)
SEEDS = (0, 2, 3, 4, 200_006)


@pytest.fixture(scope="module")
def clips():
    """{seed: (scene, images, truth)}"""
    rendered = {}
    for seed in SEEDS:
        config = ClipConfig(frames=3, size=SIZE)
        scene = draw_scene(seed, config.frames, config.size, config.fps)
        frames = list(render_frames(scene))
        rendered[seed] = scene, [f.image for f in frames], assemble_truth(scene, frames, config)
    return rendered


def moved_points(truth, t):
    """Points of frame t at t + 1: (H, W, 3) in the next camera, by the long way through the world."""
    height, width = truth.depth_m.shape[1:]
    u, v = np.meshgrid(np.arange(width), np.arange(height))
    depth = np.minimum(truth.depth_m[t], 1e9)
    x, y = (u - truth.K[0, 2]) / truth.K[0, 0], (v - truth.K[1, 2]) / truth.K[1, 1]
    X = np.stack([x * depth, y * depth, depth, np.ones_like(depth)], -1)
    world = X @ truth.world_T_camera[t].T
    for row, i in enumerate(truth.objects.id):
        own = truth.ids[t] == i
        local = world[own] @ np.linalg.inv(truth.objects.world_T_object[t, row]).T
        world[own] = local @ truth.objects.world_T_object[t + 1, row].T
    return (world @ np.linalg.inv(truth.world_T_camera[t + 1]).T)[..., :3]


@pytest.mark.parametrize("seed", SEEDS)
def test_depth_and_motions_explain_the_flow(clips, seed):
    truth = clips[seed][2]
    for t in range(len(truth) - 1):
        X = moved_points(truth, t)
        u, v = np.meshgrid(np.arange(SIZE[0]), np.arange(SIZE[1]))
        expected = np.stack([truth.K[0, 0] * X[..., 0] / X[..., 2] + truth.K[0, 2] - u,
                             truth.K[1, 1] * X[..., 1] / X[..., 2] + truth.K[1, 2] - v], -1)  # fmt: skip
        visible = (truth.flow_state[t] & FLOW_VISIBLE) > 0
        assert visible.mean() > 0.5
        assert np.abs(expected - truth.flow_px[t])[visible].max() < 1e-2


@pytest.mark.parametrize("seed", SEEDS)
def test_the_next_frame_has_the_moved_points_at_their_depth(clips, seed):
    """The renderer and the motions agree: on background and on every object by itself."""
    truth = clips[seed][2]
    for t in range(len(truth) - 1):
        z = moved_points(truth, t)[..., 2]
        u, v = np.meshgrid(np.arange(SIZE[0]), np.arange(SIZE[1]))
        at = np.stack([u, v], -1) + truth.flow_px[t]
        visible = (truth.flow_state[t] & FLOW_VISIBLE) > 0
        # 1 / depth is affine on a plane, so bilinear sampling of it is exact there.
        there = 1 / np.maximum(bilinear(1 / truth.depth_m[t + 1][..., None], at)[..., 0], 1e-9)
        for i in np.unique(truth.ids[t]):
            same = bilinear((truth.ids[t + 1] == i)[..., None].astype(float), at)[..., 0] > 0.999
            own = (
                (truth.ids[t] == i)
                & ((truth.flow_state[t] & FLOW_INSIDE) > 0)
                & np.isfinite(truth.depth_m[t])
            )
            if own.sum() < 60:
                continue
            assert (own & visible).sum() > 0.4 * own.sum(), f"object {i} is not where its motion says"
            error = np.abs(there / z - 1)[own & same]
            assert np.median(error) < 1e-3, f"object {i} is not at its depth"


@pytest.mark.parametrize("seed", SEEDS)
def test_warping_by_the_flow_explains_the_picture(clips, seed):
    _, images, truth = clips[seed]
    now, then = images[0].astype(float) / 255, images[1].astype(float) / 255
    visible = (truth.flow_state[0] & FLOW_VISIBLE) > 0
    u, v = np.meshgrid(np.arange(SIZE[0]), np.arange(SIZE[1]))
    warped = bilinear(then, np.stack([u, v], -1) + truth.flow_px[0])
    residual = np.abs(warped - now)[visible].mean()
    assert residual < 0.6 * np.abs(then - now)[visible].mean()
    assert residual < 0.025


def test_warping_explains_moving_objects_too(clips):
    """Summed over moving objects: far better by their own motion than by the camera's alone."""
    own = still = count = 0.0
    u, v = np.meshgrid(np.arange(SIZE[0]), np.arange(SIZE[1]))
    for _, images, truth in clips.values():
        now, then = images[0].astype(float) / 255, images[1].astype(float) / 255
        mask = np.isin(truth.ids[0], truth.objects.id[truth.objects.moving]) & (
            truth.flow_state[0] & FLOW_VISIBLE > 0
        )
        own += np.abs(bilinear(then, np.stack([u, v], -1) + truth.flow_px[0]) - now)[mask].sum()
        still += np.abs(then - now)[mask].sum()
        count += 3 * mask.sum()
    assert count > 3000
    assert own / count < 0.5 * still / count


def test_wheels_meet_the_ground_where_it_is():
    """A wheel's lowest pixel lies between the ground's depths at that pixel and at the one below."""
    checked = 0
    for seed in (1, 3, 5):
        scene = draw_scene(seed, 2)
        model = build_model(scene)
        rays = make_rays(scene.K, scene.size, torch.device("cpu"))
        roads = RoadMap(scene.street, (0, 260), torch.device("cpu"))
        view = see(model, scene.world_T_camera[0], 0, scene.K, scene.size)
        hits = cast_ground(scene.street, view, rays, roads)
        with np.errstate(divide="ignore"):
            ground = 1 / hits.q[-1].numpy()
        cast(model, view, rays, hits)
        surface = hits.surface[-1].numpy()
        with np.errstate(divide="ignore"):
            depth = 1 / hits.q[-1].numpy()
        solid = np.r_[np.full(FIRST_FACE, -1), model.face_solid][surface]
        cars = [b for b, actor in enumerate(scene.actors) if actor.label == "car"]
        for wheel in np.flatnonzero(model.curved & np.isin(model.body, cars)):
            v, u = np.nonzero(solid == wheel)
            if len(v) < 15 or v.max() >= scene.size[1] - 2:
                continue
            low = v.max()
            u = u[v == low]
            if np.all(surface[low + 1, u] == ROAD):  # not hidden behind anything
                assert np.all(depth[low, u] < 1.03 * ground[low, u])
                assert np.max(depth[low, u] / ground[low + 1, u]) > 0.97
                checked += 1
    assert checked >= 8


@pytest.mark.parametrize("seed", SEEDS)
def test_tables_describe_the_pictures(clips, seed):
    truth = clips[seed][2]
    objects = truth.objects
    assert set(np.unique(truth.ids)) <= {0, *objects.id.tolist()}
    for row, i in enumerate(objects.id):
        assert (objects.visible_px[:, row] == (truth.ids == i).sum((1, 2))).all()
        for t in range(len(truth)):
            v, u = np.nonzero(truth.ids[t] == i)
            if len(v) == 0:
                continue
            depth = truth.depth_m[t][v, u]
            X = np.stack([(u - truth.K[0, 2]) / truth.K[0, 0], (v - truth.K[1, 2]) / truth.K[1, 1],
                          np.ones(len(u)), 1 / depth], -1) * depth[:, None]  # fmt: skip
            local = X @ (np.linalg.inv(objects.world_T_object[t, row]) @ truth.world_T_camera[t]).T
            # Every visible point lies in the stated box, which stands on the object's origin.
            assert np.all(np.abs(local[:, :2]) < objects.size_m[row, :2] / 2 + 0.06)
            assert np.all((local[:, 2] > -0.02) & (local[:, 2] < objects.size_m[row, 2] + 0.05))


def test_undefined_flow_is_zero_and_sky_turns_only(clips):
    for _, _, truth in clips.values():
        undefined = (truth.flow_state & FLOW_DEFINED) == 0
        assert np.all(truth.flow_px[undefined] == 0)
        sky = np.isinf(truth.depth_m[0])
        turn = np.linalg.inv(truth.world_T_camera[1])[:3, :3] @ truth.world_T_camera[0][:3, :3]
        v, u = np.nonzero(sky)
        ray = np.stack(
            [(u - truth.K[0, 2]) / truth.K[0, 0], (v - truth.K[1, 2]) / truth.K[1, 1], np.ones(len(u))]
        )
        then = turn @ ray
        expected = truth.K[0, 0] * then[0] / then[2] + truth.K[0, 2] - u
        np.testing.assert_allclose(truth.flow_px[0][sky][:, 0], expected, atol=1e-4)


def test_rendering_twice_gives_the_same_bytes(clips):
    _, images, truth = clips[3]
    again = list(render_frames(draw_scene(3, 3, SIZE)))
    for k, frame in enumerate(again):
        np.testing.assert_array_equal(frame.image, images[k])
        np.testing.assert_array_equal(frame.depth_m, truth.depth_m[k])
        np.testing.assert_array_equal(frame.ids, truth.ids[k])


def test_jitter_changes_the_picture_alone():
    scene = draw_scene(9, 2, (104, 32))
    plain = next(render_frames(scene))
    noisy = next(render_frames(scene, jitter=Jitter(exposure=0.1, noise=3.0)))
    assert np.abs(noisy.image.astype(int) - plain.image).mean() > 1
    np.testing.assert_array_equal(noisy.depth_m, plain.depth_m)


def test_pictures_have_texture(clips):
    """Not flat areas: the gradient is above quantisation over most of the ground and the walls."""
    for _, images, truth in clips.values():
        grey = images[0].astype(float).mean(-1)
        step = np.abs(np.diff(grey, axis=1))[:, :-1] + np.abs(np.diff(grey, axis=0))[:-1, :-1].mean()
        solid = np.isfinite(truth.depth_m[0])[:, 1:-1]
        assert (step[solid] > 0.7).mean() > 0.6


def bilinear(image, at):
    """(H, W, C) sampled at (u, v) positions, clamped to the image."""
    height, width = image.shape[:2]
    u, v = np.clip(at[..., 0], 0, width - 1.001), np.clip(at[..., 1], 0, height - 1.001)
    i, j = np.floor(u).astype(int), np.floor(v).astype(int)
    fu, fv = (u - i)[..., None], (v - j)[..., None]
    top = image[j, i] * (1 - fu) + image[j, i + 1] * fu
    bottom = image[j + 1, i] * (1 - fu) + image[j + 1, i + 1] * fu
    return top * (1 - fv) + bottom * fv
