"""Names and phrases that were replaced by standard terms stay out of code, messages and docs."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HERE = Path(__file__).name
FOLDERS = ("medar", "pipelines", "configs", "benchmarks", "tests", "docs", "mlflow")
SUFFIXES = {".py", ".md", ".yaml", ".jinja", ".js", ".html"}

NAMES = (
    "Desk", "Outlook", "Bases", "Choosing", "Filler", "DrawnDataset", "_Shelf", "Held",
    "what_matters", "take_best", "lying_bars", "begin_with", "leave_", "manners", "settle",
    "chances", "wanted_by", "retells", "judged_by", "take_in",
)  # fmt: skip
"""Identifiers, as whole words or, where they end with an underscore, as prefixes."""

PHRASES = (
    "one a scale", "a value a scale", "one a processor", "of nobody", "gone on with", "goes on with",
    "there and back", "likeness", "that there are not", r"a number from \S+ is needed",
    "whole numbers? from", "upright mark", "how likely", "a share of the",
    r"\ba (sample|case|scale|step|volume|line|voxel|site|token|label|column|page|stage)\b(?= (each|says))",
)  # fmt: skip
"""Regular expressions, matched without regard to case and across line ends."""


def files() -> list[Path]:
    """The project's own text files."""
    found = [p for folder in FOLDERS for p in (ROOT / folder).rglob("*") if p.suffix in SUFFIXES]
    found += [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    return sorted(p for p in found if "vendor" not in p.parts and p.name != HERE)


def pattern(name: str) -> str:
    return rf"\b{name}" if name.endswith("_") else rf"\b{name}\b"


@pytest.mark.parametrize("name", NAMES)
def test_old_names_are_gone(name: str) -> None:
    found = re.compile(pattern(name))
    assert [p.relative_to(ROOT).as_posix() for p in files() if found.search(p.read_text())] == []


@pytest.mark.parametrize("phrase", PHRASES)
def test_phrases_that_need_reading_twice_are_gone(phrase: str) -> None:
    found = re.compile(phrase.replace(" ", r"\s+"), re.IGNORECASE)
    assert [p.relative_to(ROOT).as_posix() for p in files() if found.search(p.read_text())] == []
