"""Write a report to files.

OUT/report.html   self-contained: pictures and style inside, no script, no external address
OUT/report.md     the same as Markdown
OUT/report/       the pictures of the Markdown file
"""

import base64
import re
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from medar.errors import MedarError
from medar.files import write_bytes, write_text
from medar.report.blocks import Block, Code, KeyFigures, Notes, Picture, Report, Table, Text
from medar.version import __version__

HTML_FILE, MARKDOWN_FILE, PICTURES = "report.html", "report.md", "report"
SPECIAL = re.compile(r"([\\`*_\[\]#|~])")
"""Characters with a meaning in Markdown."""


def save_report(report: Report, folder: Path) -> Path:
    """Write the files of a report, replacing earlier ones; returns the path of the HTML file.

    Raises:
        MedarError: a file cannot be written.
    """
    pictures = [
        block
        for section in report.sections
        for block in section.blocks
        if isinstance(block, Picture)
    ]
    names = {picture.name for picture in pictures}
    try:
        for path in (folder / PICTURES).glob("*.[ps][nv]g"):
            if path.name not in names:
                path.unlink()
        for picture in pictures:
            write_bytes(folder / PICTURES / picture.name, picture.data)
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
    environment.tests["kind"] = lambda block, name: type(block).__name__ == name
    style = environment.loader.get_source(environment, "report.css")[0]  # type: ignore[union-attr]
    template = environment.get_template("report.html.jinja")
    return template.render(report=report, style=style, version=__version__)


def _data_url(picture: Picture) -> str:
    return f"data:{picture.media_type};base64,{base64.b64encode(picture.data).decode()}"


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
        case Picture():
            caption = f"*{_escaped(block.caption)}*"
            return f"![{_escaped(block.alt)}]({PICTURES}/{block.name})\n\n{caption}"
        case Code(caption, text):
            longest = max(map(len, re.findall("`+", text)), default=0)
            fence = "`" * max(3, longest + 1)
            return f"**{_escaped(caption)}**\n\n{fence}\n{text.rstrip()}\n{fence}"


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    headings = headings or [""] * max(map(len, rows), default=1)
    cells = [[_escaped(cell) for cell in row] for row in (headings, *rows)]
    cells.insert(1, ["---"] * len(headings))
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def _escaped(text: str) -> str:
    """One line of text without a meaning in Markdown or HTML."""
    line = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    return SPECIAL.sub(r"\\\1", line)
