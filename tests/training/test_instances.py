"""Where instances are, how far, and how the network sees them: scenes known on paper."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck
from torch.testing import assert_close

from tests.training.scenes import CAR, PERSON, pinhole, true_pair
from training.geometry import se3
from training.instances import (
    MEDIAN_GRID,
    Instances,
    about_centre,
    boxes_of,
    centres,
    crop,
    ground_below,
    ground_limit,
    grounded_depth,
    list_instances,
    median_depth,
    square_windows,
)


def listed(*masks: Tensor) -> Instances:
    """One image a mask, of a car in slot 1."""
    return list_instances(torch.stack(masks).long(), torch.full((len(masks), 1), CAR))


def rectangle(H: int, W: int, top: int, left: int, h: int, w: int) -> Tensor:
    mask = torch.zeros(H, W, dtype=torch.bool)
    mask[top : top + h, left : left + w] = True
    return mask


# --- listing


def test_instances_are_listed_flat_with_their_pair_slot_and_class() -> None:
    labels = torch.zeros(3, 6, 8, dtype=torch.int64)
    labels[0, 1:3, 1:4] = 2
    labels[2, 0:6, 5:8] = 1
    labels[2, 2, 0] = -1
    classes = torch.tensor([[CAR, PERSON], [-1, -1], [PERSON, CAR]])
    found = list_instances(labels, classes)
    # Slot 1 of image 0 and slot 2 of image 2 have no pixel: a crop took them.
    assert found.pair.tolist() == [0, 2]
    assert found.slot.tolist() == [2, 1]
    assert found.class_index.tolist() == [PERSON, PERSON]
    assert_close(found.box, torch.tensor([[0.5, 0.5, 3.5, 2.5], [4.5, -0.5, 7.5, 5.5]]))
    assert found.height_px.tolist() == [2, 6]
    assert found.whole().tolist() == [True, False]
    assert bool((found.mask == torch.stack([labels[0] == 2, labels[2] == 1])).all())


@pytest.mark.parametrize(("top", "h", "whole"), [(0, 3, False), (1, 4, True), (3, 3, False), (2, 3, True)])
def test_only_top_and_bottom_cut_an_instance(top: int, h: int, whole: bool) -> None:
    assert listed(rectangle(6, 8, top, 0, h, 8)).whole().tolist() == [whole]


@pytest.mark.parametrize("slots", [0, 2])
def test_no_instance_is_an_ordinary_case(slots: int) -> None:
    labels = torch.zeros(2, 8, 8, dtype=torch.int64)
    found = list_instances(labels, torch.full((2, slots), CAR))
    assert len(found) == 0
    depth = torch.rand(2, 1, 8, 8, requires_grad=True)
    assert median_depth(depth, found).shape == (0,)
    assert centres(depth, torch.eye(3).expand(2, 3, 3), found).shape == (0, 3)
    ground, known = ground_below(depth, labels, found)
    assert ground.shape == known.shape == (0,)
    assert crop(torch.rand(2, 3, 8, 8), square_windows(found.box, 1.2, 4), found.pair, 32).shape == (
        *(0, 3, 32, 32),
    )


@settings(max_examples=40, deadline=None)
@given(top=st.integers(0, 9), left=st.integers(0, 11), h=st.integers(1, 10), w=st.integers(1, 12))
def test_boxes_are_tight_and_count_edges(top: int, left: int, h: int, w: int) -> None:
    h, w = min(h, 10 - top), min(w, 12 - left)
    box = boxes_of(rectangle(10, 12, top, left, h, w)[None])
    assert box.tolist() == [[left - 0.5, top - 0.5, left + w - 0.5, top + h - 0.5]]


def test_an_empty_mask_has_the_box_of_the_image() -> None:
    assert boxes_of(torch.zeros(1, 4, 6, dtype=torch.bool)).tolist() == [[-0.5, -0.5, 5.5, 3.5]]


# --- crops


def test_windows_are_square_about_the_same_centre() -> None:
    box = torch.tensor([[3.5, 1.5, 13.5, 5.5], [0.5, 0.5, 2.5, 1.5]])
    window = square_windows(box, 1.2, 6.0)
    assert_close(window, torch.tensor([[2.5, -2.5, 14.5, 9.5], [-1.5, -2.0, 4.5, 4.0]]))


def test_a_crop_of_a_linear_ramp_is_the_ramp() -> None:
    """Pixel i of S lies at x0 + (i + 1/2) side / S: no shift by half a pixel, at any size."""
    H, W, S = 20, 30, 32
    v, u = torch.meshgrid(torch.arange(H), torch.arange(W), indexing="ij")
    ramp = torch.stack([2.0 * u + 0.5, 3.0 * v, u - v]).double()[None]
    window = torch.tensor([[4.5, 3.5, 16.5, 15.5], [7.25, 2.5, 25.25, 18.0]], dtype=torch.float64)
    steps = (torch.arange(S, dtype=torch.float64) + 0.5) / S
    cut = crop(ramp, window, torch.zeros(2, dtype=torch.int64), S)
    for k in range(2):
        x = window[k, 0] + steps * (window[k, 2] - window[k, 0])
        y = window[k, 1] + steps * (window[k, 3] - window[k, 1])
        u, v = x.expand(S, S), y[:, None].expand(S, S)
        assert_close(cut[k], torch.stack([2 * u + 0.5, 3 * v, u - v]), rtol=1e-9, atol=1e-9)


def plain_crop(image: Tensor, window: list[float], size: int) -> Tensor:
    """Mean of 2x2 bilinear readings a pixel; 0 from a pixel beyond the border on."""
    H, W = image.shape[-2:]
    x0, y0, x1, y1 = window
    out = torch.zeros(len(image), size, size, dtype=image.dtype)
    for i in range(size):
        for j in range(size):
            for a in (0.25, 0.75):
                for b in (0.25, 0.75):
                    y, x = y0 + (i + a) * (y1 - y0) / size, x0 + (j + b) * (x1 - x0) / size
                    if not (-1 <= y <= H and -1 <= x <= W):
                        continue
                    y, x = min(max(y, 0.0), H - 1.0), min(max(x, 0.0), W - 1.0)
                    top, left = min(int(y), H - 2), min(int(x), W - 2)
                    p, q = y - top, x - left
                    near = image[:, top : top + 2, left : left + 2]
                    mix = image.new_tensor([[(1 - p) * (1 - q), (1 - p) * q], [p * (1 - q), p * q]])
                    out[:, i, j] += (near * mix).sum((1, 2)) / 4
    return out


def test_a_crop_equals_plain_resampling_also_across_the_border() -> None:
    maps = torch.rand(2, 2, 12, 15, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    window = torch.tensor(
        [[1.5, 2.5, 9.5, 10.5], [-4.3, -5.0, 4.7, 4.0], [8.0, 5.0, 21.0, 18.0]], dtype=torch.float64
    )
    pair = torch.tensor([0, 1, 1])
    cut = crop(maps, window, pair, 16)
    for k in range(3):
        assert_close(cut[k], plain_crop(maps[pair[k]], window[k].tolist(), 16), rtol=1e-9, atol=1e-9)
    assert not cut[1, :, :5, :].any()
    assert not cut[2, :, :, 12:].any()


def test_crops_carry_gradients_to_the_maps() -> None:
    maps = torch.rand(1, 1, 5, 6, dtype=torch.float64, requires_grad=True)
    window = torch.tensor([[0.2, -0.7, 5.4, 4.5]], dtype=torch.float64)
    assert gradcheck(lambda x: crop(x, window, torch.zeros(1, dtype=torch.int64), 4), (maps,))


# --- depth and centre


def test_the_median_is_of_the_mask_alone() -> None:
    """Background in more than half of the box, a few outliers on the object: neither shows."""
    mask = rectangle(20, 30, 4, 5, 10, 20)
    mask[4:12, 5:19] = False
    depth = torch.where(mask, 7.0, 99.0).double()
    depth[8:10, 20:24] = 500
    found = median_depth(depth[None, None], listed(mask))
    assert_close(found, torch.tensor([7.0], dtype=torch.float64))


@pytest.mark.parametrize(
    "mask",
    [
        rectangle(20, 30, 19, 29, 1, 1),
        rectangle(20, 30, 7, 0, 1, 30),
        rectangle(20, 30, 0, 11, 20, 1),
        torch.eye(64, dtype=torch.bool),
        rectangle(64, 64, 0, 0, 64, 64),
    ],
    ids=["one pixel", "one row", "one column", "diagonal", "whole image"],
)
def test_depth_and_centre_are_finite_for_thin_instances(mask: Tensor) -> None:
    """Fault 7: an instance one row high."""
    H, W = mask.shape
    depth = torch.full((1, 1, H, W), 5.0, dtype=torch.float64, requires_grad=True)
    instances = listed(mask)
    assert_close(median_depth(depth, instances), torch.tensor([5.0], dtype=torch.float64))
    centre = centres(depth, pinhole(50, H, W)[None], instances)
    (gradient,) = torch.autograd.grad(centre.sum(), depth)
    assert torch.isfinite(gradient).all()
    assert not gradient[0, 0][~mask].any()
    assert float(gradient.abs().sum()) > 0


def test_a_thin_line_that_the_grid_misses_counts_whole() -> None:
    mask = torch.zeros(100, 200, dtype=torch.bool)
    mask[rows := torch.arange(100), 2 * rows] = True
    steps = ((torch.arange(MEDIAN_GRID) + 0.5) / MEDIAN_GRID * 100 - 0.5).round().long()
    mask[steps] = False  # nothing where the grid looks
    mask[0, 0] = mask[99, 199] = True
    depth = torch.full((1, 1, 100, 200), 50.0, dtype=torch.float64)
    depth[0, 0][mask] = 4.0
    assert_close(median_depth(depth, listed(mask)), torch.tensor([4.0], dtype=torch.float64))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), h=st.integers(1, 24), w=st.integers(1, 24))
def test_the_median_of_a_small_instance_is_exact(seed: int, h: int, w: int) -> None:
    """Up to the grid's side every row and column is looked up; repeats shift the rank by little."""
    generator = torch.Generator().manual_seed(seed)
    mask = rectangle(30, 30, 3, 4, h, w)
    depth = 1 + torch.rand(1, 1, 30, 30, dtype=torch.float64, generator=generator)
    values = depth[0, 0][mask]
    found = float(median_depth(depth, listed(mask))[0])
    assert found in values.tolist()
    # The rank is off by what uneven repetition of rows and columns can do: each at most twice as often.
    rank = float((values < found).double().mean())
    assert 0.15 <= rank + 0.5 / len(values) <= 0.85


def test_the_centre_is_the_mean_pixel_at_the_median_depth() -> None:
    H, W, f = 21, 31, 40.0
    mask = rectangle(H, W, 4, 20, 5, 7)  # mean pixel (23, 6)
    depth = torch.where(mask, 8.0, 50.0).double()[None, None]
    found = centres(depth, pinhole(f, H, W)[None], listed(mask))
    expected = torch.tensor([[(23 - 15) / f * 8, (6 - 10) / f * 8, 8]], dtype=torch.float64)
    assert_close(found, expected)


# --- ground


def box_on_plane(
    Z: float, *, height: float = 1.5, camera: float = 1.5, f: float = 400.0, gap: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """A box's front at depth Z on a plane, seen from `camera` above it: depth, labels, K.

    `gap` is how far the body ends above the ground between its wheels.
    """
    H, W, wheel = 192, 320, 0.25
    K = pinhole(f, H, W)
    cy, cx = float(K[1, 2]), float(K[0, 2])
    v, u = torch.meshgrid(torch.arange(H).double(), torch.arange(W).double(), indexing="ij")
    depth = torch.where(v > cy + 1, f * camera / (v - cy).clamp(min=1), 500.0)
    x, y = (u - cx) * Z / f, (v - cy) * Z / f
    body = (x.abs() <= 0.9) & (y >= camera - height) & (y <= camera - gap)
    wheels = (x.abs() <= 0.9) & (x.abs() >= 0.9 - wheel) & (y >= camera - height) & (y <= camera)
    mask = body | wheels
    return torch.where(mask, Z, depth)[None, None], mask.long()[None], K[None]


@pytest.mark.parametrize("rows", [20, 31, 44, 60])
def test_the_ground_below_a_box_is_exactly_where_it_stands(rows: int) -> None:
    """The contact projects to the lower edge of the lowest mask row."""
    depth, labels, _ = box_on_plane(400 * 1.5 / rows)
    instances = list_instances(labels, torch.tensor([[CAR]]))
    ground, known = ground_below(depth, labels, instances)
    assert known.all()
    # The horizon at 95.5 lies between rows, so a whole number of rows below it is an edge.
    assert_close(ground, torch.tensor([400 * 1.5 / rows], dtype=torch.float64))
    assert_close(ground * instances.height_px / 400, torch.tensor([1.5], dtype=torch.float64))


@pytest.mark.parametrize("gap", [0.0, 0.22])
def test_the_ground_is_not_biased_by_rounding_to_rows_or_by_the_gap_under_the_body(gap: float) -> None:
    """Contact anywhere within its row, wheels that reach lower than the body: right on average."""
    errors = []
    for Z in torch.linspace(8, 25, 60).tolist():
        depth, labels, _ = box_on_plane(Z, gap=gap)
        ground, known = ground_below(depth, labels, list_instances(labels, torch.tensor([[CAR]])))
        assert known.all()
        errors.append(math.log(float(ground[0]) / Z))
    assert abs(sum(errors) / len(errors)) < 0.005
    assert max(map(abs, errors)) < 0.025  # half a row of 24, the fewest


def test_the_ground_is_unknown_where_something_stands_in_front_or_the_image_ends() -> None:
    depth, labels, _ = box_on_plane(12.0)
    bottom = int(labels[0].any(1).nonzero().max())
    for other in (-1, 2):
        hidden = labels.clone()
        hidden[:, bottom + 1 :] = other
        instances = list_instances(hidden, torch.tensor([[CAR]]))
        ground, known = ground_below(depth, hidden, instances)
        assert known.tolist() == [False]
        assert ground.tolist() == [1.0]
    cut = labels[:, : bottom + 3]
    instances = list_instances(cut, torch.tensor([[CAR]]))
    assert ground_below(depth[:, :, : bottom + 3], cut, instances)[1].tolist() == [False]


def test_the_ground_has_no_gradient() -> None:
    depth, labels, _ = box_on_plane(12.0)
    depth.requires_grad_()
    assert not ground_below(depth, labels, list_instances(labels, torch.tensor([[CAR]])))[0].requires_grad


@pytest.mark.parametrize("wrong", [0.4, 1.0, 2.5])
def test_an_instance_is_brought_to_where_it_stands_and_keeps_its_shape(wrong: float) -> None:
    depth, labels, _ = box_on_plane(400 * 1.5 / 44)
    bent = depth.clone()
    bent[:, :, labels[0] == 1] *= wrong * torch.linspace(0.9, 1.1, int((labels == 1).sum())).double()
    instances = list_instances(labels, torch.tensor([[CAR]]))
    found = grounded_depth(bent, labels, instances, 0.0)
    own = labels[0] == 1
    assert_close(found[0, 0][~own], bent[0, 0][~own])
    ratio = (found / bent)[0, 0][own]
    assert_close(ratio, ratio[:1].expand_as(ratio))
    assert float(ratio[0]) * wrong == pytest.approx(1.0, rel=0.03)


@pytest.mark.parametrize(("wrong", "left"), [(3.0, 1.3), (1.2, 1.2), (0.9, 0.9), (0.3, 1 / 1.3)])
def test_what_is_near_its_ground_stays_and_the_rest_is_brought_to_the_border(
    wrong: float, left: float
) -> None:
    depth, labels, _ = box_on_plane(400 * 1.5 / 44)
    moved = torch.where(labels[:, None] == 1, depth * wrong, depth)
    instances = list_instances(labels, torch.tensor([[CAR]]))
    found = (grounded_depth(moved, labels, instances, 0.3) / depth)[0, 0][labels[0] == 1]
    assert_close(found, torch.full_like(found, left), rtol=0.01, atol=0)


def test_an_instance_far_beyond_belief_or_without_ground_stays_near_where_it_is() -> None:
    depth, labels, _ = box_on_plane(400 * 1.5 / 44)
    far = torch.where(labels[:, None] == 1, depth * 50, depth)
    instances = list_instances(labels, torch.tensor([[CAR]]))
    own = labels[0] == 1
    moved = (grounded_depth(far, labels, instances, 0.0) / far)[0, 0][own]
    assert_close(moved, torch.full_like(moved, 0.25))
    hidden = torch.where(labels == 0, -1, labels)
    assert_close(grounded_depth(far, hidden, list_instances(hidden, torch.tensor([[CAR]])), 0.0), far)
    nobody = torch.zeros_like(labels)
    assert_close(grounded_depth(far, nobody, list_instances(nobody, torch.tensor([[-1]])), 0.0), far)


def test_what_the_lower_edge_cuts_is_no_farther_than_the_ground_there() -> None:
    depth, labels, _ = box_on_plane(400 * 1.5 / 44)
    bottom = int(labels[0].any(1).nonzero().max())
    cut_depth, cut_labels = depth[:, :, : bottom - 4], labels[:, : bottom - 4]
    instances = list_instances(cut_labels, torch.tensor([[CAR]]))
    limit, known = ground_limit(cut_depth, cut_labels, instances)
    assert known.tolist() == [True]
    # The last two rows of the plane, 38.5 and 39.5 rows below the horizon.
    assert float(limit[0]) == pytest.approx(400 * 1.5 / 39.0, rel=0.02)
    own = cut_labels[:, None] == 1
    for wrong, left in ((3.0, float(limit[0])), (0.5, 0.5 * 400 * 1.5 / 44)):
        moved = torch.where(own, cut_depth * wrong, cut_depth)
        found = grounded_depth(moved, cut_labels, instances, 0.3)
        assert float(found[own].median()) == pytest.approx(left, rel=1e-4)
    # An instance that stands inside the image has no such limit, and without ground nothing is known.
    whole = list_instances(labels, torch.tensor([[CAR]]))
    assert ground_limit(depth, labels, whole)[1].tolist() == [False]
    nowhere = torch.where(cut_labels == 0, -1, cut_labels)
    limit, known = ground_limit(cut_depth, nowhere, list_instances(nowhere, torch.tensor([[CAR]])))
    assert (known.tolist(), limit.tolist()) == ([False], [1.0])


def test_true_cars_stand_where_the_ground_below_them_is(streets: Path) -> None:
    """With true depth and masks the anchors agree with the truth: no bias to learn from."""
    depths, heights = [], []
    for name, first in (("test_0000", 0), ("test_0000", 6), ("test_0001", 1), ("test_0002", 2)):
        pairs, *_ = true_pair(streets / name, first, least_px=30)
        instances = list_instances(pairs.labels_t, pairs.classes)
        ground, known = ground_below(pairs.D_t, pairs.labels_t, instances)
        known &= instances.whole() & (instances.class_index == CAR)
        depths += (median_depth(pairs.D_t, instances) / ground).log()[known].tolist()
        heights += (ground * instances.height_px / pairs.K[instances.pair, 1, 1])[known].tolist()
    assert len(depths) >= 20
    assert abs(float(torch.tensor(depths).median())) < 0.06
    assert 1.4 < float(torch.tensor(heights).median()) < 1.65


# --- motion about the own centre

angles = st.tuples(*[st.floats(-0.4, 0.4)] * 3)
places = st.tuples(st.floats(-8, 8), st.floats(-2, 2), st.floats(2, 40))


@settings(max_examples=50, deadline=None)
@given(turn=angles, shift=st.tuples(*[st.floats(-2, 2)] * 3), centre=places)
def test_forward_then_backward_is_the_identity(
    turn: tuple[float, ...], shift: tuple[float, ...], centre: tuple[float, ...]
) -> None:
    a, s, c = (torch.tensor([each], dtype=torch.float64) for each in (turn, shift, centre))
    forward = about_centre(a, s, c, torch.tensor([False]))
    # Seen from the later frame the centre is where the motion has brought it.
    backward = about_centre(a, s, c + s, torch.tensor([True]))
    one = torch.eye(4, dtype=torch.float64)[None]
    assert_close(backward @ forward, one, rtol=0, atol=1e-9)
    assert_close(forward @ backward, one, rtol=0, atol=1e-9)


def test_an_object_turns_about_its_own_centre() -> None:
    """Fault 5: a turn alone leaves the centre where it is, at any distance from the camera."""
    centre = torch.tensor([[3.0, 1.0, 12.0], [-5.0, 0.5, 30.0]], dtype=torch.float64)
    turn = torch.tensor([[0.0, 0.3, 0.0], [0.1, -0.2, 0.05]], dtype=torch.float64)
    shift = torch.tensor([[0.0, 0.0, 0.0], [0.5, -0.1, 1.0]], dtype=torch.float64)
    for backward, sign in ((False, 1), (True, -1)):
        T = about_centre(turn, shift, centre, torch.tensor([backward, backward]))
        moved = (T[:, :3, :3] @ centre[..., None])[..., 0] + T[:, :3, 3]
        assert_close(moved, centre + sign * shift)
        expected = se3.from_euler(turn, torch.zeros_like(shift))[:, :3, :3]
        assert_close(T[:, :3, :3], expected.mT if backward else expected)


def test_motion_about_a_centre_has_right_gradients() -> None:
    inputs = [torch.randn(2, 3, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    backward = torch.tensor([False, True])
    assert gradcheck(lambda a, s, c: about_centre(a, s, c, backward), inputs)
