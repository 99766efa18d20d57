"""`medar run` and the scripts of pipelines/, called in the process of the tests."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest

from medar.cli.main import main

ROOT = Path(__file__).parents[2]

Run = Callable[..., tuple[int, str, str]]
"""Words of a command line to exit code, standard output and error."""


def runner(recipe: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a recipe with a YAML of a folder, on its phantoms unless --data names other data."""

    def run_it(*words: object, config: object = "tiny.yaml") -> tuple[int, str, str]:
        data = [] if "--data" in words else ["--data", folder / "phantoms"]
        with pytest.raises(SystemExit) as ended:
            main(["run", recipe, *map(str, (folder / str(config), *data, *words))])
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out, printed.err

    return run_it


def run_script(name: str, *words: object) -> None:
    """Run a script of pipelines/."""
    path = ROOT / "pipelines" / f"{name}.py"
    assert len(path.read_text().splitlines()) <= 100, "to be read in one sitting"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main([*map(str, words)])
