"""Networks from one image to inverse depth.

Inverse depth is 1/max_depth + (1/min_depth - 1/max_depth) sigmoid(logit), in 1 / scene
units, so that depth stays within its range however training goes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.errors import ConfigError
from training.networks.dispresnet import PREDICTIONS, DispResNet
from training.networks.layers import (
    DoublingConv,
    ImageNormalisation,
    InverseDepthHead,
    initialise,
    scaled,
)
from training.networks.resnet import ResNetEncoder
from training.networks.weights import load_encoder

MIN_SIDE = 32
"""Smallest image side, pixels."""
DECODER = (16, 32, 64, 128, 256)
"""Decoder channels at strides 1, 2 ... 16 (Godard et al. 2019, Table 5)."""


@dataclass(frozen=True, kw_only=True)
class DepthConfig:
    """The network from an image to inverse depth."""

    architecture: Literal["resnet18", "resnet50", "dispresnet"] = "resnet18"
    """ResNet encoder with a light decoder, or DispResNet."""
    width: float = 1.0
    """Multiplier of all channel numbers; 0.5 = half of them."""
    norm: Literal["batch", "group"] = "batch"
    """Normalisation; group does not depend on the batch."""
    scales: int = 1
    """Outputs: full size, half, quarter, eighth; 1 to 4 of them."""
    min_depth: float = 0.1
    """Nearest depth that can be predicted, scene units."""
    max_depth: float = 100.0
    """Farthest depth that can be predicted, scene units."""
    initial_depth: float = 1.0
    """Depth that training starts from, about the same everywhere, scene units."""
    encoder_weights: Literal["imagenet"] | Path | None = None
    """ImageNet weights of a ResNet encoder of width 1: "imagenet" (downloaded), or a file."""

    def __post_init__(self) -> None:
        if not 0 < self.width <= 4:
            raise ConfigError(f"width must lie in (0, 4], got {self.width}")
        if not 1 <= self.scales <= PREDICTIONS:
            raise ConfigError(f"scales must be 1 to {PREDICTIONS}, got {self.scales}")
        if not 0 < self.min_depth < self.initial_depth < self.max_depth < math.inf:
            raise ConfigError(
                "min_depth, initial_depth and max_depth must be positive and ascend, got "
                f"{self.min_depth}, {self.initial_depth}, {self.max_depth}"
            )
        if self.encoder_weights is not None and self.architecture == "dispresnet":
            raise ConfigError("encoder_weights are for ResNets; leave them out with dispresnet")
        if self.encoder_weights is not None and (self.width != 1 or self.norm != "batch"):
            raise ConfigError(
                "encoder_weights fit width 1.0 and norm batch only, "
                f"got width {self.width} and norm {self.norm}; change those or leave the weights out"
            )


class DepthNet(nn.Module):
    """Images -> inverse depths. `starts_from` says in words where the weights came from."""

    def __init__(self, config: DepthConfig) -> None:
        super().__init__()
        self.scales = config.scales
        self.least, self.most = 1 / config.max_depth, 1 / config.min_depth
        share = (1 / config.initial_depth - self.least) / (self.most - self.least)
        bias = math.log(share / (1 - share))
        self.normalise = ImageNormalisation()
        self.body: ResNetDepth | DispResNet
        if config.architecture == "dispresnet":
            self.body = DispResNet(config.width, config.norm, bias)
        else:
            self.body = ResNetDepth(config.architecture, config.width, config.norm, config.scales, bias)
        initialise(self)
        self.starts_from = f"depth: {config.architecture} starts from random weights"

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Predict inverse depth.

        Args:
            images: (N, 3, H, W) RGB in [0, 1]; H and W at least 32, otherwise free.

        Returns:
            `scales` maps (N, 1, ceil(H / 2^i), ceil(W / 2^i)), finest first, float32 under
            autocast too, within [1 / max_depth, 1 / min_depth], 1 / scene units. Pixel (r, c)
            of map i covers 2^i x 2^i pixels of the image from (2^i r, 2^i c) on.

        Raises:
            ValueError: another number of channels, or a side below 32 px.
        """
        require_images("images", images)
        x = self.normalise(images).contiguous(memory_format=torch.channels_last)
        span = self.most - self.least
        return tuple(
            (self.least + span * torch.sigmoid(logits)).clamp(self.least, self.most)
            for logits in self.body(x)[: self.scales]
        )


class ResNetDepth(nn.Module):
    """ResNet encoder, decoder of two 3x3 convolutions a level (Godard et al. 2019).

    ELU and no normalisation in the decoder, as there; zero instead of reflection padding,
    which costs a copy of every map.
    """

    def __init__(self, architecture: str, width: float, norm: str, scales: int, bias: float) -> None:
        super().__init__()
        self.encoder = ResNetEncoder(architecture, width, norm)
        decoder = [scaled(channels, width) for channels in DECODER]
        self.reduce = nn.ModuleList()
        self.fuse = nn.ModuleList()
        self.heads = nn.ModuleList(InverseDepthHead(decoder[i], bias) for i in range(scales))
        for level, channels in enumerate(decoder):
            coarse = decoder[level + 1] if level + 1 < len(decoder) else self.encoder.channels[-1]
            skip = self.encoder.channels[level - 1] if level else 0
            self.reduce.append(nn.Conv2d(coarse, channels, 3, padding=1))
            self.fuse.append(DoublingConv(channels, skip, channels))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Normalised (N, 3, H, W) -> logits, finest first."""
        features = self.encoder(images)
        x = features[-1]
        logits: list[Tensor] = []
        for level in range(len(DECODER) - 1, -1, -1):
            skip = features[level - 1] if level else None
            size = images.shape[2:] if skip is None else skip.shape[2:]
            x = F.elu(self.reduce[level](x), inplace=True)
            x = F.elu(self.fuse[level](x, skip, size), inplace=True)
            if level < len(self.heads):
                logits.append(self.heads[level](x))
        return tuple(reversed(logits))


def make_depth_net(config: DepthConfig = DepthConfig()) -> DepthNet:
    """The network, initialised; its encoder from ImageNet weights where the settings name some.

    To fill it from a checkpoint instead, pass `replace(config, encoder_weights=None)`: the
    file need not exist any more.

    Raises:
        ConfigError: the encoder's weights cannot be had or do not fit.
    """
    net = DepthNet(config)
    if config.encoder_weights is not None:
        assert isinstance(net.body, ResNetDepth)  # DepthConfig has seen to it
        loaded = load_encoder(net.body.encoder, config.architecture, config.encoder_weights)
        net.starts_from = f"depth: {loaded}"
    return net.to(memory_format=torch.channels_last)


def require_images(name: str, images: Tensor) -> None:
    """(N, 3, H, W) with sides of 32 px or more, or a ValueError."""
    if images.dim() != 4 or images.shape[1] != 3 or min(images.shape[2:]) < MIN_SIDE:
        raise ValueError(
            f"{name} are {tuple(images.shape)}, expected (N, 3, H, W) with H and W of {MIN_SIDE} or more"
        )
