"""`medar evaluate tokenizer` from the command line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medar.data.plan import Plan
from medar.tokenizer.codebooks import CodebookSettings
from medar.tokenizer.network import NetworkConfig
from medar.tokenizer.schedule import ScaleSchedule
from medar.tokenizer.tokenizer import Tokenizer, TokenizerConfig

Medar = Callable[..., Any]


def make_model(folder: Path, *, plan: bool = True, labels: int = 0) -> Path:
    """A tokenizer of 8 x 8 x 8 voxels in a run folder."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    config = TokenizerConfig(
        schedule=ScaleSchedule(grids=((1, 1, 1), (2, 2, 2))),
        network=NetworkConfig(
            width=4, width_multipliers=(1, 2), code_width=8, downsampling=(4, 4, 4), labels=labels
        ),
        codebook=CodebookSettings(size=16, width=8),
    )
    rule = {"other": {"kind": "percentiles", "low": 1, "high": 99}}
    form = Plan(
        spacing=(1, 1, 2), mode="volume", size=(8, 8, 8), downsampling=(4, 4, 4),
        intensity=rule, labels={1: "1", 2: "2"},
    ) if plan else None  # fmt: skip
    Tokenizer(config, form).save_pretrained(folder / "model")
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return make_model(tmp_path / "run")


@pytest.fixture
def test_set(data: Path) -> Path:
    """The four images of `data`, all in the test split."""
    rows = "".join(f"c{k},test\n" for k in range(4))
    (data / "attributes.csv").write_text("id,split\n" + rows)
    return data


def test_a_data_set_is_prepared_measured_and_drawn(
    medar: Medar, model: Path, test_set: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    result = medar(
        "evaluate", "tokenizer", model, test_set, "--json", "--out", out, "--device", "cpu"
    )
    assert result.code == 0, result.err
    found = json.loads(result.out)
    assert (found["cases"], found["split"]) == (4, "test")
    assert {"psnr", "codebook_usage", "frechet", "frechet_floor", "power_ratio"} <= found.keys()
    assert len(found["psnr_per_scale"]) == 2
    assert json.loads((out / "report.json").read_text()) == found
    assert (out / "montage.png").read_bytes().startswith(b"\x89PNG")
    assert "temporary folder" in result.err


def test_a_prepared_folder_is_reused_and_the_text_report_printed(
    medar: Medar, model: Path, test_set: Path, tmp_path: Path
) -> None:
    kept = tmp_path / "kept"
    first = medar("evaluate", "tokenizer", model, test_set, "--prepared", kept)
    assert (first.code, first.err) == (0, "")
    for word in (
        "PSNR",
        "2x2x2",
        "perplexity",
        "radiomics-v2",
        "note: 4 cases, fewer than 20",
        "N = 2",
        "largest contributions",
        "middle",
        "grid artifact",
        "reconstruction-v2",
    ):
        assert word in first.out
    # The folder itself, and the model's own folder rather than the run's.
    again = medar("evaluate", "tokenizer", model / "model", kept, "--batch", 2)
    assert again.out.splitlines()[1:] == first.out.splitlines()[1:]
    assert medar("evaluate", "tokenizer", model, kept, "--limit", 2).code == 0


def test_skipped_cases_are_reported(
    medar: Medar, test_set: Path, tmp_path: Path, write: Callable[..., Path]
) -> None:
    model = make_model(tmp_path / "with_labels", labels=2)
    write("data/labels/c1.nii.gz", np.full((8, 10, 6), 9, np.uint8))
    result = medar("evaluate", "tokenizer", model, test_set, "--json")
    assert result.code == 1
    assert "c1 was set aside: label values 9" in result.err
    found = json.loads(result.out)
    assert found["cases"] == 3
    assert found["dice"].keys() == {"1", "2"}


def test_impossible_measurements_give_one_line(
    medar: Medar, model: Path, test_set: Path, tmp_path: Path
) -> None:
    kept = tmp_path / "kept"
    assert medar("evaluate", "tokenizer", model, test_set, "--prepared", kept).code == 0
    bare = make_model(tmp_path / "bare", plan=False)
    for arguments, message in (
        ([tmp_path / "none", kept], "no tokenizer"),
        ([bare, kept], "has no plan (preprocess.json"),
        ([model, kept, "--split", "val"], "no case in the split 'val'"),
        ([model, kept, "--panel", "--split", "held-out"], "split must be train, val or test"),
        ([model, kept, "--frechet-samples", 1], "frechet_samples must be at least 2, got 1"),
        ([model, kept, "--prepared", tmp_path / "x"], "is prepared already"),
        ([model, kept, "--modality", "CT"], "is prepared already"),
        ([model, kept, "--limit", 0], "limit must be at least 1, got 0"),
        ([model, kept, "--out", kept / "plan.yaml"], "is a file"),
        ([model, tmp_path / "none"], "no such file or folder"),
    ):
        assert message in medar("evaluate", "tokenizer", *arguments).refusal
    plan = Plan.load(kept / "plan.yaml")
    assert medar(
        "data", "prepare", test_set, "--out", tmp_path / "other", "--spacing", 2, 2, 2,
        "--plan", kept / "plan.yaml",
    ).code == 0  # fmt: skip
    refusal = medar("evaluate", "tokenizer", model, tmp_path / "other").refusal
    assert f"the model's plan has {list(plan.spacing)}" in refusal


def test_a_panel_is_measured_in_place_of_the_report(
    medar: Medar, model: Path, test_set: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = ["evaluate", "tokenizer", model, test_set, "--panel", "--out", out]
    result = medar(*arguments, "--json", "--contrast", -0.2, "--contrast", 0.4)
    assert result.code == 0, result.err
    found = json.loads(result.out)
    assert found["protocol"]["structures"]["contrasts"] == [-0.2, 0.4]
    assert found["methods"]["decoder"]["organs"].keys() == {"1", "2"}
    assert found["methods"]["decoder"]["summary"].startswith("Loses ")
    assert json.loads((out / "panel.json").read_text()) == found
    assert {one.name for one in out.iterdir()} == {
        "panel.json", "organs.csv", "structures.csv", "report", "report.html", "report.md"
    }  # fmt: skip
    text = medar(*arguments)
    for word in ("decoder: Loses", "sphere", "recovered", "on originals", "protocol panel-v1"):
        assert word in text.out


def test_options_of_the_panel_are_checked(
    medar: Medar, model: Path, test_set: Path, tmp_path: Path
) -> None:
    arguments = ["evaluate", "tokenizer", model, test_set]
    assert "--segmenter and --contrast need --panel" in medar(*arguments, "--contrast", 1).refusal
    assert "--detail 0: must be auto" in medar(*arguments, "--panel", "--detail", 0).refusal
    refusal = medar(*arguments, "--panel", "--detail", 2).refusal
    assert "this tokenizer has no detail decoder" in refusal
    refusal = medar(*arguments, "--panel", "--contrast", 0).refusal
    assert "contrasts must be different and not 0, got [0.0]" in refusal
    refusal = medar(*arguments, "--panel", "--segmenter", tmp_path / "none").refusal
    assert str(tmp_path / "none") in refusal


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_an_unavailable_device_is_refused(medar: Medar, model: Path, data: Path) -> None:
    refusal = medar("evaluate", "tokenizer", model, data, "--device", "cuda").refusal
    assert "device 'cuda' is not available here" in refusal
