"""Plots of the mixers' ablation: loss over training, distance over loss, state over grids.

Time is the fraction of a row's training, which has the same nominal length in all rows: on a shared
machine, seconds depend on the other load.
"""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def plot(rows: list[dict[str, Any]], memory: list[dict[str, Any]], path: Path) -> None:
    """Draw the available results: losses of trained rows, states of memory rows."""
    panels = [(losses, rows), (distances, rows)] * bool(rows) + [(states, memory)] * bool(memory)
    figure = Figure(figsize=(5 * len(panels), 4), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    names = dict.fromkeys(mixer(one) for one in (*memory, *rows))
    colours = {name: f"C{index}" for index, name in enumerate(names)}
    for ax, (draw, given) in zip(axes, panels, strict=True):
        draw(ax, given, colours)
        ax.grid(alpha=0.3)
        ax.legend(fontsize=8)
    figure.savefig(path)


def losses(ax: Axes, rows: list[dict[str, Any]], colours: dict[str, str]) -> None:
    """The mean over seeds, their range as a band."""
    for name, group in by_mixer(rows):
        curves = [(np.array(one["curve"]).T, one["steps"]) for one in group]
        at = np.unique(np.concatenate([steps for (steps, _), _ in curves]))
        at = at[at >= max(steps[0] for (steps, _), _ in curves)]
        values = np.stack([np.interp(at, *curve) for curve, _ in curves])
        fraction = at / max(steps for _, steps in curves)
        seeds = f" ({len(curves)} seeds)" if len(curves) > 1 else ""
        ax.plot(fraction, values.mean(0), marker=".", color=colours[name], label=name + seeds)
        ax.fill_between(fraction, values.min(0), values.max(0), color=colours[name], alpha=0.15)
    ax.set(xlabel="fraction of the training time", ylabel="validation cross-entropy")


def distances(ax: Axes, rows: list[dict[str, Any]], colours: dict[str, str]) -> None:
    """The Frechet distance over the loss, one point per row."""
    for name, group in by_mixer(rows):
        points = [(one["best"], one["frechet"]) for one in group]
        ax.plot(*zip(*points, strict=True), "o", color=colours[name], label=name)
    ax.axhline(rows[0]["frechet_floor"], color="0.5", linestyle=":", label="real against real")
    ax.set(xlabel="best validation cross-entropy", ylabel="Frechet distance")


def states(ax: Axes, memory: list[dict[str, Any]], colours: dict[str, str]) -> None:
    """The state's bytes of each mixer, over the side of the finest grid."""
    for name, group in by_mixer(memory):
        points = sorted((one["side"], one["state_bytes"] / 1e6) for one in group)
        ax.plot(*zip(*points, strict=True), marker="o", color=colours[name], label=name)
    sides = sorted({one["side"] for one in memory})
    ax.set(xscale="log", yscale="log", xlabel="sites along a side", ylabel="state per volume, MB")
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
