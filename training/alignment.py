"""Direct alignment: motions moved until the images agree, by damped Gauss-Newton steps.

A motion that a network proposes is rarely exact, and the gradient of a photometric loss improves
it slowly: turning, shifting and approaching look alike, so that the problem is badly conditioned.
With depth given, the best motion of a rigid region is the answer of a 6x6 system instead (Lucas and
Kanade 1981; Engel et al. 2018; within training, Wang et al. 2018). Motions are solved for
G groups of points at once: the background of every pair, or every instance. No gradient flows.

    minimise  sum_p w_p |I_s(pi(T X_p)) - I_t(p)|^2 / noise^2  +  |eta / trust|^2

over T in SE(3), for each group alone; X_p are the points of target pixels p by the target's depth,
w_p Huber's weights. The second part holds on to the proposal where the images say little: eta is
what has been added to it, a turn about the group's centre and a shift relative to its depth.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.errors import ConfigError
from training.geometry import se3
from training.geometry.camera import NEAR, inverse_intrinsics, resize_intrinsics
from training.geometry.sampling import inside, resize, sample_points

MOST = 1000
"""Steps, sizes or depths; more would not end, and a checkpoint from somebody else may ask for any."""


@dataclass(frozen=True, kw_only=True)
class AlignmentConfig:
    """How far and how trustfully motions follow the images."""

    camera_steps: int = 0
    """Steps of the camera's motion at each size; 0: as the network says (the paper)."""
    camera_shrink: tuple[int, ...] = (4, 2)
    """Images are reduced by these factors, coarse to fine, for the camera's motion."""
    object_steps: int = 0
    """Steps of objects' motions with each window; 0: as the network says (the paper)."""
    object_windows: tuple[int, ...] = (3, 1)
    """For objects' motions colours are averaged over windows of these sides, wide to narrow, odd."""
    static_depths: tuple[float, ...] = (0.6, 0.72, 0.85, 1.0, 1.15, 1.3)
    """What stands still may be so many times as deep as predicted. Much deeper would let a car that
    keeps the camera's speed pass as standing at infinity; nearer is safe."""
    noise: float = 0.02
    """Differences of colour, of 1, that are expected where all is right; larger ones weigh less."""
    trust_turn: float = 0.05
    """Expected error of the object network's rotation, radians."""
    trust_shift: float = 0.05
    """Expected error of the object network's translation, relative to depth."""
    camera_again: bool = False
    """Once it is known which instances stand still, the camera's motion is aligned with theirs too."""
    camera_trust_turn: float = 0.01
    """Expected error of the camera network's rotation, radians."""
    camera_trust_ahead: float = 0.5
    """Expected error of its translation along the optical axis, relative to depth; large, as depth's
    scale is free, and held on to a network that lags behind it would shrink without end."""
    camera_trust_sideways: float = 0.002
    """The same across the axis: a shift there and a turn look alike, and vehicles do not shift."""
    points_per_sample: float = 8.0
    """Neighbouring pixels err alike: so many count as one observation."""
    samples: float = 10.0
    """More observations than so many are not believed: errors of depth do not average out."""

    def __post_init__(self) -> None:
        if self.camera_steps < 0 or self.object_steps < 0:
            raise ConfigError("camera_steps and object_steps must be 0 or more")
        for name in ("camera_steps", "object_steps"):
            if getattr(self, name) > MOST:
                raise ConfigError(f"{name} must be at most {MOST}, got {getattr(self, name)}")
        for name in ("camera_shrink", "object_windows", "static_depths"):
            if len(getattr(self, name)) > MOST:
                raise ConfigError(f"{name} must be {MOST} or fewer, got {len(getattr(self, name))}")
        if not self.camera_shrink or min(self.camera_shrink) < 1:
            raise ConfigError(f"camera_shrink must be factors of 1 or more, got {self.camera_shrink}")
        if not self.object_windows or any(side < 1 or side % 2 == 0 for side in self.object_windows):
            raise ConfigError(f"object_windows must be odd sides in pixels, got {self.object_windows}")
        if not self.static_depths or not all(0 < depth < math.inf for depth in self.static_depths):
            raise ConfigError(f"static_depths must be positive factors, got {self.static_depths}")
        positive = (
            *("noise", "trust_turn", "trust_shift", "points_per_sample", "samples"),
            *("camera_trust_turn", "camera_trust_ahead", "camera_trust_sideways"),
        )
        for name in positive:
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} must be positive, got {getattr(self, name)}")

    def on_larger_images(self, scale: float) -> AlignmentConfig:
        """The same where images are `scale` times as large: windows grow with them, and a last pass
        uses what the larger images show."""
        grown = tuple(2 * math.ceil((side * scale - 1) / 2) + 1 for side in self.object_windows)
        return replace(self, object_windows=(*grown, 1) if grown[-1] > 1 else grown)


@dataclass(frozen=True, kw_only=True)
class Points:
    """P points of target pixels, each of one group.

    pair, group, label: (P,) int64: source image, motion, and what the source must show there
    X: (P, 3) in the target camera;  colour: (P, C) of the target
    """

    pair: Tensor
    group: Tensor
    label: Tensor
    X: Tensor
    colour: Tensor


@dataclass(frozen=True, kw_only=True)
class Source:
    """N source images: colour and its slopes (N, H, W, 3 C), labels (N, H, W) int64, K (N, 3, 3)."""

    colour: Tensor
    labels: Tensor
    K: Tensor


def points_of(
    images: Tensor, depth: Tensor, K: Tensor, labels: Tensor, mask: Tensor, group: Tensor
) -> Points:
    """The points of masked target pixels.

    Args:
        images: (N, C, H, W);  depth: (N, 1, H, W);  K: (N, 3, 3);  labels: (N, H, W) int64.
        mask:   (N, H, W) bool, pixels that are used.
        group:  (N, R) int64, group of the pixels with label r of image n.
    """
    pair, v, u = torch.nonzero(mask, as_tuple=True)
    pixel = torch.stack([u, v, torch.ones_like(u)], 1).to(depth.dtype)
    rays = (inverse_intrinsics(K)[pair] * pixel[:, None]).sum(-1)
    label = labels[pair, v, u]
    return Points(
        pair=pair,
        group=group[pair, label],
        label=label,
        X=rays * depth[pair, 0, v, u, None],
        colour=images[pair, :, v, u],
    )


def source_of(images: Tensor, labels: Tensor, K: Tensor) -> Source:
    """Source images with their slopes (central differences)."""
    right = (images[..., 2:] - images[..., :-2]) / 2
    down = (images[..., 2:, :] - images[..., :-2, :]) / 2
    slopes = (
        F.pad(right, (1, 1, 0, 0), mode="replicate"),
        F.pad(down, (0, 0, 1, 1), mode="replicate"),
    )
    return Source(colour=torch.cat([images, *slopes], 1).permute(0, 2, 3, 1).contiguous(), labels=labels, K=K)


@torch.no_grad()
def align_camera(
    I_t: Tensor,
    I_s: Tensor,
    D_t: Tensor,
    K: Tensor,
    background: Tensor,
    s_T_t: Tensor,
    config: AlignmentConfig,
) -> Tensor:
    """Camera motions under which the background agrees best.

    Args:
        I_t, I_s: (N, C, H, W);  D_t: (N, 1, H, W);  K: (N, 3, 3).
        background: (N, 2, H, W) bool, of target and source.
        s_T_t: (N, 4, 4), where to begin.

    Returns:
        (N, 4, 4).
    """
    N, _, H, W = I_t.shape
    group = torch.arange(N, device=K.device)[:, None]
    for factor in config.camera_shrink:
        size = (max(H // factor, 2), max(W // factor, 2))
        # A coarse pixel is background if all that it covers is.
        known = resize(background.to(I_t.dtype), size, "area") > 0.999
        labels = torch.where(known, 0, -1)
        small_K = resize_intrinsics(K, size[1] / W, size[0] / H)
        points = points_of(
            resize(I_t, size, "area"),
            1 / resize(1 / D_t, size, "area"),
            small_K,
            torch.zeros_like(labels[:, 0]),
            known[:, 0],
            group,
        )
        source = source_of(resize(I_s, size, "area"), labels[:, 1], small_K)
        across, ahead = config.camera_trust_sideways, config.camera_trust_ahead
        trust = (across, across, ahead, *[config.camera_trust_turn] * 3)
        s_T_t = align(points, source, s_T_t, config.camera_steps, config, trust, centred=False)
    return s_T_t


@torch.no_grad()
def align_instances(
    I_t: Tensor,
    I_s: Tensor,
    D_t: Tensor,
    K: Tensor,
    labels_t: Tensor,
    labels_s: Tensor,
    pair: Tensor,
    slot: Tensor,
    s_T_t: Tensor,
    camera: Tensor,
    static_margin: Tensor | None,
    config: AlignmentConfig,
) -> tuple[Tensor, Tensor]:
    """Motions of instances under which each agrees best, camera's motion included.

    One that stands still follows the camera. Whether it does is asked at several depths: where
    an instance's own depth is not right, some motion of its own always explains it better.

    Args:
        I_t, I_s: (N, C, H, W);  D_t: (N, 1, H, W);  K: (N, 3, 3).
        labels_t, labels_s: (N, H, W) int64 slots, 0 background.
        pair, slot: (G,) of each instance.
        s_T_t: (G, 4, 4), where to begin.
        camera: (G, 4, 4) motion of the camera, which what stands still follows.
        static_margin: (G,); an instance stands still if that costs at most so much more, relative,
            than its own motion; None: it always has its own.

    Returns:
        (G, 4, 4) motions and (G,) bool, which stand still.
    """
    nothing = torch.zeros(len(pair), dtype=torch.bool, device=pair.device)
    if not len(pair):
        return s_T_t, nothing
    group = labels_t.new_full((len(I_t), int(slot.max()) + 1), -1)
    group[pair, slot] = torch.arange(len(pair), device=pair.device)
    labels = labels_t.clamp(min=0)
    known = group.gather(1, labels.flatten(1).clamp(max=group.shape[1] - 1)).view_as(labels) >= 0
    for side in config.object_windows:
        blurred_t, blurred_s = (
            F.avg_pool2d(images, side, 1, side // 2, count_include_pad=False) if side > 1 else images
            for images in (I_t, I_s)
        )
        points = points_of(blurred_t, D_t, K, labels, known & (labels > 0), group)
        source = source_of(blurred_s, labels_s, K)
        trust = (*[config.trust_shift] * 3, *[config.trust_turn] * 3)
        s_T_t = align(points, source, s_T_t, config.object_steps, config, trust)
    if static_margin is None:
        return s_T_t, nothing
    # A scene twice as deep looks like one whose camera moves half as far.
    still = [_cost(points, source, _shortened(camera, depth), config) for depth in config.static_depths]
    moving = _cost(points, source, s_T_t, config)
    stands = torch.stack(still).amin(0) <= (1 + static_margin) * moving
    return torch.where(stands[:, None, None], camera, s_T_t), stands


@torch.no_grad()
def align(
    points: Points,
    source: Source,
    motions: Tensor,
    steps: int,
    config: AlignmentConfig,
    trust: tuple[float, ...],
    centred: bool = True,
) -> Tensor:
    """Damped Gauss-Newton steps (Levenberg and Marquardt) for all groups side by side.

    Args:
        motions: (G, 4, 4) s_T_t of each group, where to begin.
        trust:   expected errors of that: three of the shift relative to depth, three of the turn.
        centred: turn about the middle of a group's points; else about the camera.

    Returns:
        (G, 4, 4); groups without points, or that no step improves, as they were.
    """
    G = len(motions)
    if not len(points.pair) or not steps:
        return motions
    centre, scale = _frame_of(points, motions, centred)
    count = _sum(torch.ones_like(points.X[:, 0]), points.group, G)
    shared = (count / config.samples).clamp(min=config.points_per_sample)
    prior = (config.noise / motions.new_tensor(trust)) ** 2 * shared[:, None]
    eta, damping = motions.new_zeros(G, 6), motions.new_full((G,), 1e-3)
    here = _observe(points, source, motions, config.noise)
    cost = _sum(here.cost, points.group, G)
    for _ in range(steps):
        A, b = _normal_equations(here, points, source, centre, scale, G)
        A = A + torch.diag_embed(prior + A.diagonal(dim1=1, dim2=2) * damping[:, None])
        step = -torch.linalg.solve_ex(A, (b + prior * eta)[..., None])[0][..., 0]
        step = step.nan_to_num().clamp(-0.3, 0.3)
        turn = se3.exp(torch.cat([torch.zeros_like(step[:, 3:]), step[:, 3:]], 1))
        change = se3.about(turn, centre)
        change[:, :3, 3] += step[:, :3] * scale[:, None]
        tried = change @ motions
        there = _observe(points, source, tried, config.noise)
        new_cost = _sum(there.cost, points.group, G) + (prior * (eta + step) ** 2).sum(1) / 2
        better = new_cost < cost
        motions = torch.where(better[:, None, None], tried, motions)
        eta = torch.where(better[:, None], eta + step, eta)
        cost = torch.where(better, new_cost, cost)
        damping = torch.where(better, damping * 0.3, damping * 10)
        here = _choose(better[points.group], there, here)
    return motions


@dataclass(frozen=True)
class _Observation:
    """Of every point: where it is, what the source shows there, and what that costs.

    X: (P, 3) in the source camera;  error: (P, C);  slope_u, slope_v: (P, C)
    weight: (P,) 0 where the source does not show it;  cost: (P,)
    """

    X: Tensor
    error: Tensor
    slope_u: Tensor
    slope_v: Tensor
    weight: Tensor
    cost: Tensor


def _cost(points: Points, source: Source, motions: Tensor, config: AlignmentConfig) -> Tensor:
    """(G,) what the motions cost."""
    return _sum(_observe(points, source, motions, config.noise).cost, points.group, len(motions))


def _shortened(motions: Tensor, factor: float) -> Tensor:
    """The same turns with translations divided by a factor."""
    changed = motions.clone()
    changed[..., :3, 3] /= factor
    return changed


def _observe(points: Points, source: Source, motions: Tensor, noise: float) -> _Observation:
    T = motions[points.group]
    X = (T[:, :3, :3] * points.X[:, None]).sum(-1) + T[:, :3, 3]
    K = source.K[points.pair]
    projected = (K * X[:, None]).sum(-1)
    uv = projected[:, :2] / projected[:, 2:].clamp(min=NEAR)
    H, W = source.labels.shape[1:]
    shown = (X[:, 2] > NEAR) & inside(uv, H, W)
    pixel = torch.where(shown[:, None], uv, 0).round().long()
    shown &= source.labels[points.pair, pixel[:, 1], pixel[:, 0]] == points.label
    found = sample_points(source.colour, points.pair, torch.where(shown[:, None], uv, 0))
    value, slope_u, slope_v = found.chunk(3, 1)
    error = value - points.colour
    # Huber, over the colours together.
    size = (error * error).mean(1).sqrt()
    weight = torch.where(shown, (noise / size.clamp(min=1e-6)).clamp(max=1.0), 0)
    channels = error.shape[1]
    cost = torch.where(size < noise, size * size / 2, noise * (size - noise / 2)) * channels
    # What is not shown costs as much as what does not fit: leaving is no way out.
    hidden = 2.5 * noise * noise * channels
    return _Observation(X, error, slope_u, slope_v, weight, torch.where(shown, cost, hidden))


def _normal_equations(
    seen: _Observation, points: Points, source: Source, centre: Tensor, scale: Tensor, G: int
) -> tuple[Tensor, Tensor]:
    """(G, 6, 6) J^T W J and (G, 6) J^T W e; columns: shift relative to depth, then rotation vector."""
    X, Y = seen.X, seen.X - centre[points.group]
    fx, fy = source.K[points.pair, 0, 0], source.K[points.pair, 1, 1]
    z = X[:, 2].clamp(min=NEAR)
    o = torch.zeros_like(z)
    du = torch.stack([fx / z, o, -fx * X[:, 0] / z**2], 1)
    dv = torch.stack([o, fy / z, -fy * X[:, 1] / z**2], 1)
    depth = scale[points.group, None]
    # d(uv)/d(turn w) = d(uv)/dX . (w x Y) = w . (Y x d(uv)/dX)
    Ju = torch.cat([du * depth, torch.linalg.cross(Y, du)], 1)
    Jv = torch.cat([dv * depth, torch.linalg.cross(Y, dv)], 1)
    w, gu, gv, e = seen.weight, seen.slope_u, seen.slope_v, seen.error
    uu, uv, vv = ((a * b).sum(1) * w for a, b in ((gu, gu), (gu, gv), (gv, gv)))
    ue, ve = ((a * e).sum(1) * w for a in (gu, gv))
    left_u, left_v = uu[:, None] * Ju + uv[:, None] * Jv, uv[:, None] * Ju + vv[:, None] * Jv
    # All 36 products: picking the 21 different ones costs five times as much.
    products = left_u[:, :, None] * Ju[:, None] + left_v[:, :, None] * Jv[:, None]
    right = ue[:, None] * Ju + ve[:, None] * Jv
    return _sum(products, points.group, G), _sum(right, points.group, G)


def _frame_of(points: Points, motions: Tensor, centred: bool) -> tuple[Tensor, Tensor]:
    """(G, 3) centre about which groups turn, source camera, and (G,) their depth (geometric mean)."""
    G = len(motions)
    count = _sum(torch.ones_like(points.X[:, 0]), points.group, G).clamp(min=1)
    T = motions[points.group]
    X = (T[:, :3, :3] * points.X[:, None]).sum(-1) + T[:, :3, 3]
    scale = (_sum(X[:, 2].clamp(min=NEAR).log(), points.group, G) / count).exp()
    centre = _sum(X, points.group, G) / count[:, None]
    return (centre if centred else torch.zeros_like(centre)), scale


def _sum(values: Tensor, group: Tensor, G: int) -> Tensor:
    return values.new_zeros(G, *values.shape[1:]).index_add(0, group, values)


def _choose(first: Tensor, a: _Observation, b: _Observation) -> _Observation:
    def pick(x: Tensor, y: Tensor) -> Tensor:
        return torch.where(first[:, None] if x.dim() > 1 else first, x, y)

    return _Observation(*(pick(getattr(a, f), getattr(b, f)) for f in _Observation.__dataclass_fields__))
