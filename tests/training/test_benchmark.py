"""Every case of the benchmark runs, small."""

from __future__ import annotations

import pytest

from training.benchmark_cases import CASES, Case, Setting


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_case_runs(case: Case) -> None:
    setting = Setting(batch=1, size=(64, 32), instances=2)
    case.ours(setting)()
    if case.reference is not None:
        case.reference(setting)()
