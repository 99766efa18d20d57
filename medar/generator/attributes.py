"""The attributes of a generator: found in its training cases, read from a case or a request.

An attribute is a category or a number (`Attribute`). The model receives each as one number, a
category as the index of its value; NaN means unknown.
"""

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, pstdev
from typing import Any

from medar.data.case import Case
from medar.data.prepared import PreparedCase
from medar.errors import MedarError
from medar.generator.settings import Attribute

MODALITY = "modality"


def attributes_of(
    cases: Sequence[PreparedCase], names: Sequence[str] | None = None
) -> tuple[Attribute, ...]:
    """The attributes of training cases.

    An attribute is a number if all its values are numbers, however few distinct ones; else it is a
    category of texts. To make a grade 1, 2, 3 a category, write it as text ("I", "II").

    Args:
        cases: those that the generator learns from.
        names: `modality`, or keys of the cases' attributes; None: only the modality, if the cases
            have several.

    Raises:
        MedarError: a name that no case has or that is repeated, or values that are not plain.
    """
    if names is None:
        several = len({case.modality for case in cases if case.modality}) > 1
        names = (MODALITY,) if several else ()
    repeated = sorted({name for name in names if list(names).count(name) > 1})
    if repeated:
        raise MedarError(f"attribute {repeated[0]!r} is repeated in {list(names)}")
    values = [_known_values(case) for case in cases]
    present = sorted({name for one in values for name in one})
    for name in names:
        if name not in present:
            raise MedarError(
                f"attribute {name!r}: no training case has it; they have: "
                f"{', '.join(present) or 'none'}{_suggestion(name, present)}"
            )
    return tuple(_attribute(name, [one[name] for one in values if name in one]) for name in names)


def attribute_values(schema: Sequence[Attribute], values: Mapping[str, Any]) -> list[float]:
    """Requested attributes in the order of the schema; NaN for those left open.

    Args:
        schema: the model's attributes.
        values: by attribute's name; numbers may be text, None means absent.

    Raises:
        MedarError: an attribute or a value that the model does not know, or no finite number.
    """
    names = [attribute.name for attribute in schema]
    for name in values:
        if name not in names:
            raise MedarError(
                f"attribute {name!r}: this model does not know it; it knows: "
                f"{', '.join(names) or 'none'}{_suggestion(name, names)}"
            )
    return [_encoded(attribute, values.get(attribute.name)) for attribute in schema]


def case_values(schema: Sequence[Attribute], case: Case | PreparedCase) -> list[float]:
    """The attributes of a case in the order of the schema.

    Values that the schema cannot express, such as one that no training case has, are unknown: NaN.
    """
    known = _known_values(case)
    return [
        _encoded(attribute, known[attribute.name])
        if attribute.name in known and _fits(attribute, known[attribute.name])
        else math.nan
        for attribute in schema
    ]


def _known_values(case: Case | PreparedCase) -> dict[str, Any]:
    """The attributes of a case, its modality included."""
    values = {**case.attributes, **({MODALITY: case.modality} if case.modality else {})}
    return {name: value for name, value in values.items() if not _is_absent(value)}


def _is_absent(value: Any) -> bool:
    return value is None or (isinstance(value, float) and not math.isfinite(value))


def _attribute(name: str, values: Sequence[Any]) -> Attribute:
    for value in values:
        if not isinstance(value, str | int | float):
            raise MedarError(
                f"attribute {name!r} holds {value!r}; values must be text, numbers, or true and "
                "false"
            )
    if not all(map(_is_number, values)):
        return Attribute(name=name, values=tuple(sorted(set(map(_text, values)))))
    numbers = [_number(name, value) for value in values]
    return Attribute(name=name, mean=fmean(numbers), deviation=pstdev(numbers) or 1.0)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _text(value: Any) -> str:
    """A category's value as text: true and false as JSON writes them, 2.0 as 2."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _fits(attribute: Attribute, value: Any) -> bool:
    return _text(value) in attribute.values if attribute.categorical else _is_number(value)


def _encoded(attribute: Attribute, value: Any) -> float:
    """A value as the model receives it."""
    if value is None:
        return math.nan
    if not attribute.categorical:
        return _number(attribute.name, value)
    text = _text(value)
    if text not in attribute.values:
        raise MedarError(
            f"attribute {attribute.name!r}: value {text!r} is unknown; allowed: "
            f"{', '.join(attribute.values)}{_suggestion(text, attribute.values)}"
        )
    return float(attribute.values.index(text))


def _number(name: str, value: Any) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise MedarError(f"attribute {name!r}: must be a finite number, got {value!r}")
    return number


def _suggestion(word: str, known: Iterable[str]) -> str:
    """The known word nearest to a misspelt one, as the end of a message."""
    by_lower = {one.lower(): one for one in known}
    near = difflib.get_close_matches(word.lower(), by_lower, n=1)
    return f"; did you mean {by_lower[near[0]]!r}?" if near else ""
