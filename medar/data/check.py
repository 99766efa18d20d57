"""Checking a data set before anything is made of it: every file is opened, every problem listed.

A shallow check reads headers only; a deep one reads every voxel. Each case is examined on its own
(`medar.data.examine`); what only shows between cases, such as outliers and duplicates, is found
afterwards from the facts of each (`medar.data.compare`).
"""

import multiprocessing
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool

from medar.data.compare import compare, summarise
from medar.data.examine import Facts, Setting, examine
from medar.data.manifest import SPLITS, Case, Manifest
from medar.data.problems import Problem, Report, problem
from medar.errors import MedarError
from medar.progress import track
from medar.volume import ReadOptions

POOL_FROM = 16
"""Fewer cases are read in this process: starting others takes longer than they save."""

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
        workers: processes for a deep check; default: one a CPU, 8 at most.
        options: what the caller decides about files that leave a question open.

    Returns:
        The report; `Report.errors` says how many problems must be mended.

    Raises:
        MedarError: `workers` is below 1.
    """
    if workers is not None and workers < 1:
        raise MedarError(f"workers {workers}: at least 1 is needed")
    workers = workers or min(8, os.cpu_count() or 1)
    setting = Setting(
        root=manifest.root,
        labelled=any(case.label for case in manifest),
        labels=manifest.labels,
        ignore_label=manifest.ignore_label,
        channels=len(manifest.channels),
        deep=deep,
        options=options or ReadOptions(),
    )
    pooled = deep and workers > 1 and len(manifest) >= POOL_FROM
    examined = (
        _in_processes(manifest.cases, setting, workers)
        if pooled
        else (examine(case, setting) for case in manifest)
    )
    found = {facts.case: facts for facts in track(examined, total=len(manifest), label="check")}
    facts = [found[case.id] for case in manifest]
    problems = [one for each in facts for one in each.problems]
    problems += compare(manifest, facts, deep=deep)
    problems += [problem("note", note) for note in manifest.notes]
    return _report(manifest, problems, facts, deep)


def _in_processes(cases: tuple[Case, ...], setting: Setting, workers: int) -> Iterator[Facts]:
    """The facts of each case, as they come, from several processes.

    A process that dies (for lack of memory, say) breaks its pool; the cases that this leaves are
    examined one by one, each in a process of its own, so that only the culprit is lost.
    """
    left = []
    with _pool(min(workers, len(cases))) as pool:
        futures = {pool.submit(examine, case, setting): case for case in cases}
        for future in as_completed(futures):
            try:
                yield future.result()
            except BrokenProcessPool:
                left.append(futures[future])
    for case in left:
        try:
            with _pool(1) as pool:
                yield pool.submit(examine, case, setting).result()
        except BrokenProcessPool:
            facts = Facts(case=case.id)
            facts.add("unreadable", "the process that read it died; is there memory enough?")
            yield facts


def _pool(workers: int) -> ProcessPoolExecutor:
    # A forked process can hang on locks that the libraries' threads held; a spawned one cannot.
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))


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
