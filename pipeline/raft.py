"""RAFT (Teed and Deng 2020) through torchvision, with its weights or the authors' own.

Images go in as RGB in [-1, 1], enlarged (see `FlowConfig.raft_enlarge`), then padded by repeating
their borders to sides that are multiples of 8 and at least 128 (torchvision's limit). Both
directions are one batch. Everything runs in float32 without TF32 and with deterministic
kernels.

RAFT-small spreads its cells of 8x8 pixels linearly from the first to the last pixel
(`align_corners=True`), which puts cell i anywhere from pixel 8 i to 8 i + 7 depending on how
wide the image is. Training saw all of these equally, so cells are read back at their middle,
8 i + 3.5, at any width. RAFT-large learned its own upsampling and is read as it is.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.optical_flow import (
    Raft_Large_Weights,
    Raft_Small_Weights,
    raft_large,
    raft_small,
)

from pipeline.errors import DetectorError
from pipeline.flow import Flow, FlowConfig
from pipeline.tensor_files import are_plain_tensors, read_tensors

_FACTOR, _MIN_SIDE = 8, 128
_CELL_CENTRE = 3.5  # of RAFT-small's cells, pixels from their first pixel

# The authors' names -> torchvision's. Layers are the same; only their nesting differs.
_RENAMES = [
    (r"^module\.", ""),
    (r"^fnet\.", "feature_encoder."),
    (r"^cnet\.", "context_encoder."),
    (r"^(\w+_encoder)\.conv1\.", r"\1.convnormrelu.0."),
    (r"^(\w+_encoder)\.norm1\.", r"\1.convnormrelu.1."),
    (r"^(\w+_encoder)\.conv2\.", r"\1.conv."),
    (r"(layer\d\.\d)\.conv(\d)\.", r"\1.convnormrelu\2.0."),
    (r"(layer\d\.\d)\.norm(\d)\.", r"\1.convnormrelu\2.1."),
    (r"^update_block\.encoder\.convc(\d)\.", r"update_block.motion_encoder.convcorr\1.0."),
    (r"^update_block\.encoder\.convf(\d)\.", r"update_block.motion_encoder.convflow\1.0."),
    (r"^update_block\.encoder\.conv\.", "update_block.motion_encoder.conv.0."),
    (r"^update_block\.gru\.conv([zrq])\.", r"update_block.recurrent_block.convgru1.conv\1."),
    (r"^update_block\.gru\.conv([zrq])(\d)\.", r"update_block.recurrent_block.convgru\2.conv\1."),
    (r"^update_block\.mask\.0\.", "mask_predictor.convrelu.0."),
    (r"^update_block\.mask\.2\.", "mask_predictor.conv."),
]


class Raft:
    """A loaded RAFT network; a `pipeline.flow.FlowModel`."""

    def __init__(self, network: nn.Module, device: torch.device, config: FlowConfig) -> None:
        self._network, self._device, self._config = network, device, config

    @staticmethod
    def load(config: FlowConfig, device: str = "cpu") -> Raft:
        """Build the configured network and fill it with its weights.

        Raises:
            DetectorError: the weights are missing, damaged, of another network, or cannot be fetched.
        """
        network = (raft_small if config.raft_size == "small" else raft_large)(weights=None)
        if config.raft_weights is None:
            state, origin = _fetched(config.raft_size)
        else:
            state, origin = _read(config.raft_weights), str(config.raft_weights)
        try:
            network.load_state_dict(torchvision_names(state), strict=True)
        except (RuntimeError, TypeError) as error:
            first = " ".join(str(error).split())[:200]
            raise DetectorError(
                f"{origin}: does not fit RAFT {config.raft_size} ({first}); give weights of this size "
                f"or change --raft-size"
            ) from error
        return Raft(network.to(device).eval(), torch.device(device), config)

    def flow(self, a: np.ndarray, b: np.ndarray) -> Flow:
        """Both directions between two (H, W, 3) uint8 RGB frames."""
        frames = torch.from_numpy(np.stack([a, b])).to(self._device)
        images = frames.permute(0, 3, 1, 2).float() / 127.5 - 1
        enlarge = self._config.raft_enlarge
        with (
            torch.inference_mode(),
            torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False),
        ):
            if enlarge > 1:
                images = F.interpolate(images, scale_factor=enlarge, mode="bicubic", align_corners=False)
            padding = _padding(*images.shape[2:])
            images = F.pad(images.clamp(-1, 1), padding, mode="replicate")
            predicted: Tensor = self._network(
                images, images.flip(0), num_flow_updates=self._config.raft_updates
            )[-1]
            grid = self._reading_grid(a.shape[:2], predicted, padding)
            fields = F.grid_sample(predicted, grid, padding_mode="border", align_corners=True) / enlarge
        forward, backward = fields.permute(0, 2, 3, 1).cpu().numpy()
        return Flow(forward=np.ascontiguousarray(forward), backward=np.ascontiguousarray(backward))

    def _reading_grid(
        self, shape: tuple[int, ...], predicted: Tensor, padding: tuple[int, int, int, int]
    ) -> Tensor:
        """(2, H, W, 2) in -1..1: where the frame's pixels are read in the network's output."""
        axes = []
        for side, full, pad in zip(shape, predicted.shape[2:], (padding[2], padding[0]), strict=True):
            pixel = (torch.arange(side, device=self._device) + 0.5) * self._config.raft_enlarge - 0.5 + pad
            if self._config.raft_size == "small":
                pixel = (pixel - _CELL_CENTRE) / _FACTOR * (full - 1) / (full / _FACTOR - 1)
            axes.append(pixel / (full - 1) * 2 - 1)
        v, u = torch.meshgrid(*axes, indexing="ij")
        return torch.stack([u, v], dim=-1).expand(2, -1, -1, -1)


def torchvision_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the authors' keys; torchvision's own pass unchanged."""
    renamed = {}
    for key, value in state.items():
        # The norm of a shortcut is registered under two names; torchvision has the second only.
        if re.search(r"layer\d\.\d\.norm[34]\.", key) and _shortcut_twin(key) in state:
            continue
        for pattern, replacement in _RENAMES:
            key = re.sub(pattern, replacement, key)
        renamed[key] = value
    return renamed


def _shortcut_twin(key: str) -> str:
    return re.sub(r"\.norm[34]\.", ".downsample.1.", key)


def _padding(height: int, width: int) -> tuple[int, int, int, int]:
    """Left, right, top, bottom, evenly on both sides."""
    across, down = (max(_MIN_SIDE, -(-side // _FACTOR) * _FACTOR) - side for side in (width, height))
    return across // 2, across - across // 2, down // 2, down - down // 2


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise DetectorError(
            f"{path}: RAFT weights not found; give the path of a .pth file with --raft-weights"
        )
    try:
        state = read_tensors(path)
    except (pickle.UnpicklingError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:120]
        raise DetectorError(f"{path}: no weights file or damaged ({reason}); fetch it again") from error
    if not are_plain_tensors(state):
        raise DetectorError(f"{path}: holds no table of tensors; give RAFT's state_dict")
    return dict(state)


def _fetched(size: str) -> tuple[Mapping[str, Tensor], str]:
    weights = (Raft_Small_Weights if size == "small" else Raft_Large_Weights).DEFAULT
    name = weights.url.rsplit("/", 1)[1]
    try:
        state = weights.get_state_dict(progress=False, check_hash=True, map_location="cpu", weights_only=True)
    except Exception as error:
        place = Path(torch.hub.get_dir()) / "checkpoints" / name
        reason = " ".join(str(error).split())[:120]
        raise DetectorError(
            f"RAFT {size} weights cannot be fetched from {weights.url} ({reason}); "
            f"fetch them elsewhere and put them at {place}, or give a file with --raft-weights"
        ) from error
    return state, name
