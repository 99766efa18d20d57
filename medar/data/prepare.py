"""Preparing a data set: every case to the plan's form, in parallel, into a cache.

What is there already is kept; a case that fails is set aside with its reason; an interrupted run
goes on where it stopped. `medar.data.prepared` describes the folder that results.
"""

import json
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medar.data.cache import ArrayCache
from medar.data.hashes import HashIndex
from medar.data.manifest import Case, Manifest
from medar.data.plan import Plan
from medar.data.preparation import VERSION, prepare_image, prepare_label, target_grid
from medar.data.prepared import (
    ARRAYS,
    CASES_FILE,
    FAILED_FILE,
    HASHES_FILE,
    MANIFEST_FILE,
    PLAN_FILE,
    check_folder,
)
from medar.data.reading import read_image, read_label
from medar.errors import MedarError
from medar.files import digest, exclusive, remove_temporaries, write_text
from medar.parallel import default_workers, run_parallel
from medar.progress import track
from medar.settings import to_dict

LOCATIONS = 1000
"""Voxels remembered per label, for patches that are to contain it."""


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """What a run of `prepare` did."""

    folder: Path
    made: int
    """Cases of which an image or label was made."""
    kept: int
    """Cases whose entries were there already."""
    failed: dict[str, str] = field(default_factory=dict)
    """Cases set aside, with reasons."""
    notes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """What the readers had to say about the geometry of a case."""


@dataclass(frozen=True, kw_only=True)
class _Job:
    case: Case
    image: str
    """Key of the image's entry."""
    label: str | None


def prepare(
    manifest: Manifest,
    plan: Plan,
    out: str | Path,
    *,
    workers: int | None = None,
    hashes: HashIndex | None = None,
) -> Preparation:
    """Bring every case of a data set to the plan's form.

    Args:
        manifest: the cases, with splits.
        plan: the form.
        out: the folder to fill, see `medar.data.prepared`.
        workers: processes, each holding one case in memory; default: one per CPU core.
        hashes: content hashes; default an index kept in `out`.

    Raises:
        MedarError: every case failed, the disk is full, `out` holds something else, or another
            process prepares it.
    """
    out = Path(out)
    workers = default_workers() if workers is None else workers
    check_folder(out)
    if out.resolve() == manifest.root.resolve():
        raise MedarError(f"{out}: is the data set itself; --out needs a folder of its own")
    # Two runs would remove each other's files.
    with exclusive(out):
        return _prepare(manifest, plan, out, workers, hashes)


def _prepare(
    manifest: Manifest, plan: Plan, out: Path, workers: int, hashes: HashIndex | None
) -> Preparation:
    """What `prepare` does, once the folder is its own."""
    hashes = hashes or HashIndex(out / HASHES_FILE)
    hashes.prime([file for case in manifest for file in case.files], workers=workers)
    plan.save(out / PLAN_FILE)
    plan = Plan.load(out / PLAN_FILE)  # with the types that every later reader meets
    manifest.save(out / MANIFEST_FILE)
    cache = ArrayCache(out / ARRAYS)
    jobs, failed = _jobs(manifest, plan, hashes)
    hashes.save()
    present = cache.keys()
    todo = [job for job in jobs if not _entries(job) <= present]
    traces: dict[str, str | None] = dict.fromkeys(failed)
    notes: dict[str, tuple[str, ...]] = {}
    work = partial(_prepare_case, plan=plan, folder=cache.folder)
    outcomes = run_parallel(work, todo, workers=workers)
    for outcome in track(outcomes, total=len(todo), label="prepare"):
        name = outcome.item.case.id
        if outcome.error is not None:
            failed[name] = outcome.error
            traces[name] = outcome.trace
        elif outcome.value:
            notes[name] = outcome.value
    _write_lines(
        out / FAILED_FILE,
        [{"id": k, "reason": v, "trace": traces.get(k)} for k, v in failed.items()],
    )
    done = [job for job in jobs if job.case.id not in failed]
    if not done:
        reason = next(iter(failed.values()))
        raise MedarError(f"{manifest.root}: no case could be prepared; the first: {reason}")
    header = {"plan": plan.digest, "version": VERSION}
    _write_lines(out / CASES_FILE, [header, *(_line(job, plan) for job in done)])
    cache.prune(set().union(*(_entries(job) for job in done)))
    remove_temporaries(out)
    made = sum(job.case.id not in failed for job in todo)
    return Preparation(folder=out, made=made, kept=len(done) - made, failed=failed, notes=notes)


def _jobs(manifest: Manifest, plan: Plan, hashes: HashIndex) -> tuple[list[_Job], dict[str, str]]:
    """The keys of every case, and the cases whose files cannot be hashed."""
    settings = to_dict(plan)
    # Patches are cut when they are loaded: their size does not change what is stored.
    names = ("spacing", "mode", "reading", *(("size", "centre") if plan.mode == "volume" else ()))
    grid = {name: settings[name] for name in names}
    jobs, failed = [], {}
    for case in manifest:
        try:
            image = [hashes[path] for path in case.images]
            of_image = {
                "version": VERSION,
                "grid": grid,
                "image": image,
                "intensity": settings["intensity"],
                "channels": settings["channels"],
                "modality": case.modality,
                "interpolation": plan.interpolation,
            }
            of_label = {
                "version": VERSION,
                "grid": grid,
                "image": image,
                "label": hashes[case.label] if case.label else None,
                "labels": sorted(plan.labels),
                "ignore": plan.ignore_label,
                # Where the foreground's centre lies depends on it, and so does the grid.
                "modality": case.modality if plan.centre == "foreground" else None,
                "interpolation": plan.label_interpolation,
            }
        except MedarError as error:
            failed[case.id] = str(error)
            continue
        jobs.append(
            _Job(
                case=case,
                image="image-" + digest(of_image),
                label="label-" + digest(of_label) if case.label else None,
            )
        )
    return jobs, failed


def _entries(job: _Job) -> set[str]:
    return {job.image, job.label} if job.label else {job.image}


def _prepare_case(job: _Job, plan: Plan, folder: Path) -> tuple[str, ...]:
    """Make the entries of one case that are missing; what its reader noted is returned."""
    cache = ArrayCache(folder)
    whole = plan.mode == "volume"
    image = read_image(job.case, plan.reading)
    notes = image.provenance.notes if image.provenance else ()
    if job.label is not None and job.label not in cache:
        label = read_label(job.case, plan.reading, image)
        if label is not None:
            values = prepare_label(label, target_grid(image, plan), plan)
            cache.put(job.label, values, _label_meta(values, job.label, whole), whole=whole)
            del label, values
    if job.image not in cache:
        array, trace = prepare_image(image, plan)
        del image  # a large volume is in memory few times, not many
        cache.put(job.image, array, {"trace": trace.to_dict()}, whole=whole)
    return notes


def _label_meta(values: npt.NDArray[Any], key: str, whole: bool) -> dict[str, Any]:
    """What is stored with a label map: voxels by value and, for patches, where some of them lie."""
    voxels = _count(values)
    return {"voxels": voxels, "locations": {} if whole else _locations(values, voxels, key)}


def _count(values: npt.NDArray[Any]) -> dict[str, int]:
    """Voxels of each label value but 0."""
    # Counting value by value is several times faster than the sort behind np.unique's counts.
    found = np.unique(values)
    return {str(int(v)): int(np.count_nonzero(values == v)) for v in found if v}


def _locations(values: npt.NDArray[Any], voxels: dict[str, int], key: str) -> dict[str, bytes]:
    """Up to `LOCATIONS` voxels of each label, int32 (n, 3), drawn by the entry's own key."""
    generator = np.random.default_rng(int(key.rsplit("-", 1)[1], 16))
    drawn = {}
    for value in voxels:
        places = np.flatnonzero(values == int(value))
        if len(places) > LOCATIONS:
            places = places[np.sort(generator.choice(len(places), LOCATIONS, replace=False))]
        corners = np.unravel_index(places, values.shape[1:])
        drawn[value] = np.stack(corners, axis=1).astype(np.int32).tobytes()
    return drawn


def _line(job: _Job, plan: Plan) -> dict[str, Any]:
    case = job.case
    return {
        "id": case.id,
        "subject": case.subject,
        "split": case.split,
        "modality": case.modality,
        "attributes": case.attributes,
        "annotated": _annotated(case, plan),
        "image": job.image,
        "label": job.label,
    }


def _annotated(case: Case, plan: Plan) -> list[int]:
    """The plan's label values that somebody looked for in a case."""
    if case.label is None:
        return []
    return [v for v in plan.labels if case.annotated is None or v in case.annotated]


def _write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
