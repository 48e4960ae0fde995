"""Small scenes for tests of the objective: made ones, true ones, and networks that need no training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.classes import CLASS_INDEX
from pipeline.sources.clip import Clip
from pipeline.sources.streetworld import scan
from pipeline.streetworld.truth import TRUTH_FILE, Truth, read_truth
from training.data import Batch
from training.geometry.sampling import resize
from training.geometry.warp import ForwardWarp
from training.instances import centres, list_instances
from training.motion import Motions
from training.networks.build import Networks
from training.pairs import Pairs

CAR, PERSON = CLASS_INDEX["car"], CLASS_INDEX["person"]
SKY = 1000.0
"""Depth that stands for infinity."""


def texture(shape: tuple[int, ...], seed: int, cells: int = 4) -> Tensor:
    """Smooth random images (..., C, H, W) in [0, 1], one blob every `cells` pixels."""
    generator = torch.Generator().manual_seed(seed)
    H, W = shape[-2:]
    coarse = torch.rand(int(np.prod(shape[:-2])), 1, H // cells + 2, W // cells + 2, generator=generator)
    return resize(coarse, (H, W)).clamp(0, 1).view(shape)


def pinhole(f: float, H: int, W: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """(3, 3), principal point in the middle."""
    return torch.tensor([[f, 0, (W - 1) / 2], [0, f, (H - 1) / 2], [0, 0, 1]], dtype=dtype)


def made_batch(
    B: int = 2,
    F: int = 3,
    H: int = 32,
    W: int = 48,
    *,
    instances: tuple[int, ...] | None = None,
    seed: int = 0,
) -> Batch:
    """Windows of a texture that moves right by a pixel a frame, with rectangles that move by two.

    Args:
        instances: how many rectangles each window shows, 0 to 2.
    """
    counts = instances if instances is not None else (2,) * B
    wide = texture((B, 1, 3, H, W + F), seed)
    images = torch.stack([wide[:, 0, :, :, F - i : F - i + W] for i in range(F)], 1).contiguous()
    patches = texture((B, 2, 3, 12, 14), seed + 1, cells=3)
    tracks = torch.zeros(B, F, H, W, dtype=torch.int16)
    for b, count in enumerate(counts):
        for k, (top, left, h, w) in enumerate(((6, 5, 12, 14), (14, 28, 8, 6))[:count]):
            for i in range(F):
                place = (slice(top, top + h), slice(left + 2 * i, left + 2 * i + w))
                images[b, i, :, *place] = patches[b, k, :, :h, :w]
                tracks[(b, i, *place)] = k + 1
    most = max(counts, default=0)
    kinds = torch.tensor([CAR, PERSON])[:most]
    shown = torch.arange(most) < torch.tensor(counts)[:, None]
    return Batch(
        images=images,
        K=pinhole(40.0, H, W, torch.float32).expand(B, 3, 3),
        labels=torch.stack([tracks[:, :-1], tracks[:, 1:]], 2),
        classes=torch.where(shown, kinds, -1)[:, None].expand(B, F - 1, most),
        dt_s=torch.full((B, F - 1), 0.1),
        names=tuple(f"made/{b}:0" for b in range(B)),
    )


class StubDepth(nn.Module):
    """Inverse depth from a 3x3 convolution: no sample sees another."""

    def __init__(self, scales: int = 1) -> None:
        super().__init__()
        self.scales = scales
        self.layer = nn.Conv2d(3, 1, 3, padding=1, padding_mode="replicate")

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        finest = 0.05 + 0.2 * self.layer(images).sigmoid()
        H, W = images.shape[-2:]
        return finest, *(resize(finest, (H >> i, W >> i), "area") for i in range(1, self.scales))


class StubPose(nn.Module):
    """Six numbers from means and mixed products of both images; counts its calls."""

    def __init__(self, channels: int, gain: float = 0.05) -> None:
        super().__init__()
        self.layer = nn.Linear(3 * channels, 6)
        self.gain = gain
        self.calls = 0

    def forward(self, earlier: Tensor, later: Tensor) -> Tensor:
        self.calls += 1
        mixed = earlier * later.roll(1, 3) - earlier.roll(1, 3) * later
        return self.layer(torch.cat([each.mean((2, 3)) for each in (earlier, later, mixed)], 1)) * self.gain


def stub_networks(scales: int = 1, object_input: str = "crop", seed: int = 0) -> Networks:
    """Networks of a few weights, whose answers to a sample do not depend on the others."""
    torch.manual_seed(seed)
    networks = Networks(StubDepth(scales), StubPose(3), StubPose(4 if object_input == "crop" else 3))
    nn.init.constant_(networks.log_height, 0.3)
    return networks


def made_motions(
    pairs: Pairs,
    camera: Tensor,
    regions: Tensor,
    objects: Tensor | None = None,
    *,
    proposed: Tensor | None = None,
    still: bool = False,
    intermediate: ForwardWarp | None = None,
) -> Motions:
    """Motions as given, (N, 4, 4) and (N, R, 4, 4); objects (I, 4, 4) do not move unless given."""
    instances = list_instances(pairs.labels_t, pairs.classes)
    own = torch.eye(4).repeat(len(instances), 1, 1) if objects is None else objects
    return Motions(
        camera=camera,
        regions=regions,
        objects=own,
        proposed_camera=camera,
        proposed_objects=own if proposed is None else proposed,
        centre=centres(pairs.D_t, pairs.K, instances),
        still=torch.full((len(instances),), still),
        instances=instances,
        intermediate=intermediate,
    )


def true_pair(folder: Path, first: int, least_px: int = 1) -> tuple[Pairs, Tensor, Tensor, list[int]]:
    """A streetworld clip's frames (first, first + 1) with true depth, labels and motions.

    Returns:
        the two directed pairs;  (2, 4, 4) camera motions s_T_t;  (2, R, 4, 4) composite motions;
        and the slots of the objects that move.
    """
    truth = read_truth(folder / TRUTH_FILE)
    (clip,) = scan(folder)
    assert isinstance(clip, Clip)
    frames = np.stack(list(clip.reader.frames(first, first + 2)))
    images = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255
    depth = torch.from_numpy(truth.depth_m[first : first + 2]).clamp(max=SKY)[:, None]
    rows = np.flatnonzero((truth.objects.visible_px[first : first + 2] >= least_px).all(0))
    table = np.full(truth.ids.max() + 1, -1)
    table[0] = 0
    table[truth.objects.id[rows]] = np.arange(1, len(rows) + 1)
    labels = torch.from_numpy(table[truth.ids[first : first + 2]])
    kinds = torch.tensor([CLASS_INDEX[truth.objects.label[row]] for row in rows], dtype=torch.int64)
    pairs = Pairs(
        I_t=images,
        I_s=images.flip(0),
        D_t=depth,
        D_s=depth.flip(0),
        K=torch.from_numpy(truth.K).float().expand(2, 3, 3),
        labels_t=labels,
        labels_s=labels.flip(0),
        classes=kinds.expand(2, -1),
        backward=torch.tensor([False, True]),
    )
    motions = [_true_motions(truth, rows, *order) for order in ((first, first + 1), (first + 1, first))]
    camera = torch.stack([each[0] for each in motions]).float()
    regions = torch.stack(motions).float()
    moving = [slot for slot, row in enumerate(rows, 1) if truth.objects.moving[row]]
    return pairs, camera, regions, moving


def _true_motions(truth: Truth, rows: np.ndarray, t: int, s: int) -> Tensor:
    """(R, 4, 4): from target to source camera, of what stands still and of what each object carries."""
    s_T_world = np.linalg.inv(truth.world_T_camera[s])
    motions = [s_T_world @ truth.world_T_camera[t]]
    for row in rows:
        moved = truth.objects.world_T_object[s, row] @ np.linalg.inv(truth.objects.world_T_object[t, row])
        motions.append(s_T_world @ moved @ truth.world_T_camera[t])
    return torch.from_numpy(np.stack(motions))
