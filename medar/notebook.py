"""HTML for notebooks, of which `_repr_html_` of volumes, plans and reports consists.

Colours are those of the notebook, light or dark; all text is escaped.
"""

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

import numpy as np
import numpy.typing as npt

CELL = "text-align:left;vertical-align:top;padding:0.15em 0.9em 0.15em 0"
MAX_TEXT = 160
"""Characters shown of one value."""


def html_table(
    title: str, rows: Iterable[Sequence[object]], headings: Sequence[str] = (), notes: str = ""
) -> str:
    """A table with its title above and a remark below; numbers are rounded to four digits."""
    head = "".join(f'<th style="{CELL}">{escape(one)}</th>' for one in headings)
    lines = [f"<tr>{head}</tr>"] if headings else []
    for row in rows:
        cells = "".join(f'<td style="{CELL}">{escape(shown(one))}</td>' for one in row)
        lines.append(f"<tr>{cells}</tr>")
    remark = f'<div style="opacity:0.75">{escape(notes)}</div>' if notes else ""
    table = f'<table style="border-collapse:collapse">{"".join(lines)}</table>'
    return f"<div><b>{escape(title)}</b>{table}{remark}</div>"


def shown(value: Any) -> str:
    """A value as one short line of text; "-" for None."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        text = ", ".join(f"{key}: {shown(one)}" for key, one in value.items())
    elif isinstance(value, list | tuple):
        text = ", ".join(map(shown, value))
    else:
        text = " ".join(str(value).split())
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"


def html_picture(pixels: npt.NDArray[np.uint8], width: int, height: int, text: str) -> str:
    """A picture inside the page.

    Args:
        pixels: (rows, columns) grey levels or (rows, columns, 3) RGB, from the top left.
        width: of the picture on the screen, in pixels.
        height: likewise.
        text: alternative for screen readers.
    """
    data = base64.b64encode(png(pixels)).decode()
    style = f"width:{width}px;height:{height}px;image-rendering:pixelated;margin:0"
    return f'<img src="data:image/png;base64,{data}" alt="{escape(text)}" style="{style}">'


def png(pixels: npt.NDArray[np.uint8]) -> bytes:
    """(rows, columns) grey levels or (rows, columns, 3) RGB as a PNG file."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", optimize=True)
    return file.getvalue()
