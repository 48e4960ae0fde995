"""One training step, in the order and the symbols of the paper's method section."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from pipeline.errors import ConfigError
from training import losses
from training.alignment import AlignmentConfig
from training.anchors import AnchorConfig, anchor_terms
from training.data import Batch
from training.geometry.sampling import resize, sample
from training.geometry.warp import InverseWarp, inverse_warp
from training.motion import MotionConfig, Motions, find_motions
from training.networks.build import Networks
from training.pairs import Pairs, direct, predict_disparity
from training.sweep import SweepConfig, sweep


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """Every switch and weight of the objective."""

    instances: bool = True
    """Instance masks are used; else every pixel is background."""
    instances_from: int = 0
    """Step from which they are: the background is learned first."""
    photometric: float = 1.0
    """Weight of the difference between target and warped source."""
    instance_photometric: float = 0.2
    """Weight of the same, averaged per instance, so that small ones count."""
    geometric: float = 0.5
    """Weight of the difference between the two frames' depths; 0: off."""
    geometric_mean: Literal["region", "pixel"] = "region"
    """It is averaged per region, small ones counting like large ones (the paper), or over pixels."""
    smoothness: float = 0.01
    """Weight of the edge-aware slope of disparity."""
    edge_gain: float = 10.0
    """How fast that weight falls with the slope of the image, which is 1 from black to white."""
    ssim_weight: float = losses.SSIM_WEIGHT
    """Share of structural similarity in the photometric term."""
    occlusion_weight: bool = True
    """Pixels whose two depths disagree count less in the photometric term."""
    reprojection: Literal["mean", "min"] = "mean"
    """A target with two sources learns from both, or pixel by pixel from the better one."""
    auto_mask: bool = True
    """Background pixels that fit better unwarped do not count."""
    auto_mask_from: int = 300
    """Step from which they do not: in the beginning nothing fits better warped."""
    alignment: float = 1.0
    """Weight of the distance of networks' motions from what alignment made of them, where it is on."""
    hint: float = 0.0
    """Weight of the distance of depth from what a sweep of depths found better; 0: off (the paper)."""
    hint_from: int = 0
    """Step from which it counts: motions must be roughly known."""
    sweep: SweepConfig = field(default_factory=SweepConfig)
    scale: float = 0.0
    """Weight of keeping the mean inverse depth near 1 / scene unit; 0: off (the paper)."""
    keep_scale: bool = False
    """No other term moves the common scale of a window's depths. Wanted with alignment, whose
    translations follow the depth: whatever pulls it a little, always the same way, would pull without
    end, and what changes scale all the time learns nothing else."""
    object_depth: Literal["joint", "detached"] = "joint"
    """Instances' pixels teach depth and motion, or motion only."""
    motion: MotionConfig = field(default_factory=MotionConfig)
    anchors: AnchorConfig = field(default_factory=AnchorConfig)

    def __post_init__(self) -> None:
        weights = (
            "photometric",
            "instance_photometric",
            "geometric",
            "smoothness",
            "alignment",
            "hint",
            "scale",
        )
        for name in (*weights, "edge_gain"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name} must be 0 or more, got {getattr(self, name)}")
        if not 0 <= self.ssim_weight <= 1:
            raise ConfigError(f"ssim_weight must lie in [0, 1], got {self.ssim_weight}")
        if min(self.instances_from, self.auto_mask_from, self.hint_from) < 0:
            raise ConfigError("instances_from, auto_mask_from and hint_from are steps: 0 or more")


@dataclass(frozen=True, kw_only=True)
class Step:
    """What one step computed.

    total: (), the weighted sum;  terms: each term unweighted, by name
    depth: (B, F, 1, H, W);  error: (N, 1, H, W) photometric, before weighting
    """

    total: Tensor
    terms: dict[str, Tensor]
    depth: Tensor
    pairs: Pairs
    motions: Motions
    view: InverseWarp
    error: Tensor


def training_step(nets: Networks, batch: Batch, config: ObjectiveConfig, step: int) -> Step:
    """Losses of a batch of windows at a step of the curriculum."""
    # Depth of every frame, once: each frame is target in one pair and source in another.
    predicted = predict_disparity(nets.depth, batch.images)
    disparities = [scale_kept(each) for each in predicted] if config.keep_scale else predicted
    depth = 1 / disparities[0]

    use_instances = config.instances and step >= config.instances_from
    pairs = direct(batch, depth, use_instances)
    motions = find_motions(nets.ego, nets.objects, pairs, config.motion)

    scales = [_at_scale(pairs, disparity) for disparity in disparities[1:]]
    found = [view_terms(each, motions, config, step, batch.images.shape[1]) for each in [pairs, *scales]]
    terms = {name: torch.stack([each[0][name] for each in found]).mean() for name in found[0][0]}
    terms["smoothness"] = multi_scale_smoothness(disparities, batch.images, config.edge_gain)
    if config.scale:
        terms["scale"] = losses.scale_excess(predicted[0].flatten(0, 1))
    if config.hint and step >= config.hint_from:
        terms["hint"] = hint_term(pairs, motions, config.sweep, backward=step % 2 == 1)
    weights = {name: getattr(config, name) for name in terms}
    for name, term in alignment_terms(pairs, motions, config.motion.alignment).items():
        terms[name], weights[name] = term, config.alignment
    if use_instances:
        terms |= anchor_terms(pairs, motions, nets.log_height, config.anchors)
        weights |= {name: getattr(config.anchors, name) for name in terms if name not in weights}

    total = torch.stack([weights[name] * term for name, term in terms.items()]).sum()
    _, view, error = found[0]
    return Step(total=total, terms=terms, depth=depth, pairs=pairs, motions=motions, view=view, error=error)


def scale_kept(disparity: Tensor) -> Tensor:
    """(B, F, 1, h, w) as it is; of its gradient, what would scale a whole window is taken out."""
    common = disparity.log().mean((1, 2, 3, 4), keepdim=True)
    return disparity * (common.detach() - common).exp()


def view_terms(
    pairs: Pairs, motions: Motions, config: ObjectiveConfig, step: int, frames: int
) -> tuple[dict[str, Tensor], InverseWarp, Tensor]:
    """Photometric and geometric terms of the final view: the source, inverse warped region by region.

    Args:
        frames: frames of a window, F.

    Returns:
        terms by name, the view, and the (N, 1, H, W) photometric error.
    """
    view = inverse_warp(pairs.I_s, pairs.D_s, pairs.D_t, pairs.K, motions.regions, pairs.regions)
    if config.object_depth == "detached":
        view = _detach_on_objects(view, pairs, motions)
    visible = usable_pixels(view, pairs)
    difference = losses.depth_difference(view.sampled_depth, view.moved_depth)
    error = losses.photometric(pairs.I_t, view.image, config.ssim_weight)

    weight = visible.to(error.dtype)
    if config.occlusion_weight:
        weight = weight * (1 - difference.detach())
    if config.auto_mask and step >= config.auto_mask_from:
        weight = weight * fits_better_warped(error.detach(), pairs, config.ssim_weight)
    if config.reprojection == "min":
        weight = weight * nearest_source(error.detach().masked_fill(~visible, torch.inf), frames)

    with_instances = pairs.region_count > 1
    rigid = losses.region_sums(error, weight, pairs.regions, pairs.region_count)
    terms = {"photometric": losses.pixel_mean(rigid)}
    if config.instance_photometric and with_instances:
        terms["instance_photometric"] = losses.region_mean(rigid.without_background())
    if config.geometric:
        consistent = losses.region_sums(difference, visible, pairs.regions, pairs.region_count)
        by_region = config.geometric_mean == "region"
        terms["geometric"] = (losses.region_mean if by_region else losses.pixel_mean)(consistent)
    return terms, view, error


def hint_term(pairs: Pairs, motions: Motions, config: SweepConfig, backward: bool) -> Tensor:
    """(): distance of log depth from what a sweep found to agree better (Watson et al. 2019).

    Args:
        backward: sweep the pairs whose source is the earlier frame, else the others: half of the
            work a step, and every frame has its turn.
    """
    half = slice(len(pairs) // 2, None) if backward else slice(len(pairs) // 2)
    depth = pairs.D_t[half]
    hints = sweep(
        pairs.I_t[half], pairs.I_s[half], depth, pairs.K[half],
        motions.regions[half], pairs.labels_t[half], pairs.labels_s[half], config,
    )  # fmt: skip
    distance = (depth.log() - hints.depth.log()).abs()
    # The motion of what moves by itself was found at the very depth that is asked about: it would
    # say that this depth is right, and where it says otherwise it is not to be trusted.
    rigid = motions.follow_camera()[half].gather(1, pairs.regions[half].flatten(1)).view_as(depth)
    return torch.where(hints.believed & rigid, distance, 0).mean()


def alignment_terms(pairs: Pairs, motions: Motions, config: AlignmentConfig) -> dict[str, Tensor]:
    """Distances of the networks' motions from the aligned ones, by name, where alignment is on."""
    terms: dict[str, Tensor] = {}
    if config.camera_steps:
        half = len(pairs) // 2
        depth = 1 / (1 / pairs.D_t[:half].detach()).mean((1, 2, 3))
        origin = depth.new_zeros(half, 3)
        terms["camera_alignment"] = losses.motion_difference(
            motions.proposed_camera[:half], motions.camera[:half], origin, depth
        ).mean()
    if config.object_steps and motions.intermediate is not None:
        centre, image = motions.centre.detach(), motions.instances.pair
        distance = losses.motion_difference(
            motions.proposed_objects, motions.objects.detach(), centre, centre[:, 2]
        )
        every = torch.ones_like(distance, dtype=torch.bool)
        terms["object_alignment"] = losses.instance_mean(distance, every, image, len(pairs))
    return terms


def usable_pixels(view: InverseWarp, pairs: Pairs) -> Tensor:
    """(N, 1, H, W) bool: inside the source, of a region whose motion is known, and not hidden there.

    Background that lands on an instance of the source is hidden by it, and so is an instance that
    lands on one without a match. (Where it lands on background or another, its motion may be wrong.)
    """
    ours = pairs.labels_t[:, None]
    theirs = sample(pairs.labels_s[:, None].to(view.uv.dtype), view.uv.detach(), mode="nearest")
    theirs = theirs.round()
    return view.visible & ((ours == 0) & (theirs == 0) | (ours > 0) & (theirs >= 0))


def fits_better_warped(error: Tensor, pairs: Pairs, ssim_weight: float) -> Tensor:
    """(N, 1, H, W): 0 on background that fits better unwarped, else 1 (Godard et al. 2019, Eq. 5).

    Instances are left alone: one that keeps the camera's speed always fits unwarped.
    """
    unwarped = losses.photometric(pairs.I_t, pairs.I_s, ssim_weight)
    return ((error < unwarped) | (pairs.labels_t[:, None] > 0)).to(error.dtype)


def nearest_source(cost: Tensor, frames: int) -> Tensor:
    """(N, 1, H, W): for targets with two sources 1 at the cheaper one, 0 at the other; else 1.

    Godard et al. 2019, Eq. 4.

    Args:
        cost:   (N, 1, H, W), infinite where the source does not show the pixel.
        frames: F; frames between the first and the last of a window have two sources.
    """
    keep = torch.ones_like(cost)
    if frames < 3:
        return keep
    from_later, from_earlier = (each.unflatten(0, (-1, frames - 1)) for each in cost.chunk(2))
    kept_later, kept_earlier = (each.unflatten(0, (-1, frames - 1)) for each in keep.chunk(2))
    # Frame j is the earlier one of pair j and the later one of pair j - 1.
    later_wins = from_later[:, 1:] < from_earlier[:, :-1]
    kept_later[:, 1:] = later_wins.to(cost.dtype)
    kept_earlier[:, :-1] = (~later_wins).to(cost.dtype)
    return keep


def multi_scale_smoothness(disparities: list[Tensor], images: Tensor, edge_gain: float) -> Tensor:
    """(): smoothness at every scale, halved from each to the next (Godard et al. 2019)."""
    flat = images.flatten(0, 1)
    total = flat.new_zeros(())
    for level, disparity in enumerate(disparities):
        H, W = disparity.shape[-2:]
        small = resize(flat, (H, W), "area") if level else flat
        total = total + losses.smoothness(disparity.flatten(0, 1), small, edge_gain) / 2**level
    return total


def _at_scale(pairs: Pairs, disparity: Tensor) -> Pairs:
    """The same pairs with the depth of a coarser scale, brought to full size."""
    H, W = pairs.I_t.shape[-2:]
    full = 1 / resize(disparity.flatten(0, 1), (H, W), "bilinear").unflatten(0, disparity.shape[:2])
    a, b = full[:, :-1].flatten(0, 1), full[:, 1:].flatten(0, 1)
    return replace(pairs, D_t=torch.cat([a, b]), D_s=torch.cat([b, a]))


def _detach_on_objects(view: InverseWarp, pairs: Pairs, motions: Motions) -> InverseWarp:
    """On instances no gradient into depth: their pixels teach motion, their anchors depth."""
    frozen = inverse_warp(
        pairs.I_s, pairs.D_s.detach(), pairs.D_t.detach(), pairs.K, motions.regions, pairs.regions
    )
    own = pairs.labels_t[:, None] > 0
    return replace(
        view,
        image=torch.where(own, frozen.image, view.image),
        sampled_depth=torch.where(own, frozen.sampled_depth, view.sampled_depth),
        moved_depth=torch.where(own, frozen.moved_depth, view.moved_depth),
    )
