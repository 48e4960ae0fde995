"""DispResNet: the encoder and decoder of DispNet with residual blocks.

DispNetS (Zhou et al. 2017, appendix) as deepened by Competitive Collaboration (Ranjan et
al. 2019): seven levels of stride 2, skip connections at every level, and four predictions,
each of which is doubled and handed to the next finer level.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from training.networks.layers import DoublingConv, InverseDepthHead, double, scaled
from training.networks.resnet import residual_stage

ENCODER = (32, 64, 128, 256, 512, 512, 512)
"""Channels at strides 2, 4 ... 128."""
BLOCKS = (0, 2, 2, 3, 3, 3, 3)
"""Residual blocks of each level; the first level is one 7x7 convolution."""
DECODER = (16, 32, 64, 128, 256, 512, 512)
"""Channels at strides 1, 2 ... 64."""
PREDICTIONS = 4


class DispResNet(nn.Module):
    """Normalised images -> logits of inverse depth at strides 1, 2, 4, 8, finest first.

    Args of the constructor:
        width: multiplier of all channel numbers.
        norm:  "batch" or "group", inside the residual blocks.
        bias:  logit that the predictions start from.
    """

    def __init__(self, width: float, norm: str, bias: float) -> None:
        super().__init__()
        encoder = [scaled(channels, width) for channels in ENCODER]
        decoder = [scaled(channels, width) for channels in DECODER]
        self.stem = nn.Sequential(nn.Conv2d(3, encoder[0], 7, stride=2, padding=3), nn.ReLU(inplace=True))
        self.down = nn.ModuleList(
            residual_stage(BasicBlock, encoder[level - 1], encoder[level], BLOCKS[level], 2, norm)
            for level in range(1, len(ENCODER))
        )
        self.up = nn.ModuleList()
        self.fuse = nn.ModuleList()
        self.heads = nn.ModuleList(InverseDepthHead(decoder[i], bias) for i in range(PREDICTIONS))
        for level, channels in enumerate(decoder):
            coarse = decoder[level + 1] if level + 1 < len(decoder) else encoder[-1]
            skip = encoder[level - 1] if level else 0
            handed = 1 if level + 1 < PREDICTIONS else 0
            self.up.append(DoublingConv(coarse, 0, channels))
            self.fuse.append(residual_stage(BasicBlock, channels + skip + handed, channels, 1, 1, norm))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        features = [self.stem(images)]
        for stage in self.down:
            features.append(stage(features[-1]))
        x = features.pop()
        logits: list[Tensor] = []
        for level in range(len(DECODER) - 1, -1, -1):
            H, W = (features[level - 1] if level else images).shape[2:]
            parts = [torch.relu(self.up[level](x, None, (H, W)))]
            if level:
                parts.append(features.pop())
            if logits:
                parts.append(double(logits[-1], (H, W)).to(parts[0].dtype))
            x = self.fuse[level](torch.cat(parts, 1))
            if level < PREDICTIONS:
                logits.append(self.heads[level](x))
        return tuple(reversed(logits))
