"""Rigid motions: group laws, the maps between their descriptions, derivatives."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck
from torch.testing import assert_close

from tests.training.geometry.scenes import motion, tensor
from training.geometry import se3

ONE = torch.eye(4, dtype=torch.float64)
EDGES = [0.0, 1e-9, 1e-5, 0.00999, 0.01001, 0.5, 2.0, 3.1, math.pi - 1e-6]


def turned(angle: float) -> Tensor:
    """(6,) twist that turns by `angle` about a slanted axis."""
    axis = tensor(2.0, -1.0, 2.0) / 3
    return torch.cat([tensor(0.3, -2.0, 1.0), angle * axis])


twists = st.lists(st.floats(-1.7, 1.7), min_size=6, max_size=6).map(lambda x: tensor(x))


@settings(deadline=None, max_examples=50)
@given(twists, twists, twists)
def test_motions_form_a_group(a: Tensor, b: Tensor, c: Tensor) -> None:
    A, B, C = se3.exp(a), se3.exp(b), se3.exp(c)
    assert_close(se3.inverse(A) @ A, ONE)
    assert_close((A @ B) @ C, A @ (B @ C))
    assert_close(se3.inverse(A @ B), se3.inverse(B) @ se3.inverse(A))
    assert_close(A @ se3.identity(like=A), A)
    R = (A @ B)[:3, :3]
    assert_close(R @ R.mT, ONE[:3, :3])
    assert_close(torch.linalg.det(R), tensor(1.0))


@settings(deadline=None, max_examples=50)
@given(twists)
def test_log_undoes_exp(xi: Tensor) -> None:  # every such twist turns by less than pi
    assert_close(se3.log(se3.exp(xi)), xi, atol=1e-7, rtol=1e-7)


@settings(deadline=None, max_examples=50)
@given(twists)
def test_one_parameter_motions_add(xi: Tensor) -> None:
    assert_close(se3.exp(0.3 * xi) @ se3.exp(0.7 * xi), se3.exp(xi))
    assert_close(se3.exp(-xi), se3.inverse(se3.exp(xi)))


@pytest.mark.parametrize("angle", EDGES)
def test_log_undoes_exp_at_every_angle(angle: float) -> None:
    assert_close(se3.log(se3.exp(turned(angle))), turned(angle), atol=1e-8, rtol=1e-8)


def test_exp_agrees_with_the_matrix_exponential() -> None:
    for angle in EDGES:
        xi = turned(angle)
        x, y, z = xi[3:].tolist()
        generator = tensor([[0, -z, y, xi[0]], [z, 0, -x, xi[1]], [-y, x, 0, xi[2]], [0, 0, 0, 0]])
        assert_close(se3.exp(xi), torch.linalg.matrix_exp(generator), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("angle", EDGES[:-1])
def test_exp_and_log_have_true_gradients(angle: float) -> None:
    xi = turned(angle).requires_grad_()
    assert gradcheck(se3.exp, (xi,))
    # Through exp, as only rotations have a logarithm.
    assert gradcheck(lambda x: se3.log(se3.exp(x) @ motion((0.0, 0.02, 0.01))[0]), (xi,), atol=1e-4)


def test_a_half_turn_has_a_logarithm() -> None:
    for axis in (0, 1, 2):
        T = ONE.clone()
        T[:3, :3] = -ONE[:3, :3]
        T[axis, axis] = 1
        assert_close(se3.exp(se3.log(T)), T)


def test_euler_angles_turn_about_x_first() -> None:
    # x by 90 deg carries y to z; then z by 90 deg carries x to y and leaves z alone.
    R = se3.from_euler(tensor(math.pi / 2, 0, math.pi / 2), tensor(1.0, 2.0, 3.0))
    assert_close(R @ tensor(0.0, 1, 0, 1), tensor(1.0, 2.0, 4.0, 1.0))
    assert_close(R @ tensor(1.0, 0, 0, 1), tensor(1.0, 3.0, 3.0, 1.0))


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(-1.5, 1.5), min_size=3, max_size=3))
def test_euler_angles_come_back(angles: list[float]) -> None:
    assert_close(se3.to_euler(se3.from_euler(tensor(angles), tensor(1.0, 2.0, 3.0))), tensor(angles))


def test_a_turn_about_a_point_leaves_it_where_it_is() -> None:
    centre = tensor(1.0, 2.0, 10.0)
    T = se3.about(motion((0.1, 0.4, -0.2))[0], centre)
    assert_close(T[:3, :3] @ centre + T[:3, 3], centre)
    shifted = se3.about(motion((0.1, 0.4, -0.2), (0.5, 0, 1.0))[0], centre)
    assert_close(shifted[:3, :3] @ centre + shifted[:3, 3], centre + tensor(0.5, 0, 1.0))


def test_turning_about_a_point_is_moving_there_turning_and_moving_back() -> None:
    centre = tensor([[1.0, 2.0, 10.0]])
    there = motion(shift=(1.0, 2.0, 10.0))
    T = motion((0.1, 0.4, -0.2), (0.5, 0, 1.0))
    assert_close(se3.about(T, centre), there @ T @ se3.inverse(there))


@pytest.mark.parametrize("angle", EDGES)
def test_the_angle_of_a_rotation(angle: float) -> None:
    assert_close(se3.rotation_angle(se3.exp(turned(angle))), tensor(angle), atol=1e-10, rtol=1e-9)


def test_the_angle_of_a_rotation_is_exact_when_small_in_single_precision() -> None:
    assert_close(se3.rotation_angle(se3.exp(turned(1e-4).float())), torch.tensor(1e-4), rtol=1e-3, atol=0)


def test_everything_is_finite_at_the_identity() -> None:
    T = se3.identity(2, like=ONE).requires_grad_()
    xi = torch.zeros(2, 6, dtype=torch.float64, requires_grad=True)
    for value in (se3.rotation_angle(T), se3.log(T), se3.exp(xi), se3.rotation_angle(se3.exp(xi))):
        assert value.isfinite().all()
        for gradient in torch.autograd.grad(value.sum(), (T, xi), allow_unused=True):
            assert gradient is None or gradient.isfinite().all()


def test_no_motions_at_all_are_an_ordinary_case() -> None:
    none = torch.zeros(0, 6, requires_grad=True)
    T = se3.about(se3.exp(none), none[:, :3])
    assert se3.log(se3.inverse(T)).shape == (0, 6)
    assert se3.to_euler(T).shape == (0, 3)
    assert se3.rotation_angle(T).shape == (0,)
    assert se3.from_euler(none[:, :3], none[:, 3:]).shape == (0, 4, 4)
    se3.log(T).sum().backward()


def test_type_and_leading_dimensions_are_the_inputs() -> None:
    assert se3.identity(2, 3, like=ONE).dtype == torch.float64
    assert se3.exp(torch.zeros(2, 3, 6)).shape == (2, 3, 4, 4)
    assert se3.exp(torch.zeros(6)).dtype == torch.float32
