"""What is made of the rows of benchmarks/pretraining.py: tables of paired differences, a plot.

Rows are compared with those of the same backbone, share of the labels and seed. Intervals are of
the mean over seeds, by bootstrap over the test cases: how much it would change with other patients.
How much it changes with the seed, the differences of the single seeds say.
"""

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

DRAWS = 2000
Row = dict[str, Any]
Setting = tuple[str, str, int]
"""Backbone, pretext (or "synthetic", ""), percent."""


def tables(rows: list[Row]) -> str:
    """All rows, then their comparison, as Markdown."""
    groups = by_setting(rows)
    return "\n\n".join(part for part in (every(rows), pretexts(groups), synthetic(groups)) if part)


def every(rows: list[Row]) -> str:
    """One line a row."""
    lines = [
        "| row | min | steps | subjects | parameters | best on validation (step) | test Dice | "
        "by label |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in rows:
        labels = ", ".join(f"{name} {dice:.3f}" for name, dice in one["labels"].items())
        lines.append(
            f"| {one['row']} | {one['minutes']:.1f} | {one['steps']} | {len(one['subjects'])} | "
            f"{one['parameters']:,} | {one['best']:.3f} ({one['best_step']}) | "
            f"{one['dice']:.4f} | {labels} |"
        )
    return "\n".join(lines)


def pretexts(groups: dict[Setting, dict[int, Row]]) -> str:
    """Each pretext against none and masked, in Dice points."""
    lines = [
        "| backbone | labels | pretext | seeds | test Dice | minus none (95 %); by seed | "
        "minus masked (95 %); by seed |",
        "|---|---|---|---|---|---|---|",
    ]
    for (backbone, pretext, percent), own in groups.items():
        if backbone == "synthetic":
            continue
        against = [
            "-" if pretext == name else said(own, groups.get((backbone, name, percent), {}))
            for name in ("none", "masked")
        ]
        lines.append(
            f"| {backbone} | {percent} % | {pretext} | {len(own)} | {mean(own):.4f} | "
            f"{against[0]} | {against[1]} |"
        )
    return "\n".join(lines) if len(lines) > 2 else ""


def synthetic(groups: dict[Setting, dict[int, Row]]) -> str:
    """Each share of synthetic cases against real ones alone."""
    lines = [
        "| synthetic cases | seeds | test Dice | ratio to real alone | minus real alone (95 %); "
        "by seed |",
        "|---|---|---|---|---|",
    ]
    real = groups.get(("synthetic", "", 0), {})
    for (backbone, _, percent), own in groups.items():
        if backbone == "synthetic":
            ratio = f"{mean(own) / mean(real):.3f}" if real else "-"
            against = said(own, real) if percent else "-"
            lines.append(f"| {percent} % | {len(own)} | {mean(own):.4f} | {ratio} | {against} |")
    return "\n".join(lines) if len(lines) > 2 else ""


def by_setting(rows: list[Row]) -> dict[Setting, dict[int, Row]]:
    """Rows by setting and seed."""
    found: dict[Setting, dict[int, Row]] = defaultdict(dict)
    for one in rows:
        *setting, percent, seed = one["row"].split(":")
        backbone, pretext = setting if len(setting) == 2 else (setting[0], "")
        found[backbone, pretext, int(percent)][int(seed)] = one
    return dict(sorted(found.items(), key=lambda item: (item[0][0], item[0][2])))


def mean(rows: dict[int, Row]) -> float:
    """Test Dice, the mean over seeds."""
    return float(np.mean([one["dice"] for one in rows.values()]))


def said(own: dict[int, Row], other: dict[int, Row]) -> str:
    """Differences of the seeds that both have, in Dice points: +1.2 (0.3 to 2.0); +1.0 +1.4."""
    seeds = sorted(set(own) & set(other))
    if not seeds:
        return "-"
    each = [100 * (own[seed]["dice"] - other[seed]["dice"]) for seed in seeds]
    low, high = interval([own[seed] for seed in seeds], [other[seed] for seed in seeds])
    by_seed = " ".join(f"{one:+.1f}" for one in each)
    return f"{np.mean(each):+.1f} ({low:.1f} to {high:.1f}); {by_seed}"


def interval(own: list[Row], other: list[Row]) -> tuple[float, float]:
    """95 % of the mean difference over seeds, in Dice points, the same cases drawn for all rows."""
    ids = list(own[0]["cases"])
    drawn = np.random.default_rng(0).integers(len(ids), size=(DRAWS, len(ids)))
    differences = [
        drawn_dice(one, ids, drawn) - drawn_dice(two, ids, drawn)
        for one, two in zip(own, other, strict=True)
    ]
    low, high = np.nanpercentile(100 * np.mean(differences, axis=0), [2.5, 97.5])
    return float(low), float(high)


def drawn_dice(row: Row, ids: list[str], drawn: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Mean Dice over labels for each draw of cases; a label that none of them holds is left out."""
    values = np.array([row["cases"][name] for name in ids], dtype=float)[drawn]
    return np.asarray(np.nanmean(np.ma.masked_invalid(values).mean(1).filled(np.nan), axis=1))


def plot(rows: list[Row], path: Path) -> None:
    """Dice against the share of the labels by backbone, and against that of synthetic cases."""
    groups = by_setting(rows)
    panels = list(dict.fromkeys(backbone for backbone, _, _ in groups))
    figure = Figure(figsize=(5 * len(panels), 4), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    names = dict.fromkeys(pretext for _, pretext, _ in groups)
    colours = {name: f"C{place}" for place, name in enumerate(names)}
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for ax, backbone in zip(axes, panels, strict=True):
        for name in names:
            curve = {p: own for (b, n, p), own in groups.items() if (b, n) == (backbone, name)}
            if curve:
                draw(ax, curve, name, colours[name])
        what = "training items that are synthetic, %"
        ax.set(title=backbone, ylabel="test Dice, mean and range over seeds")
        ax.set_xlabel(what if backbone == "synthetic" else "subjects with labels, %")
        ax.grid(alpha=0.3)
        if backbone != "synthetic":
            ax.legend(fontsize=8)
    figure.savefig(path)


def draw(ax: Axes, curve: dict[int, dict[int, Row]], name: str, colour: str) -> None:
    """One curve: its mean, its range as a band, a point a row."""
    at = sorted(curve)
    values = [[one["dice"] for one in curve[percent].values()] for percent in at]
    ax.plot(at, [np.mean(v) for v in values], color=colour, label=name)
    ax.fill_between(at, list(map(min, values)), list(map(max, values)), color=colour, alpha=0.15)
    for percent, found in zip(at, values, strict=True):
        ax.plot([percent] * len(found), found, ".", color=colour)
