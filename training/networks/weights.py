"""ImageNet weights for ResNet encoders, from a file or a download.

The format is torchvision's state_dict. Files are read by `pipeline.tensor_files`: one that carries
code, or claims more than it holds, is refused.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torchvision.models import ResNet18_Weights, ResNet50_Weights

from pipeline.errors import ConfigError
from pipeline.tensor_files import are_plain_tensors, read_tensors
from training.networks.resnet import ResNetEncoder

DOWNLOADS = {
    "resnet18": ResNet18_Weights.IMAGENET1K_V1,
    "resnet50": ResNet50_Weights.IMAGENET1K_V1,
}
FIRST = "conv1.weight"
COUNTER = "num_batches_tracked"
LEFT_OUT = ("fc.weight", "fc.bias")
"""The classifier, which an encoder has no use for."""


def load_encoder(encoder: ResNetEncoder, architecture: str, source: Literal["imagenet"] | Path) -> str:
    """Fill an encoder of width 1 with weights that were learned on ImageNet, in place.

    Args:
        encoder:      takes one image, or two stacked along the channels.
        architecture: "resnet18" or "resnet50".
        source:       "imagenet" = torchvision's download (kept in torch's cache), or a file.

    Returns:
        One line that says what was loaded.

    Raises:
        ConfigError: no download, no such file, not a state_dict, or one that does not fit.
    """
    if source == "imagenet":
        state, name = download(architecture), f"torchvision's {DOWNLOADS[architecture]}"
    else:
        state, name = read_state(Path(source)), str(source)
    fill(encoder, state, architecture, name)
    return f"{architecture} encoder starts from {name}"


def download(architecture: str) -> Mapping[str, Tensor]:
    """torchvision's ImageNet weights, fetched once and checked by hash.

    Raises:
        ConfigError: they cannot be fetched; says where a copy may be put.
    """
    weights = DOWNLOADS[architecture]
    try:
        return torch.hub.load_state_dict_from_url(
            weights.url, map_location="cpu", check_hash=True, weights_only=True
        )
    except (OSError, RuntimeError) as error:  # URLError is an OSError; RuntimeError: wrong hash
        cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
        reason = " ".join(str(getattr(error, "reason", None) or error).split())
        raise ConfigError(
            f"cannot fetch {weights.url} ({reason}); put a copy at {cached}, set encoder_weights "
            "to a copy, or train without"
        ) from error


def read_state(path: Path) -> Mapping[str, Tensor]:
    """A state_dict saved by torch.save.

    Raises:
        ConfigError: no such file, or anything but a dictionary of tensors.
    """
    try:
        state = read_tensors(path)
    except FileNotFoundError as error:
        raise ConfigError(
            f"{path} does not exist; set encoder_weights to a ResNet state_dict or to imagenet"
        ) from error
    except (pickle.UnpicklingError, OSError, ValueError) as error:
        text = str(error).strip()
        reason = text.splitlines()[0] if text else type(error).__name__
        raise ConfigError(
            f"{path} is not a file of plain tensors ({reason}); expected torchvision's ResNet "
            "state_dict, saved by torch.save"
        ) from error
    if not are_plain_tensors(state):
        raise ConfigError(
            f"{path} is not a dictionary of tensors; expected torchvision's ResNet state_dict, saved "
            "by torch.save"
        )
    return state


def fill(encoder: ResNetEncoder, state: Mapping[str, Tensor], architecture: str, name: str) -> None:
    """Copy a torchvision state into an encoder, whole or not at all.

    Raises:
        ConfigError: a weight is missing, unknown or of another shape.
    """
    state = {key: value for key, value in state.items() if key not in LEFT_OUT}
    expected = encoder.state_dict()
    # Counters that older files do not have; nothing reads them with a fixed momentum.
    state = {key: value for key, value in expected.items() if key.endswith(COUNTER)} | state
    for problem, keys in (
        ("lacks", expected.keys() - state.keys()),
        ("has the unknown", state.keys() - expected.keys()),
    ):
        if keys:
            raise ConfigError(
                f"{name} {problem} {min(keys)} ({len(keys)} such); expected torchvision's {architecture}"
            )
    images = encoder.conv1.in_channels // 3
    for key, value in expected.items():
        shape = tuple(value.shape)
        if key == FIRST:
            shape = (shape[0], 3, *shape[2:])
        if state[key].shape != shape:
            raise ConfigError(
                f"{name} has {key} of shape {tuple(state[key].shape)}, expected {shape}: "
                f"torchvision's {architecture}"
            )
    encoder.load_state_dict(state | {FIRST: for_images(state[FIRST], images)})


def for_images(kernel: Tensor, images: int) -> Tensor:
    """A first layer for several stacked images: the kernel repeated, and divided by their number.

    Equal images then give the response of one, so the layers behind see what they were
    trained on.
    """
    return kernel.repeat(1, images, 1, 1) / images
