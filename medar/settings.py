"""Settings: frozen dataclasses that check their values, to and from YAML, with one-line errors.

`@settings` turns a class into such a dataclass. Bounds stand in the field types (`PositiveInt`,
`Fraction`), relations between fields in `__post_init__`. Values are checked in the same way whether
they come from a YAML file, from a model folder or from Python.
"""

import dataclasses
import difflib
import functools
import math
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, dataclass_transform, overload

import yaml
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass
from pydantic_core import ErrorDetails, PydanticCustomError

from medar.errors import MedarError
from medar.files import read_text, write_text

S = TypeVar("S")

SettingsSource = Mapping[str, Any] | str | Path
"""Values by key, or the path of a YAML file."""

PositiveInt = Annotated[int, Field(ge=1)]
"""1, 2, 3, ..."""
Depth = Annotated[int, Field(ge=1, le=1000)]
"""1 to 1000: blocks, layers or levels of a network. More would be built for hours."""
Width = Annotated[int, Field(ge=1, le=65_536)]
"""1 to 65536: features of a layer. More would take all memory."""
NonNegativeInt = Annotated[int, Field(ge=0)]
"""0, 1, 2, ..."""
PositiveFloat = Annotated[float, Field(gt=0)]
"""Above 0."""
NonNegativeFloat = Annotated[float, Field(ge=0)]
"""0 or more."""
Fraction = Annotated[float, Field(ge=0, le=1)]
"""From 0 to 1, both included; also for probabilities."""
FractionBelowOne = Annotated[float, Field(ge=0, lt=1)]
"""From 0 to below 1, such as a decay rate."""

LARGEST_INT = 2**63 - 1
"""Beyond it, no library takes an integer."""

MOST_VALUES = 100_000
"""Numbers, texts, lists and mappings of a YAML file together."""

OPTIONAL = {"optional": True}
"""Metadata of a field that files and digests hold only where it has not its default: older ones,
without the field, stay valid."""

CONFIG = ConfigDict(extra="forbid", allow_inf_nan=False)
RENAMED = "__renamed_keys__"
CHECK = "check_failed"
"""Type of the pydantic errors that carry a `MedarError` of `__post_init__`."""
UNKNOWN = ("unexpected_keyword_argument", "extra_forbidden")
MISSING = ("missing", "missing_argument", "missing_keyword_only_argument")


@overload
def settings(cls: type[S], /) -> type[S]: ...
@overload
def settings(*, renamed: Mapping[str, str]) -> Callable[[type[S]], type[S]]: ...
@dataclass_transform(
    frozen_default=True,
    kw_only_default=True,
    field_specifiers=(dataclasses.field,),
)
def settings(cls: Any = None, /, *, renamed: Mapping[str, str] | None = None) -> Any:
    """Make a class a frozen, keyword-only dataclass whose values are checked.

    Unknown keys and values outside the field types raise a `MedarError`. A `MedarError` raised in
    `__post_init__` gets the key of the settings in front.

    Args:
        cls: the class, with annotated fields.
        renamed: former names of keys with their present ones, and a remark if need be:
            `{"final": "min_learning_rate, an absolute rate"}`. A file that still has the former
            name is refused with a message that gives the new one.
    """
    if cls is None:
        return lambda cls: _checked(cls, dict(renamed or {}))
    return _checked(cls, {})


def _checked(cls: type[Any], renamed: dict[str, str]) -> type[Any]:
    check = cls.__dict__.get("__post_init__")
    if check is not None:

        @functools.wraps(check)
        def post_init(self: Any) -> None:
            try:
                check(self)
            except MedarError as error:
                # The text goes in as data: braces in it are no template.
                raise PydanticCustomError(CHECK, "{text}", {"text": str(error)}) from error

        cls.__post_init__ = post_init
    made = pydantic_dataclass(frozen=True, kw_only=True, config=CONFIG)(cls)
    setattr(made, RENAMED, {**getattr(made, RENAMED, {}), **renamed})
    construct = made.__init__

    @functools.wraps(construct)
    def init(self: Any, **values: Any) -> None:
        try:
            construct(self, **values)
        except ValidationError as error:
            raise MedarError(_sentence(error, made)) from error

    # Pydantic recognises its own constructor by this mark, and builds nested settings without it.
    init.__pydantic_base_init__ = True  # type: ignore[attr-defined]
    made.__init__ = init  # type: ignore[method-assign]
    return made


_CHECKS: dict[type[Any], TypeAdapter[Any]] = {}
"""The checks of each class that was read, which take milliseconds to prepare."""


def from_dict(cls: type[S], values: Any, where: str) -> S:
    """Build a settings dataclass from plain values.

    Args:
        cls: a dataclass; types are checked and strings that read as numbers are converted.
        values: a mapping, as YAML or JSON gives it.
        where: the file, for messages.

    Raises:
        MedarError: one line that names the key, the value and what is allowed.
    """
    if not isinstance(values, dict):
        raise MedarError(f"{where}: must hold a mapping of settings, got {type(values).__name__}")
    _check_numbers(values, where)
    try:
        if cls not in _CHECKS:
            _CHECKS[cls] = TypeAdapter(cls)
        checked: S = _CHECKS[cls].validate_python(values)
        return checked
    except MedarError as error:
        raise MedarError(f"{where}: {error}") from error
    except ValidationError as error:
        raise MedarError(f"{where}: {_sentence(error, cls)}") from error


def _check_numbers(value: Any, where: str, key: str = "") -> None:
    """Check that numbers in nested lists and mappings are finite, and integers of 64 bits.

    Raises:
        MedarError: one is not.
    """
    if type(value) is int and abs(value) > LARGEST_INT:
        raise MedarError(f"{where}: {key} must be at most {LARGEST_INT}, got {_shown(value)}")
    if isinstance(value, float) and not math.isfinite(value):
        raise MedarError(f"{where}: {key} must be finite, got {value}")
    if isinstance(value, dict):
        for name, part in value.items():
            _check_numbers(name, where, f"{key}.{name}" if key else str(name))
            _check_numbers(part, where, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple):
        for index, part in enumerate(value):
            _check_numbers(part, where, f"{key}.{index}")


def to_dict(settings: Any) -> dict[str, Any]:
    """A settings dataclass as values that YAML and JSON can hold: tuples become lists."""
    return {
        field.name: plain(getattr(settings, field.name))
        for field in dataclasses.fields(settings)
        if field.metadata != OPTIONAL or getattr(settings, field.name) != field.default
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


def resolve_settings(cls: type[S], source: S | SettingsSource) -> S:
    """Settings from whatever a Python function accepts as such.

    Args:
        cls: a dataclass.
        source: settings of that class, their values as a mapping, or the path of a YAML file.

    Raises:
        MedarError: see `from_dict`.
    """
    if isinstance(source, cls):
        return source
    if isinstance(source, str | Path):
        return load_yaml(cls, source)
    return from_dict(cls, source, "settings")


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
    """The content of a YAML file; an empty file gives an empty dictionary.

    Raises:
        MedarError: it cannot be read, or is not YAML.
    """
    values = parse_yaml(read_text(path), str(path))
    return {} if values is None else values


def parse_yaml(text: str, where: str) -> Any:
    """The value of a YAML text.

    Args:
        text: YAML.
        where: the file, for messages.

    Raises:
        MedarError: it is not YAML, or aliases make it much larger than it looks.
    """
    try:
        values = yaml.safe_load(text)
        if _expanded(values, {}) > MOST_VALUES:
            raise ValueError(f"its aliases stand for more than {MOST_VALUES} values")
    # Besides its own errors, those of dates, of long numbers and of deep nesting.
    except (yaml.YAMLError, ValueError, TypeError, OverflowError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise MedarError(f"{where}: not valid YAML ({reason[:400]})") from error
    return values


def _expanded(value: Any, seen: dict[int, int]) -> int:
    """The number of values in nested lists and mappings, those behind aliases each time.

    Raises:
        ValueError: a value contains itself.
    """
    if not isinstance(value, list | dict | tuple | set):
        return 1
    if seen.setdefault(id(value), -1) < 0:
        parts = [*value, *value.values()] if isinstance(value, dict) else value
        total = 1
        for part in parts:
            if seen.get(id(part)) == -1:
                raise ValueError("a value contains itself")
            total += _expanded(part, seen)
        seen[id(value)] = total
    return seen[id(value)]


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
    """Set a value in nested mappings, which are created as needed."""
    key, equals, text = assignment.partition("=")
    if not equals or not all(key.split(".")):
        raise MedarError(f"{assignment}: an override is KEY=VALUE, such as training.minutes=5")
    value = parse_yaml(text, assignment)
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


def did_you_mean(name: str, allowed: Sequence[str], *, listed: str) -> str:
    """The near miss among `allowed`, or all of them: the end of an error message.

    Args:
        name: the unknown name.
        allowed: what could have been.
        listed: title of the list, such as "known keys".
    """
    near = difflib.get_close_matches(name.lower(), allowed, n=1, cutoff=0.7)
    return f"did you mean {near[0]!r}?" if near else f"{listed}: {', '.join(allowed)}"


BOUNDS = {
    "greater_than_equal": ("at least", "ge"),
    "greater_than": ("greater than", "gt"),
    "less_than_equal": ("at most", "le"),
    "less_than": ("less than", "lt"),
}
KINDS = {
    "int": "an integer",
    "float": "a number",
    "bool": "true or false",
    "string": "a string",
    "path": "a path",
    "tuple": "a list",
    "list": "a list",
    "dict": "a mapping",
    "dataclass": "a mapping of settings",
}


def _sentence(error: ValidationError, cls: type[Any]) -> str:
    """The most informative of pydantic's errors, in one line.

    A misspelt key also causes a missing key: the misspelling is reported first. In a union, a value
    out of bounds in one branch is more informative than a wrong type in the other.
    """
    problems = sorted(error.errors(), key=lambda one: (one["type"] not in UNKNOWN, _is_type(one)))
    problem = problems[0]
    key = _key(problem)
    if problem["type"] in UNKNOWN:
        return _unknown_key(key, problem, cls)
    if problem["type"] in MISSING:
        return f"key {key!r} is missing"
    if problem["type"] == CHECK:
        return f"{key}: {problem['msg']}" if key else problem["msg"]
    value = _shown(problem["input"])
    # A value that fits no type of a union has an error for each of them.
    same = [one for one in problems if _key(one) == key] if _is_type(problem) else [problem]
    expected = list(dict.fromkeys(filter(None, map(_expected, same))))
    if expected:
        return f"{key} must be {' or '.join(expected)}, got {value}"
    message = problem["msg"][0].lower() + problem["msg"][1:]
    return f"{key}: {message}, got {value}"


def _is_type(problem: ErrorDetails) -> bool:
    return problem["type"] not in (*BOUNDS, "finite_number")


def _key(problem: ErrorDetails) -> str:
    """The dotted key of an error."""
    return ".".join(_short(str(part)) for part in problem["loc"] if not _is_branch(part))


def _expected(problem: ErrorDetails) -> str | None:
    """What the value must be, according to one of pydantic's errors."""
    kind = problem["type"]
    if kind in BOUNDS:
        words, bound = BOUNDS[kind]
        limit = problem["ctx"][bound]
        return f"{words} {limit if isinstance(limit, int) else format(limit, 'g')}"
    if kind == "finite_number":
        return "finite"
    if kind == "literal_error":
        return str(problem["ctx"]["expected"])
    return KINDS.get(kind.partition("_")[0])


def _unknown_key(key: str, problem: ErrorDetails, cls: type[Any]) -> str:
    owner, name = _class_at(cls, problem["loc"][:-1]), _short(str(problem["loc"][-1]))
    renamed: dict[str, str] = getattr(owner, RENAMED, {})
    if name in renamed:
        return f"key {key!r} has a new name: {renamed[name]}"
    names = [field.name for field in dataclasses.fields(owner)]
    return f"unknown key {key!r}; {did_you_mean(name, names, listed='known keys')}"


def _shown(value: Any) -> str:
    return _short(" ".join(repr(plain(value)).split()))


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."


def _is_branch(part: int | str) -> bool:
    """Whether a part of a location names the branch of a union, such as `tuple[int, ...]`."""
    return isinstance(part, str) and ("[" in part or "-" in part or part in ("int", "float", "str"))


def _class_at(cls: type[Any], location: tuple[int | str, ...]) -> type[Any]:
    """The settings class that a nested key belongs to."""
    for part in location:
        hint = typing.get_type_hints(cls).get(str(part))
        inner = [one for one in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(one)]
        # Other parts are keys of a mapping; its class was found in the step before.
        cls = typing.cast(type[Any], inner[0]) if inner else cls
    return cls
