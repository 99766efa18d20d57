"""Fixtures; the tests of this folder can import `fakes.py` and `commands.py`."""

import shutil
import sys
from pathlib import Path

import pytest

from medar.recipes import recipe

sys.path.insert(0, str(Path(__file__).parent))

from fakes import FakeRecipe


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeRecipe:
    """Fake recipes in an empty folder, without the slow collection of versions and hardware."""
    monkeypatch.setattr(recipe, "environment", lambda: {"python": "3"})
    return FakeRecipe(tmp_path / "out")


@pytest.fixture
def own_mlflow(tmp_path: Path, mlflow_database: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of an empty MLflow database for scripts that call MLflow themselves."""
    import mlflow.tracking.fluent as fluent

    uri = f"sqlite:///{shutil.copy(mlflow_database, tmp_path)}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setattr(fluent, "_active_experiment_id", None)
    # `mlflow.set_experiment` sets it for the whole process; undone after the test.
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "")
    monkeypatch.delenv("MLFLOW_EXPERIMENT_ID")
    return uri
