"""The names of `medar`: each resolves, is documented, and is known to type checkers."""

import ast
import inspect
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import medar

NAMES = sorted(set(medar.__all__) - {"__version__"})
PAGE = Path(__file__).parents[1] / "docs" / "reference" / "python.md"


@pytest.mark.parametrize("name", NAMES)
def test_every_name_resolves_and_is_documented(name: str) -> None:
    value = getattr(medar, name)
    assert inspect.getdoc(value)
    assert f"`{name}`" in PAGE.read_text() or f"`{name}(" in PAGE.read_text()


def test_type_checkers_see_the_same_names() -> None:
    """The imports under TYPE_CHECKING equal the table of lazy names."""
    (block,) = [
        node
        for node in ast.parse(Path(medar.__file__).read_text()).body
        if isinstance(node, ast.If)
    ]
    imported = {
        alias.asname: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert imported == medar._MODULE_OF


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="module 'medar' has no attribute 'tokeniser'"):
        _ = medar.tokeniser
    assert dir(medar) == medar.__all__


def test_importing_medar_loads_nothing_heavy() -> None:
    code = "import sys, medar; print(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    loaded = {name for name in result.stdout.split() if name.startswith("medar.")}
    assert loaded <= {"medar.version"}
    assert not {"torch", "numpy", "pydantic", "yaml", "mlflow"} & set(result.stdout.split())


@pytest.mark.slow
def test_the_documented_workflow_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(PAGE.parents[1] / "whole_way.py"))["main"](tmp_path)
    printed = capsys.readouterr().out
    for line in ("one volume reconstructed: PSNR", "Frechet distance", "Dice: {"):
        assert line in printed
    assert len(list((tmp_path / "samples").glob("*.nii.gz"))) == 4
