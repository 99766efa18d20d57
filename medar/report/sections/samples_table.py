"""Sample by sample: files, seed, and the nearest training cases, as a table and as CSV."""

import os
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medar.errors import MedarError
from medar.evaluation.generation.files import GeneratedFile, generated_files
from medar.evaluation.generation.memorisation import Nearest
from medar.records import SAMPLES
from medar.report.blocks import Block, Cell, Download, Link, Table, Text
from medar.report.folder import REPORT_FILE, RunFolder, SampleRecord
from medar.report.formatting import MISSING, format_count, format_measured
from medar.report.sections.generation import suspected_copies
from medar.report.spreadsheet import to_csv

CSV_FILE = "samples.csv"
MAX_ROWS = 200
"""Samples in the table; the CSV file has all."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A synthetic volume with its seed, attributes and nearest training volumes."""

    name: str
    files: GeneratedFile
    record: Path | None
    """Its JSON file."""
    seed: int | None
    attributes: dict[str, Any]
    nearest: dict[str, Nearest]
    """The nearest training volume by space; empty if it was not evaluated."""
    suspect: bool
    """Whether it may be a copy."""


def samples_table(run: RunFolder) -> list[Block]:
    """One row per synthetic volume."""
    samples = list(read_samples(run))
    originals = original_files(run)
    spaces = list(samples[0].nearest)
    modality = _modality(run)
    rows = [_row(run, one, originals, modality) for one in samples[:MAX_ROWS]]
    headings = ["sample", "files", "seed"]
    for space in spaces:
        headings += [f"nearest by {space}", "distance"]
    some = f"; the first {MAX_ROWS} of {len(samples)}" if len(samples) > MAX_ROWS else ""
    text = (
        "Beside each sample: the training cases nearest to it, by features and by voxels. "
        "“Compare” copies a command that opens them together in medar view."
        if spaces
        else "The nearest training cases are missing: these samples have not been evaluated, or "
        "by an earlier version of medar (repeat with --force evaluate)."
    )
    data = to_csv([_csv_row(run, one, spaces, originals) for one in samples])
    title = f"{format_count(len(samples), 'sample')}{some}; click on a heading to sort"
    return [
        Text(f"{text} Links open files while this page is in the folder of the run."),
        Table(title, [*headings, *([""] if spaces else [])], rows,
              words=True, sortable=True),
        Download(CSV_FILE, data, "All samples as CSV, with conditions and paths"),
    ]  # fmt: skip


def read_samples(run: RunFolder) -> Iterator[Sample]:
    """The synthetic volumes of a run, at least one.

    Raises:
        MedarError: there are none, or a file is damaged.
    """
    folder = run.require(SAMPLES, "synthesize")
    audits, suspects = {}, set()
    files = generated_files(folder)
    if run.has(REPORT_FILE):
        report = run.generation_report()
        suspects = {one.index for one in suspected_copies(report)}
        # Volumes are evaluated in the order of their names.
        audits = {
            space: audit.nearest
            for space, audit in report.memorisation.items()
            if len(audit.nearest) == len(files)
        }
    for index, one in enumerate(files):
        name = one.image.name[: one.image.name.lower().rindex(".nii")]
        record = one.image.with_name(f"{name}.json")
        stored = SampleRecord()
        if record.is_file():
            stored = run.object(SampleRecord, f"{SAMPLES}/{record.name}", "synthesize")
        yield Sample(
            name=name,
            files=one,
            record=record if record.is_file() else None,
            seed=stored.seed,
            attributes=stored.attributes,
            nearest={space: nearest[index] for space, nearest in audits.items()},
            suspect=index in suspects,
        )


def original_files(run: RunFolder) -> dict[str, Path]:
    """The first image of each case of the data set that still exists, by id."""
    try:
        cases = run.manifest().cases
    except MedarError:
        return {}
    return {case.id: case.images[0] for case in cases if case.images[0].exists()}


def _modality(run: RunFolder) -> str | None:
    """The modality of all cases, if it is known and the same."""
    try:
        return run.plan().sole_modality
    except MedarError:
        return None


def link(run: RunFolder, text: str, path: Path) -> Link:
    """A link from the report of a run to a file."""
    relative = os.path.relpath(path.absolute(), run.path.absolute())
    return Link(text, Path(relative).as_posix())


def view_command(*paths: Path, modality: str | None) -> str:
    """The command that opens files side by side; empty if a path must not be pasted."""
    words = [str(path.absolute()) for path in paths]
    # Escape sequences in a name could act on the terminal that it is pasted into.
    if not all(word.isprintable() for word in words):
        return ""
    options = f" --modality {modality}" if modality else ""
    return f"medar view {shlex.join(words)}{options}"


def _row(
    run: RunFolder, one: Sample, originals: dict[str, Path], modality: str | None
) -> list[str | Cell]:
    files = []
    if one.files.label is not None:
        files.append(link(run, "label map", one.files.label))
    if one.record is not None:
        files.append(link(run, "JSON", one.record))
    name = f"{one.name} (suspected copy)" if one.suspect else one.name
    row: list[str | Cell] = [Cell(links=[link(run, name, one.files.image)]), Cell(links=files)]
    row.append(MISSING if one.seed is None else Cell(str(one.seed), one.seed))
    for near in one.nearest.values():
        path = originals.get(near.case)
        row.append(near.case if path is None else Cell(links=[link(run, near.case, path)]))
        row.append(Cell(format_measured(near.distance), near.distance))
    if one.nearest:
        cases = dict.fromkeys(near.case for near in one.nearest.values())
        paths = [originals[case] for case in cases if case in originals]
        command = view_command(one.files.image, *paths, modality=modality) if paths else ""
        row.append(Cell("Compare", command=command) if command else MISSING)
    return row


def _csv_row(
    run: RunFolder, one: Sample, spaces: list[str], originals: dict[str, Path]
) -> dict[str, Any]:
    here = run.path.absolute()
    row: dict[str, Any] = {
        "sample": one.name,
        "volume": os.path.relpath(one.files.image.absolute(), here),
        "label": one.files.label and os.path.relpath(one.files.label.absolute(), here),
        "seed": one.seed,
        "suspected_copy": one.suspect,
    }
    for space in spaces:
        near = one.nearest[space]
        row[f"nearest_case_{space}"] = near.case
        row[f"distance_{space}"] = near.distance
        row[f"nearest_file_{space}"] = originals.get(near.case)
    return {**row, **{f"condition_{key}": value for key, value in one.attributes.items()}}
