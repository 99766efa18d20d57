"""Fixtures that every test may use."""

import os
import socket
import subprocess
import sys
import warnings
from collections.abc import Callable
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
def mlflow_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database of MLflow's, to be copied: making its tables takes seconds."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        warnings.simplefilter("ignore")  # MLflow's own, as it is imported
        import mlflow.pyfunc

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    mlflow.MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def in_two_processes() -> Callable[..., None]:
    """Runs a script as two processes that find each other, as torchrun starts them."""
    root = Path(__file__).resolve().parents[1]

    def run(script: Path, *words: object) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        common = {"PYTHONPATH": str(root), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        processes = [
            subprocess.Popen(
                [sys.executable, script, *map(str, words)],
                env={**os.environ, **common, "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2"},
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in ("0", "1")
        ]
        said = [process.communicate(timeout=120)[1] for process in processes]
        assert [process.returncode for process in processes] == [0, 0], said

    return run
