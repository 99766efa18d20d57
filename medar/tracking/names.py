"""Names and messages: kinds of models, parameters, addresses without secrets, the registry."""

import math
import posixpath
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from medar.errors import MedarError, one_line
from medar.files import read_json_object
from medar.settings import plain

Kind = Literal["tokenizer", "generator", "segmenter"]

CLASSES: dict[str, Kind] = {"Tokenizer": "tokenizer", "Segmenter": "segmenter"}
"""Kinds of the classes that model folders name; all other classes are generators."""


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested mappings as pairs of `a.b.c` and text; the same before and after a YAML round trip."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield key(f"{prefix}{name}"), str(plain(value))


def key(name: str) -> str:
    """A name that MLflow accepts on every system: a relative path of plain characters."""
    path = posixpath.normpath(re.sub(r"[^/\w.\- ]", "_", name)).lstrip("/")[:250]
    parts = [part for part in path.split("/") if part not in ("", ".", "..")]
    return "/".join(parts) or "_"


def resumed(name: str) -> str:
    """The tag with the value of a parameter that has changed since the run began."""
    return key(f"resumed.{name}")


def finite(metrics: Mapping[str, float | None]) -> Iterator[tuple[str, float]]:
    """Finite metrics, under names that MLflow accepts."""
    for name, value in metrics.items():
        if value is not None and math.isfinite(value):
            yield key(name), float(value)


def public(text: str) -> str:
    """Text without the user, password and secret options of the addresses in it."""
    text = re.sub(r"(\w+://)(?:[^/\s]*|[^/\s:@]+:\S*)@", r"\1", text)
    return re.sub(r"(?i)([?&]\w*(?:password|passwd|pwd|secret|token)=)[^&\s]*", r"\1...", text)


def failure(uri: str, error: Exception) -> str:
    """The error of a request to a store, in one line."""
    unanswered = str(error).startswith("API request to ")  # MLflow's client, about any such failure
    cause = re.search(r"\[Errno -?\d+\] [^'\")]+", str(error)) if unanswered else None
    reason = public(cause[0] if cause else one_line(error))
    away = unanswered or isinstance(error, OSError)
    return f"MLflow at {public(uri)} {'is not reached' if away else 'refuses'} ({reason})"


def log(text: str) -> None:
    """Print a line on standard error."""
    print(text, file=sys.stderr, flush=True)


def check_names(register: str | None, alias: str | None) -> None:
    """Check names before MLflow's registry does.

    Raises:
        MedarError: an alias without a name, or characters that are not allowed.
    """
    if alias is not None and register is None:
        raise MedarError(f"alias {alias} belongs to a registered model; name one (--register)")
    if register is not None and not re.fullmatch(r"[\w][\w .()-]{0,199}", register):
        raise MedarError(f"register {register!r}: use letters, digits, spaces and . _ - ( )")
    if alias is not None and (
        not re.fullmatch(r"[\w-]{1,100}", alias) or re.fullmatch(r"latest|v\d+", alias, re.I)
    ):
        raise MedarError(
            f"alias {alias!r}: use letters, digits, - and _, but not 'latest' or names like 'v1'"
        )


def check_registration(register: str | None, alias: str | None, *, tracked: bool) -> None:
    """Check before a training whether its model can be registered.

    Raises:
        MedarError: names that the registry does not accept, an alias without a name, or no MLflow.
    """
    if register is not None and not tracked:
        raise MedarError(f"--register {register} needs MLflow; leave out --untracked")
    check_names(register, alias)


def kind_of(folder: Path) -> Kind:
    """The kind of the model in a folder.

    Raises:
        MedarError: the folder holds no model.
    """
    config = folder / "config.json"
    if not config.exists():
        raise MedarError(f"{folder}: no model (no {config.name}); give a model folder")
    name = read_json_object(config).get("class")
    if not isinstance(name, str):
        raise MedarError(f"{config}: names no class; give a model folder")
    return CLASSES.get(name, "generator")
