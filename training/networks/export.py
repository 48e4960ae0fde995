"""Depth and camera motion as ONNX files, for use without PyTorch.

    depth.onnx     images (N, 3, H, W)                     -> inverse_depth (N, 1, H, W)
    ego_pose.onnx  earlier (N, 3, H, W), later (N, 3, H, W) -> motion (N, 6)

Images are RGB float32 in [0, 1] of the size that was exported, N is free. Inverse depth is
in 1 / scene units; motion is three Euler angles (radians) and three translations, as in
`training.networks.pose`. The input normalisation is part of the files.
"""

from __future__ import annotations

import copy
import importlib.util
import warnings
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pipeline.errors import ConfigError
from pipeline.shards.hdf5 import publish
from training.networks.depth import MIN_SIDE

NEEDED = ("onnx", "onnxscript")
"""What PyTorch's exporter needs beyond PyTorch."""


class OnnxFiles(NamedTuple):
    """Where the networks were written."""

    depth: Path
    ego_pose: Path


def to_onnx(depth_net: nn.Module, pose_net: nn.Module, size: tuple[int, int], folder: Path) -> OnnxFiles:
    """Write the finest depth and the camera motion as ONNX files, as they are in evaluation.

    The networks themselves are left as they are.

    Args:
        depth_net: from `make_depth_net`.
        pose_net:  from `make_pose_net`.
        size:      (width, height) of the images, pixels.
        folder:    made if there is none; files of these names are replaced.

    Raises:
        ConfigError: a side below 32 px, or `onnx` or `onnxscript` is not installed.
    """
    width, height = size
    if min(size) < MIN_SIDE:
        raise ConfigError(f"cannot export for images of {width}x{height}; sides must be {MIN_SIDE} or more")
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"exporting needs {missing[0]}, which is not installed; pip install {' '.join(NEEDED)}"
        )
    files = OnnxFiles(folder / "depth.onnx", folder / "ego_pose.onnx")
    # Two, because the exporter takes a batch of one for a constant.
    images = torch.zeros(2, 3, height, width)
    _export(_Finest(depth_net), (images,), ("images",), "inverse_depth", files.depth)
    _export(pose_net, (images, images.clone()), ("earlier", "later"), "motion", files.ego_pose)
    return files


class _Finest(nn.Module):
    """The first output of a depth network."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)[0]


def _export(
    net: nn.Module, inputs: tuple[Tensor, ...], names: tuple[str, ...], output: str, path: Path
) -> None:
    """Write one network whole or not at all."""
    net = copy.deepcopy(net).cpu().float().eval()
    batch = torch.export.Dim("batch", min=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's notes on its own internals
        program = torch.onnx.export(
            net,
            inputs,
            input_names=list(names),
            output_names=[output],
            dynamic_shapes=tuple({0: batch} for _ in inputs),
            dynamo=True,
            verbose=False,
        )
    assert program is not None  # as it is for the older exporter
    publish(path, program.model_proto.SerializeToString())
