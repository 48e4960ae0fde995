"""What resizing, cropping and undistorting do to pixels, boxes, cameras and 3-D points, for any size."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, example, given, reject, settings
from hypothesis import strategies as st

from pipeline.camera import Camera, Distortion, FrameTransform, Undistorter, distort, pinhole
from pipeline.errors import SourceError

QUICK = settings(max_examples=150, deadline=None, derandomize=True)
# Down to one pixel, portrait, and strips; odd and even.
sides = st.one_of(st.integers(1, 40), st.integers(41, 2000))
sizes = st.tuples(sides, sides)
shapes = st.tuples(st.integers(200, 2000), st.integers(200, 2000))
MOST_PIXELS = 3_000_000
"""Of frames that are made for a test."""
anchors = st.floats(0, 1)
points = st.tuples(st.floats(-5, 5), st.floats(-5, 5), st.floats(0.5, 80))


def camera_of(size: tuple[int, int], focal: float, centre: tuple[float, float]) -> Camera:
    f = focal * max(size)
    return Camera(K=pinhole(f, 1.07 * f, centre[0] * size[0], centre[1] * size[1]), size=size)


cameras = st.builds(camera_of, shapes, st.floats(0.3, 2), st.tuples(st.floats(0.3, 0.7), st.floats(0.3, 0.7)))


def moved(transform: FrameTransform, camera: Camera) -> Camera:
    """The moved camera. A crop to a splinter may leave it implausible: refused."""
    try:
        return transform.camera(camera)
    except SourceError as error:
        assert "implausible" in str(error)
        reject()


def project(K: np.ndarray, X: np.ndarray) -> np.ndarray:
    uvw = K @ X
    return uvw[:2] / uvw[2]


@QUICK
@given(source=sizes, stored=sizes, anchor=anchors)
@example(source=(1, 1), stored=(500, 3), anchor=1.0)
@example(source=(4000, 1), stored=(1, 700), anchor=0.0)
def test_every_stored_pixel_lies_on_the_source_frame(source, stored, anchor) -> None:  # type: ignore[no-untyped-def]
    transform = FrameTransform.cover(source, stored, anchor)
    edges = transform.boxes(np.array([-0.5, -0.5, source[0] - 0.5, source[1] - 0.5]))
    assert (edges[:2] <= -0.5 + 1e-9).all()
    assert (edges[2:] >= np.array(stored) - 0.5 - 1e-9).all()
    # A frame of one colour has no other anywhere, whatever its type.
    assume(max(np.prod(transform.resized_size), np.prod(source)) < MOST_PIXELS)
    for dtype, channels in ((np.uint8, (3,)), (np.uint16, ())):
        frame = transform.apply(np.full((source[1], source[0], *channels), 200, dtype))
        assert frame.shape == (stored[1], stored[0], *channels)
        assert frame.dtype == dtype
        assert (frame == 200).all()


@QUICK
@given(source=sizes, stored=sizes, anchor=anchors, seed=st.integers(0, 9999))
def test_points_boxes_and_their_way_back(source, stored, anchor, seed) -> None:  # type: ignore[no-untyped-def]
    transform = FrameTransform.cover(source, stored, anchor)
    uv = np.random.default_rng(seed).uniform(-100, 3000, (5, 2, 2))
    there = transform.points(uv)
    back = (there + 0.5 + np.array(transform.offset)) / transform.scale - 0.5
    np.testing.assert_allclose(back, uv, atol=1e-6)
    np.testing.assert_array_equal(transform.boxes(uv.reshape(5, 4)), there.reshape(5, 4))
    middle = transform.points(uv.mean(axis=1))
    np.testing.assert_allclose(middle, there.mean(axis=1), rtol=1e-9, atol=1e-6)  # affine


@QUICK
@given(camera=cameras, between=shapes, stored=shapes, anchor=anchors, X=points)
def test_two_transforms_after_each_other_move_camera_and_pixels_alike(
    camera, between, stored, anchor, X
) -> None:  # type: ignore[no-untyped-def]
    first = FrameTransform.cover(camera.size, between, anchor)
    second = FrameTransform.cover(between, stored, 1 - anchor)
    twice = moved(second, moved(first, camera))
    seen = second.points(first.points(project(camera.K, np.array(X))))
    np.testing.assert_allclose(project(twice.K, np.array(X)), seen, rtol=1e-9, atol=1e-6)
    np.testing.assert_array_equal(twice.K[2], [0, 0, 1])
    assert twice.K[0, 1] == twice.K[1, 0] == 0


@QUICK
@given(
    shape=st.tuples(st.integers(2, 30), st.integers(2, 30)),
    factor=st.integers(1, 5),
    margin=st.tuples(st.integers(0, 9), st.integers(0, 9)),
    anchor=anchors,
    mark=st.tuples(st.floats(0, 1, exclude_max=True), st.floats(0, 1, exclude_max=True)),
)
def test_a_marked_pixel_lands_where_points_says(shape, factor, margin, anchor, mark) -> None:  # type: ignore[no-untyped-def]
    # The stored frame is a whole number of times smaller, and smaller by a margin on one axis.
    axis = margin[0] % 2
    whole = [shape[0], shape[1]]
    whole[axis] += margin[1]
    source = (whole[0] * factor, whole[1] * factor)
    transform = FrameTransform.cover(source, shape, anchor)
    assume(transform.resized_size == (whole[0], whole[1]))
    u, v = (int(mark[0] * shape[0]), int(mark[1] * shape[1]))
    block = [np.array([u, v])[i] + transform.offset[i] for i in (0, 1)]
    frame = np.zeros((source[1], source[0]), np.uint8)
    frame[block[1] * factor : (block[1] + 1) * factor, block[0] * factor : (block[0] + 1) * factor] = 255
    assert np.argwhere(transform.apply(frame)).tolist() == [[v, u]]
    centre = (np.array(block) + 0.5) * factor - 0.5
    np.testing.assert_allclose(transform.points(centre), [u, v], atol=1e-9)


def test_a_strip_that_would_have_to_become_gigantic_is_refused_in_one_line() -> None:
    strip = FrameTransform.cover((1, 4000), (4000, 1))
    with pytest.raises(SourceError, match=r"1x4000 are strips that cannot fill 4000x1; give another --size"):
        strip.apply(np.zeros((4000, 1, 3), np.uint8))


small = st.tuples(st.integers(3, 200), st.integers(3, 200))


@QUICK
@given(source=small, stored=small, anchor=anchors)
def test_a_ramp_shows_where_the_middle_of_the_frame_comes_from(source, stored, anchor) -> None:  # type: ignore[no-untyped-def]
    transform = FrameTransform.cover(source, stored, anchor)
    v, u = np.mgrid[: source[1], : source[0]].astype(np.float32)
    here_v, here_u = (part.astype(float) for part in np.mgrid[: stored[1], : stored[0]])
    here = np.stack([here_u, here_v], axis=-1)
    want = (here + 0.5 + np.array(transform.offset)) / transform.scale - 0.5
    have = np.stack([transform.apply(u), transform.apply(v)], axis=-1)
    reach = np.maximum(0.5, 0.5 / transform.scale)  # at the very edge there is no ramp to follow
    inside = ((want >= reach) & (want <= np.array(source) - 1 - reach)).all(axis=-1)
    # An average over a part of a pixel counts the whole pixel's value: up to an eighth of it.
    assert np.abs(have - want)[inside].max(initial=0) < 0.15


def lens(
    size: tuple[int, int], model: str, bend: tuple[float, ...], focal: float, centre: tuple[float, float]
) -> Camera:
    camera = camera_of(size, focal, centre)
    scale = np.array([1, 0.5, 0.01, 0.01, 0.1]) if model == "radtan" else np.array([1, 0.3, 0.1, 0.05])
    coefficients = tuple(np.array(bend[: len(scale)]) * scale)
    return Camera(K=camera.K, size=size, distortion=Distortion(model=model, coefficients=coefficients))  # type: ignore[arg-type]


lenses = st.builds(
    lens,
    st.tuples(st.integers(32, 160), st.integers(32, 160)),
    st.sampled_from(["radtan", "fisheye"]),
    st.tuples(*[st.floats(-0.3, 0.3)] * 5),
    st.floats(0.5, 1.5),
    st.tuples(st.floats(0.4, 0.6), st.floats(0.4, 0.6)),
)


@settings(QUICK, max_examples=60)
@given(camera=lenses, stored=st.tuples(st.integers(16, 200), st.integers(16, 200)))
def test_an_undistorted_pixel_shows_what_the_lens_bends_there(camera, stored) -> None:  # type: ignore[no-untyped-def]
    try:
        undistorter = Undistorter(camera)
    except SourceError:
        assume(False)
        return
    width, height = camera.size
    straight = undistorter.camera
    assert straight.distortion is None
    assert straight.size == camera.size
    np.testing.assert_array_equal(straight.K[:2, 2], camera.K[:2, 2])
    assert straight.K[0, 0] / straight.K[1, 1] == pytest.approx(camera.K[0, 0] / camera.K[1, 1])

    v, u = np.mgrid[:height, :width].astype(np.float32)
    rays = np.stack(
        [(u - straight.K[0, 2]) / straight.K[0, 0], (v - straight.K[1, 2]) / straight.K[1, 1]], -1
    )
    seen = distort(camera, rays)
    # Each pixel's value is its own place: what the map reads is where the lens puts the ray.
    have = np.stack([undistorter.image(u), undistorter.image(v)], axis=-1)
    inside = ((seen >= 0) & (seen <= [width - 1, height - 1])).all(axis=-1)
    assert inside.mean() > 0.97
    np.testing.assert_allclose(have[inside], seen[inside], atol=1 / 32 + 1e-3)
    nearest = np.stack([undistorter.labels(u), undistorter.labels(v)], axis=-1)
    assert np.abs(nearest - seen)[inside].max() <= 0.5 + 1 / 32

    # And through the crop: a ray of the stored camera still meets the same place of the raw frame.
    transform = FrameTransform.cover(camera.size, stored)
    try:
        kept = transform.camera(straight)
    except SourceError:
        return
    X = np.array([0.05, -0.04, 1.0])
    place = transform.points(project(straight.K, X))
    np.testing.assert_allclose(project(kept.K, X), place, atol=1e-6)
