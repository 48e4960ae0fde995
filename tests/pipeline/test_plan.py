"""The plan: every frame once, in order, wherever the borders fall."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from pipeline.plan import PlanConfig, plan_files


def layout(lengths: list[int], per_file: int = 10, per_piece: int = 4) -> list[list[tuple[int, int, int]]]:
    config = PlanConfig(frames_per_file=per_file, frames_per_piece=per_piece)
    return [[(s.clip_index, s.start, s.stop) for s in file.segments] for file in plan_files(lengths, config)]


def test_short_clips_are_grouped_whole() -> None:
    assert layout([4, 5, 3, 10]) == [[(0, 0, 4), (1, 0, 5)], [(2, 0, 3)], [(3, 0, 10)]]


def test_a_long_clip_has_files_of_its_own() -> None:
    assert layout([3, 25, 3]) == [[(0, 0, 3)], [(1, 0, 10)], [(1, 10, 20)], [(1, 20, 25)], [(2, 0, 3)]]


def test_pieces_do_not_cross_clips_or_files() -> None:
    config = PlanConfig(frames_per_file=10, frames_per_piece=4)
    names = [[piece.name for piece in file.pieces(4)] for file in plan_files([4, 5, 12], config)]
    assert names == [
        ["000000-00000000", "000001-00000000", "000001-00000004"],
        ["000002-00000000", "000002-00000004", "000002-00000008"],
        ["000002-00000010"],
    ]


@given(
    lengths=st.lists(st.integers(2, 60), max_size=12), per_piece=st.integers(2, 9), files=st.integers(1, 5)
)
def test_every_frame_is_planned_once_in_order(lengths: list[int], per_piece: int, files: int) -> None:
    config = PlanConfig(frames_per_file=per_piece * files, frames_per_piece=per_piece)
    planned = plan_files(lengths, config)
    everything = [(i, frame) for i, length in enumerate(lengths) for frame in range(length)]
    for parts in (
        [segment for file in planned for segment in file.segments],
        [piece for file in planned for piece in file.pieces(per_piece)],
    ):
        assert [(p.clip_index, frame) for p in parts for frame in range(p.start, p.stop)] == everything
    for file in planned:
        assert sum(s.stop - s.start for s in file.segments) <= config.frames_per_file
    assert [file.index for file in planned] == list(range(len(planned)))


def test_impossible_cuts_are_refused() -> None:
    with pytest.raises(ConfigError, match="frames_per_piece must be at least 2"):
        PlanConfig(frames_per_piece=1)
    with pytest.raises(ConfigError, match="must not be below"):
        PlanConfig(frames_per_file=8, frames_per_piece=9)
