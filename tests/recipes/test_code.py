"""The code a stage depends on: the imports of its function, without comments and docstrings."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from medar.recipes import code
from medar.recipes.code import code_digests, module_digest, module_file, modules_reached
from medar.recipes.configs import find_config
from medar.recipes.segmentation import segmentation_stages
from medar.recipes.settings import SegmentationRecipeSettings, SynthesisSettings, load_recipe
from medar.recipes.stage import Stage
from medar.recipes.synthesis import synthesis_stages

MODULE = '''"""A module."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from medar.room.types import Kind

SIDE = 3
"""In mm."""


def volume(side: float) -> float:
    """The volume."""
    from medar.room import inner

    return side**3  # a cube


def load():
    return "medar.room.plugin:Plugin"
'''


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package with a module that imports, loads and mentions other modules."""
    folder = tmp_path / "medar"
    for name in ("inner", "plugin", "types", "other"):
        (folder / "room").mkdir(parents=True, exist_ok=True)
        (folder / "room" / f"{name}.py").write_text("SIDE = 1\n")
    (folder / "room" / "__init__.py").write_text("")
    (folder / "room" / "cube.py").write_text(MODULE)
    return folder


def digest_of(tmp_path: Path, text: str) -> str:
    folder = tmp_path / str(abs(hash(text)))
    folder.mkdir()
    (folder / "cube.py").write_text(text)
    return module_digest("medar.cube", folder)


def test_comments_docstrings_annotations_and_layout_do_not_change_the_digest(
    tmp_path: Path,
) -> None:
    changed = MODULE.replace("A module", "The best of modules").replace("The volume", "In mm3")
    changed = changed.replace("  # a cube", "").replace('"""In mm."""\n', "")
    changed = changed.replace("side: float", "side: int")
    assert digest_of(tmp_path, MODULE) == digest_of(tmp_path, changed)


@pytest.mark.parametrize("change", [("side**3", "side**2"), ("SIDE = 3", "SIDE = 4")])
def test_code_changes_the_digest(tmp_path: Path, change: tuple[str, str]) -> None:
    assert digest_of(tmp_path, MODULE) != digest_of(tmp_path, MODULE.replace(*change))


def test_imports_in_functions_and_registered_names_are_followed(package: Path) -> None:
    reached = modules_reached("medar.room.cube", package)
    assert reached == {"medar.room.cube", "medar.room", "medar.room.inner", "medar.room.plugin"}


def all_stages() -> list[Any]:
    synthesis = load_recipe(SynthesisSettings, find_config("hippocampus_mr"))
    segmentation = load_recipe(SegmentationRecipeSettings, find_config("segment_hippocampus_mr"))
    stages = [*synthesis_stages(synthesis, Path()), *segmentation_stages(segmentation, Path())]
    recipes = ["synthesis"] * 8 + ["segmentation"] * 7
    return [
        pytest.param(stage, id=f"{name}-{stage.name}")
        for name, stage in zip(recipes, stages, strict=True)
    ]


def stage(recipe: str, name: str) -> Stage:
    found: Stage = next(p.values[0] for p in all_stages() if p.id == f"{recipe}-{name}")
    return found


@pytest.mark.parametrize(
    ("module", "recipe", "stale", "fresh"),
    [
        ("medar.tokenizer.spectrum", "synthesis", ["tokenizer", "evaluate"], ["synthesize"]),
        ("medar.tokenizer.tokenizer", "synthesis",
         ["tokenizer", "detail", "tokens", "generator", "synthesize", "evaluate"], ["prepare"]),
        ("medar.tokenizer.detail_training", "synthesis", ["detail"], ["tokenizer", "generator"]),
        ("medar.generator.task", "synthesis", ["generator"],
         ["prepare", "tokenizer", "tokens", "synthesize"]),
        ("medar.generator.sampling", "synthesis", ["generator", "synthesize"], ["tokens"]),
        ("medar.segmentation.backbones.trunk", "segmentation", ["pretrain", "train"], []),
        ("medar.report.charts", "synthesis", ["report"], ["tokenizer", "generator", "evaluate"]),
        ("medar.segmentation.sliding_window", "segmentation", ["predict", "evaluate"], []),
        ("medar.evaluation.segmentation.metrics", "segmentation", ["evaluate"], ["predict"]),
    ],
)  # fmt: skip
def test_a_stage_is_stale_when_a_module_it_uses_changes(
    monkeypatch: pytest.MonkeyPatch, module: str, recipe: str, stale: list[str], fresh: list[str]
) -> None:
    assert module_file(module) is not None
    runs = {name: stage(recipe, name).run for name in (*stale, *fresh)}
    before = {name: code_digests(run) for name, run in runs.items()}

    def digest(name: str, package: Path) -> str:
        return "another" if name == module else module_digest(name, package)

    monkeypatch.setattr(code, "module_digest", digest)
    changed = [name for name, run in runs.items() if code_digests(run) != before[name]]
    assert changed == stale


@pytest.mark.parametrize("stage", all_stages())
def test_only_the_report_depends_on_report_code(stage: Stage) -> None:
    digests = code_digests(stage.run)
    assert "medar.recipes" in digests  # the function itself
    assert not {"medar.cli", "medar.tracking", "medar.view"} & digests.keys()
    assert ("medar.report" in digests) == (stage.name == "report")
    assert ("medar.evaluation" in digests) == (stage.name in ("evaluate", "report"))


def test_external_functions_are_digested_with_their_module() -> None:
    def work() -> None:
        from medar import train_generator  # noqa: F401

    assert set(code_digests(partial(work))) >= {__name__, "medar.generator", "medar.training"}
    names: dict[str, Any] = {}
    exec("def typed(context): ...", names)
    assert code_digests(names["typed"]) == {}
