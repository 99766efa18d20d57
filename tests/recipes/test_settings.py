"""A recipe's YAML and the data set that it names."""

from pathlib import Path

import numpy as np
import pytest

from medar.errors import MedarError
from medar.recipes.inputs import (
    check_data,
    content_of,
    data_digests,
    folder_digest,
    lend_hashes,
    manifest_in,
)
from medar.recipes.settings import DataSettings, load_recipe
from medar.recipes.synthesis import SynthesisSettings
from medar.settings import load_yaml, save_yaml
from medar.volume import Volume, write_nifti

PARTS = "tokenizer: {training: {steps: 1}}\ngenerator: {training: {steps: 2}}\n"


@pytest.fixture
def data(tmp_path: Path) -> DataSettings:
    """A folder of six volumes."""
    for number in range(6):
        add(tmp_path / "data", number)
    return DataSettings(path=tmp_path / "data", workers=1)


def add(folder: Path, number: int, value: float = 1.0) -> None:
    volume = Volume.from_array(np.full((4, 4, 4), value, np.float32), np.eye(4))
    write_nifti(folder / f"c{number}.nii.gz", volume)


def test_parts_are_inline_or_in_files_beside_the_yaml(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "one.yaml").write_text("training: {steps: 7}\nloss: {labels: 2}\n")
    path = tmp_path / "recipe.yaml"
    path.write_text("tokenizer: below/one.yaml\ngenerator: {training: {steps: 2}}\n")
    settings = load_recipe(
        SynthesisSettings, path, ["tokenizer.training.steps=9", "generator.model.depth=3"]
    )
    assert (settings.tokenizer.training.steps, settings.tokenizer.loss.labels) == (9, 2.0)
    assert (settings.generator.training.steps, settings.generator.model.depth) == (2, 3)


def test_resolved_settings_are_settings(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(PARTS + "plan: {labels: {1: liver}}\ndata: {path: here}\n")
    settings = load_recipe(
        SynthesisSettings,
        tmp_path / "a.yaml",
        ["samples.attributes.age=60", "generator.condition.attributes=[age]"],
    )
    save_yaml(settings, tmp_path / "b.yaml")
    assert load_recipe(SynthesisSettings, tmp_path / "b.yaml") == settings
    assert load_yaml(type(settings), tmp_path / "b.yaml") == settings


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tokenizer: no.yaml\n", r"no\.yaml: cannot be read"),
        ("- 1\n", r"recipe\.yaml: a mapping of settings is needed, not list"),
        (PARTS + "sample: {}\n", "unknown key 'sample'; did you mean 'samples'"),
        (PARTS + "evaluation: {extractors: [nope]}\n", "extractor 'nope': allowed are radiomics"),
        (PARTS + "evaluation: {extractors: [medicalnet-v1]}\n", "its weights are needed"),
        (
            PARTS + "plan: {mode: patches}\n",
            "plan: mode must be 'volume' or 'patch', got 'patches'",
        ),
        (PARTS + "samples: {attributes: {age: 6}}\n", "samples attribute 'age': .* modality; name"),
        (PARTS + "data: {workers: 0}\n", "data workers 0: a number from 1 is needed"),
        ("tokenizer: {training: {steps: 1}}\n", "key 'generator' is missing"),
    ],
)
def test_wrong_settings_are_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(MedarError, match=message) as refused:
        load_recipe(SynthesisSettings, tmp_path / "recipe.yaml")
    assert "\n" not in str(refused.value)


def test_a_data_set_is_named_and_there(tmp_path: Path) -> None:
    (tmp_path / "cases.jsonl").write_text("")
    for path, message in (
        (None, "no data set is named"),
        (tmp_path / "no", "no such file or folder"),
        (tmp_path, "is prepared already"),
    ):
        with pytest.raises(MedarError, match=message):
            check_data(DataSettings(path=path))


def test_a_run_does_not_lie_in_its_data(data: DataSettings, tmp_path: Path) -> None:
    assert data.path is not None
    check_data(data, tmp_path / "data-runs" / "x")
    for out in (data.path, data.path / "runs" / "x"):
        with pytest.raises(MedarError, match="lies in the data set"):
            check_data(data, out)


def test_paths_hold_in_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_text(
        PARTS + "data: {path: here, attributes: a.csv}\n"
        "evaluation: {extractors: [medicalnet-v1], weights: w.pth}\n"
    )
    settings = load_recipe(
        SynthesisSettings, "a.yaml", ["tokenizer.loss.perceptual_file=p.pth"]
    ).placed()
    assert (settings.data.path, settings.data.attributes) == (tmp_path / "here", tmp_path / "a.csv")
    assert settings.evaluation.weights == tmp_path / "w.pth"
    assert settings.tokenizer.loss.perceptual_file == tmp_path / "p.pth"


def test_single_files_count_by_content(tmp_path: Path) -> None:
    (tmp_path / "w").write_text("1")
    before = content_of({"weights": tmp_path / "w", "nothing": None})
    assert list(before) == ["the content of weights"]
    (tmp_path / "w").rename(tmp_path / "v")
    assert content_of({"weights": tmp_path / "v"}) == before
    (tmp_path / "v").write_text("2")
    assert content_of({"weights": tmp_path / "v"}) != before
    with pytest.raises(MedarError, match="w: cannot be read"):
        content_of({"weights": tmp_path / "w"})


def test_folders_count_by_content(tmp_path: Path) -> None:
    add(tmp_path / "pairs", 0)
    before = folder_digest("pairs", tmp_path / "pairs", tmp_path)
    assert list(before) == ["the content of pairs"]
    (tmp_path / "pairs").rename(tmp_path / "moved")
    assert folder_digest("pairs", tmp_path / "moved", tmp_path) == before
    add(tmp_path / "moved", 0, value=2.0)
    assert folder_digest("pairs", tmp_path / "moved", tmp_path) != before
    assert folder_digest("pairs", None, tmp_path) == {}
    with pytest.raises(MedarError, match="pairs: no such folder"):
        folder_digest("pairs", tmp_path / "pairs", tmp_path)


def test_a_folder_that_may_only_be_read_can_be_planned(
    data: DataSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, text: str) -> None:
        raise MedarError(f"{path}: cannot be written")

    out = tmp_path / "out"
    out.mkdir()
    before = data_digests(data, out)
    monkeypatch.setattr("medar.data.hashes.SETTLED", -1)
    monkeypatch.setattr("medar.data.hashes.write_text", refuse)
    assert data_digests(data, out) == before


def test_digests_follow_the_content(data: DataSettings, tmp_path: Path) -> None:
    assert data.path is not None
    out = tmp_path / "out"
    before = data_digests(data, out)
    assert not out.exists()
    out.mkdir()
    assert data_digests(data, out) == before
    data.path.rename(tmp_path / "moved")
    moved = DataSettings(path=tmp_path / "moved", workers=1)
    assert data_digests(moved, out) == before
    add(tmp_path / "moved", 3, value=2.0)
    changed = data_digests(moved, out)
    assert {n for n in before if before[n] != changed[n]} == {"the content of files"}
    add(tmp_path / "moved", 6)
    assert data_digests(moved, out)["the list of cases"] != before["the list of cases"]


def test_hashes_are_lent_once(tmp_path: Path) -> None:
    lend_hashes(tmp_path, tmp_path / "prepared")  # there is nothing to lend, and no error
    (tmp_path / "hashes.json").write_text("{}")
    lend_hashes(tmp_path, tmp_path / "prepared")
    assert (tmp_path / "prepared" / "hashes.json").read_text() == "{}"


def test_splits_stay_when_the_data_grow(data: DataSettings, tmp_path: Path) -> None:
    assert data.path is not None
    out = tmp_path / "out"
    first = manifest_in(data, out, "prepare", out / "prepared")
    # As a run leaves it that was moved aside since.
    first.save(out / "old" / "prepare-1" / "manifest.jsonl")
    for number in range(6, 30):
        add(data.path, number)
    then = manifest_in(data, out, "prepare", out / "prepared")
    assert len(then) == 30
    splits = {case.id: case.split for case in then}
    assert all(splits[case.id] == case.split for case in first)
