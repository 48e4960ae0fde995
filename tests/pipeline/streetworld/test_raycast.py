"""The ray caster against surfaces whose depth is known on paper."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from pipeline.streetworld.raycast import (
    FAR_M,
    FIRST_FACE,
    KERB,
    PAVEMENT,
    ROAD,
    SKY,
    Hits,
    RoadMap,
    build_model,
    cast,
    cast_ground,
    make_rays,
    project_bounds,
    see,
)  # fmt: skip
from pipeline.streetworld.roads import Hill, Path, Street
from pipeline.streetworld.scene import draw_scene
from pipeline.streetworld.solids import box, cylinder, ellipsoid, plain, plane
from pipeline.streetworld.world import Actor

SIZE = (64, 48)
K = np.array([[50.0, 0, 31.5], [0, 50.0, 23.5], [0, 0, 1]])
# The camera looks along world X: x right = -Y, y down = -Z.
LEVEL = np.array([[0, 0, 1.0, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
GREY = plain((0.5, 0.5, 0.5))


def camera(height: float) -> np.ndarray:
    pose = LEVEL.copy()
    pose[2, 3] = height
    return pose


def flat_street(**changes) -> Street:
    values = {
        "path": Path.build(-50, 0, 0, [(300.0, 0.0)]),
        "hill": Hill(bend=0.0, slope=0.0),
        "lane": 3.0,
        "lanes": 1,
        "left": 4.0,
        "right": 4.0,
        "pavement": 3.0,
        "kerb": 0.12,
        "junction_s": None,
        "junction_half": 3.0,
    }
    return Street(**{**values, **changes})


def cast_solids(*solids, pose=None, order=None) -> Hits:
    """Hits of solids of one body, by a camera at the origin that looks along +X."""
    pose = np.eye(4) if pose is None else pose
    actor = Actor(
        id=7, label="car", kind="car", size=np.ones(3), solids=list(solids), poses=pose[None], moving=False
    )
    scene = draw_scene(9, 2, SIZE)  # an empty one, to be filled
    object.__setattr__(scene, "actors", [actor])
    object.__setattr__(scene, "props", [])
    object.__setattr__(scene, "world_T_camera", LEVEL[None])
    model = build_model(scene)
    rays = make_rays(K, SIZE, torch.device("cpu"))
    shape = torch.broadcast_shapes(rays.x.shape, rays.y.shape)
    hits = Hits(q=torch.zeros(shape), surface=torch.zeros(shape, dtype=torch.int32))
    cast(model, see(model, LEVEL, 0, K, SIZE), rays, hits)
    return hits


def centre(hits: Hits) -> tuple[np.ndarray, np.ndarray]:
    """(depth, surface) at pixel centres."""
    with np.errstate(divide="ignore"):
        return 1 / hits.q[-1].numpy(), hits.surface[-1].numpy()


def test_a_box_ahead_shows_its_near_face_over_exactly_its_pixels():
    depth, surface = centre(cast_solids(box((10, -2, -1), (14, 2, 1), GREY)))
    u, v = np.meshgrid(np.arange(64), np.arange(48))
    inside = (np.abs(u - 31.5) < 50 * 2 / 10) & (np.abs(v - 23.5) < 50 * 1 / 10)
    assert_allclose(depth[inside], 10, rtol=1e-6)
    assert np.all(surface[inside] == FIRST_FACE + 1)  # faces go +x -x +y -y +z -z
    assert np.all(np.isinf(depth[~inside]))


def test_a_box_to_the_side_shows_two_faces_at_their_depths():
    depth, surface = centre(cast_solids(box((10, -5, -1), (20, -2, 1), GREY)))  # to the right
    row = depth[24], surface[24]
    front = row[1] == FIRST_FACE + 1
    side = row[1] == FIRST_FACE + 2
    assert front.any() and side.any()  # noqa: PT018
    assert_allclose(row[0][front], 10, rtol=1e-6)
    u = np.arange(64)[side]
    assert_allclose(row[0][side], 2 * 50 / (u - 31.5), rtol=1e-5)  # the plane Y = -2


def test_a_slanted_cut_has_the_depth_of_its_plane():
    cut = plane((-1, 0, 1), (10, 0, 0))  # z <= x - 10
    depth, surface = centre(cast_solids(box((10, -2, -1), (14, 2, 1), GREY, extra=[(cut, GREY)])))
    on = surface == FIRST_FACE + 6
    v = np.broadcast_to(np.arange(48)[:, None], on.shape)[on]
    assert on.sum() > 20
    z = -(v - 23.5) / 50  # height of the ray per metre of depth
    assert_allclose(depth[on], 10 / (1 - z), rtol=1e-5)  # meets z = x - 10


def test_a_ball_has_the_depth_of_a_ball():
    depth, _ = centre(cast_solids(ellipsoid((12, 0, 0), (2, 2, 2), GREY)))
    u, v = np.meshgrid(np.arange(64), np.arange(48))
    d = np.stack([(u - 31.5) / 50, (v - 23.5) / 50, np.ones_like(u)], -1)
    dd, b = (d * d).sum(-1), 12.0
    root = b * b - dd * (144 - 4)
    expected = np.where(root > 0, (b - np.sqrt(np.maximum(root, 0))) / dd, np.inf)
    assert_allclose(depth, expected, rtol=1e-4)


def test_a_cylinder_ends_at_its_caps():
    depth, surface = centre(cast_solids(cylinder(2, (9, -1, -1), (11, 1, 1), GREY)))
    assert depth[23, 31] == pytest.approx(9, rel=1e-3)
    rows = np.flatnonzero(np.isfinite(depth[:, 31]))
    assert (rows[0], rows[-1]) == (18, 29)  # 1 m at 9 m: 5.6 pixels each way
    assert set(np.unique(surface)) == {0, FIRST_FACE + 2}


def test_the_nearer_solid_wins_whatever_the_order():
    near, far = box((5, -0.2, -0.2), (6, 0.2, 0.2), GREY), box((10, -3, -3), (11, 3, 3), GREY)
    one, _ = centre(cast_solids(near, far))
    two, _ = centre(cast_solids(far, near))
    assert_allclose(one, two)
    assert one[23, 31] == pytest.approx(5)
    assert one[23, 40] == pytest.approx(10)


def test_a_solid_across_the_near_plane_shows_where_it_lies_ahead():
    depth, _ = centre(
        cast_solids(box((-20, 1, -1), (20, 2, 1), GREY))
    )  # a wall to the left, from behind to ahead
    u = np.arange(64)[:20]
    assert_allclose(depth[23, :20], 1 / ((31.5 - u) / 50), rtol=1e-4)


def test_bounds_hold_the_clipped_hull():
    corners = np.array([[[x, y, z] for x in (-1.0, 1) for y in (0.5, 1) for z in (-5.0, 5)]])
    u0, v0, u1, v1 = project_bounds(corners, K, SIZE)[0]
    assert (u0, u1, v1) == (0, 64, 48)
    assert v0 <= 23.5 + 50 * 0.5 / 5
    behind = project_bounds(corners - [0, 0, 20], K, SIZE)[0]
    assert behind[0] == behind[2]


@pytest.mark.parametrize("bend", [0.0, 1 / 800, -1 / 800])
def test_road_depth_solves_the_hills_equation(bend):
    street = flat_street(hill=Hill(bend=bend, slope=0.02))
    pose = camera(1.5)
    view = see(build_model(draw_scene(9, 2, SIZE)), pose, 0, K, SIZE)
    rays = make_rays(K, SIZE, torch.device("cpu"))
    depth, surface = centre(cast_ground(street, view, rays, RoadMap(street, (0, 250), torch.device("cpu"))))
    road = surface == ROAD
    assert road.sum() > 300
    v = np.broadcast_to(np.arange(48)[:, None], road.shape)[road]
    x, z = depth[road], 1.5 - depth[road] * (v - 23.5) / 50
    assert_allclose(z, street.hill.height(x), atol=2e-3)
    assert np.all(depth[surface == SKY] == np.inf)
    assert depth[road].max() < FAR_M


def test_kerb_joins_road_and_pavement():
    street = flat_street()
    view = see(build_model(draw_scene(9, 2, SIZE)), camera(1.5), 0, K, SIZE)
    rays = make_rays(K, SIZE, torch.device("cpu"))
    depth, surface = centre(cast_ground(street, view, rays, RoadMap(street, (0, 250), torch.device("cpu"))))
    u, v = np.meshgrid(np.arange(64), np.arange(48))
    side, height = -depth * (u - 31.5) / 50, 1.5 - depth * (v - 23.5) / 50
    near = depth < 30
    for kind, low, high in ((ROAD, 0, 4), (KERB, 3.99, 4.01), (PAVEMENT, 4, 99)):
        on = (surface == kind) & near
        assert on.sum() > 5, kind
        assert np.all((np.abs(side[on]) > low - 1e-3) & (np.abs(side[on]) < high + 1e-3))
    assert_allclose(height[(surface == ROAD) & near], 0, atol=1e-4)
    assert_allclose(height[(surface == PAVEMENT) & near], 0.12, atol=1e-4)
    on_kerb = height[(surface == KERB) & near]
    assert np.all((on_kerb > -1e-3) & (on_kerb < 0.121))
