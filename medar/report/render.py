"""Write a report to files.

OUT/report.html   self-contained: pictures, style and script inside, no external address
OUT/report.md     the same as Markdown
OUT/report/       the pictures of the Markdown file, and tables as CSV
"""

import base64
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined

from medar.errors import MedarError
from medar.files import write_bytes, write_text
from medar.report.blocks import (
    Block,
    Cell,
    Charts,
    Code,
    Download,
    KeyFigures,
    Link,
    Notes,
    Picture,
    Report,
    Stack,
    Stacks,
    Table,
    Text,
)
from medar.version import __version__

HTML_FILE, MARKDOWN_FILE, PICTURES = "report.html", "report.md", "report"
SPECIAL = re.compile(r"([\\`*_\[\]#|~])")
"""Characters with a meaning in Markdown."""


def save_report(report: Report, folder: Path) -> Path:
    """Write the files of a report, replacing earlier ones; returns the path of the HTML file.

    Raises:
        MedarError: a file cannot be written.
    """
    blocks = [block for section in report.sections for block in section.blocks]
    pictures = [
        picture
        for block in blocks
        if isinstance(block, Picture | Charts)
        for picture in (block.pictures if isinstance(block, Charts) else [block])
    ]
    names = {picture.name for picture in pictures}
    try:
        for path in (folder / PICTURES).glob("*.[ps][nv]g"):
            if path.name not in names:
                path.unlink()
        for picture in pictures:
            write_bytes(folder / PICTURES / picture.name, picture.data)
        for block in blocks:
            if isinstance(block, Download):
                write_bytes(folder / PICTURES / block.name, block.text.encode())
    except OSError as error:
        raise MedarError(f"{error.filename}: cannot be written ({error.strerror})") from error
    write_text(folder / MARKDOWN_FILE, to_markdown(report))
    write_text(folder / HTML_FILE, to_html(report))
    return folder / HTML_FILE


def to_html(report: Report) -> str:
    """The report as one HTML page; all text is escaped."""
    environment = Environment(
        loader=PackageLoader("medar.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["data_url"] = _data_url
    environment.filters["url"] = _url
    environment.filters["tied"] = _tied
    environment.tests["kind"] = lambda block, name: type(block).__name__ == name
    style, script = (
        environment.loader.get_source(environment, name)[0]  # type: ignore[union-attr]
        for name in ("report.css", "report.js")
    )
    interactive = report.verdict is not None or any(
        _interactive(one) for part in report.sections for one in part.blocks
    )
    template = environment.get_template("report.html.jinja")
    return template.render(
        report=report,
        style=style,
        script=script if interactive else "",
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        version=__version__,
    )


def _interactive(block: Block) -> bool:
    """Whether the page needs its script."""
    return isinstance(block, Stacks) or (isinstance(block, Table) and block.sortable)


def _data_url(block: Picture | Download | Stack) -> str:
    match block:
        case Picture():
            kind, data = block.media_type, block.data
        case Stack():
            kind, data = "image/jpeg", block.jpeg
        case Download():
            kind, data = "text/csv", block.text.encode()
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _tied(text: str) -> str:
    """Text whose lines do not break between a number and the sign after it."""
    return re.sub(r"(?<=\d) (?=[%×])", "\u00a0", text)


def _url(link: Link) -> str:
    """A relative URL; names of files cannot turn it into an address of another kind."""
    return quote(link.path)


def to_markdown(report: Report) -> str:
    """The report as Markdown with links to the pictures; all text is escaped."""
    parts = [f"# {_escaped(report.title)}", _escaped(report.subtitle)]
    if report.verdict is not None:
        one = report.verdict
        parts.append(f"**{one.grade.capitalize()}:** {_escaped(one.reason)}.")
        parts.append(f"Next: `{one.command}`")
    parts += [f"> **{_escaped(warning)}**" for warning in report.warnings]
    for section in report.sections:
        parts.append(f"## {_escaped(section.title)}")
        parts += [_block(block) for block in section.blocks]
    if report.missing:
        reasons = [f"- **{_escaped(title)}**: {_escaped(why)}" for title, why in report.missing]
        parts += ["## Not included", "\n".join(reasons)]
    parts.append(f"Written by medar {__version__}. For research only; not a medical device.")
    return "\n\n".join(parts) + "\n"


def _block(block: Block) -> str:
    match block:
        case Text(text):
            return _escaped(text)
        case Notes(items):
            return "\n".join(f"- {_escaped(item)}" for item in items)
        case KeyFigures(figures):
            return _table(("", "value", ""), [(one.name, one.value, one.remark) for one in figures])
        case Table(caption, headings, rows):
            return f"**{_escaped(caption)}**\n\n{_table(headings, rows)}"
        case Download():
            return f"[{_escaped(block.caption)}]({PICTURES}/{quote(block.name)})"
        case Stacks():
            return f"Slices to scroll through are in {HTML_FILE}."
        case Picture():
            caption = f"*{_escaped(block.caption)}*"
            return f"![{_escaped(block.alt)}]({PICTURES}/{block.name})\n\n{caption}"
        case Charts():
            images = [f"![{_escaped(one.alt)}]({PICTURES}/{one.name})" for one in block.pictures]
            return f"{' '.join(images)}\n\n*{_escaped(block.caption)}*"
        case Code(caption, text):
            longest = max(map(len, re.findall("`+", text)), default=0)
            fence = "`" * max(3, longest + 1)
            return f"**{_escaped(caption)}**\n\n{fence}\n{text.rstrip()}\n{fence}"


def _table(headings: Sequence[str], rows: Sequence[Sequence[str | Cell]]) -> str:
    headings = headings or [""] * max(map(len, rows), default=1)
    cells = [[_cell(cell) for cell in row] for row in (headings, *rows)]
    cells.insert(1, ["---"] * len(headings))
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def _cell(cell: str | Cell) -> str:
    if isinstance(cell, str):
        return _escaped(cell)
    text = _escaped(cell.command or cell.text)
    links = [f"[{_escaped(one.text)}]({_url(one)})" for one in cell.links]
    return " ".join(part for part in (text, *links, _escaped(cell.note)) if part)


def _escaped(text: str) -> str:
    """One line of text without a meaning in Markdown or HTML."""
    line = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    return SPECIAL.sub(r"\\\1", line)
