"""What a report is made of, whatever it is written as: sections of text, tables and figures.

All words are plain text: `medar.report.page` and `medar.report.markdown` do the escaping.
"""

from collections.abc import Sequence
from dataclasses import dataclass


class LeftOut(Exception):  # noqa: N818 - no error: runs end early, too
    """A section cannot be made from what the run folder holds; the message says why."""


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Notes:
    """Remarks that belong beside the figures, as a list."""

    items: Sequence[str]


@dataclass(frozen=True)
class KeyFigure:
    """One number that sums a matter up."""

    name: str
    value: str
    beside: str = ""
    """What to compare it with."""


@dataclass(frozen=True)
class KeyFigures:
    """A few of them, beside each other."""

    figures: Sequence[KeyFigure]


@dataclass(frozen=True)
class Table:
    """Rows of cells; the first cell of a row is its heading."""

    caption: str
    headings: Sequence[str]
    """None where the first cell of each row says all."""
    rows: Sequence[Sequence[str]]
    folded: bool = False
    """Shown on demand: details that few readers want."""
    words: bool = False
    """Cells hold words rather than numbers, and are set flush left."""


@dataclass(frozen=True)
class Picture:
    """An image file and what is to be seen in it."""

    name: str
    """Of the file, such as "curves.svg"."""
    data: bytes
    alt: str
    """For those who cannot see it."""
    caption: str
    wide: bool = False
    """Several pictures or charts in a row, which a telephone scrolls rather than shrinks."""

    @property
    def photographic(self) -> bool:
        """Made of pixels."""
        return not self.name.endswith(".svg")

    @property
    def kind(self) -> str:
        """The media type."""
        return "image/png" if self.photographic else "image/svg+xml"


@dataclass(frozen=True)
class Code:
    """Commands or settings, word for word."""

    caption: str
    text: str
    folded: bool = False


Block = Text | Notes | KeyFigures | Table | Picture | Code


@dataclass(frozen=True)
class Section:
    """A part of the report."""

    key: str
    """Its anchor."""
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Report:
    """All of it."""

    title: str
    subtitle: str
    """What it is of, when, and how it ended."""
    troubles: Sequence[str]
    """What went wrong in the run, or is still to come."""
    sections: Sequence[Section]
    absent: Sequence[tuple[str, str]]
    """Titles of sections that are left out, and why."""
