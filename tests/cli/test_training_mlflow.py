"""What the training commands log to MLflow: data sets and, when finished, models."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from medar.tracking import MlflowTracker
from medar.tracking.data import data_set

torch.set_num_threads(1)

Medar = Callable[..., Any]

TRAINING = {"steps": 2, "precision": "fp32", "device": "cpu", "log_every": 1, "evaluate_every": 1}
TOKENIZER: dict[str, Any] = {
    "plan": {"size": [8, 8, 8], "downsampling": [4, 4, 4]},
    "model": {
        "patch_size": 2, "width": 4, "width_multipliers": [1, 2], "scales": 2,
        "codebook": {"size": 16, "width": 8},
    },
    "data": {"batch_size": 1},
    "training": TRAINING,
}  # fmt: skip
GENERATOR: dict[str, Any] = {
    "model": {"depth": 1, "head_width": 8},
    "data": {"batch_size": 2, "previews": 1},
    "training": TRAINING,
}


@pytest.fixture
def client(mlflow_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    from mlflow import MlflowClient

    uri = f"sqlite:///{shutil.copy(mlflow_database, tmp_path)}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return MlflowClient(tracking_uri=uri)


def written(path: Path, values: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(values))
    return path


def the_model(client: Any, name: str) -> Any:
    """The model version behind the alias, its run, and the number of versions."""
    version = client.get_model_version_by_alias(name, "best")
    model = client.get_logged_model(version.source.removeprefix("models:/"))
    return model, client.get_run(model.source_run_id)


def test_finished_trainings_log_data_and_models_to_mlflow(
    client: Any, medar: Medar, data: Path, tmp_path: Path
) -> None:
    rows = [("c0", "train"), ("c1", "train"), ("c2", "val"), ("c3", "test")]
    (data / "cases.csv").write_text("id,split\n" + "".join(f"{a},{b}\n" for a, b in rows))
    kept = ["--register", "tiny tokenizer", "--alias", "best"]
    first, second, tokens = (tmp_path / name for name in ("first", "second", "tokens"))
    train = ["tokenizer", "train", written(tmp_path / "t.yaml", TOKENIZER), "--data", data]
    train += ["--attributes", data / "cases.csv", "--out", first]
    assert medar(*train).code == 0
    again = medar(*train, *kept)  # nothing is left to do but to register
    assert again.code == 0, again.err
    model, run = the_model(client, "tiny tokenizer")
    assert model.model_type == "tokenizer"
    assert len(client.search_logged_models([model.experiment_id])) == 1
    (given,) = run.inputs.dataset_inputs
    assert (given.dataset.name, given.dataset.digest) == (
        "data",
        data_set(first / "prepared").digest,
    )
    assert json.loads(given.dataset.profile) == {"cases": 4, "train": 2, "val": 1, "test": 1}
    lines = [json.loads(line) for line in (first / "metrics.jsonl").read_text().splitlines()]
    psnr = {metric.key: metric.value for metric in model.metrics}["psnr"]
    assert psnr == max(line["validation/psnr"] for line in lines)

    assert medar("tokenizer", "encode", first / "prepared", tokens, "--model", first).code == 0
    train = ["generator", "train", written(tmp_path / "g.yaml", GENERATOR), "--data", tokens]
    kept[1] = "tiny generator"
    result = medar(*train, "--out", second, *kept, "--json")
    assert result.code == 0, result.err
    model, run = the_model(client, "tiny generator")
    (given,) = run.inputs.dataset_inputs
    assert (given.dataset.name, given.dataset.digest) == ("tokens", data_set(tokens).digest)
    moved = shutil.copytree(tokens, tmp_path / "moved" / "tokens")
    assert data_set(moved).digest == data_set(tokens).digest
    index = moved / "tokens.json"
    index.write_text(index.read_text().replace('"split": "test"', '"split": "val"'))
    assert data_set(moved).digest != data_set(tokens).digest
    best = json.loads(result.out)["best"]
    assert {metric.key: metric.value for metric in model.metrics}["cross_entropy"] == best


def test_a_failed_registration_is_reported(
    medar: Medar, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    rows = [("c0", "train"), ("c1", "train"), ("c2", "val"), ("c3", "test")]
    (data / "cases.csv").write_text("id,split\n" + "".join(f"{a},{b}\n" for a, b in rows))
    train = ["tokenizer", "train", written(tmp_path / "t.yaml", TOKENIZER), "--data", data]
    train += ["--attributes", data / "cases.csv", "--out", tmp_path / "run"]
    assert medar(*train).code == 0
    result = medar(*train, "--register", "tiny")
    assert result.code == 1
    assert "127.0.0.1:9 (no run there)" in result.err
    assert (tmp_path / "run" / "model" / "config.json").exists()


@pytest.mark.parametrize("words", [(), ("training.steps=-1",), ("data.batch_size=99",)])
def test_commands_close_the_tracker_in_every_case(
    words: tuple[str, ...],
    client: Any,
    medar: Medar,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Counted(MlflowTracker):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            trackers.append(self)

        def close(self) -> None:
            closed.append(self)
            super().close()

    trackers: list[MlflowTracker] = []
    closed: list[MlflowTracker] = []
    monkeypatch.setattr("medar.tracking.MlflowTracker", Counted)
    rows = [("c0", "train"), ("c1", "train"), ("c2", "val"), ("c3", "test")]
    (data / "cases.csv").write_text("id,split\n" + "".join(f"{a},{b}\n" for a, b in rows))
    train = ["tokenizer", "train", written(tmp_path / "t.yaml", TOKENIZER), *words]
    train += ["--data", data, "--attributes", data / "cases.csv", "--out", tmp_path / "run"]
    for _ in range(2):  # the second time the run is finished, or fails again
        medar(*train)
    assert set(map(id, closed)) == set(map(id, trackers))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--alias", "best"], "name one (--register)"),
        (["--register", "a/b"], "register 'a/b'"),
        (["--register", "a", "--untracked"], "leave out --untracked"),
    ],
)
def test_model_names_are_checked_before_training(
    words: list[str], message: str, medar: Medar, data: Path, tmp_path: Path
) -> None:
    config = written(tmp_path / "t.yaml", TOKENIZER)
    out = tmp_path / "run"
    refused = medar("tokenizer", "train", config, "--data", data, "--out", out, *words)
    assert message in refused.refusal
    assert not out.exists()
