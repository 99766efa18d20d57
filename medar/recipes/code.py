"""Which code a stage's result depends on, and a digest of it, derived from imports.

Starting from the function of a stage, names are followed to the functions and classes of the same
package that they stand for, and imports to the modules of medar. Of those modules everything
counts, with whatever they import in turn. Comments, docstrings, type annotations of functions and
layout do not change a digest.

Functions that a stage's function receives as arguments (`partial(train, draw=...)`) are not
followed: measurements and pictures are passed in this way where they do not change the result.
"""

import ast
import inspect
import re
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

from medar.files import digest

PACKAGE = Path(__file__).parents[1]

NEUTRAL = frozenset({
    "medar", "medar.environment", "medar.errors", "medar.files", "medar.interruption", "medar.lazy",
    "medar.parallel", "medar.progress", "medar.records", "medar.registry", "medar.settings",
    "medar.version", "medar.words",
})  # fmt: skip
"""Modules that do not count: they read, write, check and report, and change no result."""

ENTRY = re.compile(r"^(medar(?:\.\w+)+):\w+$")
"""How registries name a class that they import later."""


def code_digests(function: Callable[..., Any], package: Path = PACKAGE) -> dict[str, str]:
    """Digests of the code that a function depends on, by sub-package such as "medar.tokenizer".

    Code outside medar counts only if it is the function's own module. A function without a source
    file, such as one typed into a session, has no digests.

    Args:
        function: may be a `partial`.
        package: the folder of medar.
    """
    while isinstance(function, partial):
        function = function.func
    try:
        source = inspect.getsourcefile(inspect.unwrap(function))
    except TypeError:
        return {}
    if source is None or not Path(source).exists():
        return {}
    definitions, modules = _follow(function.__module__, function.__name__, source, package)
    parts: dict[str, dict[str, str]] = {}
    for (module, name), text in definitions.items():
        parts.setdefault(_group(module), {})[f"{module}:{name}"] = text
    for module in modules:
        parts.setdefault(_group(module), {})[module] = module_digest(module, package)
    return {group: digest(sorted(parts[group].items())) for group in sorted(parts)}


def _follow(
    module: str, name: str, source: str, package: Path
) -> tuple[dict[tuple[str, str], str], set[str]]:
    """The definitions reached in the function's package, and the modules reached elsewhere."""
    home = module.rpartition(".")[0] or module
    files = {module: Path(source)}
    definitions: dict[tuple[str, str], str] = {}
    modules: set[str] = set()
    todo = [(module, name)]
    while todo:
        module, name = todo.pop()
        if (module, name) in definitions:
            continue
        bound, imported = _bindings(files[module], package)
        # A function inside a function counts with its whole module.
        nodes: list[ast.stmt] = bound.get(name) or _tree(files[module]).body
        definitions[module, name] = digest([ast.dump(node) for node in nodes])
        found = [target for node in nodes for target in _imports(node, package)]
        used = {n.id for node in nodes for n in ast.walk(node) if isinstance(n, ast.Name)}
        for other in used:
            found += imported.get(other, [])
            if other in bound and other != name:
                todo.append((module, other))
        for target, attribute in found:
            if target.startswith(f"{home}.") and attribute and home != "medar":
                files[target] = module_file(target, package) or files[module]
                todo.append((target, attribute))
            else:
                modules |= modules_reached(target, package)
    return definitions, modules


@cache
def modules_reached(module: str, package: Path = PACKAGE) -> frozenset[str]:
    """A module of medar and all that it imports, directly or not, except neutral ones."""
    found: set[str] = set()
    todo = [module]
    while todo:
        name = todo.pop()
        if name in found or name in NEUTRAL or module_file(name, package) is None:
            continue
        found.add(name)
        todo += imports_of(name, package)
    return frozenset(found)


@cache
def imports_of(module: str, package: Path = PACKAGE) -> tuple[str, ...]:
    """The modules of medar that a module imports, also inside functions and by registries."""
    tree = _tree(_existing(module, package))
    return tuple(sorted({target for target, _ in _imports(tree, package)}))


@cache
def module_digest(module: str, package: Path = PACKAGE) -> str:
    """The digest of a module's code."""
    return digest(ast.dump(_tree(_existing(module, package))))


@cache
def module_file(module: str, package: Path = PACKAGE) -> Path | None:
    """The source of a module of medar; None if there is no such module."""
    top, *parts = module.split(".")
    if top != "medar":
        return None
    path = package.joinpath(*parts)
    candidates = (path / "__init__.py", path.with_name(f"{path.name}.py"))
    return next((file for file in candidates if file.exists()), None)


def _existing(module: str, package: Path) -> Path:
    file = module_file(module, package)
    assert file is not None, module
    return file


def _imports(tree: ast.AST, package: Path) -> Iterator[tuple[str, str]]:
    """Modules of medar that are imported below a node, and the name taken from each, or ""."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((one.name, "") for one in node.names if one.name.startswith("medar."))
        elif isinstance(node, ast.ImportFrom):
            for one in node.names:
                yield from _targets(node.module or "", one.name, package)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from ((name, "") for name in ENTRY.findall(node.value))


def _targets(module: str, name: str, package: Path) -> Iterator[tuple[str, str]]:
    """What `from module import name` reaches: a module, or something that a module defines."""
    if module.partition(".")[0] != "medar":
        return
    if module_file(f"{module}.{name}", package) is not None:
        yield f"{module}.{name}", ""
    if module != "medar":
        yield module, name
    elif name in (modules := _public_modules(package)):
        yield modules[name], name


@cache
def _public_modules(package: Path) -> dict[str, str]:
    """The modules of the names in `from medar import ...`, as medar/__init__.py imports them."""
    tree = ast.parse((package / "__init__.py").read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    return {one.name: node.module or "" for node in imports for one in node.names}


@cache
def _bindings(
    file: Path, package: Path
) -> tuple[dict[str, list[ast.stmt]], dict[str, list[tuple[str, str]]]]:
    """Top-level statements of a file by the names they define, and its imports by name."""
    bound: dict[str, list[ast.stmt]] = {}
    imported: dict[str, list[tuple[str, str]]] = {}
    for node in _tree(file).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            bound.setdefault(node.name, []).append(node)
        elif isinstance(node, ast.ImportFrom):
            for one in node.names:
                targets = _targets(node.module or "", one.name, package)
                imported[one.asname or one.name] = list(targets)
        elif isinstance(node, ast.Import):
            for one in node.names:
                if one.name.startswith("medar."):
                    imported.setdefault("medar", []).append((one.name, ""))
        else:
            for inner in ast.walk(node):
                if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store):
                    bound.setdefault(inner.id, []).append(node)
    return bound, imported


@cache
def _tree(file: Path) -> ast.Module:
    """A file's syntax tree without docstrings, type-checking blocks and annotations."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        for field in ("body", "orelse", "finalbody"):
            body = getattr(node, field, None)
            if isinstance(body, list):
                setattr(node, field, [one for one in body if not _is_inert(one)])
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            node.returns = None
        elif isinstance(node, ast.arg):
            node.annotation = None
    return tree


def _is_inert(node: ast.AST) -> bool:
    """Strings that stand alone (docstrings, also below fields) and imports for type checkers."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return isinstance(node.value.value, str)
    if isinstance(node, ast.If) and isinstance(node.test, ast.Name):
        return node.test.id == "TYPE_CHECKING"
    return False


def _group(module: str) -> str:
    """ "medar.tokenizer" for medar.tokenizer.losses; other modules stand for themselves."""
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "medar" else module
