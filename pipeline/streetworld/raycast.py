"""Casting camera rays against convex solids and the ground, in inverse depth.

In camera coordinates a ray is d = (x, y, 1) and t along it is the z-depth. With
q = 1 / t, every half-space n.X + c <= 0 reads  n.d + c q <= 0: a bound on q that is
AFFINE in (x, y). Half-spaces that the camera lies outside of (c > 0) bound q from
above, the others from below, so a solid costs one addition per face and pixel and no
division. Larger q is nearer; sky is q = 0.

Every pixel has S rays: `SAMPLES` for colour (a rotated grid) and last the pixel's
centre, which alone gives depth and ids.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.streetworld.roads import Street
from pipeline.streetworld.solids import Paint, Solid
from pipeline.streetworld.world import Scene

SAMPLES = ((-0.125, -0.375), (0.375, -0.125), (-0.375, 0.125), (0.125, 0.375))
NEAR_M, FAR_M = 0.2, 260.0
SKY, ROAD, PAVEMENT, KERB, FIRST_FACE = 0, 1, 2, 3, 4
"""Surface numbers; solids' faces count from FIRST_FACE."""
MAP_STEP_M = 0.5


@dataclass(frozen=True, kw_only=True)
class Model:
    """A scene's solids as flat tables; body b < len(actors) is an actor, the rest are props.

    body:      (S,) body of each solid
    corners:   (S, 8, 3) of its bounds, body frame
    planes:    (P, 4) all half-spaces; solid i owns first[i] .. first[i + 1]
    centre, scale: (S, 3) curved surface, scale 0 where there is none
    face:      (S,) surface number of its first face; its curved one comes last
    paints:    paint of every face, face_body and face_normal its body and normal
    """

    body: np.ndarray
    corners: np.ndarray
    planes: np.ndarray
    first: np.ndarray
    centre: np.ndarray
    scale: np.ndarray
    curved: np.ndarray
    face: np.ndarray
    shades: np.ndarray
    paints: list[Paint]
    face_body: np.ndarray
    face_normal: np.ndarray
    face_solid: np.ndarray
    ids: np.ndarray
    static_pose: np.ndarray
    actor_poses: np.ndarray

    def poses(self, frame: int) -> np.ndarray:
        """(B, 4, 4) world_T_body at a frame."""
        return np.concatenate([self.actor_poses[frame], self.static_pose])


@dataclass(frozen=True, kw_only=True)
class Rays:
    """Normalised image coordinates of all rays: x (S, 1, W), y (S, H, 1)."""

    x: Tensor
    y: Tensor


@dataclass(frozen=True, kw_only=True)
class Hits:
    """q (S, H, W) inverse z-depth, 1 / m, 0 for sky; surface (S, H, W) int32."""

    q: Tensor
    surface: Tensor


@dataclass(frozen=True, kw_only=True)
class View:
    """What of the model one frame sees, in camera coordinates.

    camera_T_body: (B, 4, 4);  world_T_camera: (4, 4)
    planes: (P, 4) n and c;  rects: (S, 4) u0, v0, u1, v1 (half open)
    shown: solids in view, near ones first;  nearest_q: (S,) 1 / depth of their nearest corner
    """

    camera_T_body: np.ndarray
    world_T_camera: np.ndarray
    planes: np.ndarray
    shown: list[int]
    nearest_q: np.ndarray
    rects: np.ndarray


def build_model(scene: Scene) -> Model:
    """Flatten a scene's solids into tables."""
    solids: list[tuple[int, Solid]] = []
    count = len(scene.actors)
    for b, actor in enumerate(scene.actors):
        solids += [(b, solid) for solid in actor.solids]
    for b, prop in enumerate(scene.props):
        solids += [(count + b, solid) for solid in prop.solids]
    paints: list[Paint] = []
    face, face_body, face_normal, face_solid = [], [], [], []
    for i, (b, solid) in enumerate(solids):
        face.append(FIRST_FACE + len(paints))
        paints += solid.paints
        face_body += [b] * len(solid.paints)
        face_solid += [i] * len(solid.paints)
        face_normal += [*solid.planes[:, :3], *([np.zeros(3)] if solid.scale is not None else [])]
    signs = np.array([[i & 1, i >> 1 & 1, i >> 2 & 1] for i in range(8)])
    frames = len(scene.world_T_camera)
    return Model(
        body=np.array([b for b, _ in solids], int),
        corners=np.array([np.where(signs, s.high, s.low) for _, s in solids]).reshape(-1, 8, 3),
        planes=np.concatenate([np.zeros((0, 4)), *(s.planes for _, s in solids)]),
        first=np.concatenate([[0], np.cumsum([len(s.planes) for _, s in solids])]).astype(int),
        centre=np.array([np.zeros(3) if s.centre is None else s.centre for _, s in solids]).reshape(-1, 3),
        scale=np.array([np.zeros(3) if s.scale is None else s.scale for _, s in solids]).reshape(-1, 3),
        curved=np.array([s.scale is not None for _, s in solids], bool),
        face=np.array(face, int),
        shades=np.array([s.shades for _, s in solids], bool),
        paints=paints,
        face_body=np.array(face_body, int),
        face_normal=np.array(face_normal).reshape(-1, 3),
        face_solid=np.array(face_solid, int),
        ids=np.array([a.id for a in scene.actors] + [0] * len(scene.props), int),
        static_pose=np.array([p.pose for p in scene.props]).reshape(-1, 4, 4),
        actor_poses=np.array([a.poses for a in scene.actors]).reshape(count, frames, 4, 4).swapaxes(0, 1),
    )


def make_rays(K: np.ndarray, size: tuple[int, int], device: torch.device) -> Rays:
    """Rays of every pixel: the colour samples, then the centre."""
    offsets = torch.tensor([*SAMPLES, (0.0, 0.0)], dtype=torch.float64)
    x = (torch.arange(size[0], dtype=torch.float64) + offsets[:, :1] - K[0, 2]) / K[0, 0]
    y = (torch.arange(size[1], dtype=torch.float64) + offsets[:, 1:] - K[1, 2]) / K[1, 1]
    return Rays(x=x[:, None, :].float().to(device), y=y[:, :, None].float().to(device))


def see(model: Model, world_T_camera: np.ndarray, frame: int, K: np.ndarray, size: tuple[int, int]) -> View:
    """Move the model into the camera and find which solids show, and where."""
    camera_T_body = np.linalg.inv(world_T_camera) @ model.poses(frame)
    solid_T = camera_T_body[model.body]
    plane_T = solid_T[np.repeat(np.arange(len(model.body)), np.diff(model.first))]
    n = np.einsum("pij,pj->pi", plane_T[:, :3, :3], model.planes[:, :3])
    c = model.planes[:, 3] - np.einsum("pi,pi->p", n, plane_T[:, :3, 3])
    corners = np.einsum("sij,skj->ski", solid_T[:, :3, :3], model.corners) + solid_T[:, None, :3, 3]
    rects = project_bounds(corners, K, size)
    nearest = corners[:, :, 2].min(1, initial=np.inf)
    seen = (rects[:, 2] > rects[:, 0]) & (rects[:, 3] > rects[:, 1]) & (nearest < FAR_M)
    order = np.argsort(nearest, kind="stable")
    return View(
        camera_T_body=camera_T_body,
        world_T_camera=world_T_camera,
        planes=np.concatenate([n, c[:, None]], 1),
        shown=order[seen[order]].tolist(),
        nearest_q=1 / np.maximum(nearest, 1e-3),
        rects=rects,
    )


def project_bounds(points: np.ndarray, K: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(S, 4) int pixel rectangles (u0, v0, u1, v1) that hold the convex hulls of points (S, M, 3).

    Hulls that cross the near plane are clipped there: every segment between two points
    of the hull that crosses it adds its crossing.
    """
    if not len(points):
        return np.zeros((0, 4), int)
    z = points[..., 2]
    a, b = np.triu_indices(points.shape[1], 1)
    za, zb = z[:, a], z[:, b]
    crosses = (za < NEAR_M) != (zb < NEAR_M)
    f = np.where(crosses, (NEAR_M - za) / np.where(crosses, zb - za, 1), 0)
    cut = points[:, a] + f[..., None] * (points[:, b] - points[:, a])
    pool = np.concatenate([points, cut], 1)
    valid = np.concatenate([z >= NEAR_M, crosses], 1)
    depth = np.where(valid, pool[..., 2], 1.0)
    u = K[0, 0] * pool[..., 0] / depth + K[0, 2]
    v = K[1, 1] * pool[..., 1] / depth + K[1, 2]
    low = np.stack([np.where(valid, u, np.inf).min(1), np.where(valid, v, np.inf).min(1)], -1)
    high = np.stack([np.where(valid, u, -np.inf).max(1), np.where(valid, v, -np.inf).max(1)], -1)
    low, high = np.clip(low, -1e6, 1e6), np.clip(high, -1e6, 1e6)
    low = np.clip(np.floor(low - 0.5), 0, size).astype(int)  # samples reach 3/8 pixel around a centre
    high = np.clip(np.ceil(high + 0.5) + 1, 0, size).astype(int)
    empty = ~valid.any(1)
    high[empty] = low[empty]
    return np.concatenate([low, high], 1)


def cast(model: Model, view: View, rays: Rays, hits: Hits) -> None:
    """Cast every shown solid into `hits` (in place): nearest surface wins."""
    device = rays.x.device
    bounds = _Bounds.of(model, view, device)
    for i in view.shown:
        u0, v0, u1, v1 = view.rects[i]
        q, surface = hits.q[:, v0:v1, u0:u1], hits.surface[:, v0:v1, u0:u1]
        if view.nearest_q[i] <= float(q.min()):
            continue  # hidden behind what was cast before
        x, y = rays.x[:, :, u0:u1], rays.y[:, v0:v1]
        first, turn, end = bounds.first[i], bounds.turn[i], bounds.first[i + 1]
        q_in = face = q_out = None
        if end > first:
            bx, by, bz = bounds.affine[:, first:end]
            bound = torch.addcmul(by * y + bz, bx, x)  # (P, S, h, w), affine in the ray
            if turn > first:
                q_in, face = bound[: turn - first].min(0)
                face = bounds.face[first:turn][face]
            if end > turn:
                q_out = bound[turn - first :].amax(0)
        if model.curved[i]:
            near, far = _curved(bounds, i, x, y)
            if near is not None:
                curved = bounds.curved_face[i]
                if q_in is None or face is None:
                    q_in, face = near, curved.expand(near.shape)
                else:
                    face = torch.where(near < q_in, curved, face)
                    q_in = torch.minimum(q_in, near)
            q_out = far if q_out is None else torch.maximum(q_out, far)
        if q_in is None or face is None or q_out is None:
            continue
        hit = (q_in > torch.maximum(q, q_out)).logical_and_(q_in < 1 / NEAR_M)
        q.copy_(torch.where(hit, q_in, q))
        surface.copy_(torch.where(hit, face, surface))


def cast_ground(street: Street, view: View, rays: Rays, lookup: RoadMap) -> Hits:
    """Road, kerb and pavement under every ray."""
    shape = torch.broadcast_shapes(rays.x.shape, rays.y.shape)
    q = _ground_q(street, view, rays, street.kerb).expand(shape).flatten()
    surface = torch.zeros(len(q), dtype=torch.int32, device=q.device)
    seen = (q > 1 / FAR_M).nonzero()[:, 0]
    x, y = (a.expand(shape).flatten()[seen] for a in (rays.x, rays.y))
    high = q[seen]
    low = _ground_q(street, view, rays, 0.0).expand(shape).flatten()[seen]
    out = lookup.beyond_kerb(*world_xy(view, x, y, high))
    # Over a crest a ray may meet the pavement and yet pass over the road, into the sky.
    road = torch.where(low > 1 / FAR_M, ROAD, SKY)
    kind = torch.where(out > 0, PAVEMENT, road)
    found = torch.where(out > 0, high, torch.where(low > 1 / FAR_M, low, 0.0))
    # A ray that passes over the road at the pavement's height may be past the kerb where it
    # comes down to the road: then it meets the kerb's face in between.
    t_low, t_high = 1 / low, 1 / high
    doubt = ((kind == ROAD) & (-out < 1.5 * (t_low - t_high))).nonzero()[:, 0]
    out_low = lookup.beyond_kerb(*world_xy(view, x[doubt], y[doubt], low[doubt]))
    share = (out[doubt] / (out[doubt] - out_low).clamp(max=-1e-6)).clamp(0, 1)
    kerb = 1 / (t_high[doubt] + share * (t_low[doubt] - t_high[doubt]))
    found[doubt] = torch.where(out_low > 0, kerb, low[doubt])
    kind[doubt] = torch.where(out_low > 0, KERB, ROAD)
    q = torch.zeros_like(q)
    q[seen], surface[seen] = found, kind.to(torch.int32)
    return Hits(q=q.reshape(shape), surface=surface.reshape(shape))


def world_xy(view: View, x: Tensor, y: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """World X and Y of the points at inverse depth q on rays (x, y, 1)."""
    R, t = view.world_T_camera[:3, :3], view.world_T_camera[:3, 3]
    z = 1 / q
    X = (float(R[0, 0]) * x + (float(R[0, 1]) * y + float(R[0, 2]))) * z + float(t[0])
    Y = (float(R[1, 0]) * x + (float(R[1, 1]) * y + float(R[1, 2]))) * z + float(t[1])
    return X, Y


class RoadMap:
    """Street coordinates (s, d) of world positions, bilinear from a grid of half a metre.

    Off the grid everything is far beyond the kerb. On an arc of 13 m the grid is right to 3 mm.
    """

    def __init__(self, street: Street, near_s: tuple[float, float], device: torch.device) -> None:
        s = np.arange(near_s[0], near_s[1], 4.0)
        x, y, _ = street.path.pose(s)
        margin = 30.0
        self._x0, self._y0 = float(x.min() - margin), float(y.min() - margin)
        grid_x = np.arange(self._x0, x.max() + margin, MAP_STEP_M)
        grid_y = np.arange(self._y0, y.max() + margin, MAP_STEP_M)
        grid = street.road_map(grid_x, grid_y)
        corners = np.concatenate([grid[:-1, :-1], grid[:-1, 1:], grid[1:, :-1], grid[1:, 1:]], -1)
        self._rows, self._columns = corners.shape[:2]
        self._corners = torch.from_numpy(np.ascontiguousarray(corners.reshape(-1, 8))).to(device)
        self._street = street

    def coordinates(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """(s, d) at world x, y of any shape."""
        u = ((x - self._x0) / MAP_STEP_M).clamp(0, self._columns - 1.001)
        v = ((y - self._y0) / MAP_STEP_M).clamp(0, self._rows - 1.001)
        i, j = u.floor(), v.floor()
        fu, fv = (u - i)[..., None], (v - j)[..., None]
        cell = self._corners[(j * self._columns + i).long().flatten()].reshape(*x.shape, 4, 2)
        top = cell[..., 0, :] + fu * (cell[..., 1, :] - cell[..., 0, :])
        bottom = cell[..., 2, :] + fu * (cell[..., 3, :] - cell[..., 2, :])
        s, d = (top + fv * (bottom - top)).unbind(-1)
        return s, d

    def beyond_kerb(self, x: Tensor, y: Tensor) -> Tensor:
        """Metres outside the road, negative on it."""
        street = self._street
        s, d = self.coordinates(x, y)
        out = torch.maximum(d - street.left, -d - street.right)
        if street.junction_s is not None:
            out = torch.minimum(out, (s - street.junction_s).abs() - street.junction_half)
        return out


@dataclass(frozen=True, kw_only=True)
class _Bounds:
    """Coefficients of every solid's bounds on q for one camera.

    affine: (3, P, 1, 1, 1) sorted by solid, upper bounds (faces towards the camera) before lower ones:
            solid i has upper bounds first[i] .. turn[i] and lower ones turn[i] .. first[i + 1]
    face:   (P,) int32 surface number of each;  curved_face: (S,) of the curved surface
    C:      (S,), B: (S, 3), D: (S, 6) of |A (o q + d)|^2 <= q^2, that is C q^2 + 2 B q + D <= 0
    """

    affine: Tensor
    face: Tensor
    curved_face: Tensor
    first: list[int]
    turn: list[int]
    C: list[float]
    B: list[list[float]]
    D: list[list[float]]

    @staticmethod
    def of(model: Model, view: View, device: torch.device) -> _Bounds:
        n, c = view.planes[:, :3], view.planes[:, 3]
        c = np.where(np.abs(c) < 1e-9, -1e-9, c)  # the camera lies in the plane: it bounds nothing in front
        counts = np.diff(model.first)
        owner = np.repeat(np.arange(len(counts)), counts)
        order = np.argsort(2 * owner + (c < 0), kind="stable")
        facing = np.bincount(owner[c > 0], minlength=len(counts))
        own_face = model.face[owner] + np.arange(len(owner)) - model.first[owner]
        T = view.camera_T_body[model.body]
        R = T[:, :3, :3].swapaxes(1, 2) * model.scale[:, :, None]  # scaled body axes seen from the camera
        o = -np.einsum("sij,sj->si", R, T[:, :3, 3]) - model.scale * model.centre
        M = R.swapaxes(1, 2) @ R
        D = np.stack([M[:, 0, 0], 2 * M[:, 0, 2], M[:, 2, 2], M[:, 1, 1], 2 * M[:, 1, 2], 2 * M[:, 0, 1]], 1)
        return _Bounds(
            affine=torch.from_numpy((-n / c[:, None])[order].T.reshape(3, -1, 1, 1, 1).astype(np.float32)).to(
                device
            ),
            face=torch.from_numpy(own_face[order].astype(np.int32)).to(device),
            curved_face=torch.from_numpy((model.face + counts).astype(np.int32)).to(device),
            first=model.first.tolist(),
            turn=(model.first[:-1] + facing).tolist(),
            C=((o * o).sum(1) - 1).tolist(),
            B=np.einsum("si,sij->sj", o, R).tolist(),
            D=D.tolist(),
        )


def _curved(bounds: _Bounds, i: int, x: Tensor, y: Tensor) -> tuple[Tensor | None, Tensor]:
    """Upper (None if the camera is inside) and lower bound on q by the curved surface."""
    C, (bx, by, bz), (xx, xz, zz, yy, yz, xy) = bounds.C[i], bounds.B[i], bounds.D[i]
    B = bx * x + (by * y + bz)
    D = torch.addcmul((xx * x + xz) * x + (yy * y + yz) * y + zz, xy * x, y)
    root = torch.addcmul(D.mul_(-C), B, B)
    if C <= 0:
        return None, (-B - root.clamp_(min=0).sqrt_()) / min(C, -1e-9)
    root = root.sqrt_()  # NaN where the ray misses: no comparison with it is true
    return (root - B).mul_(1 / C), (root + B).mul_(-1 / C)


def _ground_q(street: Street, view: View, rays: Rays, lift: float) -> Tensor:
    """Inverse depth of the hill raised by lift, <= 0 where the ray misses it.

    With height H over the ground below the camera, g the ray's fall relative to the
    slope there and x' its run:  H q^2 + g q - bend / 2 x'^2 = 0.
    """
    R, o = view.world_T_camera[:3, :3], view.world_T_camera[:3, 3]
    hill = street.hill
    H = float(o[2] - hill.height(o[0]) - lift)
    fall = R[2] - float(hill.gradient(o[0])) * R[0]
    g = float(fall[0]) * rays.x + (float(fall[1]) * rays.y + float(fall[2]))
    if hill.bend == 0:
        return -g / H
    run = float(R[0, 0]) * rays.x + (float(R[0, 1]) * rays.y + float(R[0, 2]))
    root = g * g + (2 * hill.bend * H) * run * run
    # Beyond a crest the ray misses; a q of -1 keeps the maps finite.
    return torch.where(root < 0, -1.0, (root.clamp(min=0).sqrt() - g) / (2 * H))
