"""Exact optical flow from depth, ids and rigid motions."""

from __future__ import annotations

import numpy as np

from pipeline.streetworld.truth import FLOW_DEFINED, FLOW_INSIDE, FLOW_VISIBLE

SAME_SURFACE = 0.02
"""Two depths within this fraction of each other are one surface."""


def exact_flow(
    depth_m: np.ndarray,
    ids: np.ndarray,
    next_depth_m: np.ndarray,
    next_ids: np.ndarray,
    K: np.ndarray,
    next_T_now: dict[int, np.ndarray],
) -> tuple[np.ndarray, np.ndarray]:
    """Flow of every pixel from one frame to the next.

    Args:
        depth_m, ids:           (H, W) of this frame; depth inf is sky, infinitely far.
        next_depth_m, next_ids: (H, W) of the next frame, to find what is hidden there.
        next_T_now:             per id (0 = background) the (4, 4) motion of its points from
                                camera coordinates now to camera coordinates then.

    Returns:
        (H, W, 2) float32 (u, v), 0 where undefined, and (H, W) uint8 bits FLOW_*.
    """
    height, width = depth_m.shape
    u, v = np.meshgrid(np.arange(width, dtype=float), np.arange(height, dtype=float))
    rays = np.stack([(u - K[0, 2]) / K[0, 0], (v - K[1, 2]) / K[1, 1], np.ones_like(u)], -1)
    sky = np.isinf(depth_m)
    finite = np.where(sky, 1.0, depth_m)
    there = np.zeros_like(rays)
    for i, T in next_T_now.items():
        own = ids == i
        # A point at infinity only turns: X / depth, with depth to infinity, loses its translation.
        shift = np.where(sky[own], 0.0, 1 / finite[own])[:, None] * T[:3, 3]
        there[own] = rays[own] @ T[:3, :3].T + shift
    z = there[..., 2]  # the next depth over this one
    defined = z * finite > 1e-3
    safe = np.where(defined, z, 1.0)
    landed = np.stack(
        [K[0, 0] * there[..., 0] / safe + K[0, 2], K[1, 1] * there[..., 1] / safe + K[1, 2]], -1
    )
    flow = np.where(defined[..., None], landed - np.stack([u, v], -1), 0.0)
    low, high = -0.5, np.array([width, height]) - 0.5
    in_image = defined & (landed >= low).all(-1) & (landed < high).all(-1)
    seen = in_image & _seen(landed, np.where(sky, np.inf, z * finite), ids, next_depth_m, next_ids)
    state = FLOW_DEFINED * defined + FLOW_INSIDE * in_image + FLOW_VISIBLE * seen
    return flow.astype(np.float32), state.astype(np.uint8)


def _seen(
    landed: np.ndarray, depth: np.ndarray, ids: np.ndarray, next_depth: np.ndarray, next_ids: np.ndarray
) -> np.ndarray:
    """Whether one of the four pixels around where a point lands shows its surface."""
    height, width = next_depth.shape
    seen = np.zeros(depth.shape, bool)
    corner = np.floor(np.clip(landed, -1, [width, height])).astype(int)
    for dv in (0, 1):
        for du in (0, 1):
            u = np.clip(corner[..., 0] + du, 0, width - 1)
            v = np.clip(corner[..., 1] + dv, 0, height - 1)
            there = next_depth[v, u]
            with np.errstate(invalid="ignore"):
                close = (np.isinf(there) & np.isinf(depth)) | (np.abs(there - depth) < SAME_SURFACE * depth)
            seen |= close & (next_ids[v, u] == ids)
    return seen
