"""The plot of the mixers' ablation: validation loss over seconds, state over grids."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

POINTS = 60
"""Times that the curves of a mixer's seeds are read at."""


def plot(rows: list[dict[str, Any]], memory: list[dict[str, Any]], path: Path) -> None:
    """Draw what there is: losses where rows were trained, states where memory was measured."""
    panels = [(losses, rows)] * bool(rows) + [(states, memory)] * bool(memory)
    figure = Figure(figsize=(5.5 * len(panels), 4), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    names = dict.fromkeys(mixer(one) for one in (*memory, *rows))
    colours = {name: f"C{place}" for place, name in enumerate(names)}
    for ax, (draw, given) in zip(axes, panels, strict=True):
        draw(ax, given, colours)
        ax.grid(alpha=0.3)
        ax.legend(fontsize=8)
    figure.savefig(path)


def losses(ax: Axes, rows: list[dict[str, Any]], colours: dict[str, str]) -> None:
    """The mean over seeds, their range as a band, while all seeds were trained."""
    for name, group in by_mixer(rows):
        curves = [np.array(one["curve"]).T for one in group]
        first = max(seconds[0] for seconds, _ in curves)
        last = min(seconds[-1] for seconds, _ in curves)
        at = np.linspace(first, last, POINTS) if last > first else np.array([last])
        values = np.stack([np.interp(at, *curve) for curve in curves])
        seeds = f" ({len(curves)} seeds)" if len(curves) > 1 else ""
        marker = "." if len(at) == 1 else ""
        ax.plot(at, values.mean(0), marker=marker, color=colours[name], label=name + seeds)
        ax.fill_between(at, values.min(0), values.max(0), color=colours[name], alpha=0.15)
    ax.set(xlabel="seconds of training", ylabel="validation cross-entropy")


def states(ax: Axes, memory: list[dict[str, Any]], colours: dict[str, str]) -> None:
    """The state's bytes of each mixer, over the side of the finest grid."""
    for name, group in by_mixer(memory):
        points = sorted((one["side"], one["state_bytes"] / 1e6) for one in group)
        ax.plot(*zip(*points, strict=True), marker="o", color=colours[name], label=name)
    sides = sorted({one["side"] for one in memory})
    ax.set(xscale="log", yscale="log", xlabel="sites along a side", ylabel="state a volume, MB")
    ax.set_xticks(sides, [str(side) for side in sides], minor=False)
    ax.minorticks_off()


def by_mixer(rows: list[dict[str, Any]]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Rows by mixer, in the order in which the mixers come first."""
    names = dict.fromkeys(map(mixer, rows))
    return [(name, [one for one in rows if mixer(one) == name]) for name in names]


def mixer(one: dict[str, Any]) -> str:
    """The mixer of a row, MIXER:SEED or MIXER@SIDE."""
    name: str = one["row"].partition(":")[0].partition("@")[0]
    return name
