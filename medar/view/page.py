"""The page: served in parts, or as a self-contained file.

A Content-Security-Policy blocks everything from elsewhere. A served page loads only from its own
server. A self-contained file runs only the scripts whose hashes it lists, and makes no requests.
"""

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from medar.errors import MedarError
from medar.version import __version__
from medar.view.panels import PRESETS, Panel, overlap

NIIVUE = "0.69.0"
"""Version of the bundled NiiVue."""

MAX_BYTES = 64 * 2**20
"""Compressed volumes in a self-contained file: browsers hold such a page in memory three times."""

SCRIPTS = ("vendor/niivue/niivue.umd.js", "static/panel.js", "static/picture.js",
           "static/page.js")  # fmt: skip
STYLE = "static/page.css"

COMMON = "default-src 'none'; base-uri 'none'; form-action 'none'; img-src data: blob:"
"""NiiVue embeds its font and textures in its script, as data: and blob: images."""

SERVED = (
    f"{COMMON}; script-src 'self'; style-src 'self'; connect-src 'self'; frame-ancestors 'none'"
)


@dataclass(frozen=True, kw_only=True)
class Resource:
    """The response to a request."""

    kind: str
    """MIME type."""
    body: bytes


@dataclass(frozen=True, kw_only=True)
class CurrentCase:
    """Which case of a folder a page shows."""

    titles: Sequence[str]
    """Of all cases."""
    index: int
    """From 0."""


def resources(
    panels: Sequence[Panel], current: CurrentCase | None = None, error: str = ""
) -> dict[str, Resource]:
    """All parts of a served page by relative URL.

    Args:
        panels: the volumes; none if they cannot be shown.
        current: the case of a folder, whose page is `case_name` of its index; None for a single
            page, which is "".
        error: why there are no panels.
    """
    links = [f'<script defer src="{_name(script)}"></script>' for script in SCRIPTS]
    sheet = f'<link rel="stylesheet" href="{_name(STYLE)}">'
    parts = {
        _name(script): Resource(kind="text/javascript; charset=utf-8", body=_read(script))
        for script in SCRIPTS
    }
    parts[_name(STYLE)] = Resource(kind="text/css; charset=utf-8", body=_read(STYLE))
    sources = []
    here = "" if current is None else case_name(current.index)
    prefix = f"{here}-" if here else ""
    for number, panel in enumerate(panels):
        files = {
            f"{prefix}image-{number}": panel.image,
            f"{prefix}label-{number}": panel.label,
        }
        for name, body in files.items():
            if body is not None:
                parts[name] = Resource(kind="application/octet-stream", body=body)
        sources.append([name if body is not None else None for name, body in files.items()])
    html = _page(panels, sources, head=sheet, tail="\n".join(links), current=current, error=error)
    parts[here] = Resource(kind="text/html; charset=utf-8", body=html.encode())
    return parts


def case_name(index: int) -> str:
    """Relative URL of the page of a case of a folder."""
    return f"case-{index + 1}"


def self_contained(panels: Sequence[Panel]) -> str:
    """The page as one file with the volumes inside.

    Raises:
        MedarError: the volumes are too large for one file.
    """
    size = sum(panel.size for panel in panels)
    if size > MAX_BYTES:
        raise MedarError(
            f"--html: {size / 2**20:.0f} MiB of compressed volumes; must be at most "
            f"{MAX_BYTES / 2**20:.0f} MiB: name fewer volumes, or omit --html to serve them"
        )
    scripts = [_read(script).decode() for script in SCRIPTS]
    style = _read(STYLE).decode()
    allowed = " ".join(_hash(script) for script in scripts)
    policy = f"{COMMON}; script-src {allowed}; style-src {_hash(style)}"
    data, sources = [], []
    for number, panel in enumerate(panels):
        ids: list[str | None] = []
        for kind, body in (("image", panel.image), ("label", panel.label)):
            ids.append(None if body is None else f"{kind}-{number}")
            if body is not None:
                text = base64.b64encode(body).decode()
                data.append(f'<script type="text/plain" id="{kind}-{number}">{text}</script>')
        sources.append(ids)
    head = f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n<style>{style}</style>'
    tail = "\n".join([*data, *(f"<script>{script}</script>" for script in scripts)])
    return _page(panels, sources, head=head, tail=tail)


def _page(
    panels: Sequence[Panel],
    sources: Sequence[list[str | None]],
    *,
    head: str,
    tail: str,
    current: CurrentCase | None = None,
    error: str = "",
) -> str:
    facts = {
        "error": error,
        "cases": list(current.titles) if current else [],
        "index": current.index if current else 0,
        "medar": __version__,
        "niivue": NIIVUE,
        "presets": PRESETS,
        "link": "mm" if overlap(panels) else "relative",
        "panels": [
            {**panel.facts, "image": image, "label": label}
            for panel, (image, label) in zip(panels, sources, strict=True)
        ],
    }
    page = _read("static/page.html").decode()
    for marker, text in (("head", head), ("facts", _json(facts)), ("scripts", tail)):
        before, comment, after = page.partition(f"<!-- {marker} -->")
        assert comment, marker
        page = before + text + after
    return page


def _json(value: Any) -> str:
    """JSON that cannot close the script element around it."""
    return json.dumps(value, allow_nan=False).replace("<", "\\u003c")


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _name(path: str) -> str:
    return path.rpartition("/")[2]


@cache
def _read(path: str) -> bytes:
    return files("medar.view").joinpath(path).read_bytes()
