"""Directed pairs: a batch of windows as the objective sees it.

B windows of F frames hold B (F - 1) neighbouring pairs (earlier a, later b). Each is used in
both directions, target t and source s: N = 2 B (F - 1) directed pairs, first all with t = a,
then all with t = b.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from training.data import Batch


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """N directed pairs.

    I_t, I_s: (N, 3, H, W) images;  D_t, D_s: (N, 1, H, W) depths, scene units;  K: (N, 3, 3)
    labels_t, labels_s: (N, H, W) int64, 0 background, k the instance in slot k, -1 an instance
        that the other frame does not have
    classes:  (N, M) int64, class of slot k at [k - 1], -1 where there is none
    backward: (N,) bool, where the source is the earlier frame
    """

    I_t: Tensor
    I_s: Tensor
    D_t: Tensor
    D_s: Tensor
    K: Tensor
    labels_t: Tensor
    labels_s: Tensor
    classes: Tensor
    backward: Tensor

    def __len__(self) -> int:
        return len(self.I_t)

    @property
    def region_count(self) -> int:
        """R: background and the most instances that any pair has."""
        return self.classes.shape[1] + 1

    @property
    def regions(self) -> Tensor:
        """(N, H, W) int64 region of each target pixel; what is not matched counts as background here."""
        return self.labels_t.clamp(min=0)


def direct(batch: Batch, depth: Tensor, use_instances: bool = True) -> Pairs:
    """Arrange a batch as directed pairs.

    Args:
        depth: (B, F, 1, H, W) of every frame.
        use_instances: False makes every pixel background, as methods without masks see it.

    Raises:
        ValueError: windows of one frame.
    """
    frames = batch.images.shape[1]
    if frames < 2:
        raise ValueError("windows of one frame have no pair; use two frames or more")
    I_a, I_b = batch.images[:, :-1].flatten(0, 1), batch.images[:, 1:].flatten(0, 1)
    D_a, D_b = depth[:, :-1].flatten(0, 1), depth[:, 1:].flatten(0, 1)
    K = batch.K[:, None].expand(-1, frames - 1, -1, -1).flatten(0, 1)
    labels = batch.labels.flatten(0, 1).long()
    classes = batch.classes.flatten(0, 1)
    if not use_instances:
        labels, classes = torch.zeros_like(labels), classes[:, :0]
    return Pairs(
        I_t=torch.cat([I_a, I_b]),
        I_s=torch.cat([I_b, I_a]),
        D_t=torch.cat([D_a, D_b]),
        D_s=torch.cat([D_b, D_a]),
        K=torch.cat([K, K]),
        labels_t=torch.cat([labels[:, 0], labels[:, 1]]),
        labels_s=torch.cat([labels[:, 1], labels[:, 0]]),
        classes=torch.cat([classes, classes]),
        backward=torch.arange(2 * len(I_a), device=K.device) >= len(I_a),
    )


def predict_disparity(network: nn.Module, images: Tensor) -> list[Tensor]:
    """Inverse depth of every frame of (B, F, 3, H, W): per scale (B, F, 1, h, w), finest first, float32."""
    return [each.float().unflatten(0, images.shape[:2]) for each in network(images.flatten(0, 1))]
