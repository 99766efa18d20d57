"""`medar evaluate segmentation` from the command line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from medar.data.plan import IntensityRule, Plan
from medar.segmentation.backbones import BackboneSettings
from medar.segmentation.segmenter import Segmenter

Medar = Callable[..., Any]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """An untrained network for the labels of `data`."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    plan = Plan(
        spacing=(1, 1, 2), mode="volume", size=(8, 8, 8), downsampling=(4, 4, 4),
        intensity={"other": IntensityRule(kind="percentiles", low=1.0, high=99.0)},
        labels={1: "left", 2: "right"},
    )  # fmt: skip
    Segmenter(BackboneSettings(width=4), plan).save_pretrained(tmp_path / "run" / "model")
    return tmp_path / "run"


@pytest.fixture
def test_set(data: Path) -> Path:
    """The four images of `data`, all in the test split."""
    rows = "".join(f"c{k},test\n" for k in range(4))
    (data / "attributes.csv").write_text("id,split\n" + rows)
    return data


def test_a_network_compared_with_existing_label_maps(
    medar: Medar, model: Path, test_set: Path, tmp_path: Path
) -> None:
    maps, out = Path(shutil.copytree(test_set / "labels", tmp_path / "maps")), tmp_path / "out"
    common = ("evaluate", "segmentation", model, test_set, "--predictions", maps)
    result = medar(*common, "--json", "--out", out, "--device", "cpu")
    assert result.code == 0, result.err
    found = json.loads(result.out)
    assert json.loads((out / "report.json").read_text()) == found
    network, files = found["models"]
    assert found["dice_mean"] == network["dice_mean"] < files["dice_mean"] == 1
    assert (found["cases"], found["split"], found["tolerance"]) == (4, "test", 2)
    assert {case["case"] for case in files["cases"]} == {"c0", "c1", "c2", "c3"}
    assert found["comparisons"][0]["overall"]["dice"]["difference"] > 0
    assert {"report.html", "report.md", "cases.csv"} <= {path.name for path in out.iterdir()}

    people = medar(*common, "--limit", 2, "--mirrors", "none", "--device", "cpu")
    assert people.code == 0, people.err
    for word in ("2 cases of 2 subjects", "left", "HD95", f"{maps} less {model}", "effect",
                 "segmentation-v1", "note: 2 subjects, fewer than 20"):  # fmt: skip
        assert word in people.out


def test_existing_label_maps_without_a_model(medar: Medar, test_set: Path) -> None:
    (test_set / "labels.json").write_text('{"1": "left", "2": "right"}')
    result = medar("evaluate", "segmentation", "--predictions", test_set / "labels", test_set)
    assert result.code == 0, result.err
    assert "1.000" in result.out


def test_invalid_arguments_give_one_line(
    medar: Medar, model: Path, test_set: Path, tmp_path: Path
) -> None:
    def refused(*words: object) -> str:
        return str(medar("evaluate", "segmentation", *words).refusal)

    assert "DATA is missing" in refused()
    assert "no model to evaluate" in refused(test_set)
    assert "no segmentation network (neither config.json" in refused(test_set, test_set)
    assert "same name" in refused(model, model, test_set)
    assert "names no labels" in refused(test_set, "--predictions", test_set / "labels")
    assert "none annotated" in refused(model, test_set, "--split", "val")
    assert "is a file" in refused(model, test_set, "--out", test_set / "attributes.csv")
    assert "tolerance must be greater" in refused(model, test_set, "--tolerance", "-1")
    assert "letters xyz" in refused(model, test_set, "--mirrors", "q")
    assert "absent" in refused(model, tmp_path / "absent")


def test_a_prepared_folder_keeps_its_splits(
    medar: Medar, model: Path, test_set: Path, tmp_path: Path
) -> None:
    prepared = tmp_path / "prepared"
    plan = ("--spacing", 1, 1, 2, "--size", 8, 8, 8, "--mode", "volume")
    assert medar("data", "prepare", test_set, "--out", prepared, *plan).code == 0
    result = medar("evaluate", "segmentation", model, prepared, "--seed", 3)
    assert "is prepared already" in result.refusal
    assert medar("evaluate", "segmentation", model, prepared, "--limit", 1).code == 0
    maps = medar("evaluate", "segmentation", prepared, "--predictions", test_set / "labels")
    assert maps.code == 0, "its plan has names for the labels, which the data set has not"


def test_files_without_orientation_are_read_as_requested(
    medar: Medar, test_set: Path, tmp_path: Path
) -> None:
    """The options that the message names are options of this command."""
    for path in [*test_set.rglob("*.nii.gz")]:
        image = nib.load(path)
        image.header["sform_code"] = image.header["qform_code"] = 0
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj), None, image.header), path)
    (test_set / "labels.json").write_text('{"1": "left", "2": "right"}')
    maps = shutil.copytree(test_set / "labels", tmp_path / "maps")
    common = ("evaluate", "segmentation", test_set, "--predictions", maps, "--json")
    assert "assume_spacing (--assume-spacing)" in medar(*common).refusal
    result = medar(*common, "--assume-spacing", "header")
    assert result.code == 0, result.err
    assert json.loads(result.out)["models"][0]["dice_mean"] == 1
