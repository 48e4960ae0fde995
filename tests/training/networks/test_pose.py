"""Pose networks: shapes, small beginnings, empty batches, and that all of it learns."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from pipeline.configuration import from_dict, to_dict
from pipeline.errors import ConfigError
from training.networks.pose import PoseConfig, PoseNet, ShrinkingConv, make_pose_net

KINDS = (
    ("conv7", "none"),
    ("conv7", "batch"),
    ("conv7", "group"),
    ("resnet18", "batch"),
    ("resnet18", "group"),
)


def small(architecture: str = "conv7", norm: str = "auto", width: float = 0.25, seed: int = 0) -> PoseNet:
    torch.manual_seed(seed)
    return make_pose_net(from_dict(PoseConfig, {"architecture": architecture, "norm": norm, "width": width}))


def pair(N: int, H: int, W: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    return torch.rand(N, 3, H, W), torch.rand(N, 3, H, W)


@pytest.mark.parametrize(("architecture", "norm"), KINDS)
@settings(max_examples=6, deadline=None)
@given(N=st.integers(0, 3), H=st.integers(32, 70), W=st.integers(32, 150))
def test_six_numbers_a_pair_near_zero_whatever_the_size(
    architecture: str, norm: str, N: int, H: int, W: int
) -> None:
    with torch.no_grad():
        motion = small(architecture, norm)(*pair(N, H, W))
    assert motion.shape == (N, 6)
    assert motion.isfinite().all()
    assert (motion.abs() < 0.02).all()


@pytest.mark.parametrize(("architecture", "norm"), KINDS)
def test_training_begins_near_standing_still_but_not_at_it(architecture: str, norm: str) -> None:
    motion = small(architecture, norm, width=1.0)(*pair(2, 64, 96))
    assert 0 < motion.abs().max() < 0.01


@pytest.mark.parametrize(("architecture", "norm"), KINDS)
@pytest.mark.parametrize("size", [(32, 32), (64, 208)])
def test_every_parameter_gets_a_gradient_from_one_pair(
    architecture: str, norm: str, size: tuple[int, int]
) -> None:
    net = small(architecture, norm)
    net(*pair(1, *size)).square().sum().backward()
    assert not [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]


@pytest.mark.parametrize(("architecture", "norm"), KINDS)
def test_no_pairs_are_no_trouble(architecture: str, norm: str) -> None:
    net = small(architecture, norm).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    images = torch.zeros(0, 3, 64, 64, requires_grad=True)
    motion = net(images, images)
    assert motion.shape == (0, 6)
    motion.sum().backward()
    for parameter in net.parameters():
        assert parameter.grad is not None
        assert not parameter.grad.any()
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]), f"{name} changed"


def test_strides_stop_when_a_side_is_one_pixel() -> None:
    conv = ShrinkingConv(1, 1, 3, padding=1)
    sizes = {(9, 8): (5, 4), (2, 2): (1, 1), (1, 4): (1, 4), (7, 1): (7, 1)}
    for size, expected in sizes.items():
        assert tuple(conv(torch.zeros(1, 1, *size)).shape[2:]) == expected


def test_the_published_channels_and_kernels() -> None:
    convolutions = [layer for layer in small(width=1.0).modules() if isinstance(layer, torch.nn.Conv2d)]
    assert [conv.out_channels for conv in convolutions] == [16, 32, 64, 128, 256, 256, 256, 6]
    assert [conv.kernel_size[0] for conv in convolutions] == [7, 5, 3, 3, 3, 3, 3, 1]
    assert convolutions[0].in_channels == 6


def test_the_mean_is_taken_over_the_image() -> None:
    """A bias of the last layer passes unchanged, times 0.01, whatever the size."""
    net = small()
    with torch.no_grad():
        net.last.weight.zero_()
        net.last.bias.copy_(torch.arange(6.0))  # type: ignore[union-attr]
    for size in ((32, 32), (64, 208)):
        assert_close(net(*pair(2, *size)), 0.01 * torch.arange(6.0).expand(2, 6))


def test_the_order_of_the_images_matters() -> None:
    earlier, later = pair(1, 64, 64)
    net = small()
    assert (net(earlier, later) - net(later, earlier)).abs().max() > 1e-6


@pytest.mark.parametrize(("architecture", "norm"), KINDS)
def test_the_same_seed_gives_the_same_gradient(architecture: str, norm: str) -> None:
    gradients = []
    for _ in range(2):
        net = small(architecture, norm, seed=4)
        net(*pair(3, 48, 64)).square().sum().backward()
        gradients.append([p.grad for p in net.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("norm", ["none", "group"])
def test_pairs_do_not_know_of_each_other(norm: str) -> None:
    net, (earlier, later) = small(norm=norm).train(), pair(3, 64, 64)
    together, alone = net(earlier, later)[1:2], net(earlier[1:2], later[1:2])
    assert_close(together, alone, rtol=1e-4, atol=1e-8)


def test_under_autocast_the_answer_is_in_full_precision() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        motion = small()(*pair(2, 64, 64))
    assert motion.dtype == torch.float32
    assert (motion != motion.bfloat16()).any()


def test_a_shift_between_two_images_is_learned() -> None:
    """Stripes that move right or left by 2 px: the sign must come out of the order alone."""
    net = small(width=0.5)
    columns = torch.arange(64.0)
    optimiser = torch.optim.Adam(net.parameters(), 1e-3)
    generator = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(120):
        phase = 6.28 * torch.rand(8, 1, generator=generator)
        sign = torch.randint(0, 2, (8, 1), generator=generator) * 2.0 - 1
        earlier = 0.5 + 0.4 * torch.sin(columns / 3 + phase)
        later = 0.5 + 0.4 * torch.sin((columns - 2 * sign) / 3 + phase)
        expand = (8, 3, 32, 64)
        motion = net(
            earlier[:, None, None].expand(expand).contiguous(),
            later[:, None, None].expand(expand).contiguous(),
        )
        loss = (motion[:, 3:4] - 0.02 * sign).abs().mean() / 0.02
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) / 10 < 0.5  # 1.0 = standing still


def test_unequal_or_small_images_are_refused() -> None:
    net = small()
    with pytest.raises(ValueError, match=r"later images are \(1, 3, 64, 65\), expected \(1, 3, 64, 64\)"):
        net(torch.zeros(1, 3, 64, 64), torch.zeros(1, 3, 64, 65))
    with pytest.raises(ValueError, match="earlier images are"):
        net(torch.zeros(1, 3, 16, 64), torch.zeros(1, 3, 16, 64))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": -1.0}, "width must lie in"),
        ({"architecture": "resnet18", "norm": "none"}, "set norm to batch or group"),
        ({"encoder_weights": "imagenet"}, "fit resnet18 of width 1.0 and norm batch only, got conv7"),
        ({"encoder_weights": "imagenet", "architecture": "resnet18", "width": 0.5}, "got resnet18, 0.5"),
        ({"norm": "layer"}, "'layer' is none of"),
    ],
)
def test_settings_that_cannot_be_are_refused_in_one_line(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_dict(PoseConfig, settings)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_settings_survive_yaml() -> None:
    config = PoseConfig(architecture="resnet18", encoder_weights="imagenet")
    assert from_dict(PoseConfig, to_dict(config)) == config
    assert config.resolved_norm == "batch"
