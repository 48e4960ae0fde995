"""Depth networks: shapes, ranges, what training starts from, and that all of it learns."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from pipeline.configuration import from_dict, to_dict
from pipeline.errors import ConfigError
from training.networks.depth import DepthConfig, DepthNet, make_depth_net

ARCHITECTURES = ("resnet18", "resnet50", "dispresnet")
NORMS = ("batch", "group")


def small(architecture: str = "resnet18", seed: int = 0, **settings: object) -> DepthNet:
    torch.manual_seed(seed)
    return make_depth_net(from_dict(DepthConfig, {"architecture": architecture, "width": 0.125, **settings}))


def images(N: int, H: int, W: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(N, 3, H, W, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("architecture", ["resnet18", "dispresnet"])
@settings(max_examples=8, deadline=None)
@given(H=st.integers(32, 75), W=st.integers(32, 75), scales=st.integers(1, 4))
def test_outputs_have_the_size_of_the_image_whatever_it_is(
    architecture: str, H: int, W: int, scales: int
) -> None:
    net = small(architecture, scales=scales)
    with torch.no_grad():
        outputs = net(images(1, H, W))
    sizes = [(1, 1, math.ceil(H / 2**i), math.ceil(W / 2**i)) for i in range(scales)]
    assert [tuple(out.shape) for out in outputs] == sizes


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("norm", NORMS)
def test_every_parameter_gets_a_gradient_from_one_small_image(architecture: str, norm: str) -> None:
    net = small(architecture, norm=norm, scales=1)
    (inverse_depth,) = net(images(1, 32, 45))
    inverse_depth.log().var().backward()
    still = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert not still
    assert all(p.grad.isfinite().all() for p in net.parameters())  # type: ignore[union-attr]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("initial", [0.5, 1.0, 5.0])
def test_training_starts_from_a_smooth_map_at_the_initial_depth(architecture: str, initial: float) -> None:
    net = small(architecture, initial_depth=initial, scales=4)
    for out in net(images(2, 64, 96)):
        assert (out * initial).log().abs().max() < math.log(2)
        assert (out * initial).log().mean().abs() < 0.25
        steps = out.log().diff(dim=3).abs().mean()
        assert steps < 0.1


@pytest.mark.parametrize("architecture", ["resnet18", "dispresnet"])
@pytest.mark.parametrize("push", [-1e4, 1e4])
def test_depth_never_leaves_its_range(architecture: str, push: float) -> None:
    # In float32 1/80 + (1/0.3 - 1/80) is more than 1/0.3.
    net = small(architecture, min_depth=0.3, max_depth=80.0, scales=4)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if "heads" in name and name.endswith("bias"):
                parameter.add_(push)
    limit = 1 / 80.0 if push < 0 else 1 / 0.3
    for out in net(images(1, 40, 50)):
        assert_close(out, torch.full_like(out, limit))
        assert ((out >= torch.tensor(1 / 80.0)) & (out <= torch.tensor(1 / 0.3))).all()


def test_the_range_holds_in_between_too() -> None:
    net = small(min_depth=0.3, max_depth=80.0)
    with torch.no_grad():
        net.get_parameter("body.heads.0.conv.weight").mul_(200)
    (out,) = net(images(2, 64, 64))
    assert out.min() >= 1 / 80.0
    assert out.max() <= 1 / 0.3
    assert out.max() / out.min() > 3


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_same_seed_gives_the_same_network_and_the_same_gradient(architecture: str) -> None:
    gradients = []
    for _ in range(2):
        net = small(architecture, seed=3)
        net(images(2, 48, 64))[0].square().sum().backward()
        gradients.append([p.grad for p in net.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_evaluation_treats_each_image_by_itself() -> None:
    net = small(norm="batch").eval()
    batch = images(3, 64, 80)
    assert_close(net(batch)[0][1:2], net(batch[1:2])[0], rtol=1e-4, atol=1e-6)


def test_group_normalisation_treats_each_image_by_itself_in_training_too() -> None:
    net = small(norm="group").train()
    batch = images(3, 64, 80)
    assert_close(net(batch)[0][1:2], net(batch[1:2])[0], rtol=1e-4, atol=1e-6)


def test_a_pixel_of_a_coarser_map_covers_its_own_corner_of_the_image() -> None:
    """A bright square moves every scale's answer at (r, c) from (2^i r, 2^i c) on."""
    torch.manual_seed(0)
    net = small("resnet18", scales=4, norm="group").eval().double()
    image = torch.full((1, 3, 101, 131), 0.5, dtype=torch.float64, requires_grad=True)
    for i, out in enumerate(net(image)):
        r, c = out.shape[2] // 2, out.shape[3] // 2
        (gradient,) = torch.autograd.grad(out[0, 0, r, c], image, retain_graph=True)
        # The mass of the dependence lies around the pixels that (r, c) stands for.
        weight = gradient.abs().sum((0, 1))
        centre_v = (weight.sum(1) * torch.arange(101)).sum() / weight.sum()
        centre_u = (weight.sum(0) * torch.arange(131)).sum() / weight.sum()
        assert abs(centre_v - (2**i * (r + 0.5) - 0.5)) < 10
        assert abs(centre_u - (2**i * (c + 0.5) - 0.5)) < 10


def test_half_the_width_is_a_quarter_of_the_weights() -> None:
    count = {
        width: sum(p.numel() for p in DepthNet(DepthConfig(width=width)).parameters()) for width in (1.0, 0.5)
    }
    assert 3.8 < count[1.0] / count[0.5] < 4.2


def test_under_autocast_the_answer_is_in_full_precision() -> None:
    net = small()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (out,) = net(images(2, 64, 64))
    assert out.dtype == torch.float32
    # Three significant digits would leave few different values.
    assert out.unique().numel() > out.numel() // 2
    out.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_double_precision_stays_double() -> None:
    (out,) = small().double()(images(2, 32, 32).double())
    assert out.dtype == torch.float64


def test_a_network_says_that_it_starts_from_random_weights() -> None:
    assert small("resnet50").starts_from == "depth: resnet50 starts from random weights"


def test_a_copy_and_a_restored_state_answer_alike() -> None:
    net = small(scales=2).eval()
    other = small(scales=2, seed=9).eval()
    other.load_state_dict(net.state_dict())
    batch = images(1, 50, 60)
    for a, b, c in zip(net(batch), other(batch), copy.deepcopy(net)(batch), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)


def test_a_few_steps_fit_a_depth_map() -> None:
    """Near on the left, far on the right, told apart by brightness."""
    net = small(width=0.25)
    batch = torch.zeros(2, 3, 32, 64)
    batch[:, :, :, 32:] = 1.0
    target = torch.full((2, 1, 32, 64), math.log(1 / 0.5))
    target[:, :, :, 32:] = math.log(1 / 4.0)
    optimiser = torch.optim.Adam(net.parameters(), 2e-3)
    for _ in range(40):
        loss = (net(batch)[0].log() - target).abs().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss < 0.15


@pytest.mark.parametrize("shape", [(1, 3, 31, 64), (1, 3, 64, 31), (1, 4, 64, 64), (3, 64, 64)])
def test_images_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected \(N, 3, H, W\) with H and W of 32 or more"):
        small()(torch.zeros(shape))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 0.0}, "width must lie in"),
        ({"width": math.nan}, "width must lie in"),
        ({"scales": 0}, "scales must be 1 to 4, got 0"),
        ({"scales": 5}, "scales must be 1 to 4, got 5"),
        ({"min_depth": 2.0}, "must be positive and ascend, got 2.0, 1.0, 100.0"),
        ({"max_depth": math.inf}, "must be positive and ascend"),
        ({"min_depth": 0.0}, "must be positive and ascend"),
        ({"encoder_weights": "imagenet", "width": 0.5}, "fit width 1.0 and norm batch only, got width 0.5"),
        ({"encoder_weights": "imagenet", "norm": "group"}, "and norm group; change those"),
        ({"encoder_weights": "imagenet", "architecture": "dispresnet"}, "are for ResNets"),
        ({"architecture": "vgg"}, "'vgg' is none of 'resnet18', 'resnet50', 'dispresnet'"),
    ],
)
def test_settings_that_cannot_be_are_refused_in_one_line(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_dict(DepthConfig, settings)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("weights", [None, "imagenet", Path("some/resnet18.pth")])
def test_settings_survive_yaml(weights: Path | str | None) -> None:
    config = DepthConfig(encoder_weights=weights)  # type: ignore[arg-type]
    assert from_dict(DepthConfig, to_dict(config)) == config
