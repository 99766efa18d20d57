"""Checking a data set: every file is opened and every problem is reported.

A shallow check reads headers only, a deep one every voxel. Each case is examined on its own
(`medar.data.examine`); outliers, duplicates and other problems between cases are then found from
the results.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np

from medar.data.examine import CheckContext, Facts, examine
from medar.data.label_outliers import label_outliers
from medar.data.manifest import SPLITS, Case, Manifest
from medar.data.problems import Problem, Report, in_order, problem
from medar.errors import check_positive
from medar.files import digest, file_digest
from medar.parallel import default_workers, is_elsewhere, run_here, run_parallel
from medar.progress import track
from medar.volume import ReadOptions, files_of

POOL_FROM = 16
"""Number of cases from which worker processes are worth starting."""


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
        deep: whether to read the voxels too, one volume per worker at a time.
        workers: processes for a deep check; default: one per CPU core.
        options: how to read files that leave a question open.

    Returns:
        The report; `Report.errors` is the number of problems that must be corrected.

    Raises:
        MedarError: `workers` is below 1.
    """
    check_positive(workers=workers)
    context = CheckContext(
        root=manifest.root,
        labelled=any(case.label for case in manifest),
        labels=manifest.labels,
        ignore_label=manifest.ignore_label,
        channels=len(manifest.channels),
        deep=deep,
        options=options or ReadOptions(),
    )
    # Headers, and the voxels of a few cases, are read faster than processes start.
    pooled = deep and (len(manifest) >= POOL_FROM or is_elsewhere())
    work = partial(examine, context=context)
    if pooled:
        outcomes = run_parallel(work, manifest.cases, workers=workers or default_workers())
    else:
        outcomes = run_here(work, manifest.cases)
    by_case = {}
    for outcome in track(outcomes, total=len(manifest), label="check"):
        by_case[outcome.item.id] = outcome.value or _unexamined(outcome.item, outcome.error)
    facts = [by_case[case.id] for case in manifest]
    problems = [one for each in facts for one in each.problems]
    problems += compare(manifest, facts, deep=deep)
    problems += [problem("note", note) for note in manifest.notes]
    return _report(manifest, problems, facts, deep)


def _unexamined(case: Case, reason: str | None) -> Facts:
    """The facts of a case that could not be examined."""
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
        problems=in_order(problems),
        summary=summarise(facts),
    )


FEWEST = 5
"""Smallest number of cases in which outliers are reported."""

FAR_MADS = 5.0
FAR_RATIO = 1.5
"""An outlier differs from the median by more than both: this many scaled median absolute
deviations, on a logarithmic scale, and this factor."""

MAD_SCALE = 1.4826
"""Ratio of standard deviation to median absolute deviation of a normal distribution."""

SCALE_RATIO = 100.0
"""Ratio of the brightest voxels above which cases have no common intensity scale."""


def compare(manifest: Manifest, facts: Sequence[Facts], *, deep: bool) -> list[Problem]:
    """Find problems between the cases of a data set: outliers, duplicates, mixtures, splits.

    Args:
        manifest: the data set.
        facts: of each case, in the manifest's order.
        deep: whether the facts cover the voxels.
    """
    problems = [*_spacing_outliers(facts), *_mixtures(facts), *_splits(manifest)]
    if not manifest.channels:
        problems += _channels(facts)
    problems += _duplicates(manifest, facts, deep)
    problems += _labels(manifest, facts, deep)
    if deep:
        problems += _intensity_scale(facts)
        measured = {f.case: f.label_facts for f in facts}
        problems += label_outliers(measured, manifest.labels, manifest.ignore_label)
    return problems


def summarise(facts: Sequence[Facts]) -> dict[str, Any]:
    """Shapes, spacings, intensities and other facts, summarised over the cases."""
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
    rows = {"min": table.min(axis=0), "median": np.median(table, axis=0), "max": table.max(axis=0)}
    return {name: [round(float(v), 4) for v in row] for name, row in rows.items()}


def _counts(values: Iterable[str | None]) -> dict[str, int]:
    return dict(Counter(value for value in values if value is not None).most_common())


def _spacing_outliers(facts: Sequence[Facts]) -> list[Problem]:
    """Cases whose spacing along an axis is far from the median of their modality."""
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
            listed = ", ".join(f"{value} ({number})" for value, number in counts.items())
            problems.append(problem(code, f"{what} as stored: {listed}"))
    return problems


def _channels(facts: Sequence[Facts]) -> list[Problem]:
    """Cases with another number of channels than most, if the data set does not name channels."""
    counts = Counter(f.channels for f in facts if f.channels)
    usual = counts.most_common(1)[0][0] if counts else 0
    return [
        problem("channel-mismatch", f"{f.channels} channels, most cases have {usual}", case=f.case)
        for f in facts
        if f.channels and f.channels != usual
    ]


def _duplicates(manifest: Manifest, facts: Sequence[Facts], deep: bool) -> list[Problem]:
    """Cases with the same content; in different splits, they are a leak."""
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
            message += f", which is in {first.split}; this case is in {other.split}" if leak else ""
            code = "split-leak" if leak else "duplicate"
            problems.append(problem(code, message, case=other.id))
    return problems


def _grouped(keyed: Iterable[tuple[Case, Any]]) -> list[list[Case]]:
    """Groups of cases with the same key; cases with the key None are left out."""
    groups: dict[Any, list[Case]] = {}
    for case, key in keyed:
        if key is not None:
            groups.setdefault(key, []).append(case)
    return [group for group in groups.values() if len(group) > 1]


def _safely(get: Callable[[Case], Any], case: Case) -> Any:
    """`get(case)`; None if its files cannot be read, which is reported elsewhere."""
    try:
        return get(case)
    except OSError:
        return None


def _size(case: Case) -> tuple[int, ...]:
    return tuple(sum(part.stat().st_size for part in files_of(image)) for image in case.images)


def _content(case: Case) -> str:
    return digest([[file_digest(part) for part in files_of(image)] for image in case.images])


def _labels(manifest: Manifest, facts: Sequence[Facts], deep: bool) -> list[Problem]:
    """Labels without names, and named labels without voxels."""
    if not manifest.labels:
        if not any(case.label for case in manifest):
            return []
        values = sorted({value for f in facts for value in f.labels or ()})
        listed = f" (values: {', '.join(map(str, values))})" if deep else ""
        return [problem("unnamed-labels", f"labels have no names{listed}; write labels.json")]
    if not deep:
        return []
    present = {value for f in facts for value in f.labels or ()}
    annotated = {value for case in manifest for value in manifest.annotated(case)}
    return [
        problem("label-never-present", f"no case has a voxel of {value} ({manifest.labels[value]})")
        for value in sorted(annotated - present)
    ]


def _splits(manifest: Manifest) -> list[Problem]:
    """Splits without cases, or without labels in a data set that has labels."""
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
    """Report cases without a common intensity scale; CT is left out, as it has units."""
    highs = {f.case: f.high for f in facts if f.modality != "CT" and f.high and f.high > 0}
    if len(highs) < FEWEST:
        return []
    darkest, brightest = min(highs, key=lambda c: highs[c]), max(highs, key=lambda c: highs[c])
    if highs[brightest] <= SCALE_RATIO * highs[darkest]:
        return []
    return [
        problem(
            "intensity-scale",
            f"no common scale: the 99.5th percentile is {highs[darkest]:g} in {darkest} and "
            f"{highs[brightest]:g} in {brightest}; normalise each case by its own percentiles",
        )
    ]


def _mm(spacing: Iterable[float]) -> str:
    return " x ".join(f"{side:.3g}" for side in spacing) + " mm"
