"""Times of a build: kept over its runs, whatever a kill tore off."""

from __future__ import annotations

from pathlib import Path

from pipeline.timings import RunTimes, note_piece, read_times


def test_times_are_summed_by_run_and_stage(tmp_path: Path) -> None:
    path = tmp_path / "work" / "timings.jsonl"
    assert read_times(path) == ()
    note_piece(path, "2026-01-02T00:00:00.000+00:00", "000000-00000000", 32, {"detect": 2.0, "decode": 0.25})
    note_piece(path, "2026-01-02T00:00:00.000+00:00", "000000-00000032", 8, {"detect": 0.5})
    note_piece(path, "2026-01-03T00:00:00.000+00:00", "000001-00000000", 32, {"detect": 1.0})
    assert read_times(path) == (
        RunTimes(began="2026-01-02T00:00:00.000+00:00", frames=40, seconds={"decode": 0.25, "detect": 2.5}),
        RunTimes(began="2026-01-03T00:00:00.000+00:00", frames=32, seconds={"detect": 1.0}),
    )


def test_a_line_that_a_kill_tore_off_costs_no_other_line(tmp_path: Path) -> None:
    path = tmp_path / "timings.jsonl"
    note_piece(path, "a", "000000-00000000", 32, {"detect": 2.0})
    note_piece(path, "a", "000000-00000032", 32, {"detect": 2.0})
    whole = path.read_bytes()
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        before = sum(run.frames for run in read_times(path))
        note_piece(path, "b", "000001-00000000", 8, {})
        assert sum(run.frames for run in read_times(path)) == before + 8


def test_lines_of_something_else_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "timings.jsonl"
    path.write_bytes(b'{"began": 1}\n[]\n\xff\n{"began": "a", "frames": "x", "seconds": {}}\n')
    assert read_times(path) == ()
