"""Optical flow between two stored frames, in both directions, and where the two agree.

Flow is in pixels, (u, v): what is at pixel p in frame a is at p + forward[p] in frame b,
what is at q in b is at q + backward[q] in a. Flow is always computed on frames as they are
stored (after JPEG), so that it can be computed again from a shard set.

DIS (Kroeger et al. 2016, OpenCV's) needs no weights, takes milliseconds on a CPU and is not
kept. RAFT (Teed and Deng 2020, torchvision's) needs a network; it is kept beside the
detections as `quantise` gives it, and always used as it is kept: `compute_flow` returns
`dequantise(quantise(flow))`. So whoever has the evidence has the very same flow.

Measured with `python -m pipeline.flow_benchmark` on 8 pairs of a KITTI drive at 832x256
(warp error 0..255, consistent share, CPU ms for both directions): dis ultrafast 3.59, 87 %, 8;
fast 3.58, 92 %, 15; medium 3.10, 91 %, 65; RAFT-small 3.68, 96 %, 3600, on frames enlarged
twofold 3.47, 95 %, 21000. `fast` is the default: no other finds more consistent pixels for its
time. `medium` owes its low warp error to minimising just that as its last step.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import cv2
import numpy as np

from pipeline.errors import ConfigError, DetectorError

UNIT_PX = 1 / 64
"""One step of kept flow, pixels of the full frame."""
MAX_KEPT_PX = 32767 / 64
"""Longest kept component, just under 512 pixels; longer ones are cut to it."""
CONSISTENCY_SHARE, CONSISTENCY_PX2 = 0.01, 0.5
"""Thresholds of Sundaram et al. 2010: a share of the squared lengths, and squared pixels."""

_DIS_PRESETS = {
    "ultrafast": cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST,
    "fast": cv2.DISOPTICAL_FLOW_PRESET_FAST,
    "medium": cv2.DISOPTICAL_FLOW_PRESET_MEDIUM,
}
_MIN_DIS_SIDE = 16  # smaller frames hold no pyramid


@dataclass(frozen=True, kw_only=True)
class FlowConfig:
    """How optical flow between neighbouring frames is found."""

    flow: Literal["dis", "raft"] = "dis"
    """dis: OpenCV, on the CPU, without weights. raft: a network, more exact, wants a GPU."""
    dis_preset: Literal["ultrafast", "fast", "medium"] = "fast"
    """Effort of dis."""
    raft_size: Literal["small", "large"] = "small"
    """Size of the RAFT network."""
    raft_weights: Path | None = None
    """RAFT's weights, torchvision's or the authors' own file; fetched by torchvision if not given."""
    raft_updates: int = 12
    """Refinements that RAFT makes."""
    raft_enlarge: int = 2
    """Frames are enlarged so many times for RAFT; 2 costs 4 times the work of 1 and is finer."""

    def __post_init__(self) -> None:
        if self.flow not in ("dis", "raft"):
            raise ConfigError(f"flow must be dis or raft, got {self.flow!r}")
        if self.dis_preset not in _DIS_PRESETS:
            raise ConfigError(f"dis_preset must be one of {', '.join(_DIS_PRESETS)}, got {self.dis_preset!r}")
        if self.raft_size not in ("small", "large"):
            raise ConfigError(f"raft_size must be small or large, got {self.raft_size!r}")
        if not 1 <= self.raft_updates <= 100:
            raise ConfigError(f"raft_updates must lie in 1..100, got {self.raft_updates}")
        if not 1 <= self.raft_enlarge <= 4:
            raise ConfigError(f"raft_enlarge must lie in 1..4, got {self.raft_enlarge}")


@dataclass(frozen=True, kw_only=True, eq=False)
class Flow:
    """Flow between two frames a and b of one size.

    forward:  (H, W, 2) float32, at the pixels of a, pixels
    backward: (H, W, 2) float32, at the pixels of b, pixels
    kept:     what it was read from if it is kept flow (see `dequantise`), else None
    """

    forward: np.ndarray
    backward: np.ndarray
    kept: np.ndarray | None = None

    def __post_init__(self) -> None:
        for name in ("forward", "backward"):
            field = getattr(self, name)
            if field.ndim != 3 or field.shape[2] != 2 or field.dtype != np.float32:
                raise ValueError(f"{name} flow must be (H, W, 2) float32, got {field.shape} {field.dtype}")
        if self.forward.shape != self.backward.shape:
            raise ValueError(f"flow disagrees: forward {self.forward.shape}, backward {self.backward.shape}")


class FlowModel(Protocol):
    """A loaded flow network."""

    def flow(self, a: np.ndarray, b: np.ndarray) -> Flow:
        """Both directions between two (H, W, 3) uint8 RGB frames."""
        ...


def compute_flow(a: np.ndarray, b: np.ndarray, config: FlowConfig, model: FlowModel | None = None) -> Flow:
    """Flow between two stored frames.

    Args:
        a, b:  (H, W, 3) uint8 RGB, decoded from the shard's own bytes
        model: from `load_flow_model`; needed for raft, not used for dis

    Returns: DIS's flow as it is; RAFT's as it is kept.

    Equal input gives equal bytes whatever OpenCV's number of threads.
    """
    if a.shape != b.shape or a.ndim != 3 or a.shape[2] != 3 or a.dtype != np.uint8 or b.dtype != np.uint8:
        raise ValueError(
            f"flow needs two equal (H, W, 3) uint8 frames, got {a.shape} {a.dtype}, {b.shape} {b.dtype}"
        )
    if config.flow == "raft":
        if model is None:
            raise ValueError("flow raft needs its model; load it with load_flow_model")
        return dequantise(quantise(model.flow(a, b)), (a.shape[1], a.shape[0]))
    grey_a, grey_b = (np.ascontiguousarray(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)) for frame in (a, b))
    if min(grey_a.shape) < _MIN_DIS_SIDE:
        raise ConfigError(f"frames of {a.shape[1]}x{a.shape[0]} are too small for flow; store at least 16x16")
    dis = cv2.DISOpticalFlow.create(_DIS_PRESETS[config.dis_preset])
    return Flow(forward=_dis(dis, grey_a, grey_b), backward=_dis(dis, grey_b, grey_a))


def load_flow_model(config: FlowConfig, device: str = "cpu") -> FlowModel | None:
    """The network that the configuration needs, on a device; None for dis.

    Raises:
        DetectorError: the weights are missing, damaged, of another network, or cannot be fetched.
    """
    if config.flow == "dis":
        return None
    from pipeline.raft import Raft  # torch loads only when a network is wanted

    return Raft.load(config, device)


def flow_identity(config: FlowConfig) -> dict[str, Any]:
    """What decides the flow's values: settings that matter, and the weights by content, not by path.

    Reading it back as a `FlowConfig` gives an equal configuration for dis; for raft, `raft_weights`
    is a digest then, because kept flow needs no network any more.
    """
    if config.flow == "dis":
        return {"flow": "dis", "dis_preset": config.dis_preset}
    if config.raft_weights is None:
        weights = "torchvision"
    else:
        try:
            weights = f"sha256-{hashlib.sha256(config.raft_weights.read_bytes()).hexdigest()}"
        except OSError as error:
            raise DetectorError(
                f"{config.raft_weights}: RAFT weights cannot be read ({error.strerror}); give the file's path"
            ) from error
    return {
        "flow": "raft",
        "raft_size": config.raft_size,
        "raft_updates": config.raft_updates,
        "raft_enlarge": config.raft_enlarge,
        "raft_weights": weights,
    }


def consistent(flow: Flow) -> tuple[np.ndarray, np.ndarray]:
    """Pixels of a, and pixels of b, that the flow there and back returns to where they were.

    |f + b(p + f)|^2 < share (|f|^2 + |b|^2) + px^2 with b sampled bilinearly. Occluded pixels
    fail, and so do those that leave the image (beyond the centres of its border pixels).

    Returns: two (H, W) bool masks, at the pixels of a and at those of b.
    """
    return _returns(flow.forward, flow.backward), _returns(flow.backward, flow.forward)


def quantise(flow: Flow) -> np.ndarray:
    """Flow -> (2, ceil(H/2), ceil(W/2), 2) int16, forward and backward, as it is kept.

    Each cell is the mean over its 2x2 pixels (fewer at an odd border), in 1/64 pixel of the
    full frame, rounded half to even and cut to +-MAX_KEPT_PX. Kept flow is given back as it
    was: what is used and what is kept never drift apart.
    """
    if flow.kept is not None:
        return flow.kept
    fields = np.stack([flow.forward, flow.backward])
    height, width = fields.shape[1:3]
    fields = np.pad(fields, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    cells = fields.reshape(2, (height + 1) // 2, 2, (width + 1) // 2, 2, 2).mean(
        axis=(2, 4), dtype=np.float64
    )
    return np.clip(np.rint(cells / UNIT_PX), -32767, 32767).astype(np.int16)


def dequantise(stored: np.ndarray, size: tuple[int, int]) -> Flow:
    """Kept flow -> flow of frames of the given (width, height).

    Cells sit at the centres of their 2x2 pixels; between them the flow is bilinear (weights
    9, 3, 3, 1), beyond the outermost ones constant. All in whole numbers, so the result is
    exact and the same on every machine.
    """
    width, height = size
    shape = (2, (height + 1) // 2, (width + 1) // 2, 2)
    if stored.shape != shape or stored.dtype.kind != "i" or stored.dtype.itemsize != 2:
        raise ValueError(
            f"kept flow of {width}x{height} frames must be {shape} int16, got {stored.shape} {stored.dtype}"
        )
    rows = _doubled(stored.astype(np.int32), axis=1)[:, :height]
    fields = _doubled(rows, axis=2)[:, :, :width].astype(np.float32) * np.float32(UNIT_PX / 16)
    return Flow(forward=fields[0], backward=fields[1], kept=stored)


def warp_error(a: np.ndarray, b: np.ndarray, forward: np.ndarray) -> np.ndarray:
    """Mean absolute difference (0..1, over colours) between a and b fetched along the flow.

    Returns: (H, W) float32 at the pixels of a; NaN where the flow leaves the image.
    """
    height, width = a.shape[:2]
    u, v = _targets(forward)
    fetched = cv2.remap(b.astype(np.float32), u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    error = np.abs(a.astype(np.float32) - fetched).mean(axis=2) / 255
    error[(u < 0) | (v < 0) | (u > width - 1) | (v > height - 1)] = np.nan
    return error


def _dis(dis: cv2.DISOpticalFlow, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    # A flow handed in would be a starting point; None starts from zero every time.
    return dis.calc(a, b, None).astype(np.float32)  # type: ignore[call-overload]


def _targets(flow: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each pixel goes, u and v, (H, W) float32."""
    height, width = flow.shape[:2]
    u = flow[..., 0] + np.arange(width, dtype=np.float32)
    v = flow[..., 1] + np.arange(height, dtype=np.float32)[:, None]
    return u, v


def _returns(there: np.ndarray, back: np.ndarray) -> np.ndarray:
    height, width = there.shape[:2]
    u, v = _targets(there)
    inside = (u >= 0) & (v >= 0) & (u <= width - 1) & (v <= height - 1)  # NaN is not inside
    return_flow = cv2.remap(back, u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    # Component by component: sums over a last axis of length two are ten times slower.
    fx, fy, bx, by = there[..., 0], there[..., 1], return_flow[..., 0], return_flow[..., 1]
    gap = np.square(fx + bx) + np.square(fy + by)
    lengths = fx * fx + fy * fy + bx * bx + by * by
    return inside & (gap < CONSISTENCY_SHARE * lengths + CONSISTENCY_PX2)


def _doubled(cells: np.ndarray, axis: int) -> np.ndarray:
    """Twice the samples along an axis, times 4: 3 parts of the nearest cell and 1 of the next."""
    cells = np.moveaxis(cells, axis, 0)
    before = np.concatenate([cells[:1], cells[:-1]])
    after = np.concatenate([cells[1:], cells[-1:]])
    doubled = np.stack([3 * cells + before, 3 * cells + after], axis=1)
    return np.moveaxis(doubled.reshape(2 * len(cells), *cells.shape[1:]), 0, axis)
