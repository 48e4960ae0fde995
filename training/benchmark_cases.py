"""What `training.benchmark` measures: inputs as a street has them, and the work on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from training import losses
from training.alignment import AlignmentConfig, align_camera, align_instances
from training.batches import Batch
from training.geometry import reference, se3, warp
from training.motion import MotionConfig
from training.networks.build import NetworksConfig, ObjectConfig, make_networks
from training.networks.pose import PoseConfig
from training.objective import ObjectiveConfig, training_step
from training.sweep import SweepConfig, sweep


@dataclass(frozen=True)
class Setting:
    """What to measure, and on what."""

    only: str = ""
    """Cases whose name contains this; all if empty."""
    runs: int = 5
    """Timed runs of each; the median counts."""
    threads: int = 2
    """CPU threads."""
    device: str = "cpu"
    """Where the tensors live."""
    batch: int = 4
    size: tuple[int, int] = (832, 256)
    """Width and height."""
    instances: int = 3
    """A frame."""
    with_reference: bool = True
    """Measure the plain versions too, which need several GiB at the default size."""


Work = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """One row.

    name:      What is done.
    released:  Seconds and MiB of the released code, or nothing comparable.
    ours:      Makes the inputs and returns the work on them.
    reference: The same done plainly, if there is such a version.
    """

    name: str
    released: tuple[float, float | None] | None
    ours: Callable[[Setting], Work]
    reference: Callable[[Setting], Work] | None = None


def forward_warp_work(
    setting: Setting, forward_warp: Callable[..., warp.ForwardWarp], backward: bool
) -> Work:
    """Six channels, an image and three masks, as the released code warps them; alpha 3."""
    street = _street(setting, channels=6)
    depth, T = street.depth_s.requires_grad_(backward), street.motions[:, 0].clone().requires_grad_(backward)

    def work() -> None:
        view = forward_warp(street.image, depth, street.K, T, None, 3)
        if backward:
            torch.autograd.grad(view.image.sum() + view.depth.sum(), (depth, T))

    return work


def inverse_warp_work(
    setting: Setting, inverse_warp: Callable[..., warp.InverseWarp], backward: bool
) -> Work:
    """An image and its depth, the background and every instance by its own motion."""
    street = _street(setting, channels=3)
    inputs = [x.requires_grad_(backward) for x in (street.depth_s, street.depth_t, street.motions)]

    def work() -> None:
        view = inverse_warp(street.image, *inputs[:2], street.K, inputs[2], street.regions)
        if backward:
            total = view.image.sum() + view.sampled_depth.sum() + view.moved_depth.sum()
            torch.autograd.grad(total, inputs)

    return work


def losses_work(setting: Setting) -> Work:
    """Photometric and geometric term of a target with two sources, averaged per region."""
    street = _street(setting, channels=3)
    twice = [torch.cat([x, x]) for x in (street.image, street.depth_t, street.depth_s)]
    view, sampled, moved = (x.flip(2).clone().requires_grad_() for x in twice)
    regions, count = torch.cat([street.regions, street.regions]), setting.instances + 1

    def work() -> None:
        difference = losses.depth_difference(sampled, moved)
        error = losses.photometric(twice[0], view)
        rigid = losses.region_sums(error, 1 - difference.detach(), regions, count)
        consistent = losses.region_sums(difference, torch.ones_like(difference), regions, count)
        total = losses.pixel_mean(rigid) + losses.region_mean(consistent)
        torch.autograd.grad(total, (view, sampled, moved))

    return work


def consistency_work(setting: Setting) -> Work:
    """Motion there and back of every region of a target with two sources."""
    street = _street(setting, channels=3)
    there = torch.cat([street.motions, street.motions]).requires_grad_()
    depth = there.new_full(there.shape[:2], 10.0)

    def work() -> None:
        cost = losses.motion_consistency(there, se3.inverse(there.detach()), depth)
        torch.autograd.grad(cost.mean(), there)

    return work


def alignment_work(setting: Setting) -> Work:
    """Gauss-Newton steps of the camera's and of all instances' motions, as the streetworld recipe asks."""
    street = _street(setting, channels=3)
    config = AlignmentConfig(camera_steps=3, object_steps=3)
    background = torch.stack([street.regions == 0] * 2, 1)
    pair = torch.arange(setting.batch, device=street.K.device).repeat_interleave(setting.instances)
    slot = torch.arange(1, setting.instances + 1, device=street.K.device).repeat(setting.batch)
    images = street.image, street.image.roll(1, 3)
    margin = torch.full((len(pair),), 0.3, device=pair.device)

    def work() -> None:
        align_camera(*images, street.depth_t, street.K, background, street.motions[:, 0], config)
        align_instances(
            *images, street.depth_t, street.K, street.regions, street.regions,
            pair, slot, street.motions[pair, slot], street.motions[pair, 0], margin, config,
        )  # fmt: skip

    return work


def sweep_work(setting: Setting) -> Work:
    """Sixteen depths of every pixel."""
    street = _street(setting, channels=3)
    images = street.image, street.image.roll(1, 3)
    labels, config = (street.regions, street.regions), SweepConfig(steps=16)
    return lambda: sweep(*images, street.depth_t, street.K, street.motions, *labels, config)


def step_work(setting: Setting, config: NetworksConfig, objective: ObjectiveConfig) -> Work:
    """Forward, backward and update of the full objective on windows of three frames."""
    street = _street(setting, channels=3)
    B, frames = setting.batch, 3
    labels = street.regions.to(torch.int16)[:, None, None].expand(-1, frames - 1, 2, -1, -1)
    batch = Batch(
        images=street.image[:, None].repeat(1, frames, 1, 1, 1),
        K=street.K,
        labels=labels.contiguous(),
        classes=torch.full((B, frames - 1, setting.instances), 2, device=street.K.device),
        dt_s=torch.full((B, frames - 1), 0.1),
        names=("street",) * B,
    )
    torch.manual_seed(0)
    motion = objective.motion
    networks = make_networks(config, motion.object_input, motion.crop_px).to(setting.device)
    optimiser = torch.optim.Adam(networks.parameters(), 1e-4)

    def work() -> None:
        optimiser.zero_grad()
        training_step(networks, batch, objective, 1 << 30).total.backward()
        optimiser.step()

    return work


def resnets_on_frames() -> tuple[NetworksConfig, ObjectiveConfig]:
    """The released code's networks: ResNet18 everywhere, objects as whole masked frames."""
    networks = NetworksConfig(
        ego=PoseConfig(architecture="resnet18"), objects=ObjectConfig(architecture="resnet18")
    )
    return networks, ObjectiveConfig(motion=MotionConfig(object_input="frame", refinements=0))


@dataclass(frozen=True)
class _Street:
    """Inputs of the warps: a road, houses, and cars as boxes."""

    image: Tensor
    depth_s: Tensor
    depth_t: Tensor
    K: Tensor
    motions: Tensor
    regions: Tensor


def _street(setting: Setting, channels: int) -> _Street:
    """A scene whose pixels lie where a street's do, so that memory is read as in training."""
    (W, H), B, R = setting.size, setting.batch, setting.instances + 1
    generator = torch.Generator().manual_seed(0)
    u, v = torch.arange(W) / W, (torch.arange(H) / H)[:, None]
    road = 1.5 / (v - 0.45).clamp(min=0.02)
    houses = 8 / ((u - 0.5).abs() + 0.05)
    depth = torch.minimum(road, houses).clamp(1, 80).expand(B, 1, H, W).clone()
    regions = torch.zeros(B, H, W, dtype=torch.int64)
    for car in range(1, R):
        left, top = round(W * car / (R + 1)), round(0.45 * H)
        box = (slice(None), slice(top, top + H // 4), slice(left, left + W // 10))
        regions[box] = car
        depth[:, 0][box] = 6 + 3 * car
    motions = torch.tensor([0.01, 0.0, -0.6, 0.002, 0.01, 0.001]).expand(B, R, 6).clone()
    motions[:, 1:, 2] += 0.5
    K = torch.tensor([[0.6 * W, 0, (W - 1) / 2], [0, 0.6 * W, (H - 1) / 2], [0, 0, 1]]).expand(B, 3, 3)
    noise = 1 + 0.01 * torch.rand(B, 1, H, W, generator=generator)
    inputs = {
        "image": torch.rand(B, channels, H, W, generator=generator),
        "depth_s": depth * noise,
        "depth_t": depth * noise.flip(3),
        "K": K.clone(),
        "motions": se3.exp(motions),
        "regions": regions,
    }
    return _Street(**{name: value.to(setting.device) for name, value in inputs.items()})


CASES = (
    Case(
        "forward warp",
        (0.78, 497),
        lambda setting: forward_warp_work(setting, warp.forward_warp, False),
        lambda setting: forward_warp_work(setting, reference.forward_warp, False),
    ),
    Case(
        "forward warp with backward",
        (1.11, 887),
        lambda setting: forward_warp_work(setting, warp.forward_warp, True),
        lambda setting: forward_warp_work(setting, reference.forward_warp, True),
    ),
    Case(
        "inverse warp",
        (0.16, None),
        lambda setting: inverse_warp_work(setting, warp.inverse_warp, False),
        lambda setting: inverse_warp_work(setting, reference.inverse_warp, False),
    ),
    Case(
        "inverse warp with backward",
        (0.29, 304),
        lambda setting: inverse_warp_work(setting, warp.inverse_warp, True),
        lambda setting: inverse_warp_work(setting, reference.inverse_warp, True),
    ),
    Case("losses with backward", (1.72, 1741), losses_work),
    Case("motion consistency with backward", (0.89, 1121), consistency_work),
    Case("alignment", None, alignment_work),
    Case("depth sweep", None, sweep_work),
    Case("step, ResNet18 on frames", (56.8, None), lambda setting: step_work(setting, *resnets_on_frames())),
    Case(
        "step, defaults",
        (56.8, None),
        lambda setting: step_work(setting, NetworksConfig(), ObjectiveConfig()),
    ),
)
"""The released step is ResNet18 everywhere, 14.2 GB resident."""
