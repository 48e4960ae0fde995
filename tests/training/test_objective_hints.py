"""Hints and alignment within the training step: who learns from them, and when."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from pipeline.errors import ConfigError
from tests.training.scenes import made_batch, stub_networks
from tests.training.test_objective import ALIGNED, FULL, LATE, fixed_view, flat_pairs
from training.alignment import AlignmentConfig
from training.motion import MotionConfig
from training.objective import ObjectiveConfig, alignment_terms, hint_term, training_step
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
