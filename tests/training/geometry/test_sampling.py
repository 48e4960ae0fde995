"""Reading images between pixels, and resizing them. Faults of METHOD.md: 1 and 2."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck
from torch.testing import assert_close

from tests.training.geometry.scenes import drawn, ramp, tensor
from training.geometry.camera import pixel_grid
from training.geometry.sampling import inside, resize, sample


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_sampling_at_the_pixels_returns_the_image_up_to_the_border(mode: str) -> None:
    image = torch.rand(2, 3, 9, 13, dtype=torch.float64)
    grid = pixel_grid(9, 13, like=image).expand(2, 9, 13, 2)
    assert_close(sample(image, grid, mode), image)  # type: ignore[arg-type]


def test_zero_flow_leaves_a_mask_at_the_right_edge_where_it_is() -> None:
    # Fault 2: normalised by W/2, a 20 pixel mask at the right edge has IoU 0.89 with itself.
    mask = torch.zeros(1, 1, 256, 832)
    mask[..., 100:120, -20:] = 1
    flow = torch.zeros(1, 256, 832, 2)
    moved = sample(mask, pixel_grid(256, 832, like=mask) + flow, "nearest")
    assert torch.equal(moved, mask)


def test_between_pixels_values_are_bilinear() -> None:
    image = ramp(6, 8)
    uv = tensor([[[2.25, 3.5], [0.0, 5.0], [7.0, 0.75]]])[None]
    assert_close(sample(image, uv[0][None])[0, :, 0].T, uv[0, 0])


def test_nearest_takes_the_pixel_whose_centre_is_nearest() -> None:
    u = tensor([[[[2.4, 0.6], [2.6, 0.4], [-0.4, 5.4]]]])[0]
    got = sample(ramp(6, 8), u[None], "nearest")[0, :, 0].T
    assert got.tolist() == [[2, 1], [3, 0], [0, 5]]


def test_outside_is_zero_or_the_border() -> None:
    image = ramp(6, 8) + 1
    uv = tensor([[[-0.25, 2.0], [-3.0, 2.0], [9.0, 20.0]]])[None]
    assert_close(sample(image, uv[0][None])[0, 0, 0], tensor(0.75, 0.0, 0.0))
    assert_close(sample(image, uv[0][None], padding="border")[0, :, 0].T, tensor([[1.0, 3], [1, 3], [8, 6]]))


@pytest.mark.parametrize(("H", "W"), [(1, 6), (6, 1), (1, 1)])
def test_images_of_one_row_or_column_are_ordinary(H: int, W: int) -> None:
    image = torch.rand(2, 3, H, W, dtype=torch.float64)
    grid = pixel_grid(H, W, like=image).expand(2, H, W, 2)
    for mode in ("bilinear", "nearest"):
        for padding in ("zeros", "border"):
            assert_close(sample(image, grid, mode, padding), image)
    assert (sample(image, grid - 5) == 0).all()
    assert_close(sample(image, grid - 50, padding="border"), image[..., :1, :1].expand_as(image))
    assert_close(sample(image, grid + 0.25)[..., -1, -1], image[..., -1, -1] * 0.75**2)


def test_sampling_has_true_gradients() -> None:
    image = torch.rand(2, 2, 5, 6, dtype=torch.float64, requires_grad=True)
    uv = (torch.rand(2, 3, 4, 2, dtype=torch.float64) * 7 - 1).requires_grad_()
    for padding in ("zeros", "border"):
        assert gradcheck(lambda i, p, padding=padding: sample(i, p, padding=padding), (image, uv))


def test_inside_is_between_the_outer_centres() -> None:
    uv = tensor([[0.0, 0], [7, 5], [-0.01, 2], [7.01, 2], [3, 5.01], [3, -0.01]])
    assert inside(uv, 6, 8).tolist() == [True, True, False, False, False, False]
    assert not inside(tensor([[float("nan"), 1.0]]), 6, 8).any()


def test_resizing_maps_edges_to_edges() -> None:
    # Two pixels become one whose centre lies between theirs, and the other way round.
    image = ramp(4, 8)
    assert_close(resize(image, (2, 4), "area"), 2 * ramp(2, 4) + 0.5)
    assert_close(resize(image, (2, 4), "bilinear"), 2 * ramp(2, 4) + 0.5)
    big = resize(image, (8, 16), "bilinear")
    assert_close(big[..., 1:-1, 1:-1], (ramp(8, 16) / 2 - 0.25)[..., 1:-1, 1:-1])


def test_resizing_agrees_with_sampling() -> None:
    image = drawn(6, 10)
    uv = (pixel_grid(16, 16, like=image) + 0.5) * tensor(10 / 16, 6 / 16) - 0.5  # no ties
    assert_close(resize(image, (16, 16)), sample(image, uv[None], padding="border"))
    labels = torch.randint(-1, 5, (1, 1, 6, 10))
    nearest = sample(labels.double(), uv[None], "nearest", "border").long()
    assert torch.equal(resize(labels, (16, 16), "nearest"), nearest)


def test_labels_keep_their_type_and_values() -> None:
    labels = torch.tensor([[[[0, 7], [300, -1]]]], dtype=torch.int16)
    doubled = resize(labels, (4, 4), "nearest")
    assert doubled.dtype == torch.int16
    assert doubled[0, 0].tolist() == [[0, 0, 7, 7]] * 2 + [[300, 300, -1, -1]] * 2
    assert torch.equal(resize(doubled, (2, 2), "nearest"), labels)
