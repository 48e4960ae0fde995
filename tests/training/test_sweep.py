"""The sweep of depths: it finds what images show, and says where they show nothing."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from pipeline.errors import ConfigError
from tests.training.scenes import pinhole, texture, true_pair
from training.geometry import se3
from training.geometry.camera import divide
from training.geometry.warp import inverse_warp, region_rays
from training.sweep import SweepConfig, sweep

H, W, F = 40, 80, 60.0
CONFIG = SweepConfig(steps=20, span=1.2, window_px=7, unique=0.85)
ASIDE = se3.from_euler(torch.zeros(3), torch.tensor([0.6, 0.0, 0.0]))
INNER = (slice(None), slice(None), slice(6, -6), slice(16, -16))


def plane(depth: float, motion: Tensor, labels: Tensor | None = None, seed: int = 0) -> tuple[Tensor, ...]:
    """Target, source, true depth and K of a fronto-parallel plane under s_T_t."""
    K = pinhole(F, H, W, torch.float32)[None]
    source = texture((1, 3, H, W), seed, cells=3)
    truth = torch.full((1, 1, H, W), depth)
    return inverse_warp(source, truth, truth, K, motion[None, None], None).image, source, truth, K


def judged(guess: float, config: SweepConfig = CONFIG) -> tuple[slice, slice, slice, slice]:
    """Pixels inside the image whose source pixel is too at the nearest depth that is tried."""
    moved = math.ceil(F * 0.6 / (guess * math.exp(-config.span)))
    return (slice(None), slice(None), slice(6, -6), slice(6, W - 1 - moved))


def none() -> Tensor:
    return torch.zeros(1, H, W, dtype=torch.long)


@pytest.mark.parametrize("wrong", [0.4, 0.6, 1.5, 2.5])
def test_a_plane_is_found_from_a_wrong_depth(wrong: float) -> None:
    target, source, truth, K = plane(6.0, ASIDE)
    hints = sweep(target, source, truth * wrong, K, ASIDE[None, None], none(), none(), CONFIG)
    inner = hints.believed[judged(6.0 * wrong)]
    assert inner.float().mean() > 0.7
    error = (hints.depth / truth).log().abs()[judged(6.0 * wrong)][inner]
    # Steps are 12 % apart; a parabola comes nearer.
    assert error.median() < 0.03
    assert error.quantile(0.9) < 0.1


def test_the_truth_is_not_moved() -> None:
    target, source, truth, K = plane(6.0, ASIDE)
    hints = sweep(target, source, truth, K, ASIDE[None, None], none(), none(), CONFIG)
    assert not hints.believed[INNER].any()


def test_nothing_is_believed_without_texture_without_motion_or_beyond_the_span() -> None:
    target, source, truth, K = plane(6.0, ASIDE)
    flat = torch.full_like(target, 0.5)
    assert not sweep(flat, flat, truth * 2, K, ASIDE[None, None], none(), none(), CONFIG).believed.any()
    still = torch.eye(4)[None, None]
    assert not sweep(source, source, truth * 2, K, still, none(), none(), CONFIG).believed.any()
    near = SweepConfig(steps=20, span=0.3, unique=0.6)
    far_off = sweep(target, source, truth * 4, K, ASIDE[None, None], none(), none(), near)
    assert far_off.believed[INNER].float().mean() < 0.05


def test_what_is_in_neither_frame_or_of_another_region_is_not_believed() -> None:
    target, source, truth, K = plane(6.0, ASIDE)
    labels = none()
    labels[:, 10:30, 20:50] = -1
    hints = sweep(target, source, truth * 1.5, K, ASIDE[None, None], labels, none(), CONFIG)
    assert not hints.believed[0, 0][labels[0] < 0].any()
    # The source shows an object wherever the target's background could have come from.
    objects = torch.ones(1, H, W, dtype=torch.long)
    hints = sweep(target, source, truth * 1.5, K, ASIDE[None, None], none(), objects, CONFIG)
    assert not hints.believed.any()


def test_nothing_is_believed_where_the_right_depth_may_lie_outside_the_source() -> None:
    """What remains there are depths that are too far, and one of them always fits best."""
    target, source, truth, K = plane(6.0, ASIDE)
    hints = sweep(target, source, truth * 2, K, ASIDE[None, None], none(), none(), CONFIG)
    seen = judged(12.0)
    assert hints.believed[seen].float().mean() > 0.7
    assert not hints.believed[..., seen[3].stop + 1 :].any()


def test_every_region_is_swept_under_its_own_motion() -> None:
    """The right half moves the other way; under the left half's motion it would not be found."""
    K = pinhole(F, H, W, torch.float32)[None]
    other = se3.from_euler(torch.zeros(3), torch.tensor([0.0, 0.5, 0.0]))
    motions = torch.stack([ASIDE, other])[None]
    labels = none()
    labels[:, :, W // 2 :] = 1
    truth = torch.full((1, 1, H, W), 6.0)
    source = texture((1, 3, H, W), 5, cells=3)
    target = inverse_warp(source, truth, truth, K, motions, labels).image
    everywhere = torch.where(torch.arange(W) >= W // 2, 1, 0).expand(1, H, W)
    hints = sweep(target, source, truth * 1.6, K, motions, labels, everywhere, CONFIG)
    right = (slice(None), slice(None), slice(8, -8), slice(W // 2 + 6, -6))
    assert hints.believed[right].float().mean() > 0.5
    error = (hints.depth / truth).log().abs()[right][hints.believed[right]]
    assert error.median() < 0.05


def test_rays_and_shift_are_the_inverse_warps() -> None:
    generator = torch.Generator().manual_seed(0)
    motions = se3.exp(torch.randn(2, 3, 6, generator=generator) * 0.1)
    regions = torch.randint(0, 3, (2, H, W), generator=generator)
    K = pinhole(F, H, W, torch.float32).expand(2, 3, 3)
    depth = 4 + 3 * torch.rand(2, 1, H, W, generator=generator)
    rays, shift = region_rays(K, motions, regions, H, W)
    uv, z = divide(rays * depth + shift)
    view = inverse_warp(torch.rand(2, 3, H, W), depth, depth, K, motions, regions)
    assert_close(uv, view.uv, rtol=1e-5, atol=1e-4)
    assert_close(z, view.moved_depth)


def test_on_true_streets_hints_are_better_than_a_wrong_depth(streets: Path) -> None:
    pairs, _, regions, _ = true_pair(streets / "test_0001", 1)
    smooth = torch.nn.functional.avg_pool2d(1 / pairs.D_t, 33, 1, 16, count_include_pad=False)
    guess = 1.3 / smooth
    hints = sweep(pairs.I_t, pairs.I_s, guess, pairs.K, regions, pairs.labels_t, pairs.labels_s, CONFIG)
    judged = hints.believed & (pairs.D_t < 80)
    assert judged.float().mean() > 0.2

    def error(depth: Tensor) -> float:
        return float((depth / pairs.D_t).log().abs()[judged].median())

    assert error(hints.depth) < 0.4 * error(guess)


@pytest.mark.parametrize(
    "change",
    [{"steps": 3}, {"window_px": 4}, {"span": 0.0}, {"span": math.inf}, {"unique": 0.0}, {"unique": 1.5}],
)
def test_settings_that_mean_nothing_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        SweepConfig(**change)  # type: ignore[arg-type]
