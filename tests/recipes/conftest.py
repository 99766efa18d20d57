"""Fixtures of the engine's tests; `fakes.py` is importable by the tests of this folder."""

import sys
from pathlib import Path

import pytest

from medar.recipes import desk

sys.path.insert(0, str(Path(__file__).parent))

from fakes import Kitchen


@pytest.fixture
def kitchen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kitchen:
    """Recipes in an empty folder; versions and hardware are not asked for each time."""
    monkeypatch.setattr(desk, "environment", lambda: {"python": "3"})
    return Kitchen(tmp_path / "out")
