"""Write a run's depth and camera-motion networks as ONNX files, for use without PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from training.checkpoint import checkpoint_in, load, restore_networks
from training.networks.export import to_onnx


@dataclass(frozen=True)
class Arguments:
    checkpoint: tyro.conf.Positional[Path]
    """A run's folder (its best checkpoint, else its last), or a checkpoint."""
    out: tyro.conf.Positional[Path]
    """Folder for depth.onnx and ego_pose.onnx."""
    size: tuple[int, int] = (832, 256)
    """Width and height of the images, pixels."""


def run(arguments: Arguments) -> int:
    networks = restore_networks(load(checkpoint_in(arguments.checkpoint)), "cpu")
    for path in to_onnx(networks.depth, networks.ego, arguments.size, arguments.out):
        print(path)
    return 0
