"""Frames of a scene: picture, depth and ids."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from pipeline.streetworld.noise import Noise
from pipeline.streetworld.raycast import FIRST_FACE, RoadMap, build_model, cast, cast_ground, make_rays, see
from pipeline.streetworld.shading import build_looks, shade
from pipeline.streetworld.world import Scene


@dataclass(frozen=True, kw_only=True)
class Frame:
    """image: (H, W, 3) uint8 RGB; depth_m: (H, W) float32 z-depth, inf is sky; ids: (H, W) uint16."""

    image: np.ndarray
    depth_m: np.ndarray
    ids: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Jitter:
    """A camera's imperfections; all off by default.

    exposure: standard deviation of the log brightness from frame to frame
    noise:    standard deviation of pixel noise, of 255
    """

    exposure: float = 0.0
    noise: float = 0.0


def render_frames(
    scene: Scene, device: str | torch.device = "cpu", jitter: Jitter | None = None
) -> Iterator[Frame]:
    """Render every frame of a scene; the same on every run on one device."""
    jitter = jitter or Jitter()
    device = torch.device(device)
    with torch.no_grad():
        model = build_model(scene)
        looks = build_looks(scene, model, device)
        rays = make_rays(scene.K, scene.size, device)
        near = scene.street.path.coordinates(
            scene.world_T_camera[[0, -1], 0, 3], scene.world_T_camera[[0, -1], 1, 3]
        )[0]
        roads = RoadMap(scene.street, (float(near[0]) - 30, float(near[1]) + 200), device)
        noise = Noise(device)
        rng = np.random.default_rng([scene.seed, 0xCA3])
        owner = torch.from_numpy(np.concatenate([np.zeros(FIRST_FACE, int), model.ids[model.face_body]])).to(
            device
        )
        for k, world_T_camera in enumerate(scene.world_T_camera):
            view = see(model, world_T_camera, k, scene.K, scene.size)
            hits = cast_ground(scene.street, view, rays, roads)
            cast(model, view, rays, hits)
            colour = shade(scene, model, looks, view, rays, hits, roads, noise).cpu().numpy()
            q = hits.q[-1].cpu().numpy()
            with np.errstate(divide="ignore"):
                depth_m = np.where(q > 0, 1 / q, np.inf).astype(np.float32)
            yield Frame(
                image=_develop(colour, jitter, rng),
                depth_m=depth_m,
                ids=owner[hits.surface[-1].long()].cpu().numpy().astype(np.uint16),
            )


def _develop(colour: np.ndarray, jitter: Jitter, rng: np.random.Generator) -> np.ndarray:
    """(H, W, 3) uint8 from colour in [0, 1]."""
    if jitter.exposure:
        colour = colour * np.exp(rng.normal(0, jitter.exposure))
    if jitter.noise:
        colour = colour + rng.normal(0, jitter.noise / 255, colour.shape)
    return np.round(np.clip(colour, 0, 1) * 255).astype(np.uint8)
