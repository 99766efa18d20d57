"""The schema of attributes, and values of cases and requests encoded with it."""

import math
from dataclasses import replace
from typing import Any

import pytest

from medar.errors import MedarError
from medar.generator.attributes import attribute_values, attributes_of, case_values
from medar.generator.settings import Attribute
from medar.tokenizer.tokens import TokenCase


def case(modality: str | None = "MR", **attributes: Any) -> TokenCase:
    return TokenCase(
        id="c",
        subject="c",
        split="train",
        modality=modality,
        attributes=attributes,
        annotated=(),
        image="",
        label=None,
        trace={},
    )


CASES = [
    case(age=30, side="left", sick=True, grade=1, code=7, score=2.0),
    case(age=50, side="right", sick=False, grade=2, code="7b", score=math.nan),
    case("CT", age=40.5, side="left"),
]
SIDE = Attribute(name="side", values=("left", "right"))
AGE = Attribute(name="age", mean=40.0, deviation=8.0)


def test_attribute_types_are_inferred_from_values() -> None:
    names = ["side", "age", "sick", "modality", "grade", "code", "score"]
    side, age, sick, modality, grade, code, score = attributes_of(CASES, names)
    assert side == SIDE
    assert not age.categorical
    assert age.mean == pytest.approx(120.5 / 3)
    assert age.deviation == pytest.approx(8.1684, abs=1e-3)
    assert sick.values == ("false", "true")
    assert modality.values == ("CT", "MR")
    assert not grade.categorical  # few distinct whole numbers stay numbers
    assert code.values == ("7", "7b")
    assert (score.mean, score.deviation) == (2.0, 1.0)


def test_the_modality_is_an_attribute_if_there_are_several() -> None:
    assert [attribute.name for attribute in attributes_of(CASES)] == ["modality"]
    assert attributes_of(CASES[:2]) == ()
    assert attributes_of([case(None), case("CT")]) == ()
    assert attributes_of(CASES, ()) == ()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["agee"], r"'agee': no training case has it; they have: age, .*; did you mean 'age'\?$"),
        (["weight"], r"they have: age, code, grade, modality, score, sick, side$"),
        (["age", "age"], "'age' is repeated"),
    ],
)
def test_attributes_without_any_value_are_refused(names: list[str], message: str) -> None:
    with pytest.raises(MedarError, match=message):
        attributes_of(CASES, names)


@pytest.mark.parametrize("value", [[1, 2], {"a": 1}])
def test_nested_values_are_refused(value: Any) -> None:
    cases = [case(age=1), case(age=value)]
    assert attributes_of(cases) == ()
    with pytest.raises(MedarError, match=r"^attribute 'age' holds .*values must be"):
        attributes_of(cases, ["age"])


def test_a_number_beyond_the_float_range_is_refused() -> None:
    with pytest.raises(MedarError, match=r"'age': must be a finite number, got 10+"):
        attributes_of([case(age=1), case(age=10**400)], ["age"])


def test_requested_values_follow_the_schema_order() -> None:
    sick = Attribute(name="sick", values=("false", "true"))
    grade = Attribute(name="grade", values=("1", "2"))
    schema = (SIDE, AGE, sick, grade)
    assert attribute_values(schema, {"age": "35", "side": "right"})[:2] == [1.0, 35.0]
    assert attribute_values(schema, {"sick": True, "grade": 2.0})[2:] == [1.0, 1.0]
    assert all(map(math.isnan, attribute_values(schema, {"age": None})))
    assert attribute_values((), {}) == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sides": "left"}, r"'sides': this model does not know it; it knows: side, age; did"),
        (
            {"side": "lefft"},
            r"'side': value 'lefft' is unknown; allowed: left, right; did you mean",
        ),
        ({"side": "LEFT"}, r"did you mean 'left'\?$"),
        ({"side": "up"}, "allowed: left, right$"),
        ({"age": "old"}, "'age': must be a finite number, got 'old'"),
        ({"age": "nan"}, "'age': must be a finite number, got 'nan'"),
        ({"age": True}, "'age': must be a finite number, got True"),
        ({"age": [3]}, r"'age': must be a finite number, got \[3\]"),
        ({"age": 10**400}, r"'age': must be a finite number, got 10+"),
    ],
)
def test_invalid_requests_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(MedarError, match=message):
        attribute_values((SIDE, AGE), values)


def test_missing_attributes_are_unknown() -> None:
    modality = Attribute(name="modality", values=("CT", "MR"))
    schema = (SIDE, AGE, modality)
    assert case_values(schema, case(side="right", age=35)) == [1.0, 35.0, 1.0]
    unseen = case_values(schema, case(None, side="middle", age="n/a", other=3))
    assert all(map(math.isnan, unseen))
    scanner = replace(case(None), attributes={"modality": "CT"})
    assert case_values(schema, scanner)[2] == 0.0
