"""Run a notebook of the documentation and keep its outputs, without Jupyter.

    python docs/run_notebook.py docs/notebooks/first-steps.ipynb

The cells run in order, in one namespace and in a new folder that is deleted afterwards. As in
Jupyter, a cell shows what it prints, and the value of its last line if that is an expression.
"""

import ast
import contextlib
import io
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

Cell = dict[str, Any]


def execute(notebook: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The notebook with the outputs of its cells, which run in a folder; errors are not caught."""
    names: dict[str, Any] = {"__name__": "__main__"}
    cells, count = [], 0
    path = list(sys.path)
    sys.path.insert(0, str(folder))  # as in Jupyter, modules beside the notebook can be imported
    try:
        with contextlib.chdir(folder):
            for cell in notebook["cells"]:
                if cell["cell_type"] == "code":
                    count += 1
                    outputs = run_cell("".join(cell["source"]), names, count)
                    cell = {**cell, "execution_count": count, "outputs": outputs}
                cells.append(cell)
    finally:
        sys.path[:] = path
    return {**notebook, "cells": cells}


def run_cell(source: str, names: dict[str, Any], count: int) -> list[Cell]:
    """Run one cell; returns its outputs in the form of a notebook file."""
    tree = ast.parse(source)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    printed, value = io.StringIO(), None
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, f"cell {count}", "exec"), names)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), f"cell {count}", "eval"), names)
    outputs: list[Cell] = []
    if printed.getvalue():
        text = lines(printed.getvalue())
        outputs.append({"output_type": "stream", "name": "stdout", "text": text})
    if value is not None:
        data = {"text/plain": lines(repr(value))}
        if hasattr(value, "_repr_html_"):
            data["text/html"] = lines(value._repr_html_())
        outputs.append(
            {"output_type": "execute_result", "execution_count": count, "metadata": {},
             "data": data}
        )  # fmt: skip
    return outputs


def lines(text: str) -> list[str]:
    """A text as notebooks hold it."""
    return text.splitlines(keepends=True)


def main(path: Path) -> None:
    """Run a notebook and write it with its outputs."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        done = execute(notebook, Path(folder))
    path.write_text(json.dumps(done, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
