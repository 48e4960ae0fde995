"""The pinhole camera."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck
from torch.testing import assert_close

from tests.training.geometry.scenes import pinhole, tensor
from training.geometry.camera import (
    inverse_intrinsics,
    pixel_grid,
    project,
    resize_intrinsics,
    unproject,
)


def test_the_grid_counts_pixel_centres() -> None:
    grid = pixel_grid(3, 5, like=tensor(0.0))
    assert grid.shape == (3, 5, 2)
    assert grid[2, 4].tolist() == [4, 2]
    assert grid[0, 0].tolist() == [0, 0]


def test_a_point_to_the_right_and_below_lands_right_and_below() -> None:
    X = tensor([1.0, 0.5, 10.0]).view(1, 3, 1, 1)
    uv, z = project(X, tensor([[100, 0, 49.5], [0, 100, 24.5], [0, 0, 1]])[None])
    assert_close(uv[0, 0, 0], tensor(59.5, 29.5))
    assert z.item() == 10


def test_projecting_undoes_unprojecting() -> None:
    K = tensor([[90, 3.0, 20], [0, 110, 11], [0, 0, 1]])[None]  # skewed too
    depth = torch.linspace(0.1, 90, 12 * 20, dtype=torch.float64).view(1, 1, 12, 20)
    uv, z = project(unproject(depth, K), K)
    assert_close(uv[0], pixel_grid(12, 20, like=K))
    assert_close(z, depth)


def test_depth_is_along_z_not_along_the_ray() -> None:
    X = unproject(tensor([[[[2.0, 2.0, 2.0]]]]), pinhole(1.0, 1, 3))
    assert_close(X[0, 2, 0], tensor(2.0, 2.0, 2.0))
    assert_close(X[0, 0, 0], tensor(-2.0, 0.0, 2.0))


def test_the_closed_form_inverse_is_the_inverse() -> None:
    K = tensor([[90, 3.0, 20], [0, 110, 11], [0, 0, 1]])
    assert_close(inverse_intrinsics(K) @ K, torch.eye(3, dtype=torch.float64))


def test_points_behind_and_in_the_camera_stay_behind_and_finite() -> None:
    X = tensor([[1.0, 1, -5], [1, 1, 0], [0, 0, 0], [1, 1, 1e-9]]).T.reshape(1, 3, 1, 4).requires_grad_()
    uv, z = project(X, pinhole(100, 8, 8))
    assert_close(z.flatten(), tensor(-5.0, 0.0, 0.0, 1e-9))
    assert uv.isfinite().all()
    (uv.sum() + z.sum()).backward()
    assert X.grad is not None
    assert X.grad.isfinite().all()


def test_projecting_and_unprojecting_have_true_gradients() -> None:
    K = pinhole(5.0, 2, 3).requires_grad_()
    depth = torch.linspace(1, 3, 6, dtype=torch.float64).view(1, 1, 2, 3).requires_grad_()
    assert gradcheck(unproject, (depth, K))
    assert gradcheck(project, (unproject(depth, K).detach().requires_grad_(), K))


def test_intrinsics_follow_pixel_edges() -> None:
    K = tensor([[100, 0, 31.5], [0, 80, 15.5], [0, 0, 1]])
    half = resize_intrinsics(K, 0.5, 0.25)
    assert_close(half, tensor([[50, 0, 15.5], [0, 20, 3.5], [0, 0, 1]]))  # the middle stays the middle
    assert_close(resize_intrinsics(half, 2, 4), K)
    # The same ray is at u before and at (u + .5) s - .5 after.
    ray = tensor(0.07, -0.03, 1.0)
    u, v, _ = K @ ray
    assert_close((half @ ray)[:2], torch.stack([(u + 0.5) / 2 - 0.5, (v + 0.5) / 4 - 0.5]))


def test_a_wrong_shape_is_named() -> None:
    with pytest.raises(ValueError, match=r"K has shape \(3, 3\), expected \(1, 3, 3\)"):
        unproject(torch.ones(1, 1, 4, 4), torch.eye(3))
    with pytest.raises(ValueError, match="points has shape"):
        project(torch.ones(1, 4, 4, 4), torch.eye(3)[None])
