"""Pictures of a training step: input, disparity, intermediate frame, final view, error, object motions."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor

from training.geometry.camera import project
from training.objective import Step


@torch.no_grad()
def step_pictures(outcome: Step) -> dict[str, Tensor]:
    """Pictures of the step's first pair, (3, H, W) in [0, 1], by name."""
    pairs, motions = outcome.pairs, outcome.motions
    disparity = colour_disparity(1 / pairs.D_t[0, 0].float().cpu().numpy())
    found = {
        "target": pairs.I_t[0],
        "source": pairs.I_s[0],
        "disparity": torch.from_numpy(disparity).permute(2, 0, 1).float() / 255,
        "view": outcome.view.image[0].clamp(0, 1),
        "error": (3 * outcome.error[0]).clamp(0, 1).expand(3, -1, -1),
    }
    if motions.intermediate is not None:
        found["intermediate"] = motions.intermediate.image[0].clamp(0, 1)
        found["object_motion"] = _object_arrows(outcome)
    return {name: image.float().cpu() for name, image in found.items()}


def colour_disparity(disparity: np.ndarray, highest: float | None = None) -> np.ndarray:
    """(H, W) inverse depth -> (H, W, 3) uint8 RGB, near is bright.

    Args:
        highest: value shown brightest; the 95th percentile unless given.
    """
    top = highest or float(np.percentile(disparity, 95)) or 1.0
    grey = np.clip(disparity / top * 255, 0, 255).astype(np.uint8)
    return cv2.cvtColor(cv2.applyColorMap(grey, cv2.COLORMAP_MAGMA), cv2.COLOR_BGR2RGB)


def _object_arrows(outcome: Step) -> Tensor:
    """The first target with an arrow per instance: where its centre goes by its own motion alone."""
    pairs, motions = outcome.pairs, outcome.motions
    image = (pairs.I_t[0].permute(1, 2, 0) * 255).byte().cpu().numpy().copy()
    for row in torch.nonzero(motions.instances.pair == 0)[:, 0].tolist():
        centre = motions.centre[row]
        moved = motions.objects[row, :3, :3] @ centre + motions.objects[row, :3, 3]
        points = torch.stack([centre, moved], 1)[None, :, :, None]
        uv, z = project(points, pairs.K[:1])
        if bool((z > 0).all()) and bool(torch.isfinite(uv).all()):
            (u0, v0), (u1, v1) = uv[0, :, 0].tolist()
            # Ten times as long: motion from frame to frame is a pixel or two.
            tip = (round(u0 + 10 * (u1 - u0)), round(v0 + 10 * (v1 - v0)))
            if max(map(abs, tip)) < 1 << 14:
                cv2.arrowedLine(image, (round(u0), round(v0)), tip, (255, 220, 0), 1, cv2.LINE_AA)
    return torch.from_numpy(image).permute(2, 0, 1).float() / 255
