"""The benchmark of a GPU machine: its records, its table, and each stage whole on a CPU."""

import json
from pathlib import Path
from typing import Any

import gpu
import pytest
import torch
import yaml
from gpu_stages import table
from gpu_stages.journal import Journal, read_records
from gpu_stages.models import FULL, MIXERS, network_of

from medar.settings import to_dict


def test_a_failed_step_is_recorded_and_the_next_one_runs(tmp_path: Path) -> None:
    path = tmp_path / "stage.jsonl"

    def fail() -> dict[str, Any]:
        raise RuntimeError("out of memory")

    with Journal(path, 1) as journal:
        assert journal.attempt("first", fail, side=64) is None
        assert journal.attempt("second", lambda: {"rate": float("nan")}) is not None
        assert len(path.read_text().splitlines()) == 2  # on disk before the end
    first, second = read_records(path)
    assert (first["name"], first["side"]) == ("first", 64)
    assert first["error"] == "RuntimeError: out of memory"
    assert second["rate"] is None
    assert journal.failed == 1


def test_no_step_starts_after_the_minutes(tmp_path: Path) -> None:
    ran = []
    with Journal(tmp_path / "stage.jsonl", 1e-9) as journal:
        assert journal.attempt("late", lambda: ran.append(1) or {}) is None
    assert not ran
    assert read_records(journal.path)[0]["skipped"] == "no time left"


def test_an_unfinished_line_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "stage.jsonl").write_text('{"name": "a"}\n{"name": "b", "si')
    assert read_records(tmp_path / "stage.jsonl") == [{"name": "a"}]


def test_the_table_shows_the_newest_run_and_what_did_not_run(tmp_path: Path) -> None:
    records = [
        {"name": "start", "device": "cuda"},
        {"name": "sample", "mixer": "old"},
        {"name": "start", "device": "cuda", "tiny": False},
        {"name": "sample", "mixer": "none", "sample_seconds": 0.123456},
        {"name": "sample", "mixer": "mamba", "sample_seconds": 0.5},
        {"name": "decode", "side": 512, "error": "OutOfMemoryError: too large\nmore"},
    ]
    (tmp_path / "speed.jsonl").write_text("\n".join(map(json.dumps, records)))
    page = tmp_path / "page.md"
    page.write_text(f"above\n{table.BEGIN}\nold\n{table.END}\nbelow\n")
    gpu.main(["--stage", "table", "--out", str(tmp_path), "--page", str(page)])
    text = page.read_text()
    assert "| | none | 0.1235 |" in text
    assert "- decode, side 512: OutOfMemoryError: too large\n" in text
    assert "old" not in text
    assert text.startswith("above\n")
    assert text.endswith("below\n")
    assert "nothing has run on a GPU yet" in table.table(tmp_path / "absent")


def test_the_page_of_benchmarks_has_the_markers() -> None:
    text = (Path(__file__).parents[2] / "docs" / "benchmarks.md").read_text()
    assert text.index(table.BEGIN) < text.index(table.END)


def test_the_full_tokenizer_is_that_of_the_configuration() -> None:
    path = Path(__file__).parents[2] / "configs" / "tokenizer" / "ct_128.yaml"
    model = yaml.safe_load(path.read_text())["model"]
    network = to_dict(network_of(FULL))
    for name in ("patch_size", "width", "width_multipliers", "blocks_per_level"):
        assert network[name] == model[name], name
    assert network["code_width"] == model["codebook"]["width"]


def test_a_training_needs_data(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu.main(["--stage", "train-mr", "--out", "out"])
    assert "needs --data" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_every_stage_runs_whole_on_a_cpu(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    found: dict[str, list[dict[str, Any]]] = {}
    for stage in ("check", "speed", "train-mr"):
        gpu.main(["--stage", stage, "--tiny", "--device", "cpu", "--out", str(tmp_path)])
        found[stage] = read_records(tmp_path / f"{stage}.jsonl")
        assert not [one for one in found[stage] if "error" in one]
        assert found[stage][-1]["name"] == "end"
    by_name = {one["name"]: one for one in found["check"]}
    exact = [one for one in found["check"] if one.get("precision") == "fp32"]
    assert exact[0]["equal"] == 1
    steps = [one for one in found["check"] if one["name"] == "steps"]
    assert [one["mixer"] for one in steps] == list(MIXERS)
    assert max(one["difference"] for one in steps) < 1e-4
    assert by_name["resumption"]["equal"]
    for one in found["speed"]:
        if one["name"].startswith("train "):
            assert one["tflop"] > 0
            assert one["step_seconds"] > 0
    trained = {one["name"]: one for one in found["train-mr"]}
    assert trained["generator"]["steps"] == 4
    assert all(one["frechet_floor"] > 0 for one in trained["evaluate"]["distances"].values())
    assert trained["pack"]["bytes"] < 12e6
    assert (tmp_path / "train-mr" / "bundle" / "bundle.json").is_file()
    assert {"### Check", "### Speed", "### Training, MR"} <= set(table.table(tmp_path).splitlines())
