"""Train the bundled Mask R-CNN on streetworld and measure it on held-out seeds.

Goes on where it was stopped. pipeline/bundled/MODEL_CARD.md says how the weights in the
package were made.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import tyro

from pipeline.detector_training import TrainingConfig
from workflows.train_detector import train_detector


@dataclass(frozen=True)
class Arguments:
    streetworld: tyro.conf.Positional[Path]
    """Folder with train, val and test, rendered by `instance-motion streetworld`."""
    out: tyro.conf.Positional[Path]
    """Folder for the checkpoint, the weights and the log."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda."""
    validate_every: int = 300
    """Steps between measurements on val."""
    checkpoint_every: int = 100
    """Steps between checkpoints."""


def run(arguments: Arguments) -> int:
    weights = train_detector(**vars(arguments))
    print(weights)
    return 0
