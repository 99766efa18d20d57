"""`medar segmentation train` and `medar segment` from the command line."""

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

torch.set_num_threads(1)

Medar = Callable[..., Any]

CONFIG: dict[str, Any] = {
    "plan": {"size": [8, 8, 8], "downsampling": [4, 4, 4]},
    "backbone": {"width": 4},
    "data": {"batch_size": 1, "augmentation": {"flips": ["y"]}},
    "training": {"steps": 2, "precision": "fp32", "device": "cpu", "log_every": 1},
}


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
    return medar(
        "segmentation", "train", config, "--data", data, "--out", out, "--untracked", *words, *more
    )


@pytest.fixture
def model(medar: Medar, config: Path, split: Path, tmp_path: Path) -> Path:
    """The run folder of a barely trained network."""
    assert train(medar, config, split, tmp_path / "run").code == 0
    return tmp_path / "run"


def test_a_data_set_is_prepared_and_used_for_training(
    medar: Medar, config: Path, split: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    result = train(medar, config, split, out, "--json", "--labels", "50%", "training.steps=3")
    assert result.code == 0, result.err
    found = json.loads(result.out)
    assert found["step"] == 3
    assert "dice" in found["metrics"]
    saved = yaml.safe_load((out / "config.yaml").read_text())
    assert (saved["task"]["data"]["label_fraction"], saved["task"]["data"]["subjects"]) == (0.5, 1)
    words = (out / "prepared", tmp_path / "next", "--pretrained", out, "transfer.layer_decay=0.7")
    again = train(medar, config, *words)
    assert again.code == 0, again.err
    saved = yaml.safe_load((tmp_path / "next" / "config.yaml").read_text())
    assert saved["task"]["pretrained"] != "none"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--labels", "10"], "labels must be a fraction of the subjects"),
        (["--pretrained", "nowhere"], "nowhere: no segmentation network"),
        (["backbone.kind=unet"], "unknown backbone 'unet'"),
        (["backbone.widht=8"], "did you mean 'width'"),
        (["transfer.frozen=true"], "transfer.frozen is true"),
        (["data.augmentation.flips=[w]"], "flips"),
        (["--max-minutes", "0"], "minutes must be greater than 0"),
    ],
)
def test_invalid_arguments_give_one_line(
    words: list[str], message: str, medar: Medar, config: Path, split: Path, tmp_path: Path
) -> None:
    assert message in train(medar, config, split, tmp_path / "run", *words).refusal
    assert not (tmp_path / "run" / "model").exists()


def test_a_file_is_segmented(medar: Medar, model: Path, split: Path, tmp_path: Path) -> None:
    image, out = split / "images" / "c3.nii.gz", tmp_path / "made" / "c3.nii"
    result = medar("segment", model, image, out)
    assert result.code == 0, result.err
    assert result.out == f"{out}: labels of {image}\n"
    made, given = nib.load(out), nib.load(image)
    assert made.shape == given.shape
    np.testing.assert_allclose(made.affine, given.affine)
    assert set(np.unique(made.get_fdata())) <= {0, 1, 2}
    about = json.loads((tmp_path / "made" / "c3.json").read_text())
    assert list(about["labels"]) == ["0", "1", "2"]
    assert about["image"] == str(image)
    voxels = (made.get_fdata() == 2).sum()
    assert about["millilitres"][about["labels"]["2"]] == pytest.approx(voxels * 0.002)


def test_a_folder_is_segmented(medar: Medar, model: Path, split: Path, tmp_path: Path) -> None:
    (split / "images" / "broken.nii").write_bytes(b"no volume")
    result = medar("segment", model, split / "images", tmp_path / "made", "--json")
    assert result.code == 1
    found = json.loads(result.out)
    names = [f"c{n}.nii.gz" for n in range(4)]
    assert [Path(path).name for path in found["labels"]] == names
    assert list(found["failed"]) == [str(split / "images" / "broken.nii")]
    assert "broken.nii" in result.err
    written = {path.name for path in (tmp_path / "made").iterdir()}
    assert written == {*names, *(f"c{n}.json" for n in range(4))}
    plain = medar("segment", model, split / "images", tmp_path / "plain", "--mirrors", "none")
    assert plain.code == 1
    assert plain.out.count("\n") == 4


def test_a_folder_is_resumed(
    medar: Medar, model: Path, split: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what is missing, damaged or made of another file or with other settings is made."""
    from medar.segmentation import files

    made: list[str] = []
    write = files.write_segmentation

    def counted(target: Path, *arguments: Any, **keywords: Any) -> None:
        made.append(target.name.partition(".")[0])
        write(target, *arguments, **keywords)

    monkeypatch.setattr(files, "write_segmentation", counted)
    out = tmp_path / "made"

    def segment(*more: object) -> list[str]:
        made.clear()
        result = medar("segment", model, split / "images", out, *more)
        assert (result.code, result.out.count("\n")) == (0, 4), result.err
        return list(made)

    assert segment() == ["c0", "c1", "c2", "c3"]
    first = (out / "c0.nii.gz").read_bytes()
    assert segment() == []
    (out / "c0.nii.gz").unlink()
    (out / "c1.json").write_text("{")
    shutil.copy(split / "images" / "c3.nii.gz", split / "images" / "c2.nii.gz")
    assert segment() == ["c0", "c1", "c2"]
    assert (out / "c0.nii.gz").read_bytes() == first
    assert segment("--mirrors", "none") == ["c0", "c1", "c2", "c3"]
    assert segment("--mirrors", "none") == []


def test_an_output_that_cannot_be_written_is_noticed_before_a_network_is_loaded(
    medar: Medar, split: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    for source, out in (
        (split / "images", "file/made"),
        (split / "images/c0.nii.gz", "file/a.nii"),
    ):
        refusal = medar("segment", "no network", source, tmp_path / out).refusal
        assert "cannot be written to (Not a directory)" in refusal


@pytest.mark.parametrize(
    ("volume", "out", "more", "message"),
    [
        ("images/c0.nii.gz", "made.png", [], "written as .nii.gz, .nii, .nrrd, .mha, .dcm"),
        ("images/c0.nii.gz", "made.dcm", [], "c0.nii.gz: not DICOM"),
        ("images/c0.nii.gz", "made.nii", ["--format", "mha"], "the format is mha"),
        ("images", "made.nii.gz", [], "must be a folder"),
        ("images/c0.nii.gz", "data/images/c0.nii.gz", [], "name another file"),
        ("images/none.nii", "made.nii", [], "none.nii"),
        ("images/c0.nii.gz", "made.nii", ["--mirrors", "w"], "letters xyz"),
        ("images/c0.nii.gz", "made.nii", ["--overlap", "1"], "overlap must be less than 1"),
    ],
)
def test_invalid_arguments_of_segment(
    volume: str, out: str, more: list[str], message: str,
    medar: Medar, model: Path, split: Path, tmp_path: Path,
) -> None:  # fmt: skip
    assert message in medar("segment", model, split / volume, tmp_path / out, *more).refusal
    assert not (tmp_path / "made.nii").exists()


def test_only_its_own_label_maps_are_replaced(
    medar: Medar, model: Path, split: Path, tmp_path: Path
) -> None:
    images = split / "images"
    before = {path: path.read_bytes() for path in images.iterdir()}
    result = medar("segment", model, images / "c0.nii.gz", images / "c1.nii.gz")
    assert "c1.nii.gz: exists and was not written by medar segment" in result.refusal
    result = medar("segment", model, images, split)
    assert "contains the input" in result.refusal
    shutil.copytree(images, tmp_path / "others")
    result = medar("segment", model, images, tmp_path / "others")
    assert (result.code, result.out) == (1, "")
    assert result.err.count("exists and was not written by") == len(before)
    for _ in range(2):
        assert medar("segment", model, images / "c0.nii.gz", tmp_path / "own.nii.gz").code == 0
    assert {path: path.read_bytes() for path in images.iterdir()} == before


def test_an_empty_folder_and_an_invalid_model_are_refused(
    medar: Medar, model: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    assert "no volume found" in medar("segment", model, tmp_path / "empty", tmp_path / "o").refusal
    refusal = medar("segment", tmp_path, tmp_path / "x.nii", tmp_path / "o.nii").refusal
    assert "no segmentation network" in refusal
