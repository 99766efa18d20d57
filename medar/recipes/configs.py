"""The configurations that come with medar: YAML files, found by name.

They lie in configs/ of the repository, and in an installed medar in the package's own folder. Names
are those of the files: `hippocampus_mr`, `tokenizer/hippocampus_mr`.
"""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from medar.errors import MedarError
from medar.settings import did_you_mean

Kind = Literal["recipes", "tokenizer", "detail", "generator", "segmentation", "plans"]
"""The purpose of a configuration: a recipe, or one training."""


def configs_folder() -> Path:
    """The folder that holds the configurations.

    Raises:
        MedarError: an incomplete installation.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "configs", package.parent / "configs"):
        if (folder / "demo.yaml").exists():
            return folder
    raise MedarError(f"{package}: no configurations; install medar again")


def config_names() -> list[str]:
    """The names of all configurations: those of recipes, then those of trainings by folder."""
    folder = configs_folder()
    files = sorted(folder.rglob("*.yaml"), key=lambda path: (path.parent != folder, path))
    return [path.relative_to(folder).with_suffix("").as_posix() for path in files]


def find_config(name_or_path: str | Path, kind: Kind | None = None) -> Path:
    """The file of a configuration.

    Args:
        name_or_path: a file, or the name of a configuration that comes with medar, in the folder
            of `kind` or below configs/.
        kind: recipe or training.

    Raises:
        MedarError: neither a file nor a name; similar names are suggested.
    """
    path = Path(name_or_path)
    if path.exists() and not path.is_dir():
        return path
    folder = configs_folder()
    name = path.as_posix().removesuffix(".yaml")
    below = "" if kind in (None, "recipes") else kind
    names = config_names()
    for candidate in (f"{below}/{name}" if below else name, name):
        if candidate in names:
            return folder / f"{candidate}.yaml"
    if path.suffix or len(path.parts) > 2:
        near = near_file(path) or near_name(name, names)
        raise MedarError(
            f"{path}: no such file; "
            + (
                f"did you mean {near!r}?"
                if near
                else "`medar configs` lists those that come with medar"
            )
        )
    suited = [n.removeprefix(f"{below}/") for n in names if n.rpartition("/")[0] == below]
    hint = did_you_mean(name, suited, listed="known names")
    raise MedarError(f"{name}: neither a file nor a configuration of medar; {hint}")


def near_file(path: Path) -> str | None:
    """The YAML file in the same folder whose name is nearest to that of a missing one."""
    there = [one for one in path.parent.glob("*.y*ml") if one.is_file()]
    name = near_name(path.name, sorted(one.name for one in there))
    return None if name is None else str(path.parent / name)


def near_name(name: str, allowed: Sequence[str]) -> str | None:
    """The nearest of some names; None if none is near."""
    return next(iter(difflib.get_close_matches(name, allowed, n=1, cutoff=0.7)), None)


def description(name: str) -> str:
    """The first sentence of a configuration's header."""
    header = []
    for line in (configs_folder() / f"{name}.yaml").read_text(encoding="utf-8").splitlines():
        if not line.startswith("#") or line.startswith("# Data: "):
            break
        header.append(line.removeprefix("#").strip())
    return " ".join(header).split(". ")[0].rstrip(".")
