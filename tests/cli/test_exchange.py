"""`medar export`, `medar import`, and `medar segment` with several networks and probabilities."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml

from medar.model_folder import record_digest

torch.set_num_threads(1)

Medar = Callable[..., Any]

CONFIG: dict[str, Any] = {
    "plan": {"spacing": [2, 2, 2], "size": [8, 8, 8], "downsampling": [4, 4, 4]},
    "backbone": {"width": 4, "block_type": "plain"},
    "data": {"batch_size": 1, "augmentation": None},
    "training": {"steps": 1, "precision": "fp32", "device": "cpu", "log_every": 1},
}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(CONFIG))
    return path


@pytest.fixture
def run(medar: Medar, config: Path, data: Path, tmp_path: Path) -> Path:
    """The run folder of a barely trained network."""
    (data / "cases.csv").write_text("id,split\nc0,train\nc1,train\nc2,val\nc3,test\n")
    words = ("--data", data, "--attributes", data / "cases.csv", "--untracked")
    assert medar("segmentation", "train", config, *words, "--out", tmp_path / "run").code == 0
    return tmp_path / "run"


def test_several_networks_and_their_probabilities(
    medar: Medar, run: Path, data: Path, tmp_path: Path
) -> None:
    image, made = data / "images" / "c3.nii.gz", tmp_path / "made"
    result = medar("segment", run, made / "c3.nii.gz")
    assert "MODEL... IN OUT" in result.refusal
    assert medar("segment", run, image, made / "one.nii.gz", "--probabilities").code == 0
    result = medar("segment", run, run / "model", image, made / "two.nii.gz", "--probabilities")
    assert result.code == 0, result.err
    first, second = (nib.load(made / f"{name}_probabilities.nii.gz") for name in ("one", "two"))
    assert first.shape == (*nib.load(image).shape, 3)
    np.testing.assert_allclose(first.affine, nib.load(image).affine)
    assert np.array_equal(first.get_fdata(), second.get_fdata())
    about = json.loads((made / "two.json").read_text())
    assert about["model"].count("+") == 1
    assert about["probabilities"] == list(about["labels"].values())


@pytest.mark.filterwarnings("default::medar.errors.RangeWarning")
def test_networks_with_different_plans_are_refused(
    medar: Medar, run: Path, data: Path, tmp_path: Path
) -> None:
    shutil.copytree(run / "model", tmp_path / "other")
    plan = json.loads((tmp_path / "other" / "preprocess.json").read_text())
    plan["spacing"] = [9.0, 9.0, 9.0]
    (tmp_path / "other" / "preprocess.json").write_text(json.dumps(plan))
    record_digest(tmp_path / "other")
    image = data / "images" / "c3.nii.gz"
    result = medar("segment", run, tmp_path / "other", image, tmp_path / "made.nii.gz")
    assert "its plan has spacing" in result.refusal
    result = medar("segment", tmp_path / "other", image, tmp_path / "made.nii.gz")
    assert result.code == 0


@pytest.mark.filterwarnings("default::medar.errors.RangeWarning")
def test_a_volume_outside_the_training_range_gives_a_warning(
    medar: Medar, run: Path, write: Callable[..., Path], tmp_path: Path
) -> None:
    coarse = write("coarse.nii.gz")
    image = nib.load(coarse)
    nib.save(nib.Nifti1Image(image.get_fdata(), np.diag([1, 1, 10, 1])), coarse)
    result = medar("segment", run, coarse, tmp_path / "made.nii.gz")
    assert result.code == 0
    assert "medar: warning: " in result.err
    assert "spacing 1 x 1 x 10 mm, training volumes had 1 x 1 x 2 mm" in result.err
    notes = json.loads((tmp_path / "made.json").read_text())["notes"]
    assert notes
    assert all(note in result.err for note in notes)


@pytest.mark.parametrize("to", ["monai", "nnunet"])
def test_weights_are_exported_and_imported(
    to: str, medar: Medar, run: Path, config: Path, tmp_path: Path
) -> None:
    result = medar("export", run, tmp_path / "w.pth", "--to", to)
    assert result.code == 0, result.err
    assert result.out.startswith(f"{tmp_path / 'w.pth'}: ")
    assert ("filled in" in result.err) == (to == "nnunet")
    assert len(result.err.splitlines()) <= 1
    words = ("--config", config, "--data", run / "prepared", "--head", "--json")
    result = medar("import", tmp_path / "w.pth", tmp_path / "start", *words)
    assert result.code == 0, result.err
    made = json.loads(result.out)
    assert (made["layout"], made["initialised"]) == (to, [])
    words = ("--data", run / "prepared", "--out", tmp_path / "next", "--untracked")
    result = medar("segmentation", "train", config, *words, "--pretrained", tmp_path / "start")
    assert result.code == 0, result.err
    words = ("--config", config, "--data", run / "prepared", "backbone.width=8")
    result = medar("import", tmp_path / "w.pth", tmp_path / "wide", *words)
    assert "need [8, 1, 3, 3, 3]" in result.refusal


def test_a_bundle_is_written(medar: Medar, run: Path, tmp_path: Path) -> None:
    result = medar("export", run, tmp_path / "bundle", "--to", "bundle", "--json")
    assert result.code == 0, result.err
    assert all(Path(file).is_file() for file in json.loads(result.out)["files"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["export", "run", "w.txt", "--to", "monai"], "written as .pt or .pth"),
        (["export", "nowhere", "w.pt", "--to", "monai"], "nowhere: no segmentation network"),
        (["export", "run", "b", "--to", "bundle", "--part", "encoder"], "--part encoder"),
        (["import", "nowhere.pt", "start"], "nowhere.pt: no such file"),
        (["import", "tiny.yaml", "start"], "tiny.yaml: not a checkpoint"),
        (["segment", "run", "run", "nowhere.nii", "made.nii"], "nowhere.nii"),
    ],
)
def test_invalid_arguments_give_one_line(
    words: list[str],
    message: str,
    medar: Medar,
    run: Path,
    config: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    more = ["--config", config, "--data", run / "prepared"] if words[0] == "import" else []
    assert message in medar(*words, *more).refusal
    assert not (tmp_path / "start").exists()
