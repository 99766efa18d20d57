"""Prints docs/reference/cli.md from the commands themselves; `make docs` writes it."""

import re

from cyclopts import App

from medar.cli.main import app

INTRODUCTION = """# Command line

Written by `make docs` from the commands themselves; `medar COMMAND --help` says the same.

Exit codes: 0 fine; 1 the data or the result has problems, which were reported; 2 the call or its
input was wrong, said in one line on standard error; 130 interrupted. With `--json` a command prints
one JSON object on standard output and nothing else there."""


def describe(command: App, name: str) -> list[str]:
    """The commands below one, each with its arguments and options."""
    pages = []
    for child in command:
        if child.startswith("-"):
            continue
        below = command[child]
        full = f"{name} {child}"
        if any(not name.startswith("-") for name in below):
            pages += describe(below, full)
            continue
        body = below.generate_docs(output_format="markdown").split("\n", 1)[1].strip()
        # Outside the program the commands do not know that it has no negative flags.
        body = re.sub(r", --(?:no|empty)-[a-z-]+", "", body)
        usage = body.replace(f"```console\n{child} ", f"```console\n{full} ", 1)
        pages.append(f"## {full}\n\n{usage}")
    return pages


if __name__ == "__main__":
    print("\n\n".join([INTRODUCTION, *describe(app, "medar")]))
