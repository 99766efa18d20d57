"""A digest of source code that comments, docstrings and layout do not change."""

import ast
from functools import cache
from pathlib import Path

import medar
from medar.errors import MedarError
from medar.files import digest

PACKAGE = Path(medar.__file__).parent


@cache
def code_digest(room: str, package: Path = PACKAGE) -> str:
    """The digest of a module or of all modules of a package, by their names.

    Args:
        room: its name below `package`, such as "data".
        package: the folder that holds it.

    Raises:
        MedarError: there is no such module.
    """
    folder = package / room
    files = sorted(folder.rglob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]
    if not files or not files[0].exists():
        raise MedarError(f"{folder}: no such module, whose code a stage depends on")
    return digest([[file.relative_to(package).as_posix(), _without_words(file)] for file in files])


def _without_words(file: Path) -> str:
    """A module's syntax tree as text, without docstrings and places."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            # Texts that stand alone do nothing: docstrings, and those below fields and constants.
            node.body = [one for one in body if not _is_text(one)]  # type: ignore[attr-defined]
    return ast.dump(tree)


def _is_text(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )
