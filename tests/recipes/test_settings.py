"""The settings of a recipe: parts in files, errors in one line, absolute paths."""

from pathlib import Path

import pytest

from medar.errors import MedarError
from medar.recipes.settings import SynthesisSettings, load_recipe
from medar.settings import load_yaml, save_yaml

PARTS = "tokenizer: {training: {steps: 1}}\ngenerator: {training: {steps: 2}}\n"


def test_parts_are_inline_or_in_files_beside_the_yaml(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "one.yaml").write_text("training: {steps: 7}\nloss: {label_weight: 2}\n")
    path = tmp_path / "recipe.yaml"
    path.write_text("tokenizer: below/one.yaml\ngenerator: {training: {steps: 2}}\n")
    settings = load_recipe(
        SynthesisSettings, path, ["tokenizer.training.steps=9", "generator.model.depth=3"]
    )
    assert (settings.tokenizer.training.steps, settings.tokenizer.loss.label_weight) == (9, 2.0)
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
        ("tokenizer: no.yaml\n", r"no\.yaml: no such file"),
        ("- 1\n", r"recipe\.yaml: must hold a mapping of settings, got list"),
        (PARTS + "sample: {}\n", "unknown key 'sample'; did you mean 'samples'"),
        (PARTS + "evaluation: {extractors: [nope]}\n", "unknown extractor 'nope'; known"),
        (PARTS + "evaluation: {extractors: [medicalnet-v1]}\n", "needs its weights"),
        (
            PARTS + "plan: {mode: patches}\n",
            "plan: mode must be 'volume' or 'patch', got 'patches'",
        ),
        (
            PARTS + "samples: {attributes: {age: 6}}\n",
            "does not learn 'age', only modality",
        ),
        (PARTS + "samples: {n: 1}\n", "samples: n must be at least 2, got 1"),
        (PARTS + "shares: {report: 2}\n", "key 'shares' has a new name: budget_weights"),
        (PARTS + "budget_weights: {report: 0}\n", "budget_weights.report must be greater than 0"),
        (PARTS + "max_minutes: 0\n", "max_minutes must be greater than 0, got 0"),
        (PARTS + "data: {workers: 0}\n", "data.workers must be at least 1, got 0"),
        ("tokenizer: {training: {steps: 1}}\n", "key 'generator' is missing"),
    ],
)
def test_invalid_settings_give_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(MedarError, match=message) as refused:
        load_recipe(SynthesisSettings, tmp_path / "recipe.yaml")
    assert "\n" not in str(refused.value)


def test_paths_are_relative_to_the_settings_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_text(
        PARTS + "data: {path: here, attributes: a.csv}\n"
        "evaluation: {extractors: [medicalnet-v1], weights: w.pth}\n"
    )
    settings = load_recipe(
        SynthesisSettings, "a.yaml", ["tokenizer.loss.perceptual_file=p.pth"]
    ).with_absolute_paths()
    assert (settings.data.path, settings.data.attributes) == (tmp_path / "here", tmp_path / "a.csv")
    assert settings.evaluation.weights == tmp_path / "w.pth"
    assert settings.tokenizer.loss.perceptual_file == tmp_path / "p.pth"
