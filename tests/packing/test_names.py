"""Names of models: in the box, local folders, bundles, and messages for unknown ones."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from medar.errors import MedarError
from medar.model_box import MAX_BYTES, MAX_BYTES_TOGETHER, Bundle, box_folder, box_names, size_of
from medar.model_folder import find_model, holds_model
from medar.records import Records, RunRecord
from medar.segmentation.segmenter import Segmenter
from medar.synthesis.synthesizer import Synthesizer
from medar.tokenizer.tokenizer import Tokenizer

from .conftest import Models

NAME = "small-noise"


@pytest.mark.usefixtures("box")
def test_a_name_loads_each_part_of_a_bundle(models: Models) -> None:
    synthesizer = Synthesizer.from_pretrained(NAME, "cpu")
    (first,), (second,) = synthesizer(seed=3), Synthesizer.from_pretrained(NAME, "cpu")(seed=3)
    assert np.array_equal(first.image.array, second.image.array)
    assert Tokenizer.from_pretrained(NAME, "cpu").digest == synthesizer.tokenizer.digest
    labels = Segmenter.from_pretrained(NAME, "cpu").plan.labels
    assert labels == models.plan.labels


def test_the_folder_of_a_bundle_is_a_model_too(bundle: Path) -> None:
    assert find_model(bundle, "generator") == bundle / "generator"
    assert find_model(bundle, "tokenizer") == bundle / "generator" / "tokenizer"
    assert find_model(bundle, "segmentation network") == bundle / "segmenter"
    assert holds_model(bundle, "generator")


def test_a_part_that_a_bundle_lacks_is_named(bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(bundle, tmp_path / "small")
    shutil.rmtree(tmp_path / "small" / "segmenter")
    assert not holds_model(tmp_path / "small", "segmentation network")
    with pytest.raises(
        MedarError, match="holds no segmentation network; it holds a generator and a tokenizer"
    ):
        find_model(tmp_path / "small", "segmentation network")


def test_a_local_model_comes_before_the_box(
    box: Path, models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(models.generator, tmp_path / NAME / "model")
    assert find_model(NAME, "generator") == Path(NAME) / "model"
    shutil.rmtree(tmp_path / NAME)
    assert find_model(NAME, "generator") == box / NAME / "generator"


@pytest.mark.usefixtures("box")
def test_a_local_folder_without_a_model_hides_the_box(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / NAME).mkdir()
    assert not holds_model(NAME, "generator")
    with pytest.raises(MedarError, match="it hides the model of this name that comes with medar"):
        find_model(NAME, "generator")


@pytest.mark.usefixtures("box")
def test_an_unknown_name_lists_the_known_ones() -> None:
    message = "no generator .neither a folder nor a model that comes with medar; known: small-noise"
    with pytest.raises(MedarError, match=message) as caught:
        find_model("small-nois", "generator")
    assert "\n" not in str(caught.value)
    assert not holds_model("small-nois", "generator")


def test_the_folder_of_a_recipe_leads_to_its_models(models: Models, tmp_path: Path) -> None:
    records = Records(tmp_path)
    (tmp_path / "stages").mkdir()
    records.write_run(RunRecord(recipe="synthesis", stages=("prepare", "tokenizer", "generator")))
    for kind in ("generator", "tokenizer"):
        with pytest.raises(MedarError, match=f"a recipe's folder without a {kind}; `medar status"):
            find_model(tmp_path, kind)
        assert not holds_model(tmp_path, kind)
    for name in ("tokenizer", "detail"):
        shutil.copytree(models.generator / "tokenizer", tmp_path / name / "model")
    shutil.copytree(models.generator, tmp_path / "generator" / "model")
    assert find_model(tmp_path, "generator") == tmp_path / "generator" / "model"
    assert find_model(tmp_path, "model") == tmp_path / "generator" / "model"
    # The detail decoder of an earlier recipe, which the last one leaves out.
    assert find_model(tmp_path, "tokenizer") == tmp_path / "tokenizer" / "model"
    records.write_run(RunRecord(recipe="synthesis", stages=("tokenizer", "detail", "generator")))
    assert find_model(tmp_path, "tokenizer") == tmp_path / "detail" / "model"
    (one,), (other,) = (Synthesizer.from_pretrained(path, "cpu")(seed=3) for path in
                        (tmp_path, models.generator))  # fmt: skip
    assert np.array_equal(one.image.array, other.image.array)


def test_an_empty_box_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medar.model_box.box_folder", lambda: tmp_path)
    with pytest.raises(MedarError, match="this installation has none"):
        find_model("small-noise", "generator")


def test_a_bundle_of_another_format_is_refused(bundle: Path, tmp_path: Path) -> None:
    text = (bundle / "bundle.json").read_text()
    (tmp_path / "bundle.json").write_text(text.replace('"format": 1', '"format": 2'))
    with pytest.raises(MedarError, match="format must be 1, got 2"):
        Bundle.load(tmp_path)


@pytest.mark.slow
def test_the_models_that_come_with_medar_load_and_sample() -> None:
    sizes = {name: size_of(box_folder() / name) for name in box_names()}
    assert all(size <= MAX_BYTES for size in sizes.values())
    assert sum(sizes.values()) <= MAX_BYTES_TOGETHER
    for name in sizes:
        (sample,) = Synthesizer.from_pretrained(name, "cpu")()
        assert float(sample.image.array.std()) > 0
