"""A report as Markdown, with its pictures in files beside it."""

import re
from collections.abc import Sequence

from medar import __version__
from medar.report.blocks import Block, Code, KeyFigures, Notes, Picture, Report, Table, Text

SPECIAL = re.compile(r"([\\`*_\[\]#|~])")


def to_markdown(report: Report, pictures: str) -> str:
    """The report; every word of it is escaped.

    Args:
        report: what to say.
        pictures: the folder that holds them, relative to the Markdown file.
    """
    parts = [f"# {_plain(report.title)}", _plain(report.subtitle)]
    parts += [f"> **{_plain(trouble)}**" for trouble in report.troubles]
    for section in report.sections:
        parts.append(f"## {_plain(section.title)}")
        parts += [_block(block, pictures) for block in section.blocks]
    if report.absent:
        parts.append("## Left out")
        parts.append(
            "\n".join(f"- **{_plain(title)}**: {_plain(why)}" for title, why in report.absent)
        )
    parts.append(f"Written by medar {__version__}. Not a medical device: for research only.")
    return "\n\n".join(parts) + "\n"


def _block(block: Block, pictures: str) -> str:
    match block:
        case Text(text):
            return _plain(text)
        case Notes(items):
            return "\n".join(f"- {_plain(item)}" for item in items)
        case KeyFigures(figures):
            return _table(("", "value", ""), [(one.name, one.value, one.beside) for one in figures])
        case Table(caption, headings, rows):
            return f"**{_plain(caption)}**\n\n{_table(headings, rows)}"
        case Picture():
            return f"![{_plain(block.alt)}]({pictures}/{block.name})\n\n*{_plain(block.caption)}*"
        case Code(caption, text):
            fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
            return f"**{_plain(caption)}**\n\n{fence}\n{text.rstrip()}\n{fence}"


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    headings = headings or [""] * max(map(len, rows), default=1)
    lines = [headings, ["---"] * len(headings), *rows]
    cells = [[cell if line is lines[1] else _plain(cell) for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def _plain(text: str) -> str:
    """Words that mean nothing to Markdown or HTML, on one line."""
    whole = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    return SPECIAL.sub(r"\\\1", whole)
