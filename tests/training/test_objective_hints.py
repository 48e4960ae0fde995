"""Hints and alignment within the training step: who learns from them, and when."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from pipeline.errors import ConfigError
from tests.training.objectives import ALIGNED, FULL, LATE, fixed_view, flat_pairs
from tests.training.scenes import made_batch, stub_networks, texture
from training.alignment import AlignmentConfig
from training.motion import MotionConfig
from training.objective import ObjectiveConfig, alignment_terms, hint_term, scale_kept, training_step
from training.sweep import SweepConfig


def test_depth_is_pulled_towards_where_the_images_agree() -> None:
    """Both directions have their turn; the gradient of a depth that is too large is positive."""
    pairs = flat_pairs((0, 0))
    truth = 4.0
    shift = truth / 40.0  # a pixel at f = 40
    far = torch.full_like(pairs.D_t, 2 * truth).requires_grad_()
    motions, _ = fixed_view(pairs, shift)
    for backward in (False, True):
        term = hint_term(replace(pairs, D_t=far), motions, SweepConfig(window_px=5), backward)
        assert 0.1 < float(term.detach()) < math.log(2)
        (found,) = torch.autograd.grad(term, far)
        half = slice(2, None) if backward else slice(2)
        other = slice(2) if backward else slice(2, None)
        assert float((found[half] > 0).float().mean()) > 0.3
        assert (found[half] >= 0).float().mean() > 0.95
        assert not found[other].any()


def test_hints_do_not_reach_what_moves_by_itself() -> None:
    """Its motion was found at its own depth, which it therefore confirms; what stands is taught."""
    pairs = flat_pairs((1, 1))
    truth = 4.0
    motions, _ = fixed_view(pairs, truth / 40.0)
    own = (pairs.labels_t > 0)[:, None]
    taught = []
    for still in (False, True):
        far = torch.full_like(pairs.D_t, 2 * truth).requires_grad_()
        moved = replace(motions, still=torch.full_like(motions.still, still))
        term = hint_term(replace(pairs, D_t=far), moved, SweepConfig(window_px=5), False)
        (found,) = torch.autograd.grad(term, far)
        assert found[:2][~own[:2]].any()
        taught.append(bool(found[:2][own[:2]].any()))
    assert taught == [False, True]


def test_what_alignment_found_is_taught_to_the_networks_and_to_nothing_else() -> None:
    networks = stub_networks()
    config = replace(FULL, alignment=1.0, motion=MotionConfig(refinements=0, alignment=ALIGNED))
    outcome = training_step(networks, made_batch(), config, LATE)
    assert {"camera_alignment", "object_alignment"} <= set(outcome.terms)
    assert not outcome.motions.camera.requires_grad
    assert not outcome.motions.regions.requires_grad
    assert outcome.motions.proposed_camera.requires_grad
    terms = alignment_terms(outcome.pairs, outcome.motions, ALIGNED)
    for name, learner in (("camera_alignment", networks.ego), ("object_alignment", networks.objects)):
        (found,) = torch.autograd.grad(terms[name], [learner.layer.weight], retain_graph=True)  # type: ignore[union-attr]
        assert found.any(), name
    assert alignment_terms(outcome.pairs, outcome.motions, AlignmentConfig()) == {}


class Scaled(torch.nn.Module):
    """A network's inverse depths times a learned factor."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network, self.log_factor = network, torch.nn.Parameter(torch.zeros(()))

    def forward(self, images: Tensor) -> list[Tensor]:
        return [each * self.log_factor.exp() for each in self.network(images)]


def test_where_scale_is_kept_only_its_own_term_moves_it() -> None:
    """Values stand; gradients are the same up to what they do to the scale of a window."""
    disparity = (0.2 + texture((2, 2, 1, 8, 12), 3)).requires_grad_()
    kept = scale_kept(disparity)
    assert torch.equal(kept, disparity)
    pull = texture((2, 2, 1, 8, 12), 4)
    (free,) = torch.autograd.grad((disparity.log() * pull).sum(), disparity)
    (held,) = torch.autograd.grad((kept.log() * pull).sum(), disparity)
    free, held = free * disparity, held * disparity  # of log disparity
    assert_close(held.sum((1, 2, 3, 4)), torch.zeros(2), atol=1e-4, rtol=0)
    assert_close(held, free - free.mean((1, 2, 3, 4), keepdim=True))

    networks, batch = stub_networks(), made_batch(F=2)
    networks.depth = Scaled(networks.depth)
    config = replace(FULL, hint=1.0, keep_scale=True)
    for scale, moved in ((0.0, False), (1.0, True)):
        outcome = training_step(networks, batch, replace(config, scale=scale), LATE)
        (pull,) = torch.autograd.grad(outcome.total, networks.depth.log_factor)
        assert (abs(float(pull)) > 0.1) == moved, scale
        assert moved or abs(float(pull)) < 1e-5
    plain = training_step(networks, batch, replace(config, keep_scale=False), LATE)
    (pull,) = torch.autograd.grad(plain.total, networks.depth.log_factor)
    assert abs(float(pull)) > 1e-3
    assert_close(plain.total, training_step(networks, batch, config, LATE).total)


def test_steps_before_hints_have_none() -> None:
    config = replace(FULL, hint=1.0, hint_from=10)
    assert "hint" not in training_step(stub_networks(), made_batch(), config, 9).terms
    assert "hint" in training_step(stub_networks(), made_batch(), config, 10).terms


@pytest.mark.parametrize(
    "change", [{"hint": -1.0}, {"scale": math.inf}, {"alignment": -1.0}, {"hint_from": -1}]
)
def test_weights_of_hints_and_alignment_are_checked(change: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        ObjectiveConfig(**change)  # type: ignore[arg-type]
