"""Checking a data set before anything is made of it: every file is opened, every problem listed.

A shallow check reads headers only; a deep one reads every voxel. Each case is examined on its own
(`medar.data.examine`); what only shows between cases, such as outliers and duplicates, is found
afterwards from the facts of each (`medar.data.compare`).
"""

from collections import Counter
from functools import partial

from medar.data.compare import compare, summarise
from medar.data.examine import Facts, Setting, examine
from medar.data.manifest import SPLITS, Case, Manifest
from medar.data.problems import Problem, Report, problem
from medar.parallel import default_workers, run_parallel
from medar.progress import track
from medar.volume import ReadOptions

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
        workers: processes for a deep check; default: one a processor.
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
