"""`medar tokenizer train` from the command line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from medar.cli.training import assignments
from medar.errors import MedarError
from medar.tokenizer import Tokenizer

torch.set_num_threads(1)

Medar = Callable[..., Any]

CONFIG: dict[str, Any] = {
    "plan": {"size": [8, 8, 8], "downsampling": [4, 4, 4]},
    "model": {
        "patch_size": 2, "width": 4, "width_multipliers": [1, 2], "scales": 2,
        "codebook": {"size": 16, "width": 8},
    },
    "data": {"batch_size": 1},
    "training": {"steps": 2, "precision": "fp32", "device": "cpu", "log_every": 1},
}  # fmt: skip


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(CONFIG))
    return path


@pytest.fixture
def split(data: Path) -> Path:
    """The four images of `data` with a table of splits."""
    rows = [("c0", "train"), ("c1", "train"), ("c2", "val"), ("c3", "test")]
    (data / "cases.csv").write_text("id,split\n" + "".join(f"{a},{b}\n" for a, b in rows))
    return data


def train(medar: Medar, config: Path, data: Path, out: Path, *more: object) -> Any:
    table = data / "cases.csv"
    words = ["--attributes", table] if table.exists() else []
    return medar("tokenizer", "train", config, "--data", data, "--out", out, *words, *more)


def test_a_data_set_is_prepared_and_used_for_training(
    medar: Medar, config: Path, split: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    result = train(medar, config, split, out, "--json", "--untracked", "training.steps=3")
    assert result.code == 0, result.err
    found = json.loads(result.out)
    assert found["step"] == 3
    assert set(found) == {"out", "model", "step", "seconds", "best", "best_step", "metrics"}
    assert {"psnr", "codebook_usage", "usage_scale_1"} <= set(found["metrics"])
    tokenizer = Tokenizer.from_pretrained(found["model"], "cpu")
    assert tokenizer.plan is not None
    assert tokenizer.plan.size == (8, 8, 8)
    assert (out / "config.yaml").exists()
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 3
    again = train(medar, config, out / "prepared", out, "--untracked", "--training.steps", "3")
    assert again.code == 0
    assert "already finished at step 3" in again.err
    assert "model" in again.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["training.stepz=3"], "did you mean 'steps'"),
        (["training.steps=many"], "training.steps"),
        (["--training.steps"], "needs a value"),
        (["--stepz", "3"], "unknown option --stepz"),
        (["steps"], "KEY=VALUE"),
        (["model.codebook.kind=lfq"], "model.codebook.kind"),
        (["model.scales=99"], "scales must be from 1 to 2"),
        (["plan.spacing=[0,1,1]"], "spacing"),
        (["--max-minutes", "0"], "minutes must be greater than 0"),
        (["data.batch_size=0"], "batch_size must be at least 1"),
    ],
)
def test_invalid_arguments_give_one_line(
    words: list[str], message: str, medar: Medar, config: Path, split: Path, tmp_path: Path
) -> None:
    refused = train(medar, config, split, tmp_path / "run", "--untracked", *words)
    assert message in refused.refusal
    assert not (tmp_path / "run" / "model").exists()


def test_a_missing_config_is_refused(medar: Medar, split: Path, tmp_path: Path) -> None:
    refused = train(medar, tmp_path / "no.yaml", split, tmp_path / "run")
    assert "no.yaml: no such file" in refused.refusal


def test_several_processes_need_prepared_data(
    medar: Medar, config: Path, split: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "is not prepared" in train(medar, config, split, tmp_path / "run").refusal


def test_overrides_accept_both_spellings() -> None:
    typed = ["a.b=1", "--c.d", "[1, 2]", "--e.f=x=y"]
    assert assignments(typed) == ["a.b=1", "c.d=[1, 2]", "e.f=x=y"]
    with pytest.raises(MedarError, match="needs a value"):
        assignments(["--a.b"])


def test_a_network_that_no_memory_holds_gives_one_line(
    medar: Medar, config: Path, split: Path, tmp_path: Path
) -> None:
    result = train(medar, config, split, tmp_path / "out", "model.width=65536")
    assert result.code == 2
    last = result.err.splitlines()[-1]
    assert last.startswith("medar: not enough memory for another ")
    assert last.endswith("bytes; choose a smaller network, batch or volume")
    assert "Traceback" not in result.err
