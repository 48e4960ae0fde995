"""Camera motion: snippets and pairs whose errors are known on paper."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.odometry import (
    PairSums,
    SnippetSums,
    angle_between,
    figures,
    inverse,
    pair_sums,
    relative_motions,
    rotation_angle,
    snippet_error,
    snippet_starts,
    snippet_sums,
)
from evaluation.trajectories import chain
from tests.evaluation.made import rigid

DRIVE = chain(np.stack([rigid((0.1 * k, 0, -1 - 0.2 * k), 3 * k, k) for k in range(9)]))


def straight(*z: float) -> np.ndarray:
    """Poses on a line."""
    return np.stack([rigid((0, 0, each)) for each in z])


def scaled(motions: np.ndarray, scale: float) -> np.ndarray:
    result = motions.copy()
    result[:, :3, 3] *= scale
    return result


@given(st.floats(1e-3, 1e3), st.floats(-180, 180))
def test_a_perfect_estimate_of_any_scale_and_in_any_world_has_no_error(scale: float, yaw: float) -> None:
    estimate = rigid((5, 6, 7), yaw) @ scaled(DRIVE, scale)
    for tails in (False, True):
        assert snippet_sums(estimate, DRIVE, tails).mean == pytest.approx(0, abs=1e-9)
    pairs = pair_sums(relative_motions(estimate), relative_motions(DRIVE))
    assert pairs.rotation == pytest.approx(0, abs=1e-5)
    assert pairs.direction == pytest.approx(0, abs=1e-5)


def test_the_error_of_a_snippet_is_the_root_of_the_sum_of_squares_over_five() -> None:
    # True positions 0 1 2 3 4; estimated 0 2 0 0 0: scale 2 / 4, residues 0, 2, 3, 4.
    error = snippet_error(straight(0, 2, 0, 0, 0), straight(0, 1, 2, 3, 4))
    assert error == pytest.approx(np.sqrt(0 + 4 + 9 + 16) / 5)


def test_predicting_a_standing_camera_costs_the_whole_way() -> None:
    assert snippet_error(straight(0, 0, 0, 0, 0), straight(0, 1, 2, 3, 4)) == pytest.approx(np.sqrt(30) / 5)
    assert snippet_error(straight(*[0] * 5), straight(*[0] * 5)) == 0


def test_both_snippet_sets() -> None:
    assert snippet_starts(7, tails=False) == [(0, 5), (1, 5), (2, 5)]
    assert snippet_starts(7, tails=True) == [(0, 5), (1, 5), (2, 5), (3, 4), (4, 3), (5, 2)]
    assert snippet_starts(4, tails=False) == []
    assert snippet_starts(1, tails=True) == []
    assert snippet_sums(straight(0, 1), straight(0, 1)) == SnippetSums()


def test_mean_and_deviation_over_snippets() -> None:
    total = SnippetSums(snippets=1, error=1.0, error_square=1.0) + SnippetSums(
        snippets=1, error=3.0, error_square=9.0
    )
    assert (total.mean, total.std) == (2, 1)
    assert np.isnan(SnippetSums().mean)
    assert np.isnan(SnippetSums().std)


def test_a_known_yaw_error_is_found_in_degrees() -> None:
    truth = np.stack([rigid((0, 0, -1), 2.0)] * 3)
    found = pair_sums(np.stack([rigid((0, 0, -1), 2.5)] * 3), truth)
    assert found.rotation / found.pairs == pytest.approx(0.5)
    assert found.rotation_none / found.pairs == pytest.approx(2)


def test_direction_is_that_of_the_camera_not_of_the_points() -> None:
    # Same way of the camera, another rotation: the translation of later_T_earlier differs, the way not.
    truth = inverse(rigid((0, 0, 1), 0))[None]
    turned = inverse(rigid((0, 0, 3), 30))[None]
    assert pair_sums(turned, truth).direction == pytest.approx(0, abs=1e-9)
    sideways = inverse(rigid((1, 0, 1), 0))[None]
    assert pair_sums(sideways, truth).direction == pytest.approx(45)
    assert pair_sums(inverse(rigid((0, 0, -1)))[None], truth).direction == pytest.approx(180)


def test_a_camera_that_stands_still_is_not_asked_for_its_direction() -> None:
    truth = np.stack([rigid((0, 0, -1)), rigid((0, 0, -0.001), 1)])
    found = pair_sums(np.stack([rigid((0, 0, -2)), rigid((1, 0, 0))]), truth)
    assert (found.pairs, found.moving) == (2, 1)
    assert found.direction == pytest.approx(0)
    assert found.rotation == pytest.approx(1)


def test_no_predicted_translation_is_ninety_degrees_off() -> None:
    assert pair_sums(np.eye(4)[None], rigid((0, 0, -1))[None]).direction == pytest.approx(90)


@given(st.floats(-179, 179))
def test_the_angle_of_a_rotation(yaw: float) -> None:
    assert np.degrees(rotation_angle(rigid(yaw_deg=yaw)[:3, :3])) == pytest.approx(abs(yaw), abs=1e-9)


def test_angles_are_exact_where_arccos_is_not() -> None:
    assert rotation_angle(rigid(yaw_deg=1e-7)[:3, :3]) == pytest.approx(np.radians(1e-7), rel=1e-6)
    assert angle_between(np.array([1, 0, 0]), np.array([1, 1e-9, 0])) == pytest.approx(1e-9, rel=1e-6)


def test_figures_name_their_snippets_and_counts() -> None:
    full, tails = (snippet_sums(DRIVE, DRIVE, each) for each in (False, True))
    motions = relative_motions(DRIVE)
    found = {each.name: each for each in figures(full, tails, pair_sums(motions, motions), "test")}
    assert found["5-frame ATE mean, n-4 full snippets"].count == 6
    assert found["5-frame ATE mean, n-1 snippets with short tails"].count == 9
    assert found["camera rotation error"].count == 9
    empty = figures(SnippetSums(), SnippetSums(), PairSums(), "test")
    assert all(np.isnan(each.value) and each.count == 0 for each in empty)


def test_sequences_of_different_length_are_not_compared() -> None:
    with pytest.raises(ValueError, match="true ones"):
        snippet_sums(DRIVE[:-1], DRIVE)
    with pytest.raises(ValueError, match="true ones"):
        pair_sums(DRIVE[:-1], DRIVE)
