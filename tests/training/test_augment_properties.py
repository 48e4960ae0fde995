"""Scale, crop and flip of frames of any shape: image, labels, camera and 3-D points move alike."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training.augment import NUMBERS, Augmentation, AugmentConfig, draw
from training.geometry.camera import pixel_grid, project, resize_intrinsics, unproject

QUICK = settings(max_examples=100, deadline=None, derandomize=True)
# Odd and even, portrait, and strips of a few pixels.
shapes = st.tuples(st.integers(3, 160), st.integers(3, 160))
seeds = st.binary(min_size=8, max_size=8).map(lambda data: int.from_bytes(data, "little"))
MIRROR = np.diag([-1.0, 1.0, 1.0])


@st.composite
def drawn(draw_value: st.DrawFn) -> Augmentation:
    """What `draw` makes of any stored and training size."""
    low = draw_value(st.floats(1, 2))
    config = AugmentConfig(scale=(low, low + draw_value(st.floats(0, 1))))
    numbers = np.random.default_rng(draw_value(seeds)).random(NUMBERS)
    return draw(config, draw_value(shapes), draw_value(shapes), numbers)


def camera_of(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """(3, 3) intrinsics with a principal point off the middle."""
    fx, fy = rng.uniform(0.4, 3, 2) * max(size)
    return np.array(
        [[fx, 0, rng.uniform(0.2, 0.8) * size[0]], [0, fy, rng.uniform(0.2, 0.8) * size[1]], [0, 0, 1]]
    )


def pixels(K: np.ndarray, X: np.ndarray) -> np.ndarray:
    """(N, 3) homogeneous pixels of (N, 3) points."""
    return (X @ K.T) / X[:, 2:]


@QUICK
@given(change=drawn(), seed=seeds)
def test_a_window_of_two_frames_stays_one_rigid_scene(change: Augmentation, seed: int) -> None:
    rng = np.random.default_rng(seed)
    K, X = camera_of(change.stored, rng), rng.uniform([-9, -3, 4], [9, 3, 60], (7, 3))
    angle, t = rng.uniform(-0.3, 0.3), rng.uniform(-1, 1, 3)
    R = np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]])
    F = MIRROR if change.flip else np.eye(3)
    # A flip shows the mirrored world: points F X, and the motion F R F, F t, again a rotation.
    mirrored_R = F @ R @ F
    assert np.linalg.det(mirrored_R) > 0
    K_new = change.intrinsics(K)
    for there, here in ((X @ F, X), (X @ F @ mirrored_R.T + F @ t, X @ R.T + t)):
        np.testing.assert_allclose(
            pixels(K_new, there), pixels(K, here) @ change.pixel_map().T, rtol=1e-9, atol=1e-6
        )


@QUICK
@given(change=drawn())
def test_the_training_frame_lies_on_the_stored_one(change: Augmentation) -> None:
    (w, h), (W, H) = change.stored, change.size
    corners = np.array([[-0.5, -0.5, 1], [W - 0.5, -0.5, 1], [W - 0.5, H - 0.5, 1], [-0.5, H - 0.5, 1]])
    back = corners @ np.linalg.inv(change.pixel_map()).T
    assert (back[:, :2] >= -0.5 - 1e-9).all()
    assert (back[:, :2] <= [w - 0.5 + 1e-9, h - 0.5 + 1e-9]).all()
    frame = np.full((h, w, 3), 77, np.uint8)
    for new in (
        change.image(frame)[..., 0],
        change.labels(frame[..., 0]),
        change.labels(frame[..., 0].astype(np.uint16)),
    ):
        assert new.shape == (H, W)
        assert (new == 77).all()


@QUICK
@given(change=drawn(), seed=seeds)
def test_flipping_twice_changes_nothing(change: Augmentation, seed: int) -> None:
    rng = np.random.default_rng(seed)
    flat, mirrored = replace(change, flip=False), replace(change, flip=True)
    image = rng.integers(0, 256, (*change.stored[::-1], 3)).astype(np.uint8)
    K = camera_of(change.stored, rng)
    np.testing.assert_array_equal(mirrored.image(image)[:, ::-1], flat.image(image))
    np.testing.assert_array_equal(mirrored.labels(image[..., 0])[:, ::-1], flat.labels(image[..., 0]))
    again = Augmentation(stored=change.size, resized=change.size, size=change.size, offset=(0, 0), flip=True)
    np.testing.assert_allclose(again.intrinsics(mirrored.intrinsics(K)), flat.intrinsics(K), atol=1e-9)
    np.testing.assert_allclose(again.pixel_map() @ mirrored.pixel_map(), flat.pixel_map(), atol=1e-9)


@QUICK
@given(
    shape=st.tuples(st.integers(4, 30), st.integers(4, 30)),
    factor=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    shrinks=st.booleans(),
    flip=st.booleans(),
    seed=seeds,
)
def test_a_marked_pixel_lands_where_the_map_says(shape, factor, shrinks, flip, seed) -> None:  # type: ignore[no-untyped-def]
    # Whole factors: the mark is one pixel of the smaller frame and a block of the larger one.
    rng = np.random.default_rng(seed)
    large = (shape[0] * factor[0], shape[1] * factor[1])
    stored, resized = (large, shape) if shrinks else (shape, large)
    size = tuple(int(rng.integers(1, side + 1)) for side in resized)
    offset = tuple(int(rng.integers(0, side - cut + 1)) for side, cut in zip(resized, size, strict=True))
    change = Augmentation(stored=stored, resized=resized, size=size, offset=offset, flip=flip)  # type: ignore[arg-type]
    u, v = (int(rng.integers(side)) for side in shape)
    block = np.zeros((*shape[::-1],), np.uint8)
    block[v, u] = 1
    mask = block.repeat(factor[1], axis=0).repeat(factor[0], axis=1) if shrinks else block

    labels = change.labels(mask)
    bright = change.image(np.repeat(255 * mask[..., None], 3, axis=-1))[..., 0]

    places = np.argwhere(mask)[:, ::-1].mean(axis=0)  # its centre, stored pixels
    centre = (change.pixel_map() @ [*places, 1])[:2]
    extent = np.divide(resized, stored) * (np.array(factor) if shrinks else 1)
    grid = np.stack(np.meshgrid(*map(np.arange, size)), axis=-1)
    inside = (np.abs(grid - centre) < extent / 2).all(axis=-1)
    np.testing.assert_array_equal(labels.astype(bool), inside)
    if shrinks:
        np.testing.assert_array_equal(bright == 255, inside)
        assert set(np.unique(bright)) <= {0, 255}
    else:  # drawn out bilinearly about the same centre
        assert inside[bright > 0.76 * 255].all()
        assert bright[(np.abs(grid - centre) > extent).any(axis=-1)].max(initial=0) == 0


@QUICK
@given(seed=seeds, depth=st.floats(0.1, 90))
def test_projecting_undoes_unprojecting_with_any_camera_of_any_size(seed: int, depth: float) -> None:
    rng = np.random.default_rng(seed)
    W, H = rng.integers(1, 40, 2)
    K = torch.tensor(camera_of((W, H), rng))[None]
    K[0, 0, 1] = rng.uniform(-0.1, 0.1) * K[0, 0, 0]  # skew too
    z = depth * torch.tensor(rng.uniform(0.5, 2, (1, 1, H, W)))
    uv, z_again = project(unproject(z, K), K)
    torch.testing.assert_close(uv[0], pixel_grid(H, W, like=z), atol=1e-8, rtol=0)
    torch.testing.assert_close(z_again, z)


@QUICK
@given(seed=seeds, scales=st.tuples(*[st.floats(0.1, 10)] * 4))
def test_resizing_a_camera_composes_undoes_and_agrees_with_augmentation(
    seed: int, scales: tuple[float, ...]
) -> None:
    rng = np.random.default_rng(seed)
    stored, resized = ((int(a), int(b)) for a, b in rng.integers(3, 300, (2, 2)))
    K = torch.tensor(camera_of(stored, rng))
    a, b, c, d = scales
    twice = resize_intrinsics(resize_intrinsics(K, a, b), c, d)
    torch.testing.assert_close(twice, resize_intrinsics(K, a * c, b * d))
    torch.testing.assert_close(resize_intrinsics(resize_intrinsics(K, a, b), 1 / a, 1 / b), K)
    change = Augmentation(stored=stored, resized=resized, size=resized, offset=(0, 0))
    sx, sy = np.divide(resized, stored)
    torch.testing.assert_close(resize_intrinsics(K, sx, sy), torch.tensor(change.intrinsics(K.numpy())))
