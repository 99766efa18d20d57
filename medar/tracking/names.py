"""Words for MLflow and for people: flat names, addresses without passwords, registry names."""

import posixpath
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from medar.errors import MedarError


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


def check_names(register: str | None, alias: str | None) -> None:
    """Refuse early what MLflow's registry would refuse late.

    Raises:
        MedarError: an alias without a name, or a name or an alias of other characters.
    """
    if alias is not None and register is None:
        raise MedarError(f"alias {alias}: belongs to a registered model; name one (--register)")
    if register is not None and not re.fullmatch(r"[\w][\w .()-]{0,199}", register):
        raise MedarError(f"register {register!r}: letters, digits, spaces and . _ - ( ) are needed")
    if alias is not None and (
        not re.fullmatch(r"[\w-]{1,100}", alias) or re.fullmatch(r"latest|v\d+", alias, re.I)
    ):
        raise MedarError(
            f"alias {alias!r}: letters, digits, - and _ are needed, but neither 'latest' nor 'v1'"
        )
