"""An image at a time: the same values and gradients, and nothing kept between."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from training import chunks, losses
from training.chunks import image_by_image


def product(a: Tensor, b: Tensor) -> Tensor:
    """No image sees another."""
    return (a.sin() * b).sum(1, keepdim=True) + a.mean((1, 2, 3), keepdim=True)


@pytest.fixture(autouse=True)
def two_images_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "CHUNK_PIXELS", 2 * 6 * 8)


def maps(count: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(count)
    return torch.rand(count, 3, 6, 8, generator=generator), torch.rand(count, 3, 6, 8, generator=generator)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("wanted", [(True, True), (False, True), (True, False)])
@pytest.mark.parametrize("function", [product, losses.photometric_at_once])
def test_values_and_gradients_are_those_of_the_whole_batch(
    function: chunks.Callable[..., Tensor], count: int, wanted: tuple[bool, bool]
) -> None:
    at_once = [each.requires_grad_(want) for each, want in zip(maps(count), wanted, strict=True)]
    apart = [each.detach().clone().requires_grad_(each.requires_grad) for each in at_once]
    weight = torch.rand(count, 1, 6, 8)
    expected, found = function(*at_once), image_by_image(function, *apart)
    assert torch.equal(found, expected)
    (expected * weight).sum().backward()
    (found * weight).sum().backward()
    for a, b in zip(at_once, apart, strict=True):
        assert (a.grad is None) == (b.grad is None)
        assert a.grad is None or torch.equal(a.grad, b.grad)


def test_the_function_sees_a_chunk_at_a_time_and_is_asked_again_for_the_gradient() -> None:
    seen: list[int] = []

    def counted(a: Tensor) -> Tensor:
        seen.append(len(a))
        return a * a

    a = maps(5)[0].requires_grad_()
    total = image_by_image(counted, a).sum()
    assert seen == [2, 2, 1]
    total.backward()
    assert seen == [2, 2, 1] * 2


def test_gradients_agree_with_finite_differences() -> None:
    a, b = (each.double().requires_grad_() for each in maps(3))
    assert torch.autograd.gradcheck(lambda x, y: image_by_image(product, x, y), (a, b))


def test_without_gradient_nothing_is_kept() -> None:
    with torch.no_grad():
        assert not image_by_image(product, *maps()).requires_grad
