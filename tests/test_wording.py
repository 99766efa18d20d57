"""Names and phrases that were replaced by standard terms stay out of code, messages and docs."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HERE = Path(__file__).name
FOLDERS = ("medar", "pipelines", "configs", "benchmarks", "tests", "docs", "mlflow")
SUFFIXES = {".py", ".md", ".yaml", ".jinja", ".js", ".html"}

NAMES = (
    "Desk", "Outlook", "Bases", "Choosing", "Filler", "DrawnDataset", "_Shelf", "what_matters",
    "take_best", "lying_bars", "begin_with", "chances", "manners", "cfg", "wanted", "said",
    "class (Team|Held|Known|Memory|Scene|Job|Given|Work|Choice|Said)",
)  # fmt: skip
"""Identifiers that were renamed, as whole words in Python files."""

PHRASES = (
    "one a (scale|sample|processor|case|run|step|stage)", "of nobody", "gone? on with",
    "goes on with", "there and back", "likeness", "that there are not",
    r"a (whole )?number (from|above) \S+ is needed", "whole numbers? from", "upright mark",
    "a share (from|of)", "volumes? of no one",
    r"(tokens|seconds|voxels|minutes|lines?|files?) a (volume|sample|scale|case)",
)  # fmt: skip
"""Regular expressions, matched without regard to case and across line ends, in all files."""


def files(suffixes: set[str]) -> list[Path]:
    """The project's own text files."""
    found = [p for folder in FOLDERS for p in (ROOT / folder).rglob("*") if p.suffix in suffixes]
    found += [p for p in (ROOT / "README.md", ROOT / "CONTRIBUTING.md") if p.suffix in suffixes]
    return sorted(p for p in found if "vendor" not in p.parts and p.name != HERE)


def holding(pattern: str, suffixes: set[str], flags: int = 0) -> list[str]:
    """Matches of a pattern, as file:line."""
    found = []
    for path in files(suffixes):
        text = path.read_text(encoding="utf-8")
        for match in re.finditer(pattern, text, flags):
            line = text.count("\n", 0, match.start()) + 1
            found.append(f"{path.relative_to(ROOT).as_posix()}:{line} {match.group()!r}")
    return found


@pytest.mark.parametrize("name", NAMES)
def test_old_names_are_gone(name: str) -> None:
    assert holding(rf"(?<!['\"])\b{name}\b(?!['\"])", {".py"}) == []


@pytest.mark.parametrize("phrase", PHRASES)
def test_phrases_that_need_reading_twice_are_gone(phrase: str) -> None:
    assert holding(rf"\b{phrase}\b".replace(" ", r"\s+"), SUFFIXES, re.IGNORECASE) == []
