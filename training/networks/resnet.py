"""The ResNet encoder (He et al. 2016): an image, or two, to features at five strides.

Built from torchvision's blocks under torchvision's names, so that its weights fit at width
1. torchvision's own class fixes the channels of the stem and of the stages; ours scales them.
"""

from __future__ import annotations

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from training.networks.layers import normalisation, scaled

BLOCKS: dict[str, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, int, int, int]]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
}
PLANES = (64, 128, 256, 512)


class ResNetEncoder(nn.Module):
    """Stem and four stages; the classifier of the original is left out.

    Args of the constructor:
        architecture: "resnet18" or "resnet50".
        width:        multiplier of all channel numbers.
        norm:         "batch" or "group".
        images:       RGB images stacked along the channels, 1 or 2.

    `channels` holds the five numbers of feature channels, finest first.
    """

    def __init__(self, architecture: str, width: float = 1.0, norm: str = "batch", images: int = 1) -> None:
        super().__init__()
        block, repeats = BLOCKS[architecture]
        make_norm = normalisation(norm)
        stem = scaled(PLANES[0], width)
        self.conv1 = nn.Conv2d(3 * images, stem, 7, stride=2, padding=3, bias=False)
        self.bn1 = make_norm(stem)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        inputs = stem
        stages = []
        for index, (planes, count) in enumerate(zip(PLANES, repeats, strict=True)):
            channels = scaled(planes, width)
            stride = 1 if index == 0 else 2
            stages.append(residual_stage(block, inputs, channels, count, stride, norm))
            inputs = channels * block.expansion
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.channels = (stem, *(scaled(planes, width) * block.expansion for planes in PLANES))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(N, 3 images, H, W), normalised -> features at strides 2, 4, 8, 16, 32."""
        features = [self.relu(self.bn1(self.conv1(images)))]
        x = self.maxpool(features[0])
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
            features.append(x)
        return tuple(features)


def residual_stage(
    block: type[BasicBlock] | type[Bottleneck],
    inputs: int,
    planes: int,
    count: int,
    stride: int,
    norm: str,
) -> nn.Sequential:
    """`count` residual blocks, the first with the stride and, where needed, a projection."""
    make_norm = normalisation(norm)
    outputs = planes * block.expansion
    projection = None
    if stride != 1 or inputs != outputs:
        projection = nn.Sequential(
            nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), make_norm(outputs)
        )
    first = block(inputs, planes, stride, projection, norm_layer=make_norm)
    rest = [block(outputs, planes, norm_layer=make_norm) for _ in range(count - 1)]
    return nn.Sequential(first, *rest)
