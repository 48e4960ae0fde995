"""Networks from two images to the motion between them: the camera's, or an object's.

Images come in time order (earlier, later); the other direction is the SE(3) inverse.
(Feeding both orders has a symmetric saddle at zero motion, which training does not leave.)
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.errors import ConfigError
from training.networks.depth import require_images
from training.networks.layers import (
    ImageNormalisation,
    in_full_precision,
    initialise,
    normalisation,
    scaled,
    small_,
)
from training.networks.resnet import ResNetEncoder
from training.networks.weights import load_encoder

CHANNELS = (16, 32, 64, 128, 256, 256, 256)
KERNELS = (7, 5, 3, 3, 3, 3, 3)
OUTPUT_SCALE = 0.01
"""Raw outputs of order one are a hundredth of a radian and of a scene unit (Zhou et al. 2017)."""


@dataclass(frozen=True, kw_only=True)
class PoseConfig:
    """The network from two images to the motion between them."""

    architecture: Literal["conv7", "resnet18"] = "conv7"
    """Seven convolutions, or a ResNet18 encoder and four."""
    width: float = 1.0
    """Multiplier of all channel numbers; 0.5 = half of them."""
    norm: Literal["auto", "none", "batch", "group"] = "auto"
    """Normalisation; auto = none for conv7, batch for resnet18."""
    encoder_weights: Literal["imagenet"] | Path | None = None
    """ImageNet weights of a resnet18 of width 1: "imagenet" (downloaded), or a file."""

    def __post_init__(self) -> None:
        if not 0 < self.width <= 4:
            raise ConfigError(f"width must lie in (0, 4], got {self.width}")
        if self.architecture == "resnet18" and self.norm == "none":
            raise ConfigError("resnet18 does not train without normalisation; set norm to batch or group")
        if self.encoder_weights is not None and (
            self.architecture != "resnet18" or self.width != 1 or self.resolved_norm != "batch"
        ):
            raise ConfigError(
                "encoder_weights fit resnet18 of width 1.0 and norm batch only, got "
                f"{self.architecture}, {self.width} and {self.resolved_norm}; leave the weights out"
            )

    @property
    def resolved_norm(self) -> str:
        """The normalisation that `auto` stands for."""
        if self.norm != "auto":
            return self.norm
        return "none" if self.architecture == "conv7" else "batch"


class PoseNet(nn.Module):
    """Two images -> six numbers. `starts_from` says in words where the weights came from."""

    def __init__(self, config: PoseConfig) -> None:
        super().__init__()
        self.normalise = ImageNormalisation()
        self.body: SevenConvolutions | ResNetPose
        if config.architecture == "conv7":
            self.body = SevenConvolutions(config.width, config.resolved_norm)
        else:
            self.body = ResNetPose(config.width, config.resolved_norm)
        self.last = nn.Conv2d(self.body.channels, 6, 1)
        initialise(self)
        small_(self.last)  # training begins near "does not move"
        self.starts_from = f"pose: {config.architecture} starts from random weights"

    def forward(self, earlier: Tensor, later: Tensor) -> Tensor:
        """Predict the motion between two images.

        Args:
            earlier, later: (N, 3, H, W) RGB in [0, 1]; H and W at least 32. N may be 0.

        Returns:
            (N, 6): three Euler angles (radians, about x, y, z) and three translations (scene
            units), float32 under autocast too. With N = 0 every weight still gets a
            gradient, of zero, so that processes of unequal luck stay in step.

        Raises:
            ValueError: shapes other than the above, or unequal ones.
        """
        require_images("earlier images", earlier)
        if later.shape != earlier.shape:
            raise ValueError(f"later images are {tuple(later.shape)}, expected {tuple(earlier.shape)}")
        if earlier.shape[0] == 0:
            return torch.cat([weights.flatten()[:0] for weights in self.parameters()]).reshape(0, 6)
        both = torch.cat([self.normalise(earlier), self.normalise(later)], 1)
        features = self.body(both.contiguous(memory_format=torch.channels_last))
        return in_full_precision(self.last, features).mean((2, 3)) * OUTPUT_SCALE


class SevenConvolutions(nn.Module):
    """The pose encoder of Zhou et al. 2017: seven convolutions, each followed by a ReLU."""

    def __init__(self, width: float, norm: str) -> None:
        super().__init__()
        make_norm = normalisation(norm)
        layers: list[nn.Module] = []
        inputs = 6
        for channels, kernel in zip(CHANNELS, KERNELS, strict=True):
            outputs = scaled(channels, width)
            layers += [
                ShrinkingConv(inputs, outputs, kernel, padding=kernel // 2, bias=norm == "none"),
                make_norm(outputs),
                nn.ReLU(inplace=True),
            ]
            inputs = outputs
        self.channels = inputs
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class ShrinkingConv(nn.Conv2d):
    """A convolution with stride 2, or 1 once a side is one pixel.

    Crops get there before the last layer; the other side of a long image is kept then.
    """

    def forward(self, input: Tensor) -> Tensor:
        stride = 2 if min(input.shape[2:]) > 1 else 1
        return F.conv2d(input, self.weight, self.bias, stride, self.padding)


class ResNetPose(nn.Module):
    """ResNet18 on two stacked images, then three convolutions (Godard et al. 2019)."""

    def __init__(self, width: float, norm: str) -> None:
        super().__init__()
        self.encoder = ResNetEncoder("resnet18", width, norm, images=2)
        self.channels = scaled(256, width)
        self.squeeze = nn.Sequential(
            nn.Conv2d(self.encoder.channels[-1], self.channels, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(self.channels, self.channels, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(self.channels, self.channels, 3, padding=1),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.squeeze(self.encoder(x)[-1])


def make_pose_net(config: PoseConfig = PoseConfig()) -> PoseNet:
    """The network, initialised; its encoder from ImageNet weights where the settings name some.

    To fill it from a checkpoint instead, pass `replace(config, encoder_weights=None)`: the
    file need not exist any more.

    Raises:
        ConfigError: the encoder's weights cannot be had or do not fit.
    """
    net = PoseNet(config)
    if config.encoder_weights is not None:
        assert isinstance(net.body, ResNetPose)  # PoseConfig has seen to it
        net.starts_from = f"pose: {load_encoder(net.body.encoder, 'resnet18', config.encoder_weights)}"
    return net.to(memory_format=torch.channels_last)
