"""The fast warps against the plain ones, in value and in gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tests.training.geometry.scenes import pinhole, random_scene
from training.geometry import reference, se3, warp

Scene = Callable[[int, int, int, int], tuple[Tensor, Tensor, Tensor, Tensor]]

FREE = torch.tensor([[1, 1, 1], [0, 1, 1], [0, 0, 0]])
"""The intrinsics that are not fixed at 0 or 1."""


def smooth_scene(seed: int, B: int, H: int, W: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `random_scene`, with surfaces and a box in front of them instead of noise."""
    image, _, K, twist = random_scene(seed, B, H, W)
    u, v = torch.arange(W) / W, torch.arange(H)[:, None] / H
    depth = (5 + (5 * u + seed).sin() + 2 * v).double().expand(B, 1, H, W).clone()
    depth[:, :, H // 3 : 2 * H // 3, W // 4 : W // 2] = 2.5
    return image, depth, K, twist


def compare(fast: object, plain: object) -> None:
    for field in fields(fast):  # type: ignore[arg-type]
        a, b = getattr(fast, field.name), getattr(plain, field.name)
        assert (a is None) == (b is None), field.name
        if a is not None:
            assert_close(a, b)


def gradients(view: warp.InverseWarp | warp.ForwardWarp, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    """Of one number made of everything that carries a gradient."""
    total = torch.zeros((), dtype=torch.float64)
    for number, field in enumerate(fields(view)):
        value = getattr(view, field.name)
        if value is not None and value.is_floating_point():
            weight = torch.rand(
                value.shape, generator=torch.Generator().manual_seed(number), dtype=value.dtype
            )
            total = total + (weight * value).sum()
    return torch.autograd.grad(total, inputs, retain_graph=True)  # K and T are shared


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("alpha", [1, 2, 3])
@pytest.mark.parametrize("scene", [random_scene, smooth_scene])
def test_forward_warp_equals_the_reference(scene: Scene, alpha: int, seed: int) -> None:
    image, depth, K, twist = scene(seed, 2, 16, 24)
    inputs = [x.requires_grad_() for x in (image, depth, K, twist)]
    K = K * FREE + K.detach() * (1 - FREE)
    labels = torch.randint(0, 4, (2, 16, 24))
    fast = warp.forward_warp(image, depth, K, se3.exp(twist), labels, alpha)
    plain = reference.forward_warp(image, depth, K, se3.exp(twist), labels, alpha)
    assert fast.filled.double().mean() > 0.4
    compare(fast, plain)
    for a, b in zip(gradients(fast, inputs), gradients(plain, inputs), strict=True):
        assert_close(a, b)


def test_forward_warp_equals_the_reference_in_wild_scenes() -> None:
    # Near and far beside each other, part of it behind the camera.
    image, _, K, _ = random_scene(9, 2, 16, 24)
    depth = torch.exp(3 * torch.rand(2, 1, 16, 24, dtype=torch.float64) - 1.5)
    T = se3.exp(torch.tensor([[0.3, -0.2, -0.6, 0.1, -0.4, 0.2]] * 2, dtype=torch.float64))
    compare(warp.forward_warp(image, depth, K, T), reference.forward_warp(image, depth, K, T))


def test_forward_warp_detached_equals_the_reference() -> None:
    image, depth, K, twist = random_scene(3, 1, 8, 9)
    plain = reference.forward_warp(image, depth.requires_grad_(), K, se3.exp(twist), detach=True)
    assert not plain.depth.requires_grad
    compare(warp.forward_warp(image, depth, K, se3.exp(twist), detach=True), plain)


@pytest.mark.parametrize("regions", ["none", "one", "three"])
def test_inverse_warp_equals_the_reference(regions: str) -> None:
    image, depth_s, K, twist = random_scene(8, 2, 16, 24)
    depth_t = depth_s.flip(3).clone()
    R = 3 if regions == "three" else 1
    twists = torch.stack([twist, -twist, 2 * twist], dim=1)[:, :R]
    labels = None if regions == "none" else torch.randint(0, R, (2, 16, 24))
    inputs = [x.requires_grad_() for x in (image, depth_s, depth_t, K, twists)]
    K = K * FREE + K.detach() * (1 - FREE)
    fast = warp.inverse_warp(image, depth_s, depth_t, K, se3.exp(twists), labels)
    plain = reference.inverse_warp(image, depth_s, depth_t, K, se3.exp(twists), labels)
    assert fast.visible.double().mean() > 0.3
    compare(fast, plain)
    for a, b in zip(gradients(fast, inputs), gradients(plain, inputs), strict=True):
        assert_close(a, b)


@pytest.mark.parametrize(("H", "W"), [(1, 7), (7, 1), (1, 1), (2, 2)])
def test_the_reference_knows_single_rows_too(H: int, W: int) -> None:
    image, depth, _, twist = random_scene(2, 2, H, W)
    K = pinhole(20.0, H, W, 2)
    T = se3.exp(0.1 * twist)
    compare(warp.forward_warp(image, depth, K, T), reference.forward_warp(image, depth, K, T))
    compare(
        warp.inverse_warp(image, depth, depth, K, T[:, None], None),
        reference.inverse_warp(image, depth, depth, K, T[:, None], None),
    )
