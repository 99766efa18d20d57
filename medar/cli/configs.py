"""`medar configs`: the configurations that come with medar."""

from pathlib import Path

from cyclopts import App, Parameter

from medar.cli.output import print_json, print_table
from medar.errors import MedarError

app = App(
    name="configs",
    help="List, show and copy the configurations that come with medar.",
    help_format="markdown",
    default_parameter=Parameter(negative=""),
)


@app.command(name="list")
def list_(*, json: bool = False) -> None:
    """List all configurations, with the first line of each.

    Names without a slash are recipes, for `medar run`; `tokenizer/NAME` and so on are for
    `medar tokenizer train NAME`.

    Parameters
    ----------
    json
        Print one JSON object: folder, and configs with name and description.
    """
    from medar.recipes.configs import config_names, configs_folder, description

    rows = [(name, description(name)) for name in config_names()]
    if json:
        configs = [{"name": name, "description": text} for name, text in rows]
        print_json({"folder": str(configs_folder()), "configs": configs})
    else:
        print_table(("name", "description"), rows)


@app.default
def default() -> None:
    """List all configurations."""
    list_()


@app.command
def show(name: str, /) -> None:
    """Print a configuration.

    Parameters
    ----------
    name
        As `medar configs` lists it, such as hippocampus_mr or tokenizer/hippocampus_mr.
    """
    from medar.recipes.configs import find_config

    print(find_config(name).read_text(encoding="utf-8"), end="")


@app.command
def copy(name: str, dest: Path, /) -> None:
    """Copy a configuration, and the files that it names, to a folder.

    Parameters
    ----------
    name
        As `medar configs` lists it, such as hippocampus_mr or tokenizer/hippocampus_mr.
    dest
        A folder, made if it is absent. Files that are there are not replaced.
    """
    from medar.recipes.configs import configs_folder, find_config
    from medar.settings import read_yaml

    source, folder = find_config(name), configs_folder()
    values = read_yaml(source)
    parts = [source.parent / part for part in values.values() if isinstance(part, str)]
    files = [source, *(part for part in parts if part.suffix == ".yaml" and part.exists())]
    targets = [dest / file.relative_to(folder) for file in files]
    existing = [target for target in targets if target.exists()]
    if existing:
        raise MedarError(f"{existing[0]}: exists already; choose another folder, or delete it")
    if dest.exists() and not dest.is_dir():
        raise MedarError(f"{dest}: must be a folder, got a file")
    for file, target in zip(files, targets, strict=True):
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(file.read_text(encoding="utf-8"), encoding="utf-8")
    print(targets[0])
