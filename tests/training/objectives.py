"""Objectives that tests share: every row of Table 2, every switch, and fixed views."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from tests.training.scenes import made_batch, made_motions
from training.alignment import AlignmentConfig
from training.anchors import AnchorConfig
from training.geometry.warp import InverseWarp, inverse_warp
from training.motion import MotionConfig, Motions
from training.objective import (
    ObjectiveConfig,
    Step,
)
from training.pairs import Pairs, direct

LATE = 1000
"""A step at which every part of the curriculum is on."""

CAMERA_ALIGNED = AlignmentConfig(camera_steps=1)
ALIGNED = AlignmentConfig(camera_steps=1, object_steps=1)
GEO = ObjectiveConfig(instances=False)
FULL = ObjectiveConfig(anchors=AnchorConfig(contact=0.1))

TABLE_2 = {
    "none": replace(GEO, geometric=0.0),
    "geo": GEO,
    "inst+inverse": replace(FULL, geometric=0.0, motion=MotionConfig(object_warp="inverse")),
    "inst+geo+inverse": replace(FULL, motion=MotionConfig(object_warp="inverse")),
    "inst+forward": replace(FULL, geometric=0.0),
    "full": FULL,
    "inst, objects move with the camera": replace(FULL, motion=MotionConfig(object_warp="none")),
    "frame input": replace(FULL, motion=MotionConfig(object_input="frame")),
    "detached intermediate frame": replace(FULL, motion=MotionConfig(detach_intermediate=True)),
    "detached depth": replace(FULL, object_depth="detached"),
    "static gate": replace(FULL, motion=MotionConfig(static_gate=True)),
    "refinements": replace(FULL, motion=MotionConfig(refinements=2)),
    "no refinement": replace(FULL, motion=MotionConfig(refinements=0)),
    "shift only": replace(FULL, motion=MotionConfig(object_rotation=False)),
    "min reprojection": replace(FULL, reprojection="min"),
    "no auto-mask": replace(FULL, auto_mask=False),
    "no occlusion weight": replace(FULL, occlusion_weight=False),
    "no ssim": replace(FULL, ssim_weight=0.0),
    "no anchors": replace(FULL, anchors=AnchorConfig(size=0, contact=0, consistency=0)),
    "nothing per instance": replace(FULL, instance_photometric=0.0),
    "scale, hints": replace(FULL, scale=0.3, hint=1.0),
    "grounded": replace(FULL, motion=MotionConfig(grounded=0.2)),
    "camera aligned": replace(FULL, motion=MotionConfig(alignment=CAMERA_ALIGNED)),
    "all aligned": replace(FULL, hint=1.0, motion=MotionConfig(alignment=ALIGNED, static_gate=True)),
    "camera aligned twice": replace(
        FULL,
        geometric_mean="pixel",
        motion=MotionConfig(alignment=replace(ALIGNED, camera_again=True), static_gate=True),
    ),
    "all aligned, geo": replace(GEO, hint=1.0, motion=MotionConfig(alignment=ALIGNED)),
}


def input_of(config: ObjectiveConfig) -> str:
    return config.motion.object_input


def gradients(outcome: Step, networks: torch.nn.Module) -> dict[str, Tensor | None]:
    names, weights = zip(*networks.named_parameters(), strict=True)
    found = torch.autograd.grad(outcome.total, weights, allow_unused=True)
    return dict(zip(names, found, strict=True))


def fixed_view(pairs: Pairs, shift: float = 0.0) -> tuple[Motions, InverseWarp]:
    """Motions of a camera that moves sideways by `shift`, and the view through them."""
    camera = torch.eye(4).repeat(len(pairs), 1, 1)
    camera[:, 0, 3] = torch.where(pairs.backward, -shift, shift)
    regions = camera[:, None].repeat(1, pairs.region_count, 1, 1)
    motions = made_motions(pairs, camera, regions)
    return motions, inverse_warp(pairs.I_s, pairs.D_s, pairs.D_t, pairs.K, regions, pairs.regions)


def flat_pairs(instances: tuple[int, ...] = (2, 2)) -> Pairs:
    return direct(made_batch(F=2, instances=instances), torch.full((2, 2, 1, 32, 48), 8.0))
