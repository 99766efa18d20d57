"""`medar segmentation pretrain` from the command line, and fine-tuning from its result."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

torch.set_num_threads(1)

Medar = Callable[..., Any]

PLAN = {"size": [8, 8, 8], "downsampling": [4, 4, 4]}
TRAINING = {"steps": 2, "precision": "fp32", "device": "cpu", "log_every": 1}
CONFIGS: dict[str, dict[str, Any]] = {
    "tokenizer": {
        "plan": PLAN,
        "model": {"width": 4, "width_multipliers": [1], "codebook": {"size": 16, "width": 4}},
        "data": {"batch_size": 2},
        "training": TRAINING,
    },
    "pretrain": {
        "plan": PLAN,
        "backbone": {"width": 4},
        "pretext": {"mask_block_size": [4, 4, 4]},
        "data": {"batch_size": 2},
        "training": TRAINING,
    },
    "train": {
        "plan": PLAN,
        "backbone": {"width": 4},
        "data": {"batch_size": 1, "augmentation": None},
        "training": TRAINING,
    },
}


@pytest.fixture
def prepared(medar: Medar, data: Path, tmp_path: Path) -> Path:
    """The four images of `data`, prepared, with a YAML file of each kind."""
    for name, values in CONFIGS.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(values))
    rows = [("c0", "train"), ("c1", "train"), ("c2", "val"), ("c3", "test")]
    (data / "cases.csv").write_text("id,split\n" + "".join(f"{a},{b}\n" for a, b in rows))
    result = medar(
        "tokenizer", "train", tmp_path / "tokenizer.yaml", "--data", data, "--out",
        tmp_path / "tokenizer", "--untracked", "--attributes", data / "cases.csv",
    )  # fmt: skip
    assert result.code == 0, result.err
    return tmp_path / "tokenizer" / "prepared"


def pretrain(medar: Medar, prepared: Path, out: Path, *more: object) -> Any:
    config = prepared.parents[1] / "pretrain.yaml"
    words = ["--data", prepared, "--out", out, "--untracked"]
    return medar("segmentation", "pretrain", config, *words, *more)


def test_from_volumes_to_a_network(medar: Medar, prepared: Path, tmp_path: Path) -> None:
    tokenizer, out = tmp_path / "tokenizer", tmp_path / "backbone"
    result = pretrain(medar, prepared, out, "--tokenizer", tokenizer, "--json")
    assert result.code == 0, result.err
    found = json.loads(result.out)
    assert found["step"] == 2
    assert found["metrics"]["loss"] == found["best"]
    assert {path.name for path in out.iterdir()} >= {
        "model", "config.yaml", "metrics.jsonl", "checkpoints"
    }  # fmt: skip
    saved = yaml.safe_load((out / "config.yaml").read_text())
    assert saved["task"]["pretext"]["kind"] == "next_scale"
    masked = pretrain(medar, prepared, tmp_path / "masked", "pretext.kind=masked")
    assert masked.code == 0, masked.err
    for start in (out, tmp_path / "masked"):
        tuned = medar(
            "segmentation", "train", tmp_path / "train.yaml", "--data", prepared,
            "--out", start / "tuned", "--pretrained", start, "--untracked",
        )  # fmt: skip
        assert tuned.code == 0, tuned.err
        saved = yaml.safe_load((start / "tuned" / "config.yaml").read_text())
        assert saved["task"]["pretrained"] != "none"


def test_a_run_in_mlflow(
    medar: Medar, prepared: Path, tmp_path: Path, mlflow_database: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    import mlflow

    uri = f"sqlite:///{shutil.copy(mlflow_database, tmp_path)}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    out = tmp_path / "tracked"
    result = medar(
        "segmentation", "pretrain", tmp_path / "pretrain.yaml", "pretext.kind=masked",
        "--data", prepared, "--out", out,
    )  # fmt: skip
    assert result.code == 0, result.err
    client = mlflow.MlflowClient(tracking_uri=uri)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = client.search_runs(experiments, "tags.`medar.kind` = 'backbone'")
    run = next(run for run in runs if run.info.run_name == "backbone tracked")
    assert run.data.metrics["validation/loss"] > 0
    assert run.data.params["task.pretext.kind"] == "masked"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "pretext.kind next_scale needs a tokenizer"),
        (["pretext.kind=semantic_order"], "pretext.kind semantic_order needs a tokenizer"),
        (["pretext.kind=colour"], "pretext: kind: unknown pretext 'colour'"),
        (["pretext.stagse=3"], "did you mean 'stages'"),
        (["--tokenizer", "nowhere"], "nowhere: no tokenizer"),
        (["--tokenizer", "nowhere", "pretext.kind=masked"], "pretext.kind masked needs none"),
        (["pretext.kind=masked", "--register", "bones"], "register the segmentation network"),
        (["pretext.kind=masked", "plan.spacing=[2,2,2]"], "was prepared with spacing"),
    ],
)
def test_invalid_arguments_give_one_line(
    words: list[str], message: str, medar: Medar, prepared: Path, tmp_path: Path
) -> None:
    assert message in pretrain(medar, prepared, tmp_path / "run", *words).refusal
    assert not (tmp_path / "run" / "model").exists()


def test_a_tokenizer_with_another_plan_is_refused(
    medar: Medar, prepared: Path, tmp_path: Path
) -> None:
    other = medar(
        "data", "prepare", tmp_path / "data", "--out", tmp_path / "other", "--attributes",
        tmp_path / "data" / "cases.csv", "--size", 12, 8, 8, "--downsampling", 4, 4, 4,
    )  # fmt: skip
    assert other.code == 0, other.err
    result = medar(
        "segmentation", "pretrain", tmp_path / "pretrain.yaml", "plan={}",
        "--data", tmp_path / "other", "--out", tmp_path / "run", "--untracked",
        "--tokenizer", tmp_path / "tokenizer",
    )  # fmt: skip
    assert "the data were prepared with [12, 8, 8]" in result.refusal
