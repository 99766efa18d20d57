"""Fixtures that every test may use."""

import os
from pathlib import Path

import pytest

os.environ["OMP_NUM_THREADS"] = "1"  # read as torch loads; everything here is too small for two


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real volumes beside the checkout; tests that need it skip without it."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("MEDAR_SHARED_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder} (set MEDAR_SHARED_DATA)")
    return folder
