"""Checking a data set before anything is made of it: every file is opened, every problem listed.

A shallow check reads headers only; a deep one reads every voxel. Each case is examined on its own
(`medar.data.examine`); what only shows between cases, such as outliers and duplicates, is found
afterwards from the facts of each (`medar.data.check`).
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np

from medar.data.examine import Facts, Setting, examine
from medar.data.manifest import SPLITS, Case, Manifest
from medar.data.problems import Problem, Report, problem
from medar.files import digest, file_digest
from medar.parallel import default_workers, run_parallel
from medar.progress import track
from medar.volume import ReadOptions, files_of

POOL_FROM = 16
"""Cases from which other processes are worth starting."""

ORDER = ("error", "warning", "info")


def check(
    manifest: Manifest,
    *,
    deep: bool = False,
    workers: int | None = None,
    options: ReadOptions | None = None,
) -> Report:
    """Look at every file of a data set and report all problems.

    Args:
        manifest: the data set.
        deep: read the voxels too, one volume a worker at a time.
        workers: processes for a deep check; default: one per CPU core.
        options: what the caller decides about files that leave a question open.

    Returns:
        The report; `Report.errors` says how many problems must be mended.

    Raises:
        MedarError: `workers` is below 1.
    """
    workers = default_workers() if workers is None else workers
    setting = Setting(
        root=manifest.root,
        labelled=any(case.label for case in manifest),
        labels=manifest.labels,
        ignore_label=manifest.ignore_label,
        channels=len(manifest.channels),
        deep=deep,
        options=options or ReadOptions(),
    )
    # Headers, and the voxels of a few cases, are read sooner than other processes start.
    pooled = deep and len(manifest) >= POOL_FROM
    outcomes = run_parallel(
        partial(examine, setting=setting),
        manifest.cases,
        workers=workers if pooled else min(1, workers),
    )
    found = {}
    for outcome in track(outcomes, total=len(manifest), label="check"):
        found[outcome.item.id] = outcome.value or _unexamined(outcome.item, outcome.error)
    facts = [found[case.id] for case in manifest]
    problems = [one for each in facts for one in each.problems]
    problems += compare(manifest, facts, deep=deep)
    problems += [problem("note", note) for note in manifest.notes]
    return _report(manifest, problems, facts, deep)


def _unexamined(case: Case, reason: str | None) -> Facts:
    """The facts of a case that could not be examined at all."""
    facts = Facts(case=case.id)
    facts.add("unreadable", reason or "it could not be examined")
    return facts


def _report(manifest: Manifest, problems: list[Problem], facts: list[Facts], deep: bool) -> Report:
    splits = Counter(case.split for case in manifest)
    return Report(
        data=str(manifest.root),
        source=manifest.source,
        deep=deep,
        cases=len(manifest),
        labelled=sum(case.label is not None for case in manifest),
        subjects=len({case.subject for case in manifest}),
        splits={split: splits[split] for split in SPLITS},
        problems=tuple(sorted(problems, key=lambda one: ORDER.index(one.severity))),
        summary=summarise(facts),
    )


FEWEST = 5
"""Cases below which nothing is called an outlier."""

FAR_MADS = 5.0
FAR_RATIO = 1.5
"""An outlier lies farther from the median than both: this many scaled median absolute deviations,
on a logarithmic scale, and this factor."""

MAD_SCALE = 1.4826
"""Makes the median absolute deviation of a normal distribution its standard deviation."""

SCALE_RATIO = 100.0
"""Brightest voxels that differ by more than this factor have no common intensity scale."""


def compare(manifest: Manifest, facts: Sequence[Facts], *, deep: bool) -> list[Problem]:
    """The problems that the cases have with one another.

    Args:
        manifest: the data set.
        facts: of each case, in its order.
        deep: whether the facts hold what was found in the voxels.
    """
    problems = [*_spacing_outliers(facts), *_mixtures(facts), *_splits(manifest)]
    if not manifest.channels:
        problems += _channels(facts)
    problems += _duplicates(manifest, facts, deep)
    problems += _labels(manifest, facts, deep)
    if deep:
        problems += _intensity_scale(facts)
    return problems


def summarise(facts: Sequence[Facts]) -> dict[str, Any]:
    """Shapes, spacings and what else the cases have, in a few numbers."""
    summary: dict[str, Any] = {
        "shape": _range([f.shape for f in facts if f.shape]),
        "spacing": _range([f.spacing for f in facts if f.spacing]),
        "orientations": _counts(f.orientation for f in facts),
        "dtypes": _counts(f.dtype for f in facts),
        "modalities": _counts(f.modality for f in facts),
        "channels": _counts(str(f.channels) for f in facts if f.channels),
    }
    lows = [f.low for f in facts if f.low is not None]
    highs = [f.high for f in facts if f.high is not None]
    if lows and highs:
        # Of each case, the 0.5th and 99.5th percentile.
        summary["low"] = [min(lows), float(np.median(lows)), max(lows)]
        summary["high"] = [min(highs), float(np.median(highs)), max(highs)]
    if any(f.labels is not None for f in facts):
        counts = Counter(value for f in facts for value in f.labels or ())
        summary["label_cases"] = {str(value): counts[value] for value in sorted(counts)}
    return summary


def _range(values: list[Any]) -> dict[str, list[float]]:
    if not values:
        return {}
    table = np.asarray(values, dtype=np.float64)
    found = {"min": table.min(axis=0), "median": np.median(table, axis=0), "max": table.max(axis=0)}
    return {name: [round(float(v), 4) for v in row] for name, row in found.items()}


def _counts(values: Iterable[str | None]) -> dict[str, int]:
    return dict(Counter(value for value in values if value is not None).most_common())


def _spacing_outliers(facts: Sequence[Facts]) -> list[Problem]:
    """Cases whose spacing along an axis is far from that of the others of their modality."""
    problems = []
    for modality in sorted({f.modality or "" for f in facts}):
        group = [f for f in facts if f.spacing and (f.modality or "") == modality]
        if len(group) < FEWEST:
            continue
        logs = np.log([f.spacing for f in group if f.spacing])
        median = np.median(logs, axis=0)
        away = np.abs(logs - median)
        limit = np.maximum(FAR_MADS * MAD_SCALE * np.median(away, axis=0), np.log(FAR_RATIO))
        for case, far in zip(group, (away > limit).any(axis=1), strict=True):
            if far and case.spacing:
                problems.append(
                    problem(
                        "spacing-outlier",
                        f"spacing {_mm(case.spacing)}, the median is {_mm(np.exp(median))}",
                        case=case.case,
                    )
                )
    return problems


def _mixtures(facts: Sequence[Facts]) -> list[Problem]:
    """Orientations and voxel types that differ between cases."""
    problems = []
    for code, what, get in (
        ("orientation-mix", "orientations", lambda f: f.orientation),
        ("dtype-mix", "voxel types", lambda f: f.dtype),
    ):
        counts = _counts(map(get, facts))
        if len(counts) > 1:
            said = ", ".join(f"{value} ({number})" for value, number in counts.items())
            problems.append(problem(code, f"{what} as stored: {said}"))
    return problems


def _channels(facts: Sequence[Facts]) -> list[Problem]:
    """Cases with another number of channels than most, where the data set names none."""
    counts = Counter(f.channels for f in facts if f.channels)
    usual = counts.most_common(1)[0][0] if counts else 0
    return [
        problem("channel-mismatch", f"{f.channels} channels, most cases have {usual}", case=f.case)
        for f in facts
        if f.channels and f.channels != usual
    ]


def _duplicates(manifest: Manifest, facts: Sequence[Facts], deep: bool) -> list[Problem]:
    """Cases of the same content; where they stand in two splits, the splits leak."""
    if deep:
        pairs = zip(manifest, facts, strict=True)
        groups = _grouped((case, f.digest) for case, f in pairs if f.digest)
    else:
        # Only files of the same size can have the same bytes.
        sized = _grouped((case, _safely(_size, case)) for case in manifest)
        groups = [
            group
            for same in sized
            for group in _grouped((case, _safely(_content, case)) for case in same)
        ]
    problems = []
    for first, *others in groups:
        for other in others:
            leak = first.split != other.split
            message = f"the same {'voxels and affine' if deep else 'bytes'} as {first.id}"
            message += f", which is in {first.split}, this in {other.split}" if leak else ""
            code = "split-leak" if leak else "duplicate"
            problems.append(problem(code, message, case=other.id))
    return problems


def _grouped(keyed: Iterable[tuple[Case, Any]]) -> list[list[Case]]:
    """Cases that share a key with another; a key of None is shared with nobody."""
    groups: dict[Any, list[Case]] = {}
    for case, key in keyed:
        if key is not None:
            groups.setdefault(key, []).append(case)
    return [group for group in groups.values() if len(group) > 1]


def _safely(get: Callable[[Case], Any], case: Case) -> Any:
    """What `get` says of a case; None where its files cannot be read, which is noted elsewhere."""
    try:
        return get(case)
    except OSError:
        return None


def _size(case: Case) -> tuple[int, ...]:
    return tuple(sum(part.stat().st_size for part in files_of(image)) for image in case.images)


def _content(case: Case) -> str:
    return digest([[file_digest(part) for part in files_of(image)] for image in case.images])


def _labels(manifest: Manifest, facts: Sequence[Facts], deep: bool) -> list[Problem]:
    """Labels without a name, and names without a voxel."""
    if not manifest.labels:
        found = sorted({value for f in facts for value in f.labels or ()})
        if not any(case.label for case in manifest):
            return []
        said = f" (values found: {', '.join(map(str, found))})" if deep else ""
        return [problem("unnamed-labels", f"labels have no names{said}; write labels.json")]
    if not deep:
        return []
    present = {value for f in facts for value in f.labels or ()}
    wanted = {value for case in manifest for value in manifest.annotated(case)}
    return [
        problem("label-never-present", f"no case has a voxel of {value} ({manifest.labels[value]})")
        for value in sorted(wanted - present)
    ]


def _splits(manifest: Manifest) -> list[Problem]:
    """Splits that hold no case, or no label where the data set has some."""
    # One or two subjects cannot fill three splits.
    if len({case.subject for case in manifest if case.split}) < len(SPLITS):
        return []
    problems = []
    labelled = any(case.label for case in manifest)
    for split in SPLITS:
        cases = manifest.select(split)
        if not cases:
            problems.append(problem("empty-split", f"no case in {split}"))
        elif labelled and not any(case.label for case in cases):
            problems.append(
                problem(
                    "unlabelled-split", f"none of the {len(cases)} cases in {split} has a label"
                )
            )
    return problems


def _intensity_scale(facts: Sequence[Facts]) -> list[Problem]:
    """Whether cases of a modality without units (all but CT) share an intensity scale."""
    highs = {f.case: f.high for f in facts if f.modality != "CT" and f.high and f.high > 0}
    if len(highs) < FEWEST:
        return []
    least, most = min(highs, key=lambda c: highs[c]), max(highs, key=lambda c: highs[c])
    if highs[most] <= SCALE_RATIO * highs[least]:
        return []
    return [
        problem(
            "intensity-scale",
            f"no common scale: the 99.5th percentile is {highs[least]:g} in {least} and "
            f"{highs[most]:g} in {most}; normalise each case by its own percentiles",
        )
    ]


def _mm(spacing: Iterable[float]) -> str:
    return " x ".join(f"{side:.3g}" for side in spacing) + " mm"
