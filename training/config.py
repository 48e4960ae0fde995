"""Settings of a training run: data, networks, objective, optimisation. Each default stands once."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pipeline.errors import ConfigError
from training.data import DataConfig
from training.networks.build import NetworksConfig
from training.objective import ObjectiveConfig


@dataclass(frozen=True, kw_only=True)
class OptimiserConfig:
    """How weights follow gradients."""

    optimiser: Literal["adam", "adamw"] = "adam"
    rate: float = 1e-4
    """Learning rate of depth and camera motion."""
    object_rate: float = 1.0
    """Learning rate of object motion and heights, relative to `rate`."""
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    warmup: int = 0
    """Steps over which the rate rises from 0."""
    schedule: Literal["constant", "step", "cosine"] = "step"
    """step: the rate is multiplied by `decay` after `decay_after` of all steps; cosine: it falls to 0."""
    decay_after: float = 0.7
    decay: float = 0.2
    clip_norm: float | None = 10.0
    """Longer gradients are shortened to this norm."""
    ema: float | None = None
    """Decay per step of averaged weights, which are then validated and predicted with."""

    def __post_init__(self) -> None:
        for name in ("rate", "object_rate"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} must be positive, got {getattr(self, name)}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"betas must lie in [0, 1), got {self.betas}")
        if not 0 <= self.weight_decay < math.inf or self.warmup < 0:
            raise ConfigError(
                f"weight_decay and warmup must be 0 or more, got {self.weight_decay}, {self.warmup}"
            )
        if not 0 <= self.decay_after <= 1 or not 0 < self.decay <= 1:
            raise ConfigError(
                f"decay_after must lie in [0, 1], decay in (0, 1], got {self.decay_after}, {self.decay}"
            )
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ConfigError(f"clip_norm must be positive, got {self.clip_norm}")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ConfigError(f"ema must lie in (0, 1), got {self.ema}")

    def rate_at(self, step: int, steps: int) -> float:
        """Factor of the learning rate at a step of so many."""
        factor = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        if self.schedule == "step" and step >= self.decay_after * steps:
            factor *= self.decay
        if self.schedule == "cosine":
            factor *= 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))
        return factor


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A training run."""

    steps: int = 200_000
    """Updates of the weights."""
    data: DataConfig = field(default_factory=DataConfig)
    networks: NetworksConfig = field(default_factory=NetworksConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optimise: OptimiserConfig = field(default_factory=OptimiserConfig)
    init_from: Path | None = None
    """Checkpoint whose weights training starts from (pretrain, then finetune)."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda, cuda:1."""
    amp: bool = False
    """Networks in bfloat16; geometry and losses stay in float32."""
    compile: bool = False
    """Compile the networks with torch.compile."""
    sync_batch_norm: bool = True
    """With several GPUs, normalise over all of them."""
    checkpoint_every: int = 1000
    """Steps between checkpoints."""
    validate_every: int = 1000
    """Steps between validations on held-out clips (`held_out`, `validation_share`)."""
    picture_every: int = 1000
    """Steps between pictures in TensorBoard; 0: none."""
    log_every: int = 10
    """Steps between scalars."""
    bad_steps: int = 5
    """Steps in a row with a loss that is not a number after which the run stops."""
    training_seed: int = 0
    """Seed of the first weights; the order of the data has its own (`seed`)."""

    def __post_init__(self) -> None:
        least = {"steps": 1, "checkpoint_every": 1, "validate_every": 1, "picture_every": 0, "log_every": 1}
        for name, low in {**least, "bad_steps": 1, "training_seed": 0}.items():
            if getattr(self, name) < low:
                raise ConfigError(f"{name} must be at least {low}, got {getattr(self, name)}")
