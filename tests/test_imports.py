"""The sub-packages of medar: allowed imports, and what the command line loads at its start."""

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import medar

PACKAGE = Path(medar.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

ROOMS = (
    "records",
    "volume",
    "data",
    "view",
    "training",
    "tokenizer",
    "generator",
    "synthesis",
    "segmentation",
    "evaluation",
    "packing",
    "tracking",
    "report",
    "recipes",
    "cli",
)
"""From the bottom up: a room imports from itself and from those below."""

ALONE = {
    "nibabel": "volume", "SimpleITK": "volume", "matplotlib": "report", "cyclopts": "cli",
    "blosc2": "data", "mlflow": "tracking", "jinja2": "report",
    "pydicom": "volume", "highdicom": "volume",
}  # fmt: skip
"""Libraries that a single room may import."""

HEAVY = {
    "torch", "numpy", "scipy", "monai", "nibabel", "SimpleITK", "matplotlib", "mlflow", "pydicom",
}  # fmt: skip


def room_of(path: Path) -> str:
    """The sub-package of a file, or the file itself; "" for files shared by all sub-packages."""
    name = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return name if name in ROOMS else ""


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, at the top level or inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""


def test_training_imports_no_other_subpackage() -> None:
    allowed = {"devices", "errors", "files", "settings", "progress", "training", "lazy"}
    for path in (PACKAGE / "training").glob("*.py"):
        for name in imports(path):
            top, _, rest = name.partition(".")
            assert top != "mlflow", path
            assert top != "medar" or rest.partition(".")[0] in allowed, f"{path}: {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_subpackages_import_only_lower_ones(path: Path) -> None:
    room = room_of(path)
    for name in imports(path):
        top, _, rest = name.partition(".")
        if top in ALONE:
            assert room == ALONE[top], f"{name} belongs to {ALONE[top]}"
        other = rest.partition(".")[0]
        if top == "medar" and room in ROOMS and other in ROOMS:
            assert ROOMS.index(other) <= ROOMS.index(room), f"{room} imports {name}"


def test_every_folder_is_a_package() -> None:
    """Folders that are no packages would be missing in the wheel."""
    assert all((path.parent / "__init__.py").exists() for path in FILES)


def test_the_command_line_imports_nothing_heavy() -> None:
    code = "import sys, medar.cli.main; print(*{name.partition('.')[0] for name in sys.modules})"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert not HEAVY & set(result.stdout.split())


def test_data_preparation_does_not_import_torch() -> None:
    code = "import sys, medar.data.prepare, medar.data.check; print(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert not {"torch", "monai", "matplotlib"} & set(result.stdout.split())


def loaded_by(code: str) -> set[str]:
    """Names of the modules that a new process has loaded after some code."""
    code = f"import sys; {code}; print(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return set(result.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    "code",
    [
        "import medar.synthesis, medar.tokenizer, medar.generator, medar.segmentation",
        "import medar.training.settings",
        "import medar.cli.info as info; info.has_nvidia = lambda: False; info.gather()",
    ],
)
def test_torch_is_imported_on_first_use(code: str) -> None:
    assert "torch" not in loaded_by(code)


def test_models_load_without_libraries_that_only_data_or_reports_need() -> None:
    found = loaded_by("from medar.synthesis import Synthesizer")
    assert "torch" in found
    assert not {"scipy.ndimage", "monai", "matplotlib", "mlflow", "blosc2"} & found


@pytest.mark.parametrize(
    "package", ["synthesis", "tokenizer", "generator", "segmentation", "training"]
)
def test_lazy_packages_have_what_they_name(package: str) -> None:
    module = importlib.import_module(f"medar.{package}")
    tree = ast.parse((PACKAGE / package / "__init__.py").read_text(encoding="utf-8"))
    names = [n.names[0].name for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
    names = [name for name in names if name not in ("TYPE_CHECKING", "lazy")]
    assert names
    for name in names:
        assert getattr(module, name) is not None
    with pytest.raises(AttributeError, match=f"module 'medar.{package}' has no attribute 'no'"):
        module.no  # noqa: B018


def test_mlflow_is_imported_on_the_first_logging_call() -> None:
    code = "import sys, medar.tracking, medar.tracking.models; print(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert not {"mlflow", "psutil", "pandas"} & set(result.stdout.split())


def test_the_folder_mlflow_does_not_shadow_the_package() -> None:
    folder = PACKAGE.parent / "mlflow"
    assert not list(folder.rglob("*.py"))


def module_of(path: Path) -> str:
    name = path.relative_to(PACKAGE.parent).with_suffix("").as_posix().replace("/", ".")
    return name.removesuffix(".__init__")


def imported_files(path: Path) -> Iterator[str]:
    """The modules of medar that a file imports: `from medar.data import plan` means the file."""
    modules = {module_of(file) for file in FILES}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            for name in node.names:
                inner = f"{node.module}.{name.name}"
                names.append(inner if inner in modules else node.module or "")
        yield from (name for name in names if name in modules)


def test_files_import_in_no_circle() -> None:
    """Imports inside functions and for type checkers count too."""
    graph = {module_of(path): set(imported_files(path)) for path in FILES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(reversed(error.args[1])))
