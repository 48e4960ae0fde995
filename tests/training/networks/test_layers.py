"""The blocks that depth and pose networks share, against their plain forms."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close

from training.networks.layers import (
    MAX_GROUPS,
    BatchNorm,
    DoublingConv,
    ImageNormalisation,
    crop,
    double,
    group_count,
    initialise,
    normalisation,
    scaled,
)


def plain_doubling_conv(layer: DoublingConv, coarse: Tensor, skip: Tensor | None, H: int, W: int) -> Tensor:
    doubled = coarse.repeat_interleave(2, 2).repeat_interleave(2, 3)
    # Where a side is odd the fused form sees the repeated pixel beyond the border, not zero.
    beyond = F.pad(doubled, (1, 1, 1, 1))[:, :, : H + 2, : W + 2]
    out = F.conv2d(beyond, layer.weight[:, : layer.coarse], layer.bias)
    return out if skip is None else out + F.conv2d(skip, layer.weight[:, layer.coarse :], padding=1)


@settings(max_examples=25, deadline=None)
@given(
    H=st.integers(1, 7),
    W=st.integers(1, 7),
    coarse=st.integers(1, 3),
    skip=st.integers(0, 2),
    seed=st.integers(0, 1000),
)
def test_the_doubling_convolution_equals_its_plain_form_in_value_and_gradient(
    H: int, W: int, coarse: int, skip: int, seed: int
) -> None:
    torch.manual_seed(seed)
    layer = DoublingConv(coarse, skip, 2).double()
    initialise(layer)
    nn.init.normal_(layer.bias)
    low = torch.randn(2, coarse, (H + 1) // 2, (W + 1) // 2, dtype=torch.float64, requires_grad=True)
    high = torch.randn(2, skip, H, W, dtype=torch.float64, requires_grad=True) if skip else None

    fast, slow = layer(low, high, (H, W)), plain_doubling_conv(layer, low, high, H, W)
    assert fast.shape == (2, 2, H, W)
    assert_close(fast, slow)

    inputs = [low, layer.weight, layer.bias] + ([high] if high is not None else [])
    upstream = torch.randn_like(fast)
    assert_close(torch.autograd.grad(fast, inputs, upstream), torch.autograd.grad(slow, inputs, upstream))


def test_the_doubling_convolution_is_a_convolution_of_the_doubled_and_concatenated_maps() -> None:
    layer = DoublingConv(2, 3, 4).double()
    initialise(layer)
    low = torch.randn(1, 2, 3, 4, dtype=torch.float64)
    high = torch.randn(1, 3, 6, 8, dtype=torch.float64)
    plain = F.conv2d(torch.cat([double(low, (6, 8)), high], 1), layer.weight, layer.bias, padding=1)
    assert_close(layer(low, high, (6, 8)), plain)


def test_doubling_repeats_each_pixel_and_crops_what_is_beyond() -> None:
    maps = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    expected = torch.tensor([[[[1.0, 1.0, 2.0], [1.0, 1.0, 2.0], [3.0, 3.0, 4.0]]]])
    assert_close(double(maps, (3, 3)), expected)


def test_maps_of_the_wanted_size_are_not_copied() -> None:
    maps = torch.zeros(1, 1, 4, 6)
    assert crop(maps, (4, 6)) is maps


@given(st.integers(1, 4096))
def test_groups_divide_the_channels_and_hold_two_or_more(channels: int) -> None:
    count = group_count(channels)
    assert channels % count == 0
    assert 1 <= count <= MAX_GROUPS
    assert channels == 1 or channels // count >= 2
    larger = range(count + 1, min(MAX_GROUPS, channels // 2) + 1)
    assert all(channels % more for more in larger)


@pytest.mark.parametrize("channels", [1, 7, 13, 16, 17, 24, 96, 257])
def test_group_normalisation_works_for_any_number_of_channels(channels: int) -> None:
    layer = normalisation("group")(channels)
    out = layer(torch.randn(2, channels, 5, 6) * 3 + 1)
    assert out.mean().abs() < 1e-5
    assert_close(out.std(correction=0), torch.tensor(1.0), rtol=1e-3, atol=0)


def test_an_unknown_normalisation_is_refused() -> None:
    with pytest.raises(ValueError, match="'layer' is none of batch, group, none"):
        normalisation("layer")


def test_batch_normalisation_of_a_single_value_uses_the_running_statistics() -> None:
    layer = BatchNorm(3).train()
    layer.load_state_dict(
        layer.state_dict() | {"running_mean": torch.full((3,), 2.0), "running_var": torch.full((3,), 4.0)}
    )
    value = torch.tensor([[[[3.0]], [[4.0]], [[2.0]]]])
    assert_close(layer(value).flatten(), torch.tensor([0.5, 1.0, 0.0]), rtol=0, atol=1e-5)
    assert layer.state_dict()["running_mean"].tolist() == [2.0, 2.0, 2.0]


def test_batch_normalisation_of_more_values_is_the_ordinary_one() -> None:
    values = torch.randn(2, 3, 1, 1)
    ours, theirs = BatchNorm(3), nn.BatchNorm2d(3)
    assert_close(ours(values), theirs(values))
    assert_close(ours.running_var, theirs.running_var)


def test_images_are_normalised_by_the_statistics_of_imagenet() -> None:
    mean = torch.tensor([0.485, 0.456, 0.406]).reshape(1, 3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).reshape(1, 3, 1, 1)
    normalise = ImageNormalisation()
    assert_close(normalise(mean + torch.zeros(1, 3, 2, 2)), torch.zeros(1, 3, 2, 2), rtol=0, atol=1e-6)
    assert_close(normalise(mean + std), torch.ones(1, 3, 1, 1), rtol=0, atol=1e-6)
    assert not normalise.state_dict()


def test_width_halves_channels_down_to_eight() -> None:
    assert [scaled(c, 0.5) for c in (16, 32, 64, 512)] == [8, 16, 32, 256]
    assert scaled(16, 0.1) == 8
