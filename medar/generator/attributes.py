"""The attributes of a generator: found in its training cases, and read from a case or a request.

An attribute is a category or a number (`Attribute`). The model sees an attribute as one number, a
category by its place among the values; NaN says that it is not known.
"""

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, pstdev
from typing import Any

from medar.data.prepared import PreparedCase
from medar.errors import MedarError
from medar.generator.settings import Attribute

MODALITY = "modality"


def attributes_of(
    cases: Sequence[PreparedCase], names: Sequence[str] | None = None
) -> tuple[Attribute, ...]:
    """The schema of attributes in training cases.

    An attribute all of whose values are numbers is a number, few distinct ones or not; any other is
    a category of texts. To have a grade 1, 2, 3 taken as a category, write it as text ("I", "II").

    Args:
        cases: those that the generator learns from.
        names: `modality`, or keys of the cases' attributes; None: the modality alone, where the
            cases have several.

    Raises:
        MedarError: a name that no case has, that comes twice, or whose values are not plain.
    """
    if names is None:
        several = len({case.modality for case in cases if case.modality}) > 1
        names = (MODALITY,) if several else ()
    twice = sorted({name for name in names if list(names).count(name) > 1})
    if twice:
        raise MedarError(f"attribute {twice[0]!r} is named twice in {list(names)}")
    found = [_known(case) for case in cases]
    present = sorted({name for values in found for name in values})
    for name in names:
        if name not in present:
            there = ", ".join(present) or "none"
            raise MedarError(
                f"attribute {name!r}: no training case has it; there are: {there}"
                f"{_meant(name, present)}"
            )
    return tuple(_attribute(name, [v[name] for v in found if name in v]) for name in names)


def attribute_values(schema: Sequence[Attribute], values: Mapping[str, Any]) -> list[float]:
    """What a user asks for, in the order of the schema; NaN for what is not asked for.

    Args:
        schema: the model's attributes.
        values: by attribute's name; numbers may be texts that read as numbers, None is absent.

    Raises:
        MedarError: an attribute or a category that the model does not know, or no finite number.
    """
    names = [attribute.name for attribute in schema]
    for name in values:
        if name not in names:
            raise MedarError(
                f"attribute {name!r}: this model does not know it; it knows: "
                f"{', '.join(names) or 'none'}{_meant(name, names)}"
            )
    return [_place(attribute, values.get(attribute.name)) for attribute in schema]


def case_values(schema: Sequence[Attribute], case: PreparedCase) -> list[float]:
    """The attributes of a case in the order of the schema.

    What the schema cannot express, such as a category that no training case has, is not known: NaN.
    """
    known = _known(case)
    return [
        _place(attribute, known[attribute.name])
        if attribute.name in known and _expressed(attribute, known[attribute.name])
        else math.nan
        for attribute in schema
    ]


def _known(case: PreparedCase) -> dict[str, Any]:
    """All that is known of a case, its modality included."""
    values = {**case.attributes, **({MODALITY: case.modality} if case.modality else {})}
    return {name: value for name, value in values.items() if not _is_absent(value)}


def _is_absent(value: Any) -> bool:
    return value is None or (isinstance(value, float) and not math.isfinite(value))


def _attribute(name: str, values: Sequence[Any]) -> Attribute:
    for value in values:
        if not isinstance(value, str | int | float):
            raise MedarError(
                f"attribute {name!r} holds {value!r}: texts, numbers or true and false are "
                "possible; leave it out, or bring it into such a form"
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


def _expressed(attribute: Attribute, value: Any) -> bool:
    return _text(value) in attribute.values if attribute.categorical else _is_number(value)


def _place(attribute: Attribute, value: Any) -> float:
    """A value as the model is given it."""
    if value is None:
        return math.nan
    if not attribute.categorical:
        return _number(attribute.name, value)
    text = _text(value)
    if text not in attribute.values:
        raise MedarError(
            f"attribute {attribute.name!r}: value {text!r} is unknown; allowed: "
            f"{', '.join(attribute.values)}{_meant(text, attribute.values)}"
        )
    return float(attribute.values.index(text))


def _number(name: str, value: Any) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise MedarError(f"attribute {name!r}: value {value!r}; a finite number is needed")
    return number


def _meant(word: str, known: Iterable[str]) -> str:
    """The known word that was meant, as the end of a message."""
    by_lower = {one.lower(): one for one in known}
    near = difflib.get_close_matches(word.lower(), by_lower, n=1)
    return f"; did you mean {by_lower[near[0]]!r}?" if near else ""
