"""`write_report`: one page about a recipe's run, from the files in its folder alone.

OUT/report.html   self-contained: pictures and style inside, no script, no outside address
OUT/report.md     the same in Markdown
OUT/report/       its pictures
"""

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from medar.errors import MedarError, one_line
from medar.files import write_bytes, write_text
from medar.report.blocks import Block, LeftOut, Picture, Report, Section
from medar.report.folder import SEGMENTATION, SYNTHESIS, UNEXPECTED, RunFolder
from medar.report.markdown import to_markdown
from medar.report.page import to_html
from medar.report.parts.cost import cost
from medar.report.parts.data import data
from medar.report.parts.generator import conditions, training_of_generator
from medar.report.parts.labelmaps import agreement, calibration, overlap, worst
from medar.report.parts.likeness import copies, distances, diversity
from medar.report.parts.networks import pretraining, training_of_network
from medar.report.parts.origin import limits, reproduce, versions
from medar.report.parts.overview import overview
from medar.report.parts.samples import coarse_to_fine, volumes
from medar.report.parts.tokenizer import codebook, reconstruction, training_of_tokenizer
from medar.report.words import listed, moment

PAGE, MARKDOWN, PICTURES = "report.html", "report.md", "report"


class Part(NamedTuple):
    """A section that a run may have."""

    key: str
    title: str
    make: Callable[[RunFolder], list[Block]]


class Kind(NamedTuple):
    """The report of one recipe."""

    title: str
    parts: tuple[Part, ...]
    """In the order of the page."""


DATA = Part("data", "Data", data)
TOKENIZER = (
    Part("reconstruction", "Tokenizer: real volumes there and back", reconstruction),
    Part("codebook", "Tokenizer: codes by scale", codebook),
    Part("tokenizer", "Tokenizer: training", training_of_tokenizer),
)
END = (
    Part("cost", "Time and memory", cost),
    Part("versions", "Versions", versions),
    Part("reproduce", "How to do it again", reproduce),
    Part("limits", "What to keep in mind", limits),
)

KINDS = {
    SYNTHESIS: Kind(
        "Synthesis run",
        (
            Part("short", "In short", overview),
            Part("volumes", "Synthetic volumes", volumes),
            Part("scales", "From coarse to fine", coarse_to_fine),
            Part("distances", "How near to real volumes", distances),
            Part("diversity", "How varied", diversity),
            Part("copies", "Search for copies", copies),
            Part("conditions", "Conditions", conditions),
            DATA,
            *TOKENIZER,
            Part("generator", "Generator: training", training_of_generator),
            *END,
        ),
    ),
    SEGMENTATION: Kind(
        "Segmentation run",
        (
            Part("short", "In short", overview),
            Part("overlap", "How near to the truth", overlap),
            Part("worst", "The worst cases", worst),
            Part("agreement", "Agreement of volumes", agreement),
            Part("calibration", "What chances are worth", calibration),
            DATA,
            Part("network", "Network: training", training_of_network),
            Part("pretraining", "Backbone: pretraining", pretraining),
            *TOKENIZER,
            *END,
        ),
    ),
}
"""By the recipe's name."""


def write_report(run: Path) -> Path:
    """Write the report of a run, anew if there is one; returns the HTML file.

    Sections whose files are not there, or are damaged, are left out, and the report says so.

    Args:
        run: OUT of the recipe.

    Raises:
        MedarError: no such folder, no run in it, a damaged ledger, or a file that cannot be
            written.
    """
    folder = RunFolder(run)
    return save_report(gather(folder), folder.path)


def save_report(report: Report, folder: Path) -> Path:
    """Write a report's files, anew if there are any; returns the HTML file.

    Raises:
        MedarError: a file that cannot be written.
    """
    pictures = [
        block
        for section in report.sections
        for block in section.blocks
        if isinstance(block, Picture)
    ]
    try:
        for left in (folder / PICTURES).glob("*.[ps][nv]g"):
            if left.name not in {picture.name for picture in pictures}:
                left.unlink()
        for picture in pictures:
            write_bytes(folder / PICTURES / picture.name, picture.data)
    except OSError as error:
        raise MedarError(f"{error.filename}: cannot be written ({error.strerror})") from error
    write_text(folder / MARKDOWN, to_markdown(report, PICTURES))
    write_text(folder / PAGE, to_html(report))
    return folder / PAGE


def gather(run: RunFolder) -> Report:
    """Everything that the report says."""
    sections, absent = [], []
    kind = KINDS.get(run.recipe, KINDS[SYNTHESIS])
    for part in kind.parts:
        try:
            sections.append(Section(part.key, part.title, part.make(run)))
        except (LeftOut, MedarError) as reason:
            absent.append((part.title, str(reason)))
        except UNEXPECTED as error:
            what = f"{type(error).__name__}: {one_line(error)}"
            absent.append((part.title, f"its files are not as expected ({what})"))
    return Report(
        title=f"{kind.title} “{run.name}”",
        subtitle=_subtitle(run),
        troubles=_troubles(run),
        sections=sections,
        absent=absent,
    )


def _subtitle(run: RunFolder) -> str:
    ends = [stage.ended for stage in run.stages.values() if stage.ended]
    done = [stage for stage in run.stages.values() if stage.status == "done"]
    if not ends:
        return "A run of medar"
    state = "finished" if len(done) == len(run.expected) else "as it stood on"
    return f"A run of medar, {state} {moment(max(ends, key=datetime.timestamp))} UTC"


def _troubles(run: RunFolder) -> list[str]:
    """Stages that failed, or have not ended or run."""
    if not run.stages:
        return []
    said = []
    for status, what in (("failed", "failed"), ("running", "has not ended")):
        names = [stage.name for stage in run.stages.values() if stage.status == status]
        said += [f"The stage {name} {what}." for name in names]
    missing = [name for name in run.expected if name not in run.stages]
    if missing:
        said.append(f"Not run: {listed(missing)}.")
    return said
