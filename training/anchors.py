"""What fixes the scale of an instance's depth.

An object's own motion absorbs any common scaling of its depth and its translation, and the
relative geometric term does not see it: without an anchor objects melt into the background.
Each anchor is a term of its own and can be switched off.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.classes import CLASSES
from pipeline.errors import ConfigError
from training import losses
from training.data import Batch
from training.instances import (
    Instances,
    ground_below,
    ground_limit,
    list_instances,
    median_depth,
)
from training.motion import Motions
from training.networks.build import Networks
from training.pairs import Pairs, direct, predict_disparity

HEIGHTS_M = {
    "person": 1.7,
    "bicycle": 1.7,
    "car": 1.55,
    "motorcycle": 1.6,
    "bus": 3.0,
    "train": 3.8,
    "truck": 3.0,
    "animal": 0.8,
}
"""Typical heights; only their ratios are used."""


@dataclass(frozen=True, kw_only=True)
class AnchorConfig:
    """Weights of the anchors; 0 switches one off."""

    size: float = 0.03
    """Depth of an instance against what its height says, one learned height a class."""
    contact: float = 0.0
    """Depth of an instance against that of the ground just below it."""
    contact_slack: float = 0.2
    """So much deeper than its ground contact an instance's median may be, relative."""
    compact: float = 0.0
    """Depth of an instance's pixels against its median, or what contact allows of that: a body is no
    longer than so much."""
    compact_slack: float = 0.35
    """So much deeper a pixel may be, relative; half as much nearer."""
    consistency: float = 0.1
    """Motion there and back again against standing still, per instance."""

    def __post_init__(self) -> None:
        for name in ("size", "contact", "contact_slack", "compact", "compact_slack", "consistency"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name} must be 0 or more, got {getattr(self, name)}")


def anchor_terms(
    pairs: Pairs, motions: Motions, log_height: Tensor, config: AnchorConfig
) -> dict[str, Tensor]:
    """The anchors that are switched on, unweighted, by name.

    Args:
        log_height: (classes,) logarithm of each class's learned height, scene units.
    """
    terms: dict[str, Tensor] = {}
    instances = motions.instances
    depth = median_depth(pairs.D_t, instances)
    body = depth.detach()
    if config.size:
        cost = losses.size_prior(
            depth,
            instances.height_px,
            pairs.K[instances.pair, 1, 1],
            log_height[instances.class_index].exp(),
        )
        terms["size"] = losses.instance_mean(cost, instances.whole(), instances.pair, len(pairs))
    if config.contact:
        ground, known = ground_below(pairs.D_t, pairs.labels_t, instances)
        limit, limited = ground_limit(pairs.D_t, pairs.labels_t, instances)
        standing = known & instances.whole()
        cost = torch.where(
            standing,
            losses.contact_prior(depth, ground, config.contact_slack),
            F.relu(depth.log() - limit.log()),
        )
        terms["contact"] = losses.instance_mean(cost, standing | limited, instances.pair, len(pairs))
        # Where most of an instance is a hole, its median lies in the hole.
        body = torch.where(standing, body.clamp(ground, ground * (1 + config.contact_slack)), body)
    if config.compact and len(instances):
        middle = pairs.D_t.new_ones(len(pairs), pairs.region_count)
        middle = middle.index_put((instances.pair, instances.slot), body)
        own = middle.gather(1, pairs.regions.flatten(1)).view_as(pairs.D_t)
        cost = losses.compactness(pairs.D_t, own, config.compact_slack)
        # What the image cuts is near, and reaches from right before the camera far back.
        counts = torch.zeros(len(pairs), pairs.region_count, device=cost.device)
        counts = counts.index_put((instances.pair, instances.slot), instances.whole().to(counts))
        counted = counts.gather(1, pairs.regions.flatten(1)).view_as(cost)
        sums = losses.region_sums(cost, counted, pairs.regions, pairs.region_count)
        terms["compact"] = losses.region_mean(sums.without_background())
    if config.consistency and motions.intermediate is not None:
        there, back = seen_both_ways(instances, len(pairs))
        pair = instances.pair
        # Of what the networks say: what alignment found has no gradient.
        proposed = motions.proposed_camera[pair] @ motions.proposed_objects
        cost = losses.motion_consistency(proposed[there], proposed[back], depth[there].detach())
        every = torch.ones_like(cost, dtype=torch.bool)
        terms["consistency"] = losses.instance_mean(cost, every, pair[there], len(pairs) // 2)
    return terms


@torch.no_grad()
def heights_from_ground(pairs: Pairs, instances: Instances) -> tuple[Tensor, Tensor]:
    """Heights that instances have if they stand on the ground that they seem to stand on.

    Background depth is learned before any instance is used, and the ground is background:
    so a class's height begins where the scene itself puts it, in the scene's own unit.

    Returns:
        (J,) class indices and (J,) heights, scene units, of the instances whose ground is known.
    """
    ground, known = ground_below(pairs.D_t, pairs.labels_t, instances)
    known = known & instances.whole()
    height = ground * instances.height_px / pairs.K[instances.pair, 1, 1]
    return instances.class_index[known], height[known]


@torch.no_grad()
def initial_log_heights(networks: Networks, batches: Iterable[Batch], count: int = 16) -> Tensor:
    """Heights of the classes as `heights_from_ground` finds them, the median over some batches.

    Classes that are not seen get a typical height, in the unit in which those that are seen
    have theirs.

    Returns:
        (classes,) logarithms, scene units.
    """
    was_training = networks.training
    networks.eval()
    seen: list[list[float]] = [[] for _ in CLASSES]
    for batch in islice(batches, count):
        pairs = direct(batch, 1 / predict_disparity(networks.depth, batch.images)[0])
        found = heights_from_ground(pairs, list_instances(pairs.labels_t, pairs.classes))
        for class_index, height in zip(*(each.tolist() for each in found), strict=True):
            seen[class_index].append(math.log(height))
    networks.train(was_training)
    typical = [math.log(HEIGHTS_M[name]) for name in CLASSES]
    offsets = [value - base for values, base in zip(seen, typical, strict=True) for value in values]
    unit = median(offsets) if offsets else 0.0
    logs = [median(values) if values else base + unit for values, base in zip(seen, typical, strict=True)]
    return torch.tensor(logs, dtype=torch.float32, device=networks.log_height.device)


def seen_both_ways(instances: Instances, pair_count: int) -> tuple[Tensor, Tensor]:
    """Rows of instances that are listed with their earlier, and with their later frame as target.

    Args:
        pair_count: N, the number of directed pairs.

    Returns:
        two (J,) int64 tables of rows; entry j of both is the same instance of the same pair.
    """
    half = pair_count // 2
    same = (instances.pair[:, None] + half == instances.pair[None]) & (
        instances.slot[:, None] == instances.slot[None]
    )
    there, back = torch.nonzero(same, as_tuple=True)
    return there, back
