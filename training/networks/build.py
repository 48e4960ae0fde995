"""All networks of a run, from one configuration."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn

from pipeline.classes import CLASSES
from pipeline.errors import ConfigError
from training.networks.correlation import CorrelationNet
from training.networks.depth import DepthConfig, make_depth_net
from training.networks.pose import PoseConfig, make_pose_net


@dataclass(frozen=True, kw_only=True)
class ObjectConfig:
    """The network from two views of an object to its motion."""

    architecture: Literal["correlation", "conv7", "resnet18"] = "correlation"
    """correlation compares two crops locally; the others are those of the camera's motion."""
    width: float = 1.0
    """Multiplier of all channel numbers."""
    reach: int = 4
    """Largest displacement that correlation compares, in sixteenths of a crop of 64 pixels."""

    def __post_init__(self) -> None:
        if not 0 < self.width <= 4:
            raise ConfigError(f"width must lie in (0, 4], got {self.width}")
        if not 1 <= self.reach <= 8:
            raise ConfigError(f"reach must lie in 1..8, got {self.reach}")


@dataclass(frozen=True, kw_only=True)
class NetworksConfig:
    """Depth, camera motion and object motion."""

    depth: DepthConfig = field(default_factory=DepthConfig)
    ego: PoseConfig = field(default_factory=PoseConfig)
    objects: ObjectConfig = field(default_factory=ObjectConfig)

    def without_downloads(self) -> NetworksConfig:
        """The same networks, to be filled from a checkpoint."""
        return replace(
            self,
            depth=replace(self.depth, encoder_weights=None),
            ego=replace(self.ego, encoder_weights=None),
        )


class Networks(nn.Module):
    """The networks of a run, and the learned heights of the classes.

    depth:      (N, 3, H, W) -> inverse depths, finest first
    ego:        (earlier, later) -> (N, 6) Euler angles and translation, scene units
    objects:    (earlier, later) -> (I, 6) Euler angles and shift relative to the object's depth
    log_height: (classes,) logarithm of each class's height, scene units
    """

    def __init__(self, depth: nn.Module, ego: nn.Module, objects: nn.Module) -> None:
        super().__init__()
        self.depth, self.ego, self.objects = depth, ego, objects
        self.log_height = nn.Parameter(torch.zeros(len(CLASSES)))

    def starts_from(self) -> list[str]:
        """Where each network's first weights came from, in words."""
        lines = [getattr(net, "starts_from", None) for net in (self.depth, self.ego, self.objects)]
        return [str(line) for line in lines if line]


class CroppedPose(nn.Module):
    """A pose network on masked crops, whose answers are of the same order as correlation's."""

    def __init__(self, net: nn.Module, gain: float = 10.0) -> None:
        super().__init__()
        self.net, self.gain = net, gain

    def forward(self, earlier: Tensor, later: Tensor) -> Tensor:
        """(I, 4, S, S) masked RGB and mask, twice -> (I, 6)."""
        return self.net(earlier[:, :3], later[:, :3]) * self.gain


def make_networks(config: NetworksConfig, object_input: Literal["crop", "frame"], crop_px: int) -> Networks:
    """The networks, initialised.

    Args:
        object_input: what the object network will be shown.
        crop_px:      side of the crops.

    Raises:
        ConfigError: a network that cannot take this input, or weights that cannot be had.
    """
    chosen = config.objects
    objects: nn.Module
    if chosen.architecture == "correlation":
        if object_input == "frame":
            raise ConfigError(
                "the correlation network looks at crops; set object_input crop, or its architecture conv7"
            )
        objects = CorrelationNet(size=crop_px, reach=chosen.reach, width=chosen.width)
    else:
        net = make_pose_net(PoseConfig(architecture=chosen.architecture, width=chosen.width))
        objects = CroppedPose(net) if object_input == "crop" else net
    return Networks(make_depth_net(config.depth), make_pose_net(config.ego), objects)
