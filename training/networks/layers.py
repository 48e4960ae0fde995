"""Building blocks that the depth and the pose networks share.

Feature maps are (N, C, H, W), channels_last in memory. A stride-2 layer takes (H, W) to
(ceil(H/2), ceil(W/2)), so that pixel (i, j) of a level covers rows 2i, 2i + 1 and columns
2j, 2j + 1 of the finer one; doubling and cropping to the finer size undoes it for any size,
odd ones too, without padding the image first.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MAX_GROUPS = 16
"""Most groups of a group normalisation."""
MIN_CHANNELS = 8
"""Narrowest layer, whatever the width multiplier."""


class ImageNormalisation(nn.Module):
    """Images in [0, 1] -> zero mean and unit variance over ImageNet, channel by channel."""

    scale: Tensor
    shift: Tensor

    def __init__(self) -> None:
        super().__init__()
        mean = torch.tensor([0.485, 0.456, 0.406]).reshape(1, 3, 1, 1)
        std = torch.tensor([0.229, 0.224, 0.225]).reshape(1, 3, 1, 1)
        # Constants, not weights: they move with the network but stay out of its state.
        self.register_buffer("scale", 1 / std, persistent=False)
        self.register_buffer("shift", -mean / std, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return torch.addcmul(self.shift, images, self.scale)


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation that also trains on a single value a channel.

    One image whose map has shrunk to 1x1 has no variance to divide by; there, and only
    there, the running statistics stand in, and they are not updated.
    """

    def forward(self, input: Tensor) -> Tensor:
        if self.training and input.shape[0] * input.shape[2] * input.shape[3] == 1:
            return F.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        return super().forward(input)


def group_count(channels: int) -> int:
    """The largest number of equal groups, at most 16, of two or more channels each.

    Groups of one channel would normalise each map by itself, and erase a map of one pixel.
    """
    most = min(MAX_GROUPS, max(1, channels // 2))
    return next(count for count in range(most, 0, -1) if channels % count == 0)


def normalisation(kind: str) -> Callable[[int], nn.Module]:
    """The constructor (channels -> layer) of "batch", "group" or "none"."""
    match kind:
        case "batch":
            return BatchNorm
        case "group":
            return lambda channels: nn.GroupNorm(group_count(channels), channels)
        case "none":
            return lambda channels: nn.Identity()
    raise ValueError(f"normalisation {kind!r} is none of batch, group, none")


def scaled(channels: int, width: float) -> int:
    """A channel number times the width multiplier."""
    return max(MIN_CHANNELS, round(channels * width))


def double(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Every pixel repeated 2x2, cropped to `size` (H, W) of the finer level."""
    return crop(F.interpolate(maps, scale_factor=2, mode="nearest"), size)


def crop(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """The top-left `size` (H, W) of the maps; maps of that size are handed on as they are."""
    if maps.shape[2:] == size:
        return maps  # slicing would cost four copies of the gradient, a tenth of a small net's time
    return maps[:, :, : size[0], : size[1]]


class DoublingConv(nn.Module):
    """conv3x3(concatenate(double(coarse), skip)), zero-padded, without building either map.

    A 3x3 kernel on a map of repeated pixels meets only 2x2 different ones: the sum of its
    taps over each repeated pixel is a 4x4 kernel of a transposed convolution with stride 2,
    with 16 multiplications a coarse pixel instead of 36. The concatenation is a sum of two
    convolutions. Weights and results are those of the plain form.
    """

    def __init__(self, coarse: int, skip: int, out: int) -> None:
        super().__init__()
        self.coarse = coarse
        self.weight = nn.Parameter(torch.empty(out, coarse + skip, 3, 3))
        self.bias = nn.Parameter(torch.zeros(out))

    def forward(self, coarse: Tensor, skip: Tensor | None, size: tuple[int, int]) -> Tensor:
        """(N, coarse, ceil(H/2), ceil(W/2)) and (N, skip, H, W) or None -> (N, out, H, W)."""
        taps = self.weight[:, : self.coarse]
        summed = 4 * F.avg_pool2d(F.pad(taps, (1, 1, 1, 1)), 2, stride=1)
        kernel = summed.flip(2, 3).transpose(0, 1)
        out = F.conv_transpose2d(coarse, kernel, self.bias, stride=2, padding=1)
        out = crop(out, size)
        if skip is None:
            return out
        return out + F.conv2d(skip, self.weight[:, self.coarse :], padding=1)


class InverseDepthHead(nn.Module):
    """Features -> logits of inverse depth, in full precision.

    The bias sets the depth that training starts from; small weights make it smooth. bfloat16
    has eight bits: logits near -3 would come in steps of 1.6 % of depth, hence float32 here.
    """

    def __init__(self, channels: int, bias: float) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 1, 3, padding=1)
        self.initial_bias = bias

    def initialise(self) -> None:
        small_(self.conv)
        nn.init.constant_(self.conv.bias, self.initial_bias)  # type: ignore[arg-type]

    def forward(self, features: Tensor) -> Tensor:
        return in_full_precision(self.conv, features)


def in_full_precision(layer: nn.Module, features: Tensor) -> Tensor:
    """Run a layer with its own weights' precision, whatever autocast is in force."""
    if not torch.is_autocast_enabled(features.device.type):
        return layer(features)
    with torch.autocast(features.device.type, enabled=False):
        return layer(features.float())


def initialise(module: nn.Module) -> None:
    """He initialisation (normal, fan in) of every convolution below `module`."""
    for layer in module.modules():
        if isinstance(layer, (nn.Conv2d, DoublingConv)):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    for layer in module.modules():
        if isinstance(layer, InverseDepthHead):
            layer.initialise()


def small_(conv: nn.Conv2d) -> None:
    """Weights whose outputs are about a twentieth of the inputs, and no bias."""
    fan_in = conv.weight[0].numel()
    nn.init.normal_(conv.weight, std=0.05 / math.sqrt(fan_in))
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
