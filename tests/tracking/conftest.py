"""An MLflow store for each test, and folders of tiny models."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from medar.tracking import MlflowTracker

from ..segmentation.small_segmenters import make_segmenter
from ..synthesis.tiny import tiny_model, tiny_tokenizer

torch.set_num_threads(1)

Make = Callable[..., MlflowTracker]


@pytest.fixture
def store(mlflow_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of an empty store for the test, the default of trackers."""
    uri = f"sqlite:///{shutil.copy(mlflow_database, tmp_path)}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setattr("medar.tracking.tracker.environment", lambda: {"python": "3"})
    return uri


@pytest.fixture
def client(store: str) -> Any:
    """An MLflow client of the store."""
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=store)


@pytest.fixture
def make(store: str, tmp_path: Path) -> Make:
    """Create trackers of the run in `tmp_path/run`."""
    return lambda **options: MlflowTracker(tmp_path / "run", **{"name": "test", **options})


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder."""
    folder = tmp_path_factory.mktemp("models") / "tokenizer"
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder, with a tokenizer in it."""
    folder = tmp_path_factory.mktemp("models") / "generator"
    tokenizer = tiny_tokenizer()
    tiny_model(tokenizer).save_pretrained(folder, tokenizer)
    return folder


@pytest.fixture(scope="session")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder."""
    folder = tmp_path_factory.mktemp("models") / "segmenter"
    make_segmenter().save_pretrained(folder)
    return folder
