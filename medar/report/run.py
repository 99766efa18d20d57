"""`write_report`: the report about a recipe's run, made only from the files in its folder."""

from collections.abc import Callable
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import NamedTuple

from medar.errors import MedarError
from medar.records import SEGMENTATION, SYNTHESIS
from medar.report.blocks import Block, Report, Verdict, make_sections
from medar.report.folder import FailedCase, RunFolder
from medar.report.formatting import format_count, format_time, join_words
from medar.report.render import save_report
from medar.report.sections import segmentation
from medar.report.sections.data import data
from medar.report.sections.generation import copies, distances, diversity
from medar.report.sections.provenance import cost, limits, reproduce, versions
from medar.report.sections.samples import coarse_to_fine, conditions, volumes
from medar.report.sections.samples_table import samples_table
from medar.report.sections.slices import slices
from medar.report.sections.summary import summary
from medar.report.sections.tokenizer import codebook, reconstruction
from medar.report.sections.training import (
    generator_training,
    pretraining,
    segmenter_training,
    tokenizer_training,
)
from medar.report.verdict import verdict

UNEXPECTED = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError)
"""Errors that values of another version, or edited by hand, may lead to."""

MAX_NAMED = 3
"""Set-aside cases named at the top."""


class SectionSpec(NamedTuple):
    """A section that a report may have."""

    key: str
    title: str
    make: Callable[[RunFolder], list[Block]]


SUMMARY = SectionSpec("summary", "Summary", summary)
DATA = SectionSpec("data", "Data", data)
TOKENIZER = (
    SectionSpec("reconstruction", "Tokenizer: reconstruction", reconstruction),
    SectionSpec("codebook", "Tokenizer: codebook usage by scale", codebook),
    SectionSpec("tokenizer", "Tokenizer: training", tokenizer_training),
)
END = (
    SectionSpec("cost", "Time and memory", cost),
    SectionSpec("versions", "Versions", versions),
    SectionSpec("reproduce", "Reproduce this run", reproduce),
    SectionSpec("limits", "Limitations", limits),
)

TITLES = {SYNTHESIS: "Synthesis run", SEGMENTATION: "Segmentation run"}
SECTIONS = {
    SYNTHESIS: (
        SUMMARY,
        SectionSpec("volumes", "Synthetic volumes", volumes),
        SectionSpec("slices", "Slices to scroll through", slices),
        SectionSpec("samples", "Sample by sample", samples_table),
        SectionSpec("scales", "Coarse to fine", coarse_to_fine),
        SectionSpec("distances", "Distance from real volumes", distances),
        SectionSpec("diversity", "Diversity", diversity),
        SectionSpec("copies", "Search for copies", copies),
        SectionSpec("conditions", "Conditions", conditions),
        DATA,
        *TOKENIZER,
        SectionSpec("generator", "Generator: training", generator_training),
        *END,
    ),
    SEGMENTATION: (
        SUMMARY,
        SectionSpec("overlap", "Agreement with the true labels", segmentation.run_scores),
        SectionSpec("worst", "Worst cases", segmentation.run_worst_cases),
        SectionSpec("agreement", "Volumes of the labels", segmentation.run_volumes),
        SectionSpec(
            "calibration", "Calibration of the probabilities", segmentation.run_calibration
        ),
        DATA,
        SectionSpec("network", "Segmentation network: training", segmenter_training),
        SectionSpec("pretraining", "Backbone: pretraining", pretraining),
        *TOKENIZER,
        *END,
    ),
}
"""Sections by recipe, in order."""


def write_report(run: Path, *, real_volumes: bool = False) -> Path:
    """Write the report about a run, replacing an earlier one; returns the path of the HTML file.

    Sections whose files are missing or damaged are replaced by a note.

    Args:
        run: the folder that was passed to the recipe as --out.
        real_volumes: also hold the training case nearest to each sample, as a whole.

    Raises:
        MedarError: there is no such folder, no run in it, the record of a stage is damaged, or a
            file cannot be written.
    """
    folder = RunFolder(run, real_volumes=real_volumes)
    return save_report(make_report(folder), folder.path)


def make_report(run: RunFolder) -> Report:
    """The content of the report about a run."""
    recipe = run.recipe if run.recipe in SECTIONS else SYNTHESIS
    parts = ((one.key, one.title, partial(one.make, run)) for one in SECTIONS[recipe])
    sections, missing = make_sections(parts, UNEXPECTED)
    return Report(
        title=f"{TITLES[recipe]} “{run.name}”",
        subtitle=_subtitle(run),
        warnings=_warnings(run),
        sections=sections,
        missing=missing,
        verdict=find_verdict(run),
    )


def find_verdict(run: RunFolder) -> Verdict | None:
    """The verdict on a run; None before its evaluation, and where files are damaged."""
    try:
        return verdict(run)
    except (MedarError, *UNEXPECTED):
        return None


def _subtitle(run: RunFolder) -> str:
    ends = [stage.ended for stage in run.stages.values() if stage.ended]
    done = [stage for stage in run.stages.values() if stage.status == "done"]
    if not ends:
        return "A run of medar"
    state = "finished" if len(done) == len(run.expected) else "as of"
    return f"A run of medar, {state} {format_time(max(ends, key=datetime.timestamp))} UTC"


def _warnings(run: RunFolder) -> list[str]:
    """Cases that were set aside, and stages that failed, did not finish or did not run."""
    warnings = _set_aside(run)
    if not run.stages:
        return warnings
    for status, what in (("failed", "failed"), ("running", "has not finished")):
        names = [stage.name for stage in run.stages.values() if stage.status == status]
        warnings += [f"The stage {name} {what}." for name in names]
    missing = [name for name in run.expected if name not in run.stages]
    if missing:
        warnings.append(f"Not run: {join_words(missing)}.")
    return warnings


def _set_aside(run: RunFolder) -> list[str]:
    """Lines about the cases, and about the label maps of others, that could not be prepared."""
    try:
        failed, made = run.failed_cases(), len(run.cases())
    except (MedarError, *UNEXPECTED):
        return []  # the section about the data says why
    cases = [one for one in failed if one.part == "case"]
    labels = [one for one in failed if one.part == "label"]
    total = format_count(made + len(cases), "case")
    counts = ((cases, f"{len(cases)} of {total}"),
              (labels, f"{format_count(len(labels), 'label map')} of {total}"))  # fmt: skip
    return [
        f"{count} {'was' if len(some) == 1 else 'were'} set aside: {_named(some)}."
        for some, count in counts
        if some
    ]


def _named(failed: list[FailedCase]) -> str:
    """The first of them, with reasons."""
    few = ", ".join(f"{one.id} ({one.reason})" for one in failed[:MAX_NAMED])
    return few + (f" and {len(failed) - MAX_NAMED} more" if len(failed) > MAX_NAMED else "")
