"""`medar run segmentation` on tiny data: complete runs and invalid arguments."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from commands import Run, run_script, runner

from medar.data.phantoms import write_phantoms
from medar.errors import MedarError
from medar.files import read_json
from medar.recipes.segmentation import segmentation_stages
from medar.recipes.settings import SegmentationRecipeSettings, load_recipe
from medar.volume import read_volume

torch.set_num_threads(1)  # the networks here are too small for two

NAMES = ["prepare", "tokenizer", "pretrain", "train", "predict", "evaluate", "report"]

TRAINING = {
    "steps": 2, "ema_decay": 0.9, "evaluate_every": 2, "save_every": 1, "log_every": 1,
    "precision": "fp32", "device": "cpu",
}  # fmt: skip
BACKBONE = {"kind": "dynunet", "width": 4}
TINY: dict[str, Any] = {
    "data": {"workers": 1},
    "plan": {
        "spacing": [24, 24, 24], "mode": "volume", "size": [16, 16, 16], "downsampling": [8, 8, 8],
    },
    "tokenizer": {
        "model": {
            "width": 8, "width_multipliers": [1, 1], "grids": [[1, 1, 1], [2, 2, 2]],
            "codebook": {"kind": "fsq", "size": 16, "width": 4},
        },
        "data": {"batch_size": 2},
        "training": TRAINING,
    },
    "pretrain": {"backbone": BACKBONE, "data": {"batch_size": 2}, "training": TRAINING},
    "segmentation": {"backbone": BACKBONE, "data": {"batch_size": 2}, "training": TRAINING},
}  # fmt: skip


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with eight coarse phantoms, and the YAML of a tiny recipe."""
    folder = tmp_path_factory.mktemp("recipe")
    write_phantoms(folder / "phantoms", n=8, spacing=20.0)
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    return folder


@pytest.fixture
def run(workspace: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the recipe in this process; exit code, standard output and error."""
    return runner("segmentation", workspace, capsys)


def facts(out: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "stages" / f"{name}.json").read_text())["facts"]
    return found


@pytest.mark.slow
def test_from_volumes_to_label_maps_and_a_report(run: Run, workspace: Path) -> None:
    out = workspace / "whole" / "out"
    code, printed, error = run("--out", out, "--untracked", "--json")
    assert code == 0, error
    assert list(json.loads(printed)["stages"]) == NAMES
    for name in (
        "tokenizer/model/config.json", "pretrained/model/config.json", "evaluation/cases.csv",
        "segmenter/model/config.json", "evaluation/report.json", "report.html", "report.md",
    ):  # fmt: skip
        assert (out / name).is_file(), name
    config = json.loads((out / "pretrained" / "model" / "config.json").read_text())
    assert "next_scale" in json.dumps(config)
    report = json.loads((out / "evaluation" / "report.json").read_text())
    assert facts(out, "evaluate")["dice_mean"] == report["dice_mean"]
    maps = sorted((out / "label_maps").glob("*.nii.gz"))
    assert len(maps) == facts(out, "predict")["label_maps"] == report["cases"]
    for path in maps:
        image = read_volume(workspace / "phantoms" / "imagesTr" / path.name, modality="CT")
        label = read_volume(path, labels=True)
        assert label.shape == image.shape
        np.testing.assert_allclose(label.affine, image.affine)
    page = (out / "report.html").read_text()
    for title in ("Segmentation run", "Agreement with the true labels", "Backbone: pretraining"):
        assert title in page
    assert "Not included" not in page

    # Nothing runs a second time; with fewer labels the backbone stays as it is.
    code, _, printed = run("--out", out, "--untracked")
    assert printed.count("skip (done, nothing has changed)") == len(NAMES)
    code, printed, _ = run("--out", out, "--dry-run", "--json", "--labels", "50%")
    plan = {step["stage"]: step["action"] for step in json.loads(printed)["stages"]}
    assert list(plan.values()) == ["skip", "skip", "skip", "run", "depends", "depends", "depends"]

    # The label maps that were delivered are those that are evaluated.
    assert facts(out, "evaluate")["dice_mean"] < 1
    for path in maps:
        shutil.copy(workspace / "phantoms" / "labelsTr" / path.name, path)
    code, _, error = run("--out", out, "--untracked", "--force", "evaluate")
    assert code == 0, error
    assert facts(out, "evaluate")["dice_mean"] == 1
    (evaluated,) = read_json(out / "evaluation" / "report.json")["models"]
    assert evaluated["calibration"]["voxels"] > 0  # by the network: maps hold no probabilities

    # A network that began from a backbone is not one from scratch.
    code, printed, _ = run("--out", out, "--dry-run", "--json", "pretrain=null")
    plan = {step["stage"]: step["action"] for step in json.loads(printed)["stages"]}
    assert list(plan.values()) == ["skip", "run", "depends", "depends", "run"]

    # Without pretraining there are four stages, and their page does not miss the others.
    scratch = workspace / "scratch"
    code, printed, _ = run(
        "--out", scratch, "--untracked", "--json", "pretrain=null", "tokenizer=null"
    )
    assert code == 0
    assert list(json.loads(printed)["stages"]) == ["prepare", *NAMES[3:]]
    page = (scratch / "report.html").read_text()
    assert "Not run" not in page
    assert "from scratch" in page


@pytest.mark.slow
@pytest.mark.usefixtures("own_mlflow")
def test_the_script_takes_the_same_steps(workspace: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ("--config", workspace / "tiny.yaml", "--data", workspace / "phantoms", "--out", out)
    run_script("segmentation", *words)
    assert len(list((out / "label_maps").glob("*.nii.gz"))) == 1
    assert (out / "pretrained" / "model" / "config.json").exists()


def test_invalid_arguments_give_one_line(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for words, message in (
        (("segmentation.m=3",), "unknown key 'segmentation.m'"),
        (("tokenizer=null",), "pretrain.pretext.kind next_scale: needs a tokenizer"),
        (("pretrain.backbone.width=8",), "must be equal"),
        (("pretrain.pretext.tokenizer=x",), "the recipe trains a tokenizer"),
        (("segmentation.plan.size=[8, 8, 8]", "tokenizer.plan.size=[16, 16, 16]"), "another part"),
        (("--labels", "0%"), "labels must be a fraction of the subjects"),
        (("evaluation.tolerance=-1",), "evaluation.tolerance must be greater than 0, got -1"),
        (("evaluation.seed=-1",), "evaluation.seed must be at least 0, got -1"),
        (("segmentation.data.fold=0", "evaluation.split=val"), "trains on most cases of"),
        (("budget_weights.train=0",), "budget_weights.train must be greater than 0, got 0"),
    ):
        code, printed, error = run("--out", out, *words, "--dry-run")
        assert (code, printed) == (2, ""), words
        assert message in error
        assert error.startswith("medar: ")
        assert error.count("\n") == 1
    assert not out.exists()


def test_unlabelled_data_are_refused_at_the_start(
    run: Run, workspace: Path, tmp_path: Path
) -> None:
    (tmp_path / "bare").mkdir()
    for path in (workspace / "phantoms" / "imagesTr").iterdir():
        (tmp_path / "bare" / path.name).symlink_to(path)
    words = ("--data", tmp_path / "bare", "data.modality=CT", "--out", tmp_path / "out")
    code, _, error = run(*words, "--dry-run")
    assert code == 2
    assert "in the split 'train' is labelled" in error


def test_data_without_a_test_set_are_refused_before_training(
    run: Run, workspace: Path, tmp_path: Path
) -> None:
    data = Path(shutil.copytree(workspace / "phantoms", tmp_path / "data"))
    about = json.loads((data / "dataset.json").read_text())
    test = next(case for case in about["training"] if "0005" in case["image"])  # seed 0 tests it
    (data / test.pop("label")).unlink()
    (data / "dataset.json").write_text(json.dumps(about))
    out = tmp_path / "out"
    code, _, error = run("--data", data, "--out", out, "--untracked", "--until", "train")
    assert code == 2
    assert "none of the 1 case in the split 'test' is labelled" in error
    assert not (out / "tokenizer").exists()


def test_masked_pretraining_needs_no_tokenizer(workspace: Path) -> None:
    words = ["tokenizer=null", "pretrain.pretext.kind=masked"]
    settings = load_recipe(SegmentationRecipeSettings, workspace / "tiny.yaml", words)
    stages = segmentation_stages(settings, workspace)
    assert [stage.name for stage in stages] == ["prepare", *NAMES[2:]]


def test_synthetic_pairs_are_identified_by_content(workspace: Path) -> None:
    words = ["segmentation.data.synthetic.folder=pairs", "pretrain=null"]
    settings = load_recipe(
        SegmentationRecipeSettings, workspace / "tiny.yaml", words
    ).with_absolute_paths()
    assert settings.synthetic == Path("pairs").absolute()
    train = segmentation_stages(settings, workspace)[1]
    assert train.settings["data"]["synthetic"] == {"fraction": 0.5}
    assert train.inputs is not None
    with pytest.raises(MedarError, match="pairs: no such folder"):
        train.inputs()


def test_memory_and_speed_settings_do_not_rerun_stages(workspace: Path) -> None:
    def settings_with(*words: str) -> list[Any]:
        settings = load_recipe(SegmentationRecipeSettings, workspace / "tiny.yaml", words)
        return [stage.settings for stage in segmentation_stages(settings, workspace)]

    before = settings_with()
    words = ("prediction.memory_gib=1", "prediction.batch_size=2", "segmentation.data.workers=2")
    assert settings_with(*words) == before
    changed = settings_with("prediction.mirrors=[x]")
    pairs = zip(NAMES, before, changed, strict=True)
    assert [name for name, old, new in pairs if old != new] == ["predict", "evaluate"]
