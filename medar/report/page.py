"""A report as one HTML file: pictures as data addresses, style inside, no script."""

import base64

from jinja2 import Environment, PackageLoader, StrictUndefined

from medar import __version__
from medar.report.blocks import Picture, Report


def to_html(report: Report) -> str:
    """The page; every word of the report is escaped."""
    environment = Environment(
        loader=PackageLoader("medar.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["address"] = _address
    environment.tests["kind"] = lambda block, name: type(block).__name__ == name
    style = environment.loader.get_source(environment, "report.css")[0]  # type: ignore[union-attr]
    page = environment.get_template("report.html.jinja")
    return page.render(report=report, style=style, version=__version__)


def _address(picture: Picture) -> str:
    """The picture itself as an address."""
    return f"data:{picture.kind};base64,{base64.b64encode(picture.data).decode()}"
