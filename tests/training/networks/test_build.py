"""All networks of a run from one configuration."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch

from pipeline.classes import CLASSES
from pipeline.errors import ConfigError
from training.networks.build import CroppedPose, NetworksConfig, ObjectConfig, make_networks
from training.networks.correlation import CorrelationNet
from training.networks.depth import DepthConfig
from training.networks.pose import PoseConfig, PoseNet

SMALL = NetworksConfig(
    depth=DepthConfig(width=0.125),
    ego=PoseConfig(width=0.125),
    objects=ObjectConfig(width=0.25),
)


@pytest.mark.parametrize(
    ("architecture", "object_input", "kind", "channels"),
    [
        ("correlation", "crop", CorrelationNet, 4),
        ("conv7", "crop", CroppedPose, 4),
        ("resnet18", "crop", CroppedPose, 4),
        ("conv7", "frame", PoseNet, 3),
    ],
)
def test_every_object_network_answers_what_it_is_shown(
    architecture: Literal["correlation", "conv7", "resnet18"],
    object_input: Literal["crop", "frame"],
    kind: type,
    channels: int,
) -> None:
    objects = ObjectConfig(architecture=architecture, width=0.25)
    networks = make_networks(replace(SMALL, objects=objects), object_input, 32)
    assert isinstance(networks.objects, kind)
    for count in (0, 2):
        crops = torch.rand(count, channels, 32, 32)
        assert networks.objects(crops, crops).shape == (count, 6)
    assert networks.log_height.shape == (len(CLASSES),)
    assert networks.log_height.requires_grad


def test_a_pose_network_on_crops_answers_at_the_order_of_correlation() -> None:
    networks = make_networks(
        replace(SMALL, objects=ObjectConfig(architecture="conv7", width=0.25)), "crop", 32
    )
    cropped = networks.objects
    assert isinstance(cropped, CroppedPose)
    earlier, later = torch.rand(2, 2, 4, 32, 32)
    torch.testing.assert_close(cropped(earlier, later), 10 * cropped.net(earlier[:, :3], later[:, :3]))


def test_correlation_needs_crops() -> None:
    with pytest.raises(ConfigError, match="looks at crops; set object_input crop"):
        make_networks(SMALL, "frame", 32)


@pytest.mark.parametrize("settings", [{"width": 0.0}, {"width": 5.0}, {"reach": 0}, {"reach": 9}])
def test_impossible_object_networks_cannot_be_configured(settings: dict) -> None:
    (name,) = settings
    with pytest.raises(ConfigError, match=f"{name} must lie in"):
        ObjectConfig(**settings)


def test_without_downloads_no_file_is_named(tmp_path: Path) -> None:
    config = NetworksConfig(
        depth=DepthConfig(encoder_weights=tmp_path / "gone.pth"),
        ego=PoseConfig(architecture="resnet18", encoder_weights="imagenet"),
    ).without_downloads()
    assert config.depth.encoder_weights is None
    assert config.ego.encoder_weights is None


def test_each_network_says_where_its_weights_came_from() -> None:
    lines = make_networks(SMALL, "crop", 32).starts_from()
    assert any(line.startswith("depth:") for line in lines)
    assert any(line.startswith("pose:") for line in lines)
