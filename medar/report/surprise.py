"""The page of `medar score`: a ranked table, and pictures of the most surprising cases."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from medar.data.plan import Plan
from medar.data.reading import read_for_plan
from medar.evaluation.surprise.files import SCORES_FILE, Scores
from medar.evaluation.surprise.ranking import FAR, Score
from medar.report.blocks import Block, Cell, Link, Picture, Report, Section, Table, Text
from medar.report.orthoslices import save_orthoslices
from medar.report.render import save_report
from medar.volume import ReadOptions, Volume, read_volume

SHOWN = 8
"""Cases that are drawn."""

TOP = 0.01
"""Fraction of the voxels that are marked: those with the largest surprise."""


def write_surprise_report(
    scores: Scores,
    out: Path,
    plan: Plan,
    options: ReadOptions | None = None,
    modality: str | None = None,
) -> Path:
    """Write OUT/report.html and report.md; returns the path of the first.

    Args:
        scores: with their maps written.
        out: the folder of the scores.
        plan: of the generator, by which images are read.
        options: reading options that differ from the plan's.
        modality: of images that do not state it.

    Raises:
        MedarError: a file cannot be read or written.
    """
    far = sum(one.surprising for one in scores.ranking)
    blocks: list[Block] = [
        Text(
            f"{far} of {len(scores.ranking)} cases have a score of {FAR:g} or more. The score "
            "counts robust standard deviations from the cases that they were compared with: of the "
            "cross-entropy per token, which grows with whatever the generator has not learnt, and "
            "of the residual, what its tokens leave out, such as noise."
        ),
        _table(scores.ranking, scores, out),
    ]
    pictures: list[Block] = [
        _picture(one, scores, plan, options, modality) for one in scores.ranking[:SHOWN]
    ]
    about = Text(
        f"Marked is the hundredth of the voxels with the largest surprise; all of it is in the "
        f"maps beside {SCORES_FILE}, in nats per site of the finest grid of tokens."
    )
    sections = [
        Section("ranking", "Ranking", blocks),
        Section("pictures", "The most surprising cases", [about, *pictures]),
    ]
    now = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M")
    failed = [f"{case}: not scored: {reason}" for case, reason in scores.failed.items()]
    report = Report("Surprise", f"{scores.reference}; {now}", failed, sections, [])
    return save_report(report, out)


def _table(ranking: Sequence[Score], scores: Scores, out: Path) -> Table:
    headings = (
        "case",
        "score",
        "cross-entropy (nats per token)",
        "its deviation",
        "residual",
        "its deviation",
        "because of",
    )
    rows = [
        (
            Cell(one.case, links=[Link("map", scores.maps[one.case].relative_to(out).as_posix())]),
            Cell(f"{one.score:.1f}", value=one.score),
            Cell(f"{one.nats_per_token:.2f}", value=one.nats_per_token),
            Cell(_signed(one.nats_deviation), value=one.nats_deviation),
            Cell(f"{100 * one.residual:.1f} %", value=one.residual),
            Cell(_signed(one.residual_deviation), value=one.residual_deviation),
            one.reason,
        )
        for one in ranking
    ]
    caption = "All cases, the most surprising first; click on a heading to sort"
    return Table(caption, headings, rows, words=True, sortable=True)


def _signed(deviations: float) -> str:
    return f"{deviations:+.1f}".replace("-", "−")


def _picture(
    one: Score, scores: Scores, plan: Plan, options: ReadOptions | None, modality: str | None
) -> Picture:
    """The slices of a case through its most surprising voxels, and of its map."""
    image = read_for_plan(plan, scores.images[one.case], options, modality)
    surprise = read_volume(scores.maps[one.case])
    limit = np.quantile(surprise.array, 1 - TOP)
    marked = Volume(array=(surprise.array[:1] > limit).astype(np.uint8), affine=image.affine)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "slices.png"
        save_orthoslices(
            path,
            [image, surprise],
            titles=[f"{one.case}, score {one.score:.1f}", "surprise"],
            label=marked,
            names={1: "most surprising"},
        )
        data = path.read_bytes()
    return Picture(
        f"{one.case}.png",
        data,
        alt=f"Three slices of {one.case} and of its map of surprise",
        caption=f"{one.case}: {one.reason}, score {one.score:.1f}.",
        wide=True,
    )
