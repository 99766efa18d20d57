"""Fixtures that every test may use."""

import multiprocessing
import os
from multiprocessing.context import ForkServerContext
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


@pytest.fixture(scope="session")
def warm() -> ForkServerContext:
    """Starts processes that have torch loaded: importing it anew takes seconds of each."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch._dynamo", "medar.training"])
    return context
