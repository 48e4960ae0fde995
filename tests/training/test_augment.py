"""One affine map for image, labels and camera; one colour map for all frames."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from training.augment import NUMBERS, Augmentation, AugmentConfig, colour_map, draw

STORED = (96, 64)
K = np.array([[80.0, 0, 50.25], [0, 82.0, 30.0], [0, 0, 1]])


@st.composite
def changes(draw_value: st.DrawFn) -> Augmentation:
    """Any enlargement or shrinking, crop and flip of a STORED frame."""
    resized = (draw_value(st.integers(24, 200)), draw_value(st.integers(16, 140)))
    size = (draw_value(st.integers(8, resized[0])), draw_value(st.integers(8, resized[1])))
    return Augmentation(
        stored=STORED,
        resized=resized,
        size=size,
        offset=(
            draw_value(st.integers(0, resized[0] - size[0])),
            draw_value(st.integers(0, resized[1] - size[1])),
        ),
        flip=draw_value(st.booleans()),
    )


def stored_places(change: Augmentation) -> np.ndarray:
    """(H, W, 2) stored pixel (u, v) of every training pixel, by the inverse of the map."""
    v, u = np.mgrid[: change.size[1], : change.size[0]]
    places = np.stack([u, v, np.ones_like(u)], axis=-1) @ np.linalg.inv(change.pixel_map()).T
    return places[..., :2]


@given(change=changes())
def test_a_ramp_shows_that_the_image_follows_the_map(change: Augmentation) -> None:
    v, u = np.mgrid[: STORED[1], : STORED[0]]
    ramp = np.stack([2 * u, 3 * v, u + v], axis=-1).astype(np.uint8)

    got = change.image(ramp).astype(float)

    places = stored_places(change)
    u, v = places[..., 0], places[..., 1]
    expected = np.stack([2 * u, 3 * v, u + v], axis=-1)
    # A new pixel that reaches over the frame's edge has no ramp to follow there.
    sx, sy = np.divide(change.resized, STORED)
    reach_u, reach_v = max(0.5, 0.5 / sx), max(0.5, 0.5 / sy)
    inside = (u >= reach_u) & (u <= STORED[0] - 1 - reach_u) & (v >= reach_v) & (v <= STORED[1] - 1 - reach_v)
    assert np.abs(got - expected)[inside].max(initial=0) <= 1.25  # rounded twice; half a pixel would be 1.5


@given(change=changes(), seed=st.integers(0, 99))
def test_every_label_is_the_one_at_its_place(change: Augmentation, seed: int) -> None:
    labels = np.random.default_rng(seed).integers(0, 256, STORED[::-1]).astype(np.uint8)

    got = change.labels(labels)

    places = stored_places(change)
    clear = (np.abs(places - np.floor(places) - 0.5) > 1e-3).all(axis=-1)  # not between two pixels
    u, v = np.moveaxis(np.floor(places + 0.5).astype(int), -1, 0)
    expected = labels[v.clip(0, STORED[1] - 1), u.clip(0, STORED[0] - 1)]
    np.testing.assert_array_equal(got[clear], expected[clear])


@given(change=changes())
def test_a_point_projects_with_the_new_camera_to_where_the_map_puts_it(change: Augmentation) -> None:
    point = np.array([1.5, -0.7, 9.0])
    stored = K @ point / point[2]
    mirrored = point * ([-1, 1, 1] if change.flip else [1, 1, 1])  # a flip shows the mirrored world
    projected = change.intrinsics(K) @ mirrored / point[2]
    np.testing.assert_allclose(projected, change.pixel_map() @ stored, atol=1e-9)
    assert np.diag(change.intrinsics(K)).min() > 0


def test_a_flip_mirrors_the_principal_point_as_it_mirrors_pixels() -> None:
    change = Augmentation(stored=STORED, resized=STORED, size=STORED, offset=(0, 0), flip=True)
    flipped = change.intrinsics(K)
    assert flipped[0, 2] == STORED[0] - 1 - K[0, 2]  # not STORED[0] - K[0, 2]: that is a pixel off
    assert flipped[0, 0] == K[0, 0]
    image = np.zeros((*STORED[::-1], 3), np.uint8)
    image[7, 20] = 255
    assert np.argwhere(change.image(image)[..., 0] == 255).tolist() == [[7, STORED[0] - 1 - 20]]
    np.testing.assert_array_equal(change.labels(image[..., 0]), change.image(image)[..., 0])


@given(change=changes())
def test_the_edge_of_a_mask_stays_on_the_edge_in_the_image(change: Augmentation) -> None:
    mask = np.zeros(STORED[::-1], np.uint8)
    mask[20:44, 30:66] = 1
    image = np.repeat(mask[..., None] * 255, 3, axis=-1)

    bright = change.image(image)[..., 0] > 127
    labels = change.labels(mask).astype(bool)

    # Where image and mask disagree, the pixel's centre lies at the mask's very edge.
    places = stored_places(change)[bright != labels]
    distance = np.minimum(np.abs(places - [29.5, 19.5]), np.abs(places - [65.5, 43.5])).min(axis=-1)
    half = 0.5 * max(np.divide(STORED, change.resized).max(), 1)
    assert distance.max(initial=0) <= half * 0.5 + 0.02


def test_nothing_changes_the_brightness_of_a_frame() -> None:
    """The released code rescales each image after its crop: gain 0.47 where one has a bright corner."""
    dark = np.full((*STORED[::-1], 3), 100, np.uint8)
    lit = dark.copy()
    lit[:8, :8] = 255
    for seed in range(20):
        change = draw(AugmentConfig(jitter=0.0), STORED, STORED, np.random.default_rng(seed).random(NUMBERS))
        assert np.unique(change.image(dark)).tolist() == [100]
        assert np.median(change.image(lit)) == 100


def test_a_jitter_maps_equal_colours_to_equal_colours_in_every_frame() -> None:
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (50, 3)).astype(np.uint8)
    config = AugmentConfig(jitter=1.0, flip=0.0, scale=(1.0, 1.0))
    change = draw(config, STORED, STORED, rng.random(NUMBERS))
    assert change.colour is not None
    seen: dict[bytes, set[bytes]] = {}
    for _ in range(3):  # three frames of one window, with the colours elsewhere
        frame = colours[rng.integers(0, 50, STORED[::-1])]
        new = change.image(frame)
        for before, after in zip(frame.reshape(-1, 3), new.reshape(-1, 3), strict=True):
            seen.setdefault(before.tobytes(), set()).add(after.tobytes())
    assert all(len(after) == 1 for after in seen.values())
    assert any(after != {before} for before, after in seen.items())


def test_shrinking_averages_and_does_not_alias() -> None:
    v, u = np.mgrid[: STORED[1], : STORED[0]]
    board = np.repeat((255 * ((u + v) % 2)).astype(np.uint8)[..., None], 3, axis=-1)
    for resized in ((48, 32), (64, 43), (32, 21)):
        change = Augmentation(stored=STORED, resized=resized, size=resized, offset=(0, 0))
        assert np.abs(change.image(board).astype(float) - 127.5).max() < 35
        assert abs(change.image(board).mean() - 127.5) < 1


def test_without_augmentation_every_bit_stays() -> None:
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (*STORED[::-1], 3)).astype(np.uint8)
    labels = rng.integers(0, 999, STORED[::-1]).astype(np.uint16)
    for numbers in (np.zeros(NUMBERS), rng.random(NUMBERS), np.full(NUMBERS, 1 - 2**-53)):
        change = draw(AugmentConfig.none(), STORED, STORED, numbers)
        assert not change.moves_pixels
        np.testing.assert_array_equal(change.image(image), image)
        np.testing.assert_array_equal(change.labels(labels), labels)
        np.testing.assert_array_equal(change.intrinsics(K), K)


@given(
    numbers=st.lists(st.floats(0, 1, exclude_max=True), min_size=NUMBERS, max_size=NUMBERS),
    size=st.tuples(st.integers(8, 200), st.integers(8, 200)),
    low=st.floats(1, 2),
    more=st.floats(0, 1),
)
def test_what_is_drawn_covers_the_training_frame(numbers, size, low, more) -> None:
    change = draw(AugmentConfig(scale=(low, low + more)), STORED, size, np.array(numbers))
    cover = max(size[0] / STORED[0], size[1] / STORED[1])
    for axis in (0, 1):
        assert 0 <= change.offset[axis] <= change.resized[axis] - size[axis]
        scale = change.resized[axis] / STORED[axis]
        assert cover * low - 0.51 / STORED[axis] <= scale <= cover * (low + more) + 0.51 / STORED[axis]
    assert change.image(np.zeros((*STORED[::-1], 3), np.uint8)).shape == (size[1], size[0], 3)


def test_without_a_scale_the_middle_is_cropped() -> None:
    change = draw(AugmentConfig.none(), STORED, (48, 48), np.full(NUMBERS, 0.9))
    assert (change.resized, change.offset) == ((72, 48), (12, 0))


def test_options_do_not_shift_each_others_random_numbers() -> None:
    numbers = np.random.default_rng(3).random(NUMBERS)
    plain = draw(AugmentConfig(flip=0.0, jitter=0.0), STORED, STORED, numbers)
    full = draw(AugmentConfig(flip=1.0, jitter=1.0), STORED, STORED, numbers)
    assert (plain.resized, plain.offset) == (full.resized, full.offset)
    assert full.flip
    assert full.colour is not None


def test_colour_maps_known_on_paper() -> None:
    def mapped(colour: tuple[float, float, float], **change: float) -> list[float]:
        matrix = colour_map(**{"brightness": 1, "contrast": 1, "saturation": 1, "hue": 0, **change})
        return np.round(matrix @ [*colour, 1], 9).tolist()

    assert mapped((10, 20, 30)) == [10, 20, 30]
    assert mapped((10, 20, 30), brightness=1.5) == [15, 30, 45]
    assert mapped((127.5, 27.5, 227.5), contrast=0.5) == [127.5, 77.5, 177.5]
    assert mapped((100, 0, 0), saturation=0) == [29.9] * 3
    assert mapped((50, 50, 50), saturation=0.3, hue=0.2) == [50, 50, 50]
    assert mapped((10, 20, 30), hue=1 / 3) == [30, 10, 20]  # red turns to green, green to blue


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"flip": 1.5}, r"flip is a probability in \[0, 1\], got 1.5"),
        ({"scale": (0.9, 1.0)}, "scale must satisfy 1 <= low <= high <= 8, got 0.9 and 1.0"),
        ({"contrast": 1.0}, r"contrast must lie in \[0, 1\), got 1.0"),
        ({"hue": 0.7}, r"hue must lie in \[0, 0.5\], got 0.7"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message) -> None:
    with pytest.raises(ConfigError, match=message):
        AugmentConfig(**settings)


def test_opencv_resizes_from_edge_to_edge() -> None:
    """What the map relies on, pinned: doubling puts new pixel 0 at old -0.25."""
    row = np.array([[0, 100]], np.uint8)
    assert cv2.resize(row, (4, 1), interpolation=cv2.INTER_LINEAR).tolist() == [[0, 25, 75, 100]]
    assert cv2.resize(row, (1, 1), interpolation=cv2.INTER_AREA).tolist() == [[50]]
    four = np.array([[1, 2, 3, 4, 5, 6]], np.uint8)
    assert cv2.resize(four, (2, 1), interpolation=cv2.INTER_NEAREST_EXACT).tolist() == [[2, 5]]
