"""Charts as SVG that follow the reader's light or dark colour scheme.

matplotlib draws in the colours of the light scheme. Each colour then becomes a CSS variable that
the file defines for both schemes. Text is drawn as outlines, so that no font is needed.
"""

import contextlib
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from medar.report.formatting import shorten

INK, MUTED, GRID, BLUE, ORANGE = "#23262b", "#636a73", "#d8dbdf", "#2564a8", "#b3541e"
DARK = {INK: "#e4e6e9", MUTED: "#9ba3ad", GRID: "#3b4148", BLUE: "#7db4ef", ORANGE: "#eda06c"}
"""Colours of the light scheme, and their counterparts in the dark one."""

STYLE: dict[str, Any] = {
    "svg.fonttype": "path",
    "svg.hashsalt": "medar",  # makes element ids reproducible
    "font.size": 9,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlesize": 9,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.formatter.useoffset": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 4,
}

PANEL, ROW = 2.85, 5.2
"""Width in inches of a panel, of which three fit side by side, and of a chart of its own, whose
letters can still be read where the page is as narrow as a phone."""
NAME, TICK = 34, 18
"""Characters of names in legends, titles and beside rows; and of those below bars."""
LEGEND_WIDTH = 46
"""Characters of a row of a legend."""
LEGEND_GAP, LEGEND_ROW = 0.14, 0.157
"""Height in inches of the space above a legend, and of each of its rows."""

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Curve:
    """A line of a chart."""

    name: str
    points: Points
    colour: str = BLUE
    dashed: bool = False
    marked: bool = False


@dataclass(frozen=True)
class Panel:
    """Axes of a line chart."""

    title: str
    curves: Sequence[Curve]
    x_label: str = "step"
    percent: bool = False
    """Whether the vertical axis runs from 0 to 100."""


def line_chart(panels: Sequence[Panel]) -> list[bytes]:
    """Line charts with the same horizontal axis, one per panel, with legends below them."""
    last = max(x for panel in panels for curve in panel.curves for x, _ in curve.points)
    return [_lines(panel, last) for panel in panels]


def _lines(panel: Panel, last: float) -> bytes:
    """One panel, whose horizontal axis ends beyond `last`."""
    rows = _legend_rows([curve.name for curve in panel.curves])
    with _drawing((PANEL, 2.3 + _legend_height(rows))) as (figure, written):
        ax = figure.subplots()
        for curve in panel.curves:
            ax.plot(
                *zip(*curve.points, strict=True),
                color=curve.colour,
                linestyle="--" if curve.dashed else "-",
                marker="o" if curve.marked else None,
                label=shorten(curve.name, NAME),
            )
        ax.set_title(shorten(panel.title, NAME))
        ax.set_xlabel(panel.x_label)
        ax.set_xlim(0, 1.04 * last or 1.0)
        ax.margins(y=0.12)
        if panel.percent:
            ax.set_ylim(0, 104)
        if len(panel.curves) > 1:
            _add_legend(ax)
    return written[0]


def _columns(names: Sequence[str]) -> int:
    longest = max(min(len(name), NAME) for name in names)
    return min(len(names), max(1, LEGEND_WIDTH // (longest + 6)))


def _legend_rows(names: Sequence[str]) -> int:
    """Rows of a legend of curves, of which those without a name are left out."""
    known = [name for name in names if name]
    return -(-len(known) // _columns(known)) if len(names) > 1 and known else 0


def _legend_height(rows: int) -> float:
    """In inches."""
    return LEGEND_GAP + LEGEND_ROW * rows if rows else 0.0


def _add_legend(ax: Any, below: float = 0.48) -> None:
    """A legend `below` inches under the axes, where it covers nothing."""
    from matplotlib.transforms import ScaledTranslation

    handles, names = ax.get_legend_handles_labels()
    if not names:
        return
    under = ScaledTranslation(0, -below, ax.figure.dpi_scale_trans)
    ax.legend(
        handles, names, fontsize=8, ncols=_columns(names), loc="upper center", borderaxespad=0,
        columnspacing=1.2, bbox_to_anchor=(0.5, 0), bbox_transform=ax.transAxes + under,
    )  # fmt: skip


@dataclass(frozen=True)
class Bars:
    """Axes of a bar chart, optionally with a mark per bar for comparison."""

    title: str
    names: Sequence[str]
    values: Sequence[float]
    marks: Sequence[float] = ()
    legend: tuple[str, str] = ("", "")
    """Names of bars and marks; used if there are marks."""
    x_label: str = ""


def bar_chart(panels: Sequence[Bars]) -> list[bytes]:
    """Charts of vertical bars, one per panel."""
    return [_bars(bars) for bars in panels]


def _bars(bars: Bars) -> bytes:
    rows = _legend_rows(bars.legend) if bars.marks else 0
    with _drawing((4.2, 2.5 + _legend_height(rows))) as (figure, written):
        ax = figure.subplots()
        positions, names = range(len(bars.names)), [shorten(one, TICK) for one in bars.names]
        long = max(map(len, names)) > 3
        ax.bar(positions, bars.values, color=BLUE, width=0.65, label=bars.legend[0])
        if bars.marks:
            ax.plot(positions, bars.marks, color=ORANGE, marker="_", markersize=15,
                    markeredgewidth=2, linestyle="", label=bars.legend[1])  # fmt: skip
            _add_legend(ax, 0.48 + (0.04 * max(map(len, names)) if long else 0.0))
        slanted = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"}
        ax.set_xticks(positions, names, **(slanted if long else {}))
        ax.grid(visible=False, axis="x")
        ax.set_title(bars.title)
        ax.set_xlabel(bars.x_label)
    return written[0]


def horizontal_bars(names: Sequence[str], values: Sequence[float], labels: Sequence[str]) -> bytes:
    """A chart of horizontal bars, each with a label at its end."""
    with _drawing((ROW, 0.32 * len(names) + 0.3)) as (figure, written):
        ax = figure.subplots()
        ax.barh(range(len(names)), values, color=BLUE, height=0.6)
        for row, (value, label) in enumerate(zip(values, labels, strict=True)):
            ax.annotate(label, (value, row), (4, 0), textcoords="offset points", va="center")
        ax.set_yticks(range(len(names)), [shorten(one, NAME) for one in names])
        ax.set_xlim(0, (max(values) or 1.0) * 1.25)
        ax.invert_yaxis()
        ax.set_xticks([])
        ax.spines["bottom"].set_visible(False)
        ax.grid(visible=False)
    return written[0]


@dataclass(frozen=True)
class Distance:
    """A distance with its interval, and that of real volumes (the floor)."""

    name: str
    value: float
    interval: tuple[float, float] | None
    floor: float | None


def distance_chart(distances: Sequence[Distance], x_label: str) -> bytes:
    """Distances on a logarithmic axis, one row each: value, interval and floor."""
    from matplotlib.ticker import LogLocator, NullLocator

    with _drawing((ROW, 0.5 * len(distances) + 1.0)) as (figure, written):
        ax = figure.subplots()
        for row, one in enumerate(distances):
            if one.floor is not None:
                ax.plot([one.floor, one.value], [row, row], color=GRID, linewidth=3, zorder=1)
                ax.plot(one.floor, row, "D", color=ORANGE, markersize=6,
                        label="held-out real (floor)")  # fmt: skip
            if one.interval:
                ax.plot(one.interval, [row, row], color=BLUE, linewidth=1.4, marker="|")
            ax.plot(one.value, row, "o", color=BLUE, markersize=7, label="synthetic")
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_major_formatter("{x:g}")
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_yticks(range(len(distances)), [shorten(one.name, NAME) for one in distances])
        ax.set_ylim(len(distances) - 0.4, -0.6)
        ax.grid(visible=False, axis="y")
        ax.set_xlabel(x_label)
        marks = dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))  # each once
        figure.legend(marks.values(), marks, loc="outside upper right", ncols=2, fontsize=8)
    return written[0]


@dataclass(frozen=True)
class Agreement:
    """Axes of a Bland-Altman plot: one point per case, difference against mean."""

    title: str
    points: Points
    bias: float
    limits: tuple[float, float] | None


def agreement_chart(panels: Sequence[Agreement], x_label: str, y_label: str) -> list[bytes]:
    """Bland-Altman plots, one per panel: solid line at the bias, dashed at the limits."""
    return [_agreement(panel, x_label, y_label) for panel in panels]


def _agreement(panel: Agreement, x_label: str, y_label: str) -> bytes:
    with _drawing((PANEL, 2.4)) as (figure, written):
        ax = figure.subplots()
        ax.plot(*zip(*panel.points, strict=True), "o", color=BLUE, alpha=0.7)
        ax.axhline(0, color=MUTED, linewidth=0.8)
        ax.axhline(panel.bias, color=ORANGE)
        for limit in panel.limits or ():
            ax.axhline(limit, color=ORANGE, linestyle="--")
        ax.set_title(shorten(panel.title, NAME))
        ax.set_xlabel(x_label)
        ax.set_ylabel(y_label)
        ax.margins(y=0.12)
    return written[0]


def spread_chart(rows: Sequence[tuple[str, Sequence[float]]], x_label: str) -> bytes:
    """Rows of points, with a vertical line at the mean of each row."""
    with _drawing((ROW, 0.42 * len(rows) + 0.8)) as (figure, written):
        ax = figure.subplots()
        for row, (_, values) in enumerate(rows):
            ax.plot(values, [row] * len(values), "o", color=BLUE, alpha=0.4)
            if values:
                ax.plot(sum(values) / len(values), row, "|", color=ORANGE, markersize=16,
                        markeredgewidth=2)  # fmt: skip
        ax.set_yticks(range(len(rows)), [shorten(name, NAME) for name, _ in rows])
        ax.set_ylim(len(rows) - 0.5, -0.5)
        ax.grid(visible=False, axis="y")
        ax.set_xlabel(x_label)
    return written[0]


@contextlib.contextmanager
def _drawing(inches: tuple[float, float]) -> Iterator[tuple[Any, list[bytes]]]:
    """A figure to draw on, and a list that receives its SVG at the end."""
    from matplotlib import style
    from matplotlib.figure import Figure

    written: list[bytes] = []
    with style.context(["default", STYLE]):
        figure = Figure(figsize=inches, layout="constrained")
        figure.patch.set_alpha(0)
        yield figure, written
        for ax in figure.axes:
            ax.patch.set_alpha(0)
        buffer = io.StringIO()
        nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(buffer, format="svg", metadata=nothing)
    written.append(_themed(buffer.getvalue()).encode())


def _themed(svg: str) -> str:
    """The SVG with CSS variables for colours, and their values in the dark scheme."""
    names = {colour: f"--c{index}" for index, colour in enumerate(DARK)}
    for colour, name in names.items():
        svg = svg.replace(colour, f"var({name},{colour})")
    dark = "".join(f"{names[colour]}:{other};" for colour, other in DARK.items())
    style = f"<style>@media (prefers-color-scheme:dark){{svg{{{dark}}}}}</style>"
    svg = re.sub(r"<\?xml.*?(?=<svg)", "", svg, flags=re.DOTALL)
    return re.sub(r"(<svg[^>]*>)", rf"\1{style}", svg, count=1)
