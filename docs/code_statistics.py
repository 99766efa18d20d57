"""The size and shape of medar's code: `make stats`, or `python docs/code_statistics.py [ROOT]`.

Counts the Python files of medar/ and pipelines/ below ROOT (default: this checkout): files, lines,
classes, the median file, rooms (sub-packages and modules of medar) and the floors that their
imports arrange them in, import cycles between files, and near-duplicates: pairs of passages
with `WINDOW` or more consecutive lines of the same shape, ignoring names and values.
"""

import ast
import io
import keyword
import statistics
import sys
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

FOLDERS = ("medar", "pipelines")
WINDOW = 6
"""Number of common lines from which two passages count as near-duplicates."""
COMMON = 6
"""Passages that occur more often than this count as idiom, not as duplication."""

Graph = dict[str, set[str]]


def python_files(root: Path) -> dict[str, Path]:
    """The counted files by module name."""
    files = [path for folder in FOLDERS for path in sorted((root / folder).rglob("*.py"))]
    return {module_name(path.relative_to(root)): path for path in files}


def module_name(path: Path) -> str:
    """The dotted name of a file: a package has that of its folder."""
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_modules(path: Path, modules: dict[str, Path]) -> Iterator[str]:
    """The modules that a file imports, inside functions and for type checkers too.

    `from package import name` counts as the module `package.name` where there is one.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                longer = f"{node.module}.{alias.name}"
                yield longer if longer in modules else node.module


def import_graph(modules: dict[str, Path]) -> Graph:
    """For each module those that it imports, of the counted ones."""
    return {
        name: {one for one in imported_modules(path, modules) if one in modules} - {name}
        for name, path in modules.items()
    }


def circles(graph: Graph) -> list[list[str]]:
    """Groups of modules that reach each other: strongly connected components of two or more."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(node: str) -> None:
        order[node] = low[node] = len(order)
        stack.append(node)
        for other in sorted(graph[node]):
            if other not in order:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], order[other])
        if low[node] == order[node]:
            group = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(group) > 1:
                found.append(sorted(group))

    sys.setrecursionlimit(10_000)
    for node in sorted(graph):
        if node not in order:
            visit(node)
    return found


def room_of(module: str) -> str:
    """The sub-package or top-level module of medar that a module belongs to."""
    return ".".join(module.split(".")[:2])


def room_graph(graph: Graph) -> Graph:
    """The imports between rooms."""
    rooms: Graph = {room_of(module): set() for module in graph}
    for module, imports in graph.items():
        rooms[room_of(module)] |= {room_of(one) for one in imports} - {room_of(module), "medar"}
    return rooms


def floors(rooms: Graph) -> dict[str, int]:
    """The floor of each room: one above the highest that it imports.

    Rooms that import each other are on the same level.
    """
    group = {room: frozenset([room]) for room in rooms}
    group |= {room: frozenset(circle) for circle in circles(rooms) for room in circle}
    known: dict[frozenset[str], int] = {}

    def floor(rooms_of_one: frozenset[str]) -> int:
        if rooms_of_one not in known:
            below = {group[one] for room in rooms_of_one for one in rooms[room]} - {rooms_of_one}
            known[rooms_of_one] = 1 + max((floor(one) for one in below), default=0)
        return known[rooms_of_one]

    return {room: floor(group[room]) for room in rooms}


def shapes(path: Path) -> list[tuple[int, str]]:
    """Number and shape of each logical line, docstrings, comments and imports left out."""
    found, parts, start = [], [], 0
    text = path.read_text(encoding="utf-8")
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.NEWLINE:
            if parts and parts[0] not in ("import", "from") and parts != ["S"]:
                found.append((start, " ".join(parts)))
            parts = []
            continue
        if token.type in (tokenize.NL, tokenize.COMMENT, tokenize.INDENT, tokenize.DEDENT):
            continue
        if not parts:
            start = token.start[0]
        if token.type == tokenize.NAME and not keyword.iskeyword(token.string):
            parts.append("N")
        elif token.type in (tokenize.STRING, tokenize.NUMBER):
            parts.append("S")
        else:
            parts.append(token.string)
    return found


def near_duplicates(modules: dict[str, Path]) -> list[tuple[str, str]]:
    """Pairs of modules with a common run of `WINDOW` lines of the same shape."""
    occurrences: dict[tuple[str, ...], list[tuple[str, int]]] = defaultdict(list)
    for name, path in modules.items():
        lines = shapes(path)
        for first in range(len(lines) - WINDOW + 1):
            window = tuple(shape for _, shape in lines[first : first + WINDOW])
            if sum(len(shape) for shape in window) > 10 * WINDOW:
                occurrences[window].append((name, first))
    pairs = set()
    for found in occurrences.values():
        if 2 <= len(found) <= COMMON:
            for (one, first), (other, second) in combinations(found, 2):
                if one != other or abs(first - second) >= WINDOW:
                    pairs.add((one, other))
    return sorted(pairs)


def class_count(path: Path) -> int:
    """Classes defined in a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return sum(isinstance(node, ast.ClassDef) for node in ast.walk(tree))


def main(root: Path) -> None:
    """Print the table."""
    modules = python_files(root)
    lengths = {n: len(p.read_text(encoding="utf-8").splitlines()) for n, p in modules.items()}
    graph = import_graph(modules)
    levels = floors(room_graph({n: i for n, i in graph.items() if n.startswith("medar.")}))
    rows = {
        "files": len(modules),
        "lines": sum(lengths.values()),
        "classes": sum(map(class_count, modules.values())),
        "median lines of a file": statistics.median(lengths.values()),
        "files under 80 lines": sum(length < 80 for length in lengths.values()),
        "rooms": len(levels),
        "floors": max(levels.values()),
        "circles of files": len(circles(graph)),
        "pairs of files with near-duplicates": len(near_duplicates(modules)),
    }
    width = max(map(len, rows))
    for name, value in rows.items():
        print(f"{name:{width}}  {value:>8g}" if value < 1e6 else f"{name}  {value}")
    print("\nrooms by floor, from the top:")
    for level in sorted(set(levels.values()), reverse=True):
        print(f"  {level:2d}  {', '.join(sorted(r for r, at in levels.items() if at == level))}")
    for circle in circles(graph):
        print("circle:", ", ".join(circle))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[1])
