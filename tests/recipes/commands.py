"""The command lines of recipes, called in the tests' own process."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from medar.cli.main import run_app

ROOT = Path(__file__).parents[2]

Run = Callable[..., tuple[int, str, str]]
"""Words of a command line to exit code, standard output and error."""


def recipe_file(name: str) -> ModuleType:
    """A file of pipelines/, as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "pipelines" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def runner(module: ModuleType, place: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Calls a recipe with a YAML of a folder, on the phantoms there unless --data says other."""

    def run_it(*words: object, config: str = "tiny.yaml") -> tuple[int, str, str]:
        data = [] if "--data" in words else ["--data", place / "phantoms"]
        call = ["--config", place / config, *data, *words]
        with pytest.raises(SystemExit) as left:
            run_app(module.app, list(map(str, call)))
        said = capsys.readouterr()
        return int(left.value.code or 0), said.out, said.err

    return run_it
