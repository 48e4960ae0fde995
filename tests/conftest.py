"""Fixtures that every test folder shares."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def test_data() -> Path:
    """Folder with real KITTI frames and a dashcam clip; tests that need it skip without it."""
    folder = Path(os.environ.get("INSTANCE_MOTION_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set INSTANCE_MOTION_TEST_DATA")
    return folder
