"""Pasting: exact where it can be, equal to detectron2's elsewhere."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.masks import Patch, paste

SIZE = (97, 61)


def on_image(patch: Patch, size: tuple[int, int] = SIZE) -> np.ndarray:
    image = np.zeros((size[1], size[0]), dtype=bool)
    image[patch.slices] = patch.mask
    return image


@given(
    left=st.integers(-20, 110),
    top=st.integers(-20, 70),
    width=st.integers(1, 40),
    height=st.integers(1, 30),
    seed=st.integers(0, 2**16),
    threshold=st.sampled_from([0.05, 0.3, 0.5, 0.7, 1.0]),
)
def test_one_cell_per_pixel_pastes_exactly(left, top, width, height, seed, threshold):
    grid = np.random.default_rng(seed).choice(np.array([0, 255], np.uint8), size=(height, width))
    box = np.array([left - 0.5, top - 0.5, left + width - 0.5, top + height - 0.5], np.float32)

    whole = np.zeros((200, 250), dtype=bool)  # the image with a margin of 50 pixels
    whole[50 + top : 50 + top + height, 50 + left : 50 + left + width] = grid > 0

    np.testing.assert_array_equal(
        on_image(paste(grid, box, SIZE, threshold)), whole[50 : 50 + SIZE[1], 50 : 50 + SIZE[0]]
    )


def test_grey_values_survive_one_cell_per_pixel():
    grid = np.arange(200, dtype=np.uint8).reshape(10, 20)
    box = np.array([4.5, 6.5, 24.5, 16.5], np.float32)
    for value in (1, 77, 128, 199):
        patch = paste(grid, box, SIZE, value / 255)
        np.testing.assert_array_equal(patch.mask, grid >= value)


def test_a_full_grid_fills_the_pixels_whose_centres_the_box_holds():
    patch = paste(np.full((28, 28), 255, np.uint8), np.array([9.6, 20.2, 30.4, 25.7]), SIZE)
    # The outer half cell fades to zero: at 0.5 exactly the box remains.
    assert (patch.y0, patch.x0, patch.mask.shape) == (21, 10, (5, 21))
    assert patch.mask.all()


def test_a_ramp_is_cut_where_it_reaches_the_threshold():
    # Two columns 0 and 200 over 100 pixels: centres at 24.5 and 74.5 (from -0.5 to 99.5).
    grid = np.array([[0, 200]], np.uint8)
    patch = paste(grid, np.array([-0.5, -0.5, 99.5, 0.5]), (100, 1), threshold=100 / 255)
    # 200 (u - 24.5) / 50 >= 100 from u = 49.5; beyond 74.5 it falls to 100 at the edge 99.5.
    np.testing.assert_array_equal(np.flatnonzero(patch.mask[0]), np.arange(50, 100))


@pytest.mark.parametrize(
    "box",
    [
        (10, 10, 10, 20),  # no width
        (10, 20, 20, 10),  # upside down
        (10.2, 10, 10.8, 20),  # between two pixel centres
        (-30, 0, -1, 20),  # left of the image
        (0, 61, 20, 80),  # below it
        (np.nan, 0, 5, 5),
        (0, 0, np.inf, 5),
    ],
)
def test_nothing_to_paste(box):
    patch = paste(np.full((28, 28), 255, np.uint8), np.array(box, np.float32), SIZE)
    assert patch.mask.size == 0
    assert not on_image(patch).any()


@given(
    seed=st.integers(0, 2**16),
    box=st.tuples(*[st.floats(-300, 300, width=32)] * 4),
    thresholds=st.tuples(st.floats(0.05, 1), st.floats(0.05, 1)),
)
def test_patches_lie_in_the_image_and_shrink_with_the_threshold(seed, box, thresholds):
    grid = np.random.default_rng(seed).integers(0, 256, (7, 5), dtype=np.uint8)
    low, high = (on_image(paste(grid, np.array(box), SIZE, t)) for t in sorted(thresholds))
    assert low.shape == (SIZE[1], SIZE[0])  # a patch beyond the image would not have fitted
    assert not (high & ~low).any()


def smooth_grids(rng: np.random.Generator, count: int) -> np.ndarray:
    """Blobs as a mask head gives them: (count, 28, 28) probabilities."""
    y, x = np.mgrid[:28, :28]
    cx, cy, rx, ry, sharp = (rng.uniform(a, b, (count, 1, 1)) for a, b in
                             ((8, 20), (8, 20), (4, 14), (4, 14), (2, 12)))  # fmt: skip
    radius = np.hypot((x - cx) / rx, (y - cy) / ry)
    return 1 / (1 + np.exp(-sharp * (1 - radius)))


@pytest.mark.parametrize("threshold", [0.5, 0.7])
def test_equals_detectron2(threshold):
    mask_ops = pytest.importorskip("detectron2.layers.mask_ops")
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    count, size = 300, (416, 128)
    probabilities = smooth_grids(rng, count)
    corner = rng.uniform((-20, -20), (400, 120), (count, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(3, 150, (count, 2))], axis=1)
    boxes = boxes.clip(0, (*size, *size)).astype(np.float32)  # as detectron2's clip does

    theirs = mask_ops.paste_masks_in_image(
        torch.from_numpy(np.round(probabilities * 255) / 255).float(),
        torch.from_numpy(boxes),
        (size[1], size[0]),
        threshold,
    ).numpy()
    grids = np.round(probabilities * 255).astype(np.uint8)
    ours = np.stack(
        [on_image(paste(g, b - 0.5, size, threshold), size) for g, b in zip(grids, boxes, strict=True)]
    )

    assert (ours & theirs).sum() / (ours | theirs).sum() > 0.9999
    assert (ours != theirs).sum(axis=(1, 2)).max() <= 3  # rounding at the threshold only


def test_bytes_are_pinned():
    """Masks layers compare byte for byte between machines: this hash may never change."""
    digest = hashlib.sha256()
    for i in range(50):
        grid = ((np.arange(28 * 28) * (7919 + i) // 13) % 256).astype(np.uint8).reshape(28, 28)
        x, y, width, height = (i * 37 % 90) - 10.25, (i * 53 % 70) - 9.4, 1 + i * 1.3, 2 + i * 0.7
        patch = paste(grid, np.array([x, y, x + width, y + height], np.float32), SIZE, 0.5)
        digest.update(
            repr((patch.y0, patch.x0, patch.mask.shape)).encode() + np.packbits(patch.mask).tobytes()
        )
    assert digest.hexdigest()[:16] == "6aea8d65cdf041ae"
