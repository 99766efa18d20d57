"""What a report consists of, in any output format: sections of text, tables and figures.

All text is plain; `medar.report.render` escapes it.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from medar.errors import MedarError, one_line


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Notes:
    """A list of remarks."""

    items: Sequence[str]


@dataclass(frozen=True)
class KeyFigure:
    """A number that summarises a result."""

    name: str
    value: str
    remark: str = ""
    """What to compare it with."""


@dataclass(frozen=True)
class KeyFigures:
    """Key figures, shown side by side."""

    figures: Sequence[KeyFigure]


@dataclass(frozen=True)
class Link:
    """Words that open a file."""

    text: str
    path: str
    """Relative to the folder of the report, with "/" between folders."""


@dataclass(frozen=True)
class Cell:
    """A cell of a table that is more than its text."""

    text: str = ""
    value: float | None = None
    """What it is sorted by; None for its text."""
    note: str = ""
    """Shown below the text, smaller."""
    links: Sequence[Link] = ()
    """Shown after the text."""
    command: str = ""
    """A command to copy, shown as a button with the text; empty for none."""


@dataclass(frozen=True)
class Table:
    """Rows of cells; the first cell of a row is its heading."""

    caption: str
    headings: Sequence[str]
    """Empty for a table of names and values."""
    rows: Sequence[Sequence[str | Cell]]
    folded: bool = False
    """Collapsed until the reader opens it."""
    words: bool = False
    """Cells hold text, aligned left, rather than numbers."""
    sortable: bool = False
    """Rows can be sorted by any column."""


@dataclass(frozen=True)
class Download:
    """A text file that the page holds, and that lies next to the pictures."""

    name: str
    """File name, such as "samples.csv"."""
    text: str
    caption: str


@dataclass(frozen=True)
class Picture:
    """An image file."""

    name: str
    """File name, such as "curves.svg"."""
    data: bytes
    alt: str
    """Text alternative for screen readers."""
    caption: str
    wide: bool = False
    """Many slices in a row: narrow screens scroll it instead of shrinking it."""

    @property
    def photographic(self) -> bool:
        """Whether it is a raster image."""
        return not self.name.endswith(".svg")

    @property
    def media_type(self) -> str:
        """MIME type."""
        return "image/png" if self.photographic else "image/svg+xml"


@dataclass(frozen=True)
class Charts:
    """SVG charts side by side, and below each other where the page is narrow."""

    name: str
    """Start of their file names, such as "curves"."""
    drawings: Sequence[bytes]
    alt: str
    """Text alternative for all of them together."""
    caption: str

    @property
    def pictures(self) -> list[Picture]:
        """One per chart; the first has the text alternative."""
        count = len(self.drawings)
        return [
            Picture(f"{self.name}-{number}.svg", data, alt, caption="")
            for number, data in enumerate(self.drawings, 1)
            for alt in (self.alt if number == 1 else f"Chart {number} of {count}.",)
        ]


@dataclass(frozen=True)
class Code:
    """Commands or settings, verbatim."""

    caption: str
    text: str
    folded: bool = False


@dataclass(frozen=True)
class Stack:
    """All axial slices of a volume as tiles of one JPEG, from inferior to superior, row by row.

    The patient's right is on the left of a tile, anterior on top.
    """

    name: str
    real: bool
    jpeg: bytes
    columns: int
    """Tiles per row."""
    tile: tuple[int, int]
    """Width and height of a tile in pixels; what exceeds the volume is padding."""
    shape: tuple[int, int, int]
    """Voxels (X, Y, Z)."""
    spacing: tuple[float, float, float]
    """In mm."""

    @property
    def facts(self) -> str:
        """What the page needs to draw it, as JSON."""
        facts = {"columns": self.columns, "tile": self.tile, "shape": self.shape,
                 "spacing": self.spacing}  # fmt: skip
        return json.dumps(facts)


@dataclass(frozen=True)
class Stacks:
    """Volumes to scroll through together."""

    volumes: Sequence[Stack]
    caption: str


Block = Text | Notes | KeyFigures | Table | Picture | Charts | Download | Stacks | Code


@dataclass(frozen=True)
class Section:
    """A titled part of a report."""

    key: str
    """Its anchor."""
    title: str
    blocks: Sequence[Block]


Grade = Literal["good", "rough", "poor"]


@dataclass(frozen=True)
class Verdict:
    """What a run's results are worth; see `medar.report.verdict`."""

    grade: Grade
    reason: str
    """Part of a sentence, such as "the mean Dice is 0.71"."""
    command: str
    """What to run next."""


@dataclass(frozen=True)
class Report:
    """A whole report."""

    title: str
    subtitle: str
    """What the report is about, when and in which state."""
    warnings: Sequence[str]
    """Cases that were set aside, and stages that failed or did not finish."""
    sections: Sequence[Section]
    missing: Sequence[tuple[str, str]]
    """Titles of sections that could not be made, and the reason."""
    verdict: Verdict | None = None
    """None for reports that give none, and before the evaluation."""


def make_sections(
    parts: Iterable[tuple[str, str, Callable[[], list[Block]]]],
    unexpected: tuple[type[Exception], ...] = (),
) -> tuple[list[Section], list[tuple[str, str]]]:
    """The sections of a report, and the titles of those that could not be made, with reasons.

    Args:
        parts: key, title and maker of each.
        unexpected: errors, besides `MedarError`, that values in damaged files cause.
    """
    sections, missing = [], []
    for key, title, make in parts:
        try:
            sections.append(Section(key, title, make()))
        except MedarError as error:
            missing.append((title, str(error)))
        except unexpected as error:
            what = f"{type(error).__name__}: {one_line(error)}"
            missing.append((title, f"its files have unexpected values ({what})"))
    return sections, missing
