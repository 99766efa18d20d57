"""The data: number and kind of cases, and how they were prepared."""

from collections import Counter
from collections.abc import Mapping, Sequence

from medar.data.plan import IntensityRule
from medar.data.prepared import PreparedCase
from medar.report.blocks import Block, Notes, Table, Text
from medar.report.folder import RunFolder
from medar.report.formatting import (
    SPLIT_NAMES,
    format_count,
    format_number,
    format_sides,
    join_words,
)

MAX_VALUES = 6
"""Values listed per categorical attribute."""
MAX_FAILED = 10
"""Excluded cases listed by name."""


def data(run: RunFolder) -> list[Block]:
    """Cases, splits, sizes, spacing, attributes, and excluded cases."""
    plan, cases, manifest = run.plan(), run.cases(), run.manifest()
    originals = run.fingerprint().cases
    subjects = len({case.subject for case in cases})
    rows = [
        ("data set", f"{manifest.root.name}, read as {manifest.source}"),
        ("cases", f"{len(cases)}, of {format_count(subjects, 'subject')}"),
        ("splits, by subject", _splits(cases)),
        ("modality", modalities(cases) or "not stated"),
        ("original size", f"{_ranges([one.shape for one in originals])} voxels"),
        ("original spacing", f"{_ranges([one.spacing for one in originals])} mm"),
        ("input size of the models", f"{format_sides(plan.size)} voxels"),
        ("spacing after preparation", f"{format_sides(plan.spacing)} mm"),
        ("intensities", _intensities(plan.intensity)),
        ("labels", join_words(list(plan.labels.values())) or "none"),
    ]
    blocks: list[Block] = [
        Text(
            "Axes point to the patient's right, anterior and superior. Each subject is in one "
            "split only; if the data set names no subjects, each case counts as one."
        ),
        Table("Data set", (), rows, words=True),
    ]
    attributes = _attributes(cases)
    if attributes:
        headings = ("attribute", "known for", "values")
        blocks.append(Table("Attributes", headings, attributes, words=True, folded=True))
    remarks = [*manifest.notes, *_excluded(run)]
    return [*blocks, Notes(remarks)] if remarks else blocks


def modalities(cases: Sequence[PreparedCase]) -> str:
    """ "CT", "CT and MR", or an empty string."""
    return join_words(sorted({case.modality for case in cases if case.modality}))


def _splits(cases: Sequence[PreparedCase]) -> str:
    counts = Counter(case.split for case in cases)
    return ", ".join(f"{n} {SPLIT_NAMES[s]}" for s in SPLIT_NAMES if (n := counts[s]))  # type: ignore[index]


def _ranges(rows: Sequence[Sequence[float]]) -> str:
    """Minimum to maximum along each axis."""
    parts = []
    for column in zip(*rows, strict=True):
        low, high = format_number(min(column)), format_number(max(column))
        parts.append(low if low == high else f"{low}–{high}")
    return " × ".join(parts)


def _intensities(rules: Mapping[str, IntensityRule]) -> str:
    texts = []
    for name, rule in rules.items():
        low, high = format_number(rule.low), format_number(rule.high)
        if rule.kind == "window":
            texts.append(f"{name}: {low} to {high}{' HU' if name == 'CT' else ''}")
        else:
            texts.append(f"{name}: percentiles {low} to {high} of each volume's foreground")
    return "; ".join(texts)


def _attributes(cases: Sequence[PreparedCase]) -> list[tuple[str, str, str]]:
    names = dict.fromkeys(name for case in cases for name in case.attributes)
    rows = []
    for name in names:
        values = [v for case in cases if (v := case.attributes.get(name)) is not None]
        if not values:
            continue
        if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
            text = f"{format_number(min(values))} to {format_number(max(values))}"
        else:
            counts = Counter(map(str, values)).most_common()
            text = ", ".join(f"{value} ({count})" for value, count in counts[:MAX_VALUES])
            if len(counts) > MAX_VALUES:
                text += f" and {len(counts) - MAX_VALUES} others"
        rows.append((name, format_count(len(values), "case"), text))
    return rows


def _excluded(run: RunFolder) -> list[str]:
    """The cases that could not be prepared, with reasons."""
    failed = run.failed_cases()
    what = {"case": "excluded", "label": "without its label"}
    texts = [f"{what[one.part]}: {one.id}, {one.reason}" for one in failed[:MAX_FAILED]]
    if len(failed) > MAX_FAILED:
        texts.append(f"and {len(failed) - MAX_FAILED} more (prepared/failed.jsonl)")
    return texts
