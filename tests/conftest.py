"""Fixtures that every test folder shares."""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path

import pytest

from tests.faults.table import Fault

# Before torch is loaded, and for every process that a test starts: threads that wait for each
# other on a shared core spin, and a test takes ten times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

ROOT = Path(__file__).parent.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test's fault travels with its report, from whichever process ran it."""
    for item in items:
        for marker in item.iter_markers("fault"):
            fault: Fault = marker.args[0]
            item.user_properties.append(("fault", fault.name))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """After a run of the faults (`-m fault`): every row, its tests, how they ended."""
    if "fault" not in config.getoption("markexpr"):
        return
    rows: defaultdict[str, defaultdict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in terminalreporter.stats.get(outcome, ()):
            for name, fault in getattr(report, "user_properties", ()):  # a file that cannot be read has none
                if name == "fault":
                    rows[fault][report.nodeid.split("[")[0]].append(outcome)
    terminalreporter.section("faults")
    for row in Fault:
        terminalreporter.write_line(row.value)
        for test, outcomes in sorted(rows[row.name].items()):
            counts = ", ".join(f"{outcomes.count(each)} {each}" for each in dict.fromkeys(outcomes))
            terminalreporter.write_line(f"    {test}: {counts}")
        if not rows[row.name]:
            terminalreporter.write_line("    (no test ran)")


@pytest.fixture(scope="session")
def test_data() -> Path:
    """Folder with real KITTI frames and a dashcam clip; tests that need it skip without it."""
    folder = Path(os.environ.get("INSTANCE_MOTION_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set INSTANCE_MOTION_TEST_DATA")
    return folder


@pytest.fixture(scope="session")
def streets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three short streetworld clips of 208x64, one of them longer than the others."""
    from pipeline.streetworld.clip import ClipConfig, render_clip
    from workflows.streetworld import FIRST_SEED

    folder = tmp_path_factory.mktemp("streets")
    for number, frames in ((0, 14), (1, 6), (2, 6)):
        name = f"test_{number:04d}"
        render_clip(folder / name, FIRST_SEED["test"] + number, ClipConfig(frames=frames, size=(208, 64)))
    return folder


@pytest.fixture(scope="session")
def street_shards(streets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shard set of `streets`, with true masks."""
    from pipeline.build import BuildConfig, build
    from pipeline.clip import FramesConfig
    from pipeline.detectors import DetectorConfig
    from pipeline.graph import GraphConfig
    from pipeline.matching import MaskConfig
    from pipeline.streetworld.truth import write_label_images

    masks, folder = tmp_path_factory.mktemp("masks"), tmp_path_factory.mktemp("shards") / "set"
    for clip in streets.iterdir():
        write_label_images(clip, masks / clip.name)
    config = BuildConfig(
        frames=FramesConfig(size=(208, 64)),
        detector=DetectorConfig(detector=f"masks:{masks}"),
        masks=MaskConfig(min_area=20),
    )
    build(streets, folder, config, GraphConfig(workers=0), quiet=True)
    return folder


@pytest.fixture(scope="session")
def reference(streets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed build of the streets, in one process."""
    from tests.builds import build

    out = tmp_path_factory.mktemp("reference") / "set"
    build(streets, out)
    return out
