"""Choosing frames: strides, slower clocks, time spans, upper rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.camera import Camera, pinhole
from pipeline.errors import ConfigError
from pipeline.sources.clip import Clip
from pipeline.sources.selection import SelectedReader, select_clip, select_frames


def test_stride_and_span():
    times = np.arange(20) / 10
    np.testing.assert_array_equal(select_frames(times, stride=7), [0, 7, 14])
    np.testing.assert_array_equal(select_frames(times, start_s=0.5, end_s=0.9), [5, 6, 7, 8])
    np.testing.assert_array_equal(select_frames(times, stride=3, start_s=1.55), [16, 19])
    assert len(select_frames(times, start_s=99)) == 0


def test_slower_clock_takes_the_nearest_frames_and_the_earlier_of_two():
    times = np.arange(26) / 25
    np.testing.assert_array_equal(
        select_frames(times, target_fps=10), [0, 2, 5, 7, 10, 12, 15, 17, 20, 22, 25]
    )
    np.testing.assert_array_equal(select_frames(times, target_fps=5), [0, 5, 10, 15, 20, 25])


@given(
    gaps=st.lists(st.floats(0.001, 0.5), min_size=1, max_size=40),
    fps=st.floats(0.5, 60),
)
def test_every_tick_has_its_nearest_frame(gaps, fps):
    times = np.concatenate([[0], np.cumsum(gaps)])
    picks = select_frames(times, target_fps=fps)
    assert np.all(np.diff(picks) > 0)
    for tick in np.arange(0, times[-1], 1 / fps):
        assert np.abs(times[picks] - tick).min() <= np.abs(times - tick).min() + 2e-6


def test_a_faster_clock_keeps_every_frame_once():
    times = np.arange(30) / 10
    np.testing.assert_array_equal(select_frames(times, target_fps=30), np.arange(30))


def test_both_or_senseless_settings_are_refused():
    settings: list[dict[str, Any]] = [{"stride": 2, "target_fps": 5.0}, {"stride": 0}, {"target_fps": 0.0}]
    for wrong in [*settings, {"target_fps": np.inf}]:
        with pytest.raises(ConfigError):
            select_frames(np.arange(5) / 10, **wrong)


@dataclass(frozen=True)
class Counter:
    """Frame n is full of n."""

    first: int = 0

    def part(self, start: int, stop: int) -> Counter:
        return Counter(self.first + start)

    def frames(self, start: int, stop: int) -> Iterator[np.ndarray]:
        for number in range(self.first + start, self.first + stop):
            yield np.full((40, 60, 3), number, np.uint8)


def test_selecting_frames_and_rows_of_any_reader():
    clip = Clip(
        name="c",
        timestamps_s=np.arange(9) / 10,
        frame_names=tuple("abcdefghi"),
        camera=Camera(K=pinhole(50, 50, 30, 20), size=(60, 40)),
        reader=Counter(),
        fingerprint="0",
    )
    assert select_clip(clip, np.arange(9), 40) is clip

    some = select_clip(clip, np.array([1, 4, 8]), 30)
    assert isinstance(some.reader, SelectedReader)
    assert some.frame_names == ("b", "e", "i")
    np.testing.assert_allclose(some.timestamps_s, [0.1, 0.4, 0.8])
    assert some.camera.size == (60, 30)
    np.testing.assert_array_equal(some.camera.K, clip.camera.K)
    frames = list(some.reader.frames(1, 3))
    assert [frame[0, 0, 0] for frame in frames] == [4, 8]
    assert all(frame.shape == (30, 60, 3) for frame in frames)
    assert list(some.reader.frames(2, 2)) == []
    with pytest.raises(IndexError):
        list(some.reader.frames(0, 4))
    part = some.part(1, 3)
    assert (part.frame_names, part.fingerprint) == (("e", "i"), some.fingerprint)
    np.testing.assert_allclose(part.timestamps_s, [0.4, 0.8])
    np.testing.assert_array_equal(list(part.reader.frames(0, 2)), frames)

    prints = {clip.fingerprint, some.fingerprint, select_clip(clip, np.array([1, 4, 7]), 30).fingerprint}
    prints.add(select_clip(clip, np.array([1, 4, 8]), 31).fingerprint)
    assert len(prints) == 4
