"""Camera motion and object motion: from images, depths and masks to one motion per region.

    b_T_a     camera motion, later frame from earlier, from background pixels alone
    O_k       motion of instance k from time t to time s, seen from the target camera
    s_T_t^k   = s_T_t @ O_k, composite motion of region k;  region 0, background, has s_T_t

Networks propose motions; alignment, where it is switched on, moves them until the images agree
(training/alignment.py), and the networks learn to propose what it made of them.

Objects are looked at after the camera's own motion has been taken out: the source, forward
warped into the target view with its own depth (the *intermediate frame*), beside the target.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn

from pipeline.errors import ConfigError
from training import losses
from training.alignment import AlignmentConfig, align_camera, align_instances
from training.geometry import se3
from training.geometry.sampling import sample
from training.geometry.warp import ForwardWarp, forward_warp, inverse_warp
from training.instances import (
    Instances,
    about_centre,
    boxes_of,
    centres,
    crop,
    grounded_depth,
    list_instances,
    square_windows,
)
from training.pairs import Pairs

MOST = {"alpha": 16, "crop_px": 1024}
"""What takes memory; a checkpoint from somebody else may ask for any."""


@dataclass(frozen=True, kw_only=True)
class MotionConfig:
    """How objects are looked at, and what their motion may be."""

    object_warp: Literal["none", "inverse", "forward"] = "forward"
    """What takes the camera's motion out of the source before an object is looked at: forward
    warping with the source's geometry (the paper), inverse warping with the target's
    (struct2depth), or none: objects move with the camera."""
    alpha: int = 3
    """Depth is upsampled so many times before forward warping, against holes."""
    detach_intermediate: bool = False
    """No gradient flows through the intermediate frame into depth and camera motion."""
    object_input: Literal["crop", "frame"] = "crop"
    """The object network sees a window around the instance, or the whole masked frame (the paper)."""
    crop_px: int = 64
    """Side of the crops, pixels."""
    crop_margin: float = 1.25
    """Side of a window relative to the longer side of the object's box in both frames."""
    crop_least_px: float = 12.0
    """Smallest window, pixels of the frame."""
    refinements: int = 1
    """How often an estimate is looked at again, through an inverse warp with it, and corrected."""
    object_rotation: bool = True
    """Objects may turn (6-DoF); else they only shift."""
    static_gate: bool = False
    """Objects that the camera's motion explains as well do not move."""
    gate_margin: float = 0.0
    """As well: its error is at most so much larger, relative, than with the object's own motion."""
    gate_margin_cut: float | None = None
    """The same for objects that an edge of the image cuts; none: the same. They are mostly parked and
    near, where an error of depth shows most, and little of them is seen."""
    grounded: float | None = None
    """Objects' motions are found no farther than by this share from the depth of the ground on which
    they stand, where that is seen: at a wrong depth another motion explains the same images."""
    detach_centre: bool = True
    """No gradient from an object's motion into the depth of its centre."""
    alignment: AlignmentConfig = field(default_factory=AlignmentConfig)

    def __post_init__(self) -> None:
        if self.alpha < 1:
            raise ConfigError(f"alpha must be 1 or more, got {self.alpha}")
        if self.crop_px < 32 or self.crop_px % 16:
            raise ConfigError(f"crop_px must be a multiple of 16 from 32 on, got {self.crop_px}")
        for name, most in MOST.items():
            if getattr(self, name) > most:
                raise ConfigError(f"{name} must be at most {most}, got {getattr(self, name)}")
        if not 1 <= self.crop_margin < math.inf or not 2 <= self.crop_least_px < math.inf:
            raise ConfigError(
                f"crop_margin must be 1 or more and crop_least_px 2 or more, got {self.crop_margin}, {self.crop_least_px}"
            )
        margins = (("gate_margin", self.gate_margin), ("gate_margin_cut", self.gate_margin_cut or 0.0))
        for name, value in (*margins, ("grounded", self.grounded or 0.0)):
            if not 0 <= value < math.inf:
                raise ConfigError(f"{name} must be 0 or more, got {value}")
        if not 0 <= self.refinements <= 8:
            raise ConfigError(f"refinements must lie in 0..8, got {self.refinements}")


@dataclass(frozen=True, kw_only=True)
class Motions:
    """Motions of N directed pairs and of their I instances.

    camera: (N, 4, 4) s_T_t;  regions: (N, R, 4, 4) composite motions;  objects: (I, 4, 4) O_k
    proposed_camera, proposed_objects: what the networks said before alignment; the same without it
    instances: where they are;  centre: (I, 3) about which they turn, target camera
    intermediate: what the object network was shown, None where it was not asked
    """

    camera: Tensor
    regions: Tensor
    objects: Tensor
    proposed_camera: Tensor
    proposed_objects: Tensor
    centre: Tensor
    still: Tensor
    instances: Instances
    intermediate: ForwardWarp | None

    def follow_camera(self) -> Tensor:
        """(N, R) bool: regions that move with the camera alone."""
        N, R = self.regions.shape[:2]
        return _following(self.still, self.instances, N, R)


def camera_motion(ego: nn.Module, pairs: Pairs, config: AlignmentConfig) -> tuple[Tensor, Tensor]:
    """(N, 4, 4) s_T_t as the network proposes it, and as alignment moves it, without gradient then.

    From pixels that are background in both frames. The network always sees (earlier, later);
    the other direction is the inverse. Fed in both orders it has a symmetric saddle that
    training does not leave.
    """
    half = len(pairs) // 2
    static = ((pairs.labels_t == 0) & (pairs.labels_s == 0))[:half, None]
    answer = ego(pairs.I_t[:half] * static, pairs.I_s[:half] * static).float()
    proposed = _both_ways(se3.from_euler(answer[:, :3], answer[:, 3:]))
    if not config.camera_steps:
        return proposed, proposed
    background = torch.arange(pairs.region_count, device=proposed.device) == 0
    return proposed, _aligned(proposed, pairs, background.expand(len(pairs), -1), config)


def _aligned(s_T_t: Tensor, pairs: Pairs, rigid: Tensor, config: AlignmentConfig) -> Tensor:
    """(N, 4, 4) camera motions moved until the regions that follow the camera, (N, R) bool, agree."""
    half = len(pairs) // 2
    both = rigid[:half] & rigid[half:]
    seen = [
        both.gather(1, labels[:half].clamp(min=0).flatten(1)).view_as(labels[:half]) & (labels[:half] >= 0)
        for labels in (pairs.labels_t, pairs.labels_s)
    ]
    moved = align_camera(
        pairs.I_t[:half], pairs.I_s[:half], pairs.D_t[:half], pairs.K[:half], torch.stack(seen, 1),
        s_T_t[:half], config,
    )  # fmt: skip
    return _both_ways(moved)


def find_motions(ego: nn.Module, objects: nn.Module, pairs: Pairs, config: MotionConfig) -> Motions:
    """Motion of every region: the camera's, and on an instance the object's own as well."""
    proposed_camera, camera = camera_motion(ego, pairs, config.alignment)
    pairs, instances, centre = _placed(pairs, config)
    if config.object_warp == "none" or not len(instances):
        unmoved = torch.eye(4, device=camera.device).repeat(len(instances), 1, 1)
        regions = camera[:, None].expand(-1, pairs.region_count, -1, -1)
        return Motions(
            camera=camera,
            regions=regions,
            objects=unmoved,
            proposed_camera=proposed_camera,
            proposed_objects=unmoved,
            centre=centre,
            still=torch.ones(len(instances), dtype=torch.bool, device=camera.device),
            instances=instances,
            intermediate=None,
        )
    shown = intermediate_frame(pairs, camera, config)
    proposed = _proposed(objects, pairs, camera, instances, centre, shown, config)
    camera, found, still = _settled(proposed, pairs, camera, instances, config)
    return Motions(
        camera=camera,
        regions=compose(camera, found, instances, pairs.region_count),
        objects=found,
        proposed_camera=proposed_camera,
        proposed_objects=proposed,
        centre=centre,
        still=still,
        instances=instances,
        intermediate=shown,
    )


def align_again(motions: Motions, pairs: Pairs, scale: float, config: MotionConfig) -> Motions:
    """What the networks proposed, aligned on the same pairs at another size, as far as alignment is on:
    networks see small images, alignment can use all that is stored. Networks are not asked.

    It begins at what they proposed, not at what was aligned on the small images: their errors are not
    those that alignment expects of a proposal. An instance that they could not see begins as still.

    Args:
        motions: of `find_motions` on the small images.
        pairs:   the same pairs, with the same slots, `scale` times as large.
    """
    camera, R = motions.proposed_camera, pairs.region_count
    config = replace(config, alignment=config.alignment.on_larger_images(scale))
    if config.alignment.camera_steps:
        background = torch.arange(R, device=camera.device) == 0
        camera = _aligned(camera, pairs, background.expand(len(pairs), -1), config.alignment)
    pairs, instances, centre = _placed(pairs, config)
    unmoved = torch.eye(4, device=camera.device).expand(len(pairs), 4, 4)
    began = compose(unmoved, motions.proposed_objects, motions.instances, R)[instances.pair, instances.slot]
    found, still = began, torch.ones(len(instances), dtype=torch.bool, device=camera.device)
    if config.object_warp != "none" and len(instances):
        camera, found, still = _settled(began, pairs, camera, instances, config)
    return replace(
        motions,
        camera=camera,
        regions=compose(camera, found, instances, R),
        objects=found,
        proposed_objects=began,
        centre=centre,
        still=still,
        instances=instances,
    )


def _placed(pairs: Pairs, config: MotionConfig) -> tuple[Pairs, Instances, Tensor]:
    """Pairs with instances brought to their ground, where that is on; their instances; (I, 3) centres."""
    instances = list_instances(pairs.labels_t, pairs.classes)
    if config.grounded is not None and len(instances):
        pairs = replace(pairs, D_t=grounded_depth(pairs.D_t, pairs.labels_t, instances, config.grounded))
    centre = centres(pairs.D_t, pairs.K, instances)
    return pairs, instances, centre.detach() if config.detach_centre else centre


def _proposed(
    network: nn.Module,
    pairs: Pairs,
    camera: Tensor,
    instances: Instances,
    centre: Tensor,
    shown: ForwardWarp,
    config: MotionConfig,
) -> Tensor:
    """(I, 4, 4) O_k as the object network says, looked at again `refinements` times."""
    backward = pairs.backward[instances.pair]
    angles, shift = _observe(network, pairs, instances, shown.image, shown.labels, config)
    for _ in range(config.refinements):
        # What the estimate leaves over, seen through an inverse warp with it.
        with torch.no_grad():
            estimate = about_centre(angles, shift * centre[:, 2:], centre, backward)
            regions = compose(camera, estimate, instances, pairs.region_count)
            view = inverse_warp(pairs.I_s, pairs.D_s, pairs.D_t, pairs.K, regions, pairs.regions)
        more = _observe(network, pairs, instances, view.image, pairs.labels_t, config)
        angles, shift = angles + more[0], shift + more[1]
    return about_centre(angles, shift * centre[:, 2:], centre, backward)


def _settled(
    proposed: Tensor, pairs: Pairs, camera: Tensor, instances: Instances, config: MotionConfig
) -> tuple[Tensor, Tensor, Tensor]:
    """Proposed motions O_k after alignment and static gate, where these are on.

    Returns:
        (N, 4, 4) camera, aligned again with what stands still; (I, 4, 4) O_k; (I,) bool, which stand.
    """
    still = torch.zeros(len(instances), dtype=torch.bool, device=camera.device)
    margins = _gate_margins(instances, config) if config.static_gate else None
    if not config.alignment.object_steps:
        if margins is None:
            return camera, proposed, still
        still = _explained_by_camera(proposed, pairs, camera, instances, margins)
        return camera, _stopped(proposed, still), still
    own_camera = camera.detach()[instances.pair]
    moved, still = align_instances(
        pairs.I_t, pairs.I_s, pairs.D_t, pairs.K, pairs.labels_t, pairs.labels_s, instances.pair,
        instances.slot, own_camera @ proposed.detach(), own_camera, margins, config.alignment,
    )  # fmt: skip
    if config.alignment.camera_again and config.alignment.camera_steps:
        follow = _following(still, instances, len(pairs), pairs.region_count)
        camera = _aligned(camera, pairs, follow, config.alignment)
        own_camera = camera[instances.pair]
        moved = torch.where(still[:, None, None], own_camera, moved)
    return camera, se3.inverse(own_camera) @ moved, still


def intermediate_frame(pairs: Pairs, camera: Tensor, config: MotionConfig) -> ForwardWarp:
    """The source as if the camera had not moved: what still moves are the objects.

    Forward warping keeps a moving object's shape, for it uses the depth that the object has
    in the source; inverse warping looks the object's depth up where it is in the target.
    """
    labels_s = pairs.labels_s.clamp(min=0)
    if config.object_warp == "forward":
        return forward_warp(
            pairs.I_s,
            pairs.D_s,
            pairs.K,
            se3.inverse(camera),
            labels_s=labels_s,
            alpha=config.alpha,
            detach=config.detach_intermediate,
        )
    with torch.set_grad_enabled(torch.is_grad_enabled() and not config.detach_intermediate):
        view = inverse_warp(pairs.I_s, pairs.D_s, pairs.D_t, pairs.K, camera[:, None], None)
    labels = sample(labels_s[:, None].float(), view.uv.detach(), mode="nearest")[:, 0]
    return ForwardWarp(
        image=view.image,
        depth=view.sampled_depth,
        labels=labels.round().long(),
        filled=view.visible,
        source_uv=view.uv,
    )


def compose(camera: Tensor, objects: Tensor, instances: Instances, count: int) -> Tensor:
    """(N, R, 4, 4) s_T_t^k = s_T_t @ O_k; regions without an instance move with the camera."""
    still = torch.eye(4, dtype=camera.dtype, device=camera.device).expand(len(camera), count, 4, 4)
    return camera[:, None] @ still.index_put((instances.pair, instances.slot), objects)


def _following(still: Tensor, instances: Instances, N: int, R: int) -> Tensor:
    """(N, R) bool: background and the instances that stand still."""
    every = torch.ones(N, R, dtype=torch.bool, device=still.device)
    return every.index_put((instances.pair, instances.slot), still)


def _both_ways(b_T_a: Tensor) -> Tensor:
    return torch.cat([b_T_a, se3.inverse(b_T_a)])


def _observe(
    network: nn.Module,
    pairs: Pairs,
    instances: Instances,
    seen: Tensor,
    labels: Tensor | None,
    config: MotionConfig,
) -> tuple[Tensor, Tensor]:
    """What the network answers to `seen` and target, each under its own mask, in time order.

    Returns:
        (I, 3) Euler angles and (I, 3) shift relative to the instance's depth. A crop's sideways
        shift is answered in widths of its window: what is seen alike is answered alike,
        whatever the distance and the lens.
    """
    assert labels is not None
    other = labels[instances.pair] == instances.slot[:, None, None]
    later_is_target = pairs.backward[instances.pair][:, None, None, None]
    if config.object_input == "frame":
        target = pairs.I_t[instances.pair] * instances.mask[:, None]
        shown = seen[instances.pair] * other[:, None]
        scale = target.new_ones(len(instances), 3)
    else:
        window = square_windows(boxes_of(instances.mask | other), config.crop_margin, config.crop_least_px)
        target = _masked_crop(pairs.I_t, instances.mask, window, instances.pair, config.crop_px)
        shown = _masked_crop(seen, other, window, instances.pair, config.crop_px)
        sideways = (window[:, 2] - window[:, 0]) / pairs.K[instances.pair, 0, 0]
        scale = torch.stack([sideways, sideways, torch.ones_like(sideways)], 1)
    earlier = torch.where(later_is_target, shown, target)
    later = torch.where(later_is_target, target, shown)
    answer = network(earlier, later).float()
    angles = answer[:, :3] if config.object_rotation else torch.zeros_like(answer[:, :3])
    return angles, answer[:, 3:] * scale


def _masked_crop(images: Tensor, mask: Tensor, window: Tensor, pair: Tensor, size: int) -> Tensor:
    """(I, 4, size, size): RGB where the mask is, and the mask."""
    own = torch.arange(len(mask), device=mask.device)
    shape = crop(mask[:, None].to(images.dtype), window, own, size)
    return torch.cat([crop(images, window, pair, size) * shape, shape], 1)


def _gate_margins(instances: Instances, config: MotionConfig) -> Tensor:
    """(I,) how much worse the camera's motion may explain each instance, relative."""
    margins = instances.box.new_full((len(instances),), config.gate_margin)
    if config.gate_margin_cut is not None:
        margins = torch.where(instances.inside(), margins, config.gate_margin_cut)
    return margins


@torch.no_grad()
def _explained_by_camera(
    found: Tensor, pairs: Pairs, camera: Tensor, instances: Instances, margins: Tensor
) -> Tensor:
    """(I,) bool: instances whose pixels fit hardly worse with the camera's motion alone."""
    R = pairs.region_count
    means = []
    for motion in (camera[:, None].expand(-1, R, -1, -1), compose(camera, found, instances, R)):
        view = inverse_warp(pairs.I_s, pairs.D_s, pairs.D_t, pairs.K, motion, pairs.regions)
        error = losses.photometric(pairs.I_t, view.image)
        mean = losses.region_sums(error, view.visible, pairs.regions, R).mean
        means.append(mean[instances.pair, instances.slot])
    return means[0] <= (1 + margins) * means[1]


def _stopped(found: Tensor, still: Tensor) -> Tensor:
    """Identity where the camera explains an instance: a parked car's motion is taken from its depth."""
    stop = torch.where(still[:, None, None], torch.eye(4, device=found.device) - found, 0)
    # The gradient passes, or what is stopped could never learn to move: a network that begins at
    # "does not move" is stopped everywhere.
    return found + stop.detach()
