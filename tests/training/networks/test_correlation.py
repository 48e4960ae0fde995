"""Local correlation against plain loops, and the object network built on it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd import gradcheck
from torch.testing import assert_close

from training.networks.correlation import CorrelationNet, correlate


def correlate_by_loops(first: Tensor, second: Tensor, reach: int) -> Tensor:
    count, _, h, w = first.shape
    side = 2 * reach + 1
    out = torch.zeros(count, side * side, h, w, dtype=first.dtype)
    for v in range(h):
        for u in range(w):
            for dv in range(-reach, reach + 1):
                for du in range(-reach, reach + 1):
                    if 0 <= v + dv < h and 0 <= u + du < w:
                        channel = (dv + reach) * side + du + reach
                        out[:, channel, v, u] = (first[:, :, v, u] * second[:, :, v + dv, u + du]).sum(1)
    return out


@settings(max_examples=15, deadline=None)
@given(
    h=st.integers(1, 5),
    w=st.integers(1, 6),
    reach=st.integers(1, 3),
    count=st.integers(0, 2),
    seed=st.integers(0, 999),
)
def test_correlation_equals_plain_loops(h: int, w: int, reach: int, count: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    first, second = torch.randn(2, count, 3, h, w, dtype=torch.float64, generator=generator)
    assert_close(correlate(first, second, reach), correlate_by_loops(first, second, reach))


def test_correlation_has_right_gradients() -> None:
    first, second = torch.randn(2, 1, 2, 3, 4, dtype=torch.float64)
    assert gradcheck(
        lambda a, b: correlate(a, b, 2), (first.clone().requires_grad_(), second.clone().requires_grad_())
    )


@pytest.mark.parametrize(("du", "dv"), [(0, 0), (2, -1), (-3, 3)])
def test_the_best_match_lies_where_the_map_was_moved_to(du: int, dv: int) -> None:
    reach, side = 3, 7
    first = torch.nn.functional.normalize(torch.randn(1, 16, 9, 11, dtype=torch.float64), dim=1)
    second = first.roll((dv, du), (2, 3))
    best = correlate(first, second, reach)[:, :, reach:-reach, reach:-reach].argmax(1)
    assert bool((best == (dv + reach) * side + du + reach).all())


def awake(size: int = 32, seed: int = 0) -> CorrelationNet:
    """A network whose last layer is not 0 any more."""
    torch.manual_seed(seed)
    net = CorrelationNet(size=size, reach=2, width=0.5)
    last = net.regress[-1]
    assert isinstance(last, nn.Linear)
    nn.init.normal_(last.weight)
    return net


def test_training_begins_at_does_not_move() -> None:
    assert_close(
        CorrelationNet(size=32)(torch.rand(2, 4, 32, 32), torch.rand(2, 4, 32, 32)), torch.zeros(2, 6)
    )


@pytest.mark.parametrize("count", [0, 1, 3])
def test_each_pair_of_crops_is_answered_by_itself(count: int) -> None:
    net = awake()
    earlier, later = torch.rand(2, count, 4, 32, 32)
    answer = net(earlier, later)
    assert answer.shape == (count, 6)
    for k in range(count):
        assert_close(answer[k : k + 1], net(earlier[k : k + 1], later[k : k + 1]), rtol=1e-4, atol=1e-5)


def test_order_matters_and_colour_outside_the_mask_does_not() -> None:
    net = awake()
    earlier, later = torch.rand(2, 1, 4, 32, 32)
    earlier[:, 3], later[:, 3] = 0, 0
    earlier[:, 3, 8:20, 8:20] = 1
    later[:, 3, 10:22, 9:21] = 1
    answer = net(earlier, later)
    assert not torch.allclose(answer, net(later, earlier), atol=1e-3)
    painted = earlier.clone()
    painted[:, :3] = torch.where(earlier[:, 3:] > 0, earlier[:, :3], 0.9)
    assert_close(net(painted, later), answer)


def test_every_weight_and_both_crops_get_a_gradient_also_from_empty_ones() -> None:
    net = awake()
    earlier, later = torch.rand(2, 2, 4, 32, 32)
    earlier[1], later[1] = 0, 0
    earlier.requires_grad_(), later.requires_grad_()
    net(earlier, later).square().sum().backward()
    for each in (earlier, later, *net.parameters()):
        assert each.grad is not None
        assert torch.isfinite(each.grad).all()
        assert each.grad.any()


@pytest.mark.parametrize("size", [16, 40, 63])
def test_other_sizes_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"crops of {size} px; a multiple of 16"):
        CorrelationNet(size=size)
