"""What `medar run` says at its end about cases that were set aside."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from medar.cli.recipe import _set_aside
from medar.records import Records, StageRecord


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"set_aside": 2}, "2 cases"),
        ({"set_aside": 2, "labels_set_aside": 3}, "2 cases and 3 labels"),
        ({"set_aside": 1}, "1 case"),
        ({"set_aside": 0}, None),
        ({}, None),
    ],
)
def test_the_last_line_names_what_was_set_aside(
    tmp_path: Path, facts: dict[str, Any], words: str | None
) -> None:
    records = Records(tmp_path)
    recipe: Any = SimpleNamespace(records=records, out=tmp_path)
    assert _set_aside(recipe) == ()
    records.write(StageRecord(name="prepare", status="done", facts=facts))
    reasons = tmp_path / "prepared" / "failed.jsonl"
    line = f"set aside, because they cannot be used: {words}; read {reasons}"
    assert _set_aside(recipe) == (() if words is None else (line,))
