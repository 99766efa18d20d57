"""Tables of paired differences and a plot, from the rows of benchmarks/pretraining.py.

Rows are compared with those of the same backbone, label fraction and seed. The mean over seeds has
two intervals: Student's t over seeds, which determine subjects and weights, and a bootstrap over
the test cases, which stand for patients.
"""

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy.stats import t

DRAWS = 2000
Row = dict[str, Any]
Setting = tuple[str, str, int]
"""Backbone, pretext (or "synthetic", ""), percent."""


def tables(rows: list[Row]) -> str:
    """All rows, then their comparison, as Markdown."""
    groups = by_setting(rows)
    return "\n\n".join(part for part in (every(rows), pretexts(groups), synthetic(groups)) if part)


def every(rows: list[Row]) -> str:
    """A table with one line per row."""
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
    """Each pretext task compared with none and with masked, in Dice points."""
    lines = [
        "| backbone | labels | pretext | seeds | test Dice | "
        "minus none (95 % over seeds; over cases): by seed | minus masked, likewise |",
        "|---|---|---|---|---|---|---|",
    ]
    for (backbone, pretext, percent), own in groups.items():
        if backbone == "synthetic":
            continue
        against = [
            "-"
            if pretext in (name, "none")
            else difference(own, groups.get((backbone, name, percent), {}))
            for name in ("none", "masked")
        ]
        lines.append(
            f"| {backbone} | {percent} % | {pretext} | {len(own)} | {mean(own):.4f} | "
            f"{against[0]} | {against[1]} |"
        )
    return "\n".join(lines) if len(lines) > 2 else ""


def synthetic(groups: dict[Setting, dict[int, Row]]) -> str:
    """Each fraction of synthetic cases compared with real cases only."""
    lines = [
        "| synthetic cases | seeds | test Dice | ratio to real only | minus real only "
        "(95 % over seeds; over cases): by seed |",
        "|---|---|---|---|---|",
    ]
    real = groups.get(("synthetic", "", 0), {})
    for (backbone, _, percent), own in groups.items():
        if backbone == "synthetic":
            both = set(own) & set(real)
            ratio = "-"
            if both:
                means = [mean({seed: rows[seed] for seed in both}) for rows in (own, real)]
                ratio = f"{means[0] / means[1]:.3f}"
            against = difference(own, real) if percent else "-"
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


def difference(own: dict[int, Row], other: dict[int, Row]) -> str:
    """Differences over common seeds, in Dice points: mean, intervals, values."""
    seeds = sorted(set(own) & set(other))
    if not seeds:
        return "-"
    each = np.array([100 * (own[seed]["dice"] - other[seed]["dice"]) for seed in seeds])
    low, high = over_cases([own[seed] for seed in seeds], [other[seed] for seed in seeds])
    by_seed = " ".join(f"{one:+.1f}" for one in each)
    margin = "-"
    if len(seeds) > 1:
        half = t.ppf(0.975, len(seeds) - 1) * each.std(ddof=1) / len(seeds) ** 0.5
        margin = f"{each.mean() - half:.1f} to {each.mean() + half:.1f}"
    return f"{each.mean():+.1f} ({margin}; {low:.1f} to {high:.1f}): {by_seed}"


def over_cases(own: list[Row], other: list[Row]) -> tuple[float, float]:
    """95 % interval of the mean difference in Dice points, drawing the same cases for all rows."""
    ids = list(own[0]["cases"])
    drawn = np.random.default_rng(0).integers(len(ids), size=(DRAWS, len(ids)))
    differences = [
        drawn_dice(one, ids, drawn) - drawn_dice(two, ids, drawn)
        for one, two in zip(own, other, strict=True)
    ]
    low, high = np.nanpercentile(100 * np.mean(differences, axis=0), [2.5, 97.5])
    return float(low), float(high)


def drawn_dice(row: Row, ids: list[str], drawn: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Mean Dice over labels for each draw of cases, without labels that no case contains."""
    values = np.array([row["cases"][name] for name in ids], dtype=float)[drawn]
    return np.asarray(np.nanmean(np.ma.masked_invalid(values).mean(1).filled(np.nan), axis=1))


def plot(rows: list[Row], path: Path) -> None:
    """Dice by label fraction for each backbone, and by fraction of synthetic cases."""
    groups = by_setting(rows)
    panels = list(dict.fromkeys(backbone for backbone, _, _ in groups))
    figure = Figure(figsize=(5 * len(panels), 4), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    names = list(dict.fromkeys(pretext for _, pretext, _ in groups))
    for ax, backbone in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        own = {(name, at): found for (b, name, at), found in groups.items() if b == backbone}
        percents = sorted({at for _, at in own})
        present = [name for name in names if any(name == one for one, _ in own)]
        for index, name in enumerate(present):
            curve = {at: own[name, at] for at in percents if (name, at) in own}
            # Side by side, so that ranges do not hide one another.
            shift = 0.06 * (index - (len(present) - 1) / 2)
            draw(
                ax,
                [percents.index(at) + shift for at in curve],
                curve,
                name,
                f"C{names.index(name)}",
            )
        ax.set_xticks(range(len(percents)), [f"{at} %" for at in percents])
        ax.set(title=backbone, ylabel="test Dice: mean, range over seeds")
        ax.set_xlabel(
            "training items that are synthetic" if backbone == "synthetic" else "labelled subjects"
        )
        ax.set_xlim(-0.5, len(percents) - 0.5)
        ax.grid(alpha=0.3)
        if backbone != "synthetic":
            ax.legend(fontsize=8)
    figure.savefig(path)


def draw(
    ax: Axes, at: list[float], curve: dict[int, dict[int, Row]], name: str, colour: str
) -> None:
    """A curve of means, with the range over seeds as error bars."""
    values = [[one["dice"] for one in found.values()] for found in curve.values()]
    means = np.array([np.mean(found) for found in values])
    ranges = [means - [min(found) for found in values], [max(found) for found in values] - means]
    ax.errorbar(at, means, ranges, color=colour, marker="o", markersize=4, capsize=3, label=name)
