"""Rigid motions: SE(3) as (..., 4, 4) matrices.

`b_T_a` carries points from frame a to frame b, X_b = b_T_a X_a, and composing is `@`:
c_T_a = c_T_b @ b_T_a. Angles are radians, translations scene units. Everything is differentiable
and finite, in value and gradient, at the identity too. Call it outside autocast, and
without TF32: products of rounded rotations are no rotations.
"""

from __future__ import annotations

import torch
from torch import Tensor

SMALL_ANGLE = 1e-2
"""Radians below which the series are exact in double precision and the quotients are not."""


def identity(*shape: int, like: Tensor | None = None) -> Tensor:
    """(*shape, 4, 4) identities, of the type and on the device of `like`."""
    dtype, device = (None, None) if like is None else (like.dtype, like.device)
    return torch.eye(4, dtype=dtype, device=device).expand(*shape, 4, 4).clone()


def from_euler(angles: Tensor, translation: Tensor) -> Tensor:
    """Motion from Euler angles: R = Rz(c) Ry(b) Rx(a), x turned first.

    Args:
        angles: (..., 3) a, b, c about x, y, z, radians.
        translation: (..., 3) added after turning.

    Returns:
        (..., 4, 4).
    """
    (sx, sy, sz), (cx, cy, cz) = angles.sin().unbind(-1), angles.cos().unbind(-1)
    R = [
        *(cz * cy, cz * sy * sx - sz * cx, cz * sy * cx + sz * sx),
        *(sz * cy, sz * sy * sx + cz * cx, sz * sy * cx - cz * sx),
        *(-sy, cy * sx, cy * cx),
    ]
    return _rigid(torch.stack(R, dim=-1).unflatten(-1, (3, 3)), translation)


def to_euler(T: Tensor) -> Tensor:
    """(..., 3) angles a, b, c of `from_euler`, b in [-pi/2, pi/2], from (..., 4, 4).

    At b = +-pi/2 only a combination of a and c is determined; there the gradient is none either.
    """
    a = torch.atan2(T[..., 2, 1], T[..., 2, 2])
    b = torch.atan2(-T[..., 2, 0], torch.linalg.vector_norm(T[..., 2, 1:3], dim=-1))
    c = torch.atan2(T[..., 1, 0], T[..., 0, 0])
    return torch.stack([a, b, c], dim=-1)


def exp(xi: Tensor) -> Tensor:
    """Exponential map: the motion after unit time at a constant twist.

    R = 1 + A W + B W^2,  t = (1 + B W + C W^2) rho, with W the cross-product matrix of omega,
    A = sin(w)/w, B = (1 - cos(w))/w^2, C = (1 - A)/w^2 (Rodrigues).

    Args:
        xi: (..., 6) rho, then the rotation vector omega in radians.

    Returns:
        (..., 4, 4).
    """
    rho, omega = xi[..., :3], xi[..., 3:]
    W = _cross_matrix(omega)
    W2 = W @ W
    A, B, C = _rodrigues((omega * omega).sum(-1)[..., None, None])
    one = torch.eye(3, dtype=xi.dtype, device=xi.device)
    t = (one + B * W + C * W2) @ rho[..., None]
    return _rigid(one + A * W + B * W2, t[..., 0])


def log(T: Tensor) -> Tensor:
    """Inverse of `exp`: (..., 6) rho, omega from (..., 4, 4), |omega| <= pi.

    By the quaternion, which is well conditioned at every angle; at pi the axis has two signs,
    of which one is returned.
    """
    quaternion = _quaternion(T[..., :3, :3])
    w, v = quaternion[..., :1], quaternion[..., 1:]
    square = (v * v).sum(-1, keepdim=True)
    near = square < SMALL_ANGLE**2
    s = torch.where(near, torch.ones_like(square), square).sqrt()
    # 2 atan(s / w) / s, for small s a series in s / w.
    ratio = square / w.where(near, torch.ones_like(w)) ** 2
    series = 2 / w.where(near, torch.ones_like(w)) * (1 - ratio / 3 + ratio**2 / 5 - ratio**3 / 7)
    omega = v * torch.where(near, series, 2 * torch.atan2(s, w) / s)

    W = _cross_matrix(omega)
    _, B, C = _rodrigues((omega * omega).sum(-1)[..., None, None])
    one = torch.eye(3, dtype=T.dtype, device=T.device)
    rho = torch.linalg.solve(one + B * W + C * (W @ W), T[..., :3, 3])
    return torch.cat([rho, omega], dim=-1)


def inverse(T: Tensor) -> Tensor:
    """a_T_b from b_T_a: (..., 4, 4) with R^T and -R^T t."""
    R_inverse = T[..., :3, :3].mT
    return _rigid(R_inverse, -(R_inverse @ T[..., :3, 3:])[..., 0])


def rotation_angle(T: Tensor) -> Tensor:
    """(...) angle of the rotation in (..., 4, 4), radians in [0, pi].

    atan2(sin, cos) keeps its accuracy at small angles, where acos of the trace loses half the
    digits. The angle has a kink at 0; the gradient there is 0.
    """
    R = T[..., :3, :3]
    sine = torch.linalg.vector_norm(_vee(R), dim=-1) / 2
    cosine = (R.diagonal(dim1=-2, dim2=-1).sum(-1) - 1) / 2
    return torch.atan2(sine, cosine)


def about(T: Tensor, centre: Tensor) -> Tensor:
    """The motion T about a point instead of the origin: translate(c) T translate(-c).

    Args:
        T: (..., 4, 4).
        centre: (..., 3) point c, in the frame that T moves within.
    """
    R = T[..., :3, :3]
    return _rigid(R, T[..., :3, 3] + centre - (R @ centre[..., None])[..., 0])


def _rigid(R: Tensor, t: Tensor) -> Tensor:
    """(..., 4, 4) from (..., 3, 3) and (..., 3)."""
    top = torch.cat([R, t[..., None]], dim=-1)
    bottom = torch.zeros_like(top[..., :1, :])
    bottom[..., 3] = 1
    return torch.cat([top, bottom], dim=-2)


def _cross_matrix(w: Tensor) -> Tensor:
    """(..., 3, 3) W with W x = w cross x."""
    x, y, z = w.unbind(-1)
    o = torch.zeros_like(x)
    return torch.stack([o, -z, y, z, o, -x, -y, x, o], dim=-1).unflatten(-1, (3, 3))


def _vee(R: Tensor) -> Tensor:
    """(..., 3) axis times twice the sine of the angle."""
    return torch.stack(
        [
            R[..., 2, 1] - R[..., 1, 2],
            R[..., 0, 2] - R[..., 2, 0],
            R[..., 1, 0] - R[..., 0, 1],
        ],
        dim=-1,
    )


def _rodrigues(square: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """sin(w)/w, (1 - cos(w))/w^2 and (1 - sin(w)/w)/w^2 as functions of w^2.

    Functions of the square, so that no square root is differentiated at 0. The branch that is
    not taken is fed 1: infinities times 0 would be NaN in the gradient.
    """
    near = square < SMALL_ANGLE**2
    safe = torch.where(near, torch.ones_like(square), square)
    w = safe.sqrt()
    sine = w.sin() / w
    half = (w / 2).sin()
    A = torch.where(near, 1 - square / 6 * (1 - square / 20 * (1 - square / 42)), sine)
    B = torch.where(near, (1 - square / 12 * (1 - square / 30 * (1 - square / 56))) / 2, 2 * half**2 / safe)
    C = torch.where(near, (1 - square / 20 * (1 - square / 42 * (1 - square / 72))) / 6, (1 - sine) / safe)
    return A, B, C


def _quaternion(R: Tensor) -> Tensor:
    """(..., 4) unit quaternion w, x, y, z with w >= 0, from its largest component.

    Row i of the symmetric matrix below is 4 q_i q: the row of the largest component is the one
    to trust, and to differentiate.
    """
    m00, m01, m02, m10, m11, m12, m20, m21, m22 = R.flatten(-2).unbind(-1)
    x, y, z = _vee(R).unbind(-1)
    rows = torch.stack(
        [
            *(1 + m00 + m11 + m22, x, y, z),
            *(x, 1 + m00 - m11 - m22, m01 + m10, m02 + m20),
            *(y, m01 + m10, 1 - m00 + m11 - m22, m12 + m21),
            *(z, m02 + m20, m12 + m21, 1 - m00 - m11 + m22),
        ],
        dim=-1,
    ).unflatten(-1, (4, 4))
    largest = rows.detach().diagonal(dim1=-2, dim2=-1).argmax(-1)
    row = torch.take_along_dim(rows, largest[..., None, None], dim=-2)[..., 0, :]
    q = row / torch.linalg.vector_norm(row, dim=-1, keepdim=True)
    return torch.where(q[..., :1] < 0, -q, q)
