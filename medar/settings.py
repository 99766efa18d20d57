"""Settings as frozen dataclasses, to and from YAML, with errors that name the file and the key."""

import dataclasses
import difflib
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from medar.errors import MedarError
from medar.files import write_text

S = TypeVar("S")

STRICT = {"extra": "forbid"}
"""For `__pydantic_config__` of a settings class: unknown keys are errors."""

UNKNOWN = ("unexpected_keyword_argument", "extra_forbidden")
"""Types of pydantic's errors about keys that a class does not have."""


def from_dict(cls: type[S], values: Any, where: str) -> S:
    """Build a settings dataclass from plain values.

    Args:
        cls: a dataclass; types are checked and strings that read as numbers are converted.
        values: a mapping, as YAML or JSON gives it.
        where: the file, for messages.

    Raises:
        MedarError: one line that names the key, the value and what is allowed.
    """
    from pydantic import TypeAdapter, ValidationError

    if not isinstance(values, dict):
        raise MedarError(f"{where}: a mapping of settings is needed, not {type(values).__name__}")
    try:
        return TypeAdapter(cls).validate_python(values)
    except MedarError as error:
        raise MedarError(f"{where}: {error}") from error
    except ValidationError as error:
        # A misspelt key is also a missing one: the spelling is what to mend.
        problems = sorted(error.errors(), key=lambda problem: problem["type"] not in UNKNOWN)
        raise MedarError(f"{where}: {_first(problems[0], cls)}") from error


def to_dict(settings: Any) -> dict[str, Any]:
    """A settings dataclass as values that YAML and JSON can hold: tuples become lists."""
    return {
        field.name: plain(getattr(settings, field.name)) for field in dataclasses.fields(settings)
    }


def plain(value: Any) -> Any:
    """`value` as YAML gives it back: no tuples, paths and dataclasses; keys of mappings stay."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_dict(value)
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def load_yaml(cls: type[S], path: str | Path, overrides: Sequence[str] = ()) -> S:
    """Read a settings dataclass from a YAML file (see `from_dict`).

    Args:
        cls: a dataclass.
        path: the file.
        overrides: values that replace the file's, as `key.below=value`, the value in YAML.

    Raises:
        MedarError: one line that names the file, the key, the value and what is allowed.
    """
    values = read_yaml(path)
    if not overrides or not isinstance(values, dict):
        return from_dict(cls, values, str(path))
    return from_dict(cls, overridden(values, overrides), f"{path} with {' '.join(overrides)}")


def read_yaml(path: str | Path) -> Any:
    """What a YAML file holds; an empty one holds no settings.

    Raises:
        MedarError: it cannot be read, or is not YAML.
    """
    path = Path(path)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise MedarError(f"{path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise MedarError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from error
    return {} if values is None else values


def overridden(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Nested mappings with some values replaced.

    Args:
        values: as YAML gives them.
        overrides: `key.below=value`, the value in YAML.

    Raises:
        MedarError: an override of another form.
    """
    values = dict(values)
    for assignment in overrides:
        _assign(values, assignment)
    return values


def _assign(values: dict[str, Any], assignment: str) -> None:
    """Set one value in nested mappings, which are made where there are none."""
    key, equals, text = assignment.partition("=")
    if not equals or not all(key.split(".")):
        raise MedarError(f"{assignment}: an override is KEY=VALUE, such as training.minutes=5")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise MedarError(
            f"{assignment}: not valid YAML ({' '.join(str(error).split())})"
        ) from error
    *parents, last = key.split(".")
    for parent in parents:
        inner = values.get(parent)
        values[parent] = values = dict(inner) if isinstance(inner, dict) else {}
    values[last] = value


def save_yaml(settings: Any, path: str | Path, *, header: str = "") -> None:
    """Write a settings dataclass as YAML, atomically, under a comment."""
    comment = "".join(f"# {line}".rstrip() + "\n" for line in header.splitlines())
    body = yaml.dump(
        to_dict(settings), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100
    )
    write_text(path, comment + body)


class _Dumper(yaml.SafeDumper):
    """Lists of plain values on one line: `spacing: [1.0, 1.0, 1.0]`."""


def _flow(dumper: yaml.SafeDumper, value: list[Any]) -> yaml.Node:
    plain = not any(isinstance(item, (list, dict)) for item in value)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=plain)


_Dumper.add_representer(list, _flow)


def _first(problem: Any, cls: type[Any]) -> str:
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] in UNKNOWN:
        names = [field.name for field in dataclasses.fields(_class_at(cls, problem["loc"][:-1]))]
        near = difflib.get_close_matches(str(problem["loc"][-1]), names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(names)}"
        return f"unknown key {key!r}; {hint}"
    if problem["type"] in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return f"key {key!r} is missing"
    return f"key {key!r}: {problem['input']!r} ({problem['msg'][0].lower()}{problem['msg'][1:]})"


def _class_at(cls: type[Any], place: tuple[int | str, ...]) -> type[Any]:
    """The settings class that a nested key belongs to."""
    for part in place:
        hint = typing.get_type_hints(cls).get(str(part))
        inner = [one for one in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(one)]
        # What is no field is a key of a mapping, whose class was found one step before.
        cls = typing.cast(type[Any], inner[0]) if inner else cls
    return cls
