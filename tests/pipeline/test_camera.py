"""Cameras: intrinsics that cannot be are refused, and every resize and crop keeps them right."""

from __future__ import annotations

import pickle

import cv2
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pipeline.camera import Camera, Distortion, FrameTransform, Undistorter, check_source, distort, pinhole
from pipeline.errors import SourceError

KITTI = Camera(K=pinhole(721.5, 721.5, 609.6, 172.9), size=(1242, 375))
sides = st.integers(32, 4000)


def project(K: np.ndarray, X: np.ndarray) -> np.ndarray:
    uvw = X @ K.T
    return uvw[..., :2] / uvw[..., 2:]


# --- plausibility --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("K", "words"),
    [
        (pinhole(0, 721, 609, 172), r"fx=0 .*1242x375.*--intrinsics.*--fov-deg"),
        (pinhole(-721, 721, 609, 172), "implausible"),
        (pinhole(np.nan, 721, 609, 172), "finite"),
        (pinhole(0.58, 1.92, 0.5, 0.5), "fx and fy must lie in 248..6210"),  # normalised, as in monodepth2
        (pinhole(9000, 9000, 609, 172), "fx=9000"),
        (pinhole(721, 300, 609, 172), "factor 2"),
        (pinhole(721, 721, 4000, 172), "principal point"),
        (pinhole(721, 721, 609, -900), "principal point"),
        (np.array([[721.0, 5, 609], [0, 721, 172], [0, 0, 1]]), r"0 fy cy"),
        (np.array([[721.0, 0, 609], [0, 721, 172], [0, 0, 2]]), r"0 0 1"),
        (np.eye(4), "3x3"),
        (np.array([["a"] * 3] * 3), "finite 3x3"),
    ],
)
def test_implausible_intrinsics_name_the_values_and_the_remedy(K, words):
    with pytest.raises(SourceError, match=words) as error:
        Camera(K=K, size=(1242, 375))
    assert "\n" not in str(error.value)


def test_intrinsics_of_twice_the_resolution_are_refused_at_the_source():
    check_source(KITTI)
    with pytest.raises(SourceError, match="another size"):
        check_source(Camera(K=pinhole(1443, 1443, 1219.7, 346.3), size=KITTI.size))


def test_a_camera_cannot_be_changed():
    K = pinhole(700, 700, 600, 180)
    camera = Camera(K=K, size=(1242, 375))
    K[0, 0] = 1
    assert camera.K[0, 0] == 700
    with pytest.raises(ValueError):
        camera.K[0, 0] = 1


@pytest.mark.parametrize(
    ("model", "coefficients"), [("radtan", (0.1,) * 3), ("fisheye", (0.1,) * 5), ("radtan", (np.inf,) * 4)]
)
def test_distortion_needs_the_numbers_of_its_model(model, coefficients):
    with pytest.raises(SourceError, match="finite numbers"):
        Distortion(model=model, coefficients=coefficients)


def test_unknown_distortion_model():
    with pytest.raises(SourceError, match="use radtan or fisheye"):
        Distortion(model="division", coefficients=(0.1,) * 4)  # type: ignore[arg-type]


# --- resize and crop -----------------------------------------------------------------------------


@given(w=sides, h=sides, W=sides, H=sides, anchor=st.floats(0, 1))
def test_the_stored_frame_lies_within_the_resized_one_and_the_aspect_is_kept(w, h, W, H, anchor):
    transform = FrameTransform.cover((w, h), (W, H), anchor)
    (rw, rh), (x0, y0) = transform.resized_size, transform.offset
    assert 0 <= x0 <= rw - W
    assert 0 <= y0 <= rh - H
    assert rw == W or rh == H
    scale = max(W / w, H / h)
    assert abs(rw - scale * w) <= 0.5 + 1e-6
    assert abs(rh - scale * h) <= 0.5 + 1e-6


@given(
    w=sides, h=sides, W=sides, H=sides, anchor=st.floats(0, 1),
    f=st.floats(0.3, 3), x=st.floats(-5, 5), y=st.floats(-5, 5), z=st.floats(0.5, 80),
)  # fmt: skip
def test_the_new_camera_projects_where_the_transform_moves_the_projection(w, h, W, H, anchor, f, x, y, z):
    camera = Camera(K=pinhole(f * max(w, h), 1.1 * f * max(w, h), 0.45 * w, 0.55 * h), size=(w, h))
    transform = FrameTransform.cover((w, h), (W, H), anchor)
    try:
        moved = transform.camera(camera)
    except SourceError:
        assume(False)  # a crop to a splinter can leave the principal point far outside
        return
    X = np.array([x, y, z])
    np.testing.assert_allclose(
        project(moved.K, X), transform.points(project(camera.K, X)), rtol=1e-9, atol=1e-6
    )
    assert moved.size == (W, H)


def test_kitti_to_the_default_size_by_hand():
    transform = FrameTransform.cover((1242, 375), (832, 256))
    # Height decides: 256/375; width 1242 * 256 / 375 = 847.9 -> 848, 16 columns cropped.
    assert (transform.resized_size, transform.offset) == ((848, 256), (8, 0))
    K = transform.camera(KITTI).K
    sx, sy = 848 / 1242, 256 / 375
    np.testing.assert_allclose(
        K, pinhole(721.5 * sx, 721.5 * sy, (609.6 + 0.5) * sx - 8.5, (172.9 + 0.5) * sy - 0.5), rtol=1e-12
    )


def test_crop_anchor_chooses_rows():
    offsets = [FrameTransform.cover((100, 200), (100, 50), anchor).offset for anchor in (0, 0.5, 1)]
    assert offsets == [(0, 0), (0, 75), (0, 150)]
    rows = np.repeat(np.arange(200, dtype=np.uint8)[:, None], 100, axis=1)
    top_row = [
        FrameTransform.cover((100, 200), (100, 50), anchor).apply(rows)[0, 0] for anchor in (0, 0.5, 1)
    ]
    assert top_row == [0, 75, 150]
    with pytest.raises(SourceError, match="crop_anchor"):
        FrameTransform.cover((100, 200), (100, 50), 1.5)


@given(
    size=st.tuples(st.integers(120, 300), st.integers(120, 300)),
    stored=st.tuples(st.integers(40, 500), st.integers(40, 500)),
    place=st.tuples(st.floats(0.42, 0.58), st.floats(0.42, 0.58)),
)
def test_a_blob_really_lands_where_points_says(size, stored, place):
    transform = FrameTransform.cover(size, stored)
    centre = np.array(place) * size
    sigma = max(3.0, 2.0 / transform.scale.min())
    target = transform.points(centre)
    reach = 3.5 * sigma * transform.scale
    assume((target - reach > 1).all() and (target + reach < np.array(stored) - 2).all())

    v, u = np.mgrid[: size[1], : size[0]]
    blob = np.exp(-((u - centre[0]) ** 2 + (v - centre[1]) ** 2) / (2 * sigma**2)).astype(np.float32)
    image = transform.apply(blob)

    v, u = np.mgrid[: stored[1], : stored[0]]
    found = np.array([(u * image).sum(), (v * image).sum()]) / image.sum()
    np.testing.assert_allclose(found, target, atol=0.05)


def test_the_same_size_is_left_alone():
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    transform = FrameTransform.cover((64, 48), (64, 48))
    np.testing.assert_array_equal(transform.apply(image), image)
    np.testing.assert_allclose(transform.points([3.25, 7.5]), np.array([3.25, 7.5]))


def test_boxes_move_by_their_edges():
    transform = FrameTransform.cover((200, 100), (100, 50))
    whole = transform.boxes(np.array([[-0.5, -0.5, 199.5, 99.5]]))
    np.testing.assert_allclose(whole, [[-0.5, -0.5, 99.5, 49.5]])
    assert transform.boxes(np.zeros((0, 4))).shape == (0, 4)


def test_resizing_does_not_depend_on_threads():
    image = np.random.default_rng(0).integers(0, 256, (375, 1242, 3), dtype=np.uint8)
    results = []
    before = cv2.getNumThreads()
    try:
        for threads in (1, 2, 4):
            cv2.setNumThreads(threads)
            results.append(
                [FrameTransform.cover((1242, 375), size).apply(image) for size in [(832, 256), (2000, 700)]]
            )
    finally:
        cv2.setNumThreads(before)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_images_and_cameras_of_another_size_are_our_bug():
    transform = FrameTransform.cover((64, 48), (32, 24))
    with pytest.raises(ValueError, match="64, 48"):
        transform.apply(np.zeros((64, 48, 3), np.uint8))
    with pytest.raises(ValueError, match="64, 48"):
        transform.camera(KITTI)


# --- lens distortion -----------------------------------------------------------------------------

LENSES = {
    "barrel": Distortion(model="radtan", coefficients=(-0.37, 0.2, 0.0013, 0.0006, -0.07)),
    "pincushion": Distortion(model="radtan", coefficients=(0.12, 0.03, -0.001, 0.001)),
    "rational": Distortion(model="radtan", coefficients=(0.5, 0.1, 0.0002, -0.0001, 0.01, 0.8, 0.2, 0.02)),
    "fisheye": Distortion(model="fisheye", coefficients=(-0.02, 0.01, -0.003, 0.001)),
}


def lens_camera(name: str) -> Camera:
    return Camera(K=pinhole(440, 450, 325, 170), size=(640, 360), distortion=LENSES[name])


def undistort_points(camera: Camera, pixels: np.ndarray) -> np.ndarray:
    """Distorted pixels -> rays (x/z, y/z), by OpenCV's iteration."""
    assert camera.distortion is not None
    points, coefficients = pixels.reshape(-1, 1, 2).astype(float), np.array(camera.distortion.coefficients)
    if camera.distortion.model == "fisheye":
        return cv2.fisheye.undistortPoints(points, camera.K, coefficients)[:, 0]
    criteria = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 200, 1e-10)
    return cv2.undistortPoints(points, camera.K, coefficients, criteria=criteria)[:, 0]


@pytest.mark.parametrize("lens", LENSES)
def test_undistorted_blobs_lie_where_opencv_undistorts_their_centres(lens):
    camera = lens_camera(lens)
    undistorter = Undistorter(camera)
    v, u = np.mgrid[:360, :640]
    for centre in [(325.0, 170.0), (200.3, 120.6), (450.8, 250.1), (250.5, 260.0)]:
        blob = np.exp(-((u - centre[0]) ** 2 + (v - centre[1]) ** 2) / 18).astype(np.float32)
        image = undistorter.image(blob)
        found = np.array([(u * image).sum(), (v * image).sum()]) / image.sum()
        ray = undistort_points(camera, np.array(centre))[0]
        expected = project(undistorter.camera.K, np.append(ray, 1.0))
        np.testing.assert_allclose(found, expected, atol=0.15)


@pytest.mark.parametrize("lens", LENSES)
def test_no_black_borders_and_no_wasted_view(lens):
    camera = lens_camera(lens)
    undistorter = Undistorter(camera)
    assert undistorter.camera.distortion is None
    assert undistorter.camera.K[0, 0] / undistorter.camera.K[1, 1] == pytest.approx(440 / 450)

    border = np.array(
        [(u, v) for u in range(640) for v in range(360) if u in (0, 639) or v in (0, 359)], float
    )
    seen = distort(camera, (border - undistorter.camera.K[:2, 2]) / np.diag(undistorter.camera.K)[:2])
    inside = np.minimum(seen, [639, 359] - seen).min()
    assert -0.02 < inside < 1.0  # within the source frame, and touching its border
    white = undistorter.image(np.full((360, 640, 3), 255, np.uint8))
    assert white.min() == 255


@pytest.mark.parametrize("lens", LENSES)
def test_labels_are_never_mixed(lens):
    labels = np.random.default_rng(0).choice(np.array([0, 7, 200], np.uint8), size=(360, 640))
    assert set(np.unique(Undistorter(lens_camera(lens)).labels(labels))) <= {0, 7, 200}


def test_image_and_labels_move_alike():
    undistorter = Undistorter(lens_camera("barrel"))
    mask = np.zeros((360, 640), np.uint8)
    mask[100:200, 50:150] = 255
    difference = (undistorter.image(mask) > 127) != (undistorter.labels(mask) > 127)
    assert difference.sum() < 60  # of a boundary of 400 pixels, halves round either way


def test_without_distortion_frames_pass_unchanged():
    undistorter = Undistorter(KITTI)
    image = np.zeros((375, 1242, 3), np.uint8)
    assert undistorter.image(image) is image
    assert undistorter.camera is KITTI


def test_where_a_wide_lens_folds_the_view_is_narrowed_instead():
    wide = Camera(K=pinhole(300, 310, 325, 170), size=(640, 360), distortion=LENSES["barrel"])
    undistorter = Undistorter(wide)
    u = np.arange(640.0)
    rays = np.stack(
        [(u - 325) / undistorter.camera.K[0, 0], np.full(640, -170 / undistorter.camera.K[1, 1])], -1
    )
    steps = np.diff(distort(wide, rays)[:, 0])
    assert steps.min() > 0.24
    assert undistorter.image(np.full((360, 640), 255, np.uint8)).min() == 255


def test_distortion_beyond_repair_is_an_error():
    wild = Camera(K=pinhole(300, 300, 320, 180), size=(640, 360),
                  distortion=Distortion(model="radtan", coefficients=(-60.0, 0, 0, 0)))  # fmt: skip
    with pytest.raises(SourceError, match="beyond repair"):
        Undistorter(wild)


def test_an_undistorter_travels_to_workers():
    image = np.random.default_rng(0).integers(0, 256, (360, 640, 3), dtype=np.uint8)
    undistorter = Undistorter(lens_camera("fisheye"))
    copy = pickle.loads(pickle.dumps(undistorter))  # noqa: S301 (our own bytes)
    np.testing.assert_array_equal(copy.image(image), undistorter.image(image))
