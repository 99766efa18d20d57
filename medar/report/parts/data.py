"""The data: how many cases, of which kind, and the form that they were brought to."""

from collections import Counter
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

from medar.report.blocks import Block, Notes, Table, Text
from medar.report.folder import RunFolder
from medar.report.words import SPLITS, counted, listed, number, sides

VALUES = 6
"""Values of a category that are told one by one."""

SHOWN = 10
"""Cases set aside that are named."""


def data(run: RunFolder) -> list[Block]:
    """Cases, splits, sizes, spacing, attributes, and what was set aside."""
    plan = run.settings("prepared/plan.yaml", "prepare")
    cases = cases_of(run)
    found = run.object("prepared/fingerprint.json", "prepare")["cases"]
    header = run.lines("prepared/manifest.jsonl", "prepare")[0]
    rows = [
        ("data set", f"{origin(run)}, read as {header.get('source', '?')}"),
        (
            "cases",
            f"{len(cases)} of {counted(len({case['subject'] for case in cases}), 'subject')}",
        ),
        ("splits, by subject", _splits(cases)),
        ("modality", modalities(cases) or "not stated"),
        ("size as found", f"{_range([one['shape'] for one in found])} voxels"),
        ("spacing as found", f"{_range([one['spacing'] for one in found])} mm"),
        ("size of a model's view", f"{sides(plan['size'])} voxels"),
        ("spacing, prepared", f"{sides(plan['spacing'])} mm"),
        ("intensities", _intensities(plan.get("intensity") or {})),
        ("labels", listed(list(map(str, (plan.get("labels") or {}).values()))) or "none"),
    ]
    blocks: list[Block] = [
        Text(
            "Axes run to the patient's right, front and head. A subject is in one split alone; "
            "where the data set names no subjects, each case counts as one."
        ),
        Table("The data", (), rows, words=True),
    ]
    attributes = _attributes(cases)
    if attributes:
        headings = ("attribute", "known of", "values")
        blocks.append(Table("Attributes", headings, attributes, words=True, folded=True))
    remarks = [*map(str, header.get("notes") or ()), *_set_aside(run)]
    return [*blocks, Notes(remarks)] if remarks else blocks


def cases_of(run: RunFolder) -> list[dict[str, Any]]:
    """The prepared cases."""
    return run.lines("prepared/cases.jsonl", "prepare")[1:]


def origin(run: RunFolder) -> str:
    """The name of the folder that the data came from."""
    header = run.lines("prepared/manifest.jsonl", "prepare")[0]
    return PurePath(str(header.get("root", "an unnamed folder"))).name


def modalities(cases: Sequence[dict[str, Any]]) -> str:
    """ "CT", "CT and MR", or nothing."""
    names = sorted({str(case["modality"]) for case in cases if case["modality"]})
    return listed(names) if names else ""


def _splits(cases: Sequence[dict[str, Any]]) -> str:
    counts = Counter(case["split"] for case in cases)
    return ", ".join(f"{counts[name]} {word}" for name, word in SPLITS.items() if counts[name])


def _range(rows: Sequence[Sequence[float]]) -> str:
    """Along each axis the smallest to the largest."""
    parts = []
    for column in zip(*rows, strict=True):
        low, high = number(min(column)), number(max(column))
        parts.append(low if low == high else f"{low} to {high}")
    return " × ".join(parts)


def _intensities(rules: dict[str, dict[str, Any]]) -> str:
    said = []
    for name, rule in rules.items():
        low, high = (number(rule.get(end)) for end in ("low", "high"))
        unit = " HU" if name == "CT" else ""
        if rule["kind"] == "window":
            said.append(f"{name}: {low} to {high}{unit}")
        else:
            said.append(f"{name}: percentiles {low} to {high} of each volume's foreground")
    return "; ".join(said)


def _attributes(cases: Sequence[dict[str, Any]]) -> list[tuple[str, str, str]]:
    names = dict.fromkeys(name for case in cases for name in case["attributes"])
    rows = []
    for name in names:
        values = [v for case in cases if (v := case["attributes"].get(name)) is not None]
        if not values:
            continue
        if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
            said = f"{number(min(values))} to {number(max(values))}"
        else:
            counts = Counter(map(str, values)).most_common()
            said = ", ".join(f"{value} ({count})" for value, count in counts[:VALUES])
            if len(counts) > VALUES:
                said += f" and {len(counts) - VALUES} others"
        rows.append((name, counted(len(values), "case"), said))
    return rows


def _set_aside(run: RunFolder) -> list[str]:
    """The cases that could not be prepared, and why."""
    if not run.holds("prepared/failed.jsonl"):
        return []
    failed = run.lines("prepared/failed.jsonl", "prepare")
    said = [f"set aside: {one.get('id', '?')}, {one.get('reason', '')}" for one in failed[:SHOWN]]
    if len(failed) > SHOWN:
        said.append(f"and {len(failed) - SHOWN} more (prepared/failed.jsonl)")
    return said
