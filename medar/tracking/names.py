"""Words for MLflow and for people: settings as flat names, addresses without passwords."""

import posixpath
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested mappings as pairs, `a.b.c` and text."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield key(f"{prefix}{name}"), str(value)


def key(name: str) -> str:
    """A name that MLflow takes on every system: a relative path of plain characters."""
    plain = posixpath.normpath(re.sub(r"[^/\w.\- ]", "_", name)).lstrip("/")[:250]
    parts = [part for part in plain.split("/") if part not in ("", ".", "..")]
    return "/".join(parts) or "_"


def public(text: str) -> str:
    """An address, or words around one, without user and password."""
    return re.sub(r"(\w+://)[^/\s@]*@", r"\1", text)


def say(text: str) -> None:
    """A line on standard error."""
    print(text, file=sys.stderr, flush=True)
