"""Preparing a data set: every case is brought to the plan's form and stored in a cache.

Existing entries are kept, failed cases are recorded with their errors, and an interrupted run can
be resumed. `medar.data.prepared` describes the folder that results.
"""

import json
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

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
from medar.data.reading import UnreadableLabelError, read_image, read_label
from medar.data.segments import names_in_key
from medar.errors import MedarError
from medar.files import digest, exclusive, remove_temporaries, write_text
from medar.parallel import default_workers, run_parallel
from medar.progress import track
from medar.settings import to_dict

V = TypeVar("V")

LOCATIONS = 1000
"""Largest number of voxel positions stored per label, for patches that must contain it."""


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """Result of `prepare`."""

    folder: Path
    made: int
    """Number of cases with a newly prepared image or label."""
    kept: int
    """Number of cases that were prepared already."""
    failed: dict[str, str] = field(default_factory=dict)
    """Cases that could not be prepared, with reasons."""
    unlabelled: dict[str, str] = field(default_factory=dict)
    """Cases that were prepared without their label, which cannot be read, with reasons."""
    notes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Remarks of the readers about the geometry of cases."""


@dataclass(frozen=True, kw_only=True)
class _Job:
    case: Case
    image: str
    """Key of the image in the cache."""
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
        plan: the form that they are brought to.
        out: the folder to fill (see `medar.data.prepared`).
        workers: processes, each holding one case in memory; default: one per CPU core.
        hashes: content hashes; default: the index in `out`.

    Raises:
        MedarError: every case failed, the disk is full, `out` holds other files, or another
            process is preparing it.
    """
    out = Path(out)
    workers = default_workers() if workers is None else workers
    check_folder(out)
    if out.resolve() == manifest.root.resolve():
        raise MedarError(f"{out}: is the data set itself; --out must be another folder")
    # Concurrent runs would remove each other's files.
    with exclusive(out):
        return _prepare(manifest, plan, out, workers, hashes)


def _prepare(
    manifest: Manifest, plan: Plan, out: Path, workers: int, hashes: HashIndex | None
) -> Preparation:
    """`prepare`, once the folder is locked."""
    hashes = hashes or HashIndex(out / HASHES_FILE)
    hashes.prime([file for case in manifest for file in case.files], workers=workers)
    plan.save(out / PLAN_FILE)
    plan = Plan.load(out / PLAN_FILE)  # as every later reader sees it
    manifest.save(out / MANIFEST_FILE)
    cache = ArrayCache(out / ARRAYS)
    jobs, failed = _jobs(manifest, plan, hashes)
    hashes.save()
    present = cache.keys()
    todo = [job for job in jobs if not _entries(job) <= present]
    traces: dict[str, str | None] = dict.fromkeys(failed)
    notes: dict[str, tuple[str, ...]] = {}
    unlabelled: dict[str, str] = {}
    work = partial(_prepare_case, plan=plan, folder=cache.folder)
    outcomes = run_parallel(work, todo, workers=workers)
    for outcome in track(outcomes, total=len(todo), label="prepare"):
        name = outcome.item.case.id
        if outcome.error is not None:
            failed[name] = outcome.error
            traces[name] = outcome.trace
        elif outcome.value:
            remarks, damage = outcome.value
            notes |= {name: remarks} if remarks else {}
            unlabelled |= {} if damage is None else {name: damage}
    # Outcomes come as workers finish; what is written does not depend on that.
    failed, unlabelled = _in_order(failed, manifest), _in_order(unlabelled, manifest)
    lines = [{"id": k, "reason": v, "trace": traces.get(k)} for k, v in failed.items()]
    lines += [{"id": k, "reason": v, "part": "label"} for k, v in unlabelled.items()]
    _write_lines(out / FAILED_FILE, lines)
    done = [
        replace(job, case=replace(job.case, label=None), label=None)
        if job.case.id in unlabelled
        else job
        for job in jobs
        if job.case.id not in failed
    ]
    if not done:
        reason = next(iter(failed.values()))
        raise MedarError(f"{manifest.root}: no case could be prepared; the first: {reason}")
    header = {"plan": plan.digest, "version": VERSION}
    _write_lines(out / CASES_FILE, [header, *(_line(job, plan) for job in done)])
    cache.prune(set().union(*(_entries(job) for job in done)))
    remove_temporaries(out)
    made = sum(
        job.case.id not in failed and (job.image not in present or job.case.id not in unlabelled)
        for job in todo
    )
    return Preparation(
        folder=out,
        made=made,
        kept=len(done) - made,
        failed=failed,
        unlabelled=unlabelled,
        notes=_in_order(notes, manifest),
    )


def _in_order(found: dict[str, V], manifest: Manifest) -> dict[str, V]:
    return {case.id: found[case.id] for case in manifest if case.id in found}


def _jobs(manifest: Manifest, plan: Plan, hashes: HashIndex) -> tuple[list[_Job], dict[str, str]]:
    """The cache keys of every case, and the cases whose files cannot be hashed."""
    settings = to_dict(plan)
    # Patches are cut when they are loaded: their size does not affect the stored arrays.
    names = ("spacing", "mode", "reading", *(("size", "centre") if plan.mode == "volume" else ()))
    grid = {name: settings[name] for name in names}
    jobs, failed = [], {}
    for case in manifest:
        try:
            image = [hashes[path] for path in case.images]
            label = [hashes[path] for path in case.labels]
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
                "label": label[0] if len(label) == 1 else label or None,
                "labels": sorted(plan.labels),
                "ignore": plan.ignore_label,
                # The foreground, and with it the centre of the grid, depends on the modality.
                "modality": case.modality if plan.centre == "foreground" else None,
                "interpolation": plan.label_interpolation,
                **names_in_key(case.labels, plan.labels),
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


def _prepare_case(job: _Job, plan: Plan, folder: Path) -> tuple[tuple[str, ...], str | None]:
    """Make the missing entries of one case.

    Returns:
        The remarks of its reader; and why its label cannot be read, or None.
    """
    cache = ArrayCache(folder)
    whole = plan.mode == "volume"
    image = read_image(job.case, plan.reading)
    notes = image.provenance.notes if image.provenance else ()
    damage = None
    if job.label is not None and job.label not in cache:
        try:
            label = read_label(job.case, plan.reading, image, plan.labels)
        except UnreadableLabelError as error:
            label, damage = None, str(error)
        if label is not None:
            values = prepare_label(label, target_grid(image, plan), plan)
            cache.put(job.label, values, _label_meta(values, job.label, whole), whole=whole)
            del values
        label = None
    if job.image not in cache:
        array, trace = prepare_image(image, plan)
        del image  # to limit the copies of a large volume in memory
        cache.put(job.image, array, {"trace": trace.to_dict()}, whole=whole)
    return notes, damage


def _label_meta(values: npt.NDArray[Any], key: str, whole: bool) -> dict[str, Any]:
    """Metadata of a label map: voxels per value and, for patches, positions of some of them."""
    voxels = _count(values)
    return {"voxels": voxels, "locations": {} if whole else _locations(values, voxels, key)}


def _count(values: npt.NDArray[Any]) -> dict[str, int]:
    """Number of voxels of each label value except 0."""
    # Counting value by value is several times faster than np.unique with counts, which sorts.
    present = np.unique(values)
    return {str(int(v)): int(np.count_nonzero(values == v)) for v in present if v}


def _locations(values: npt.NDArray[Any], voxels: dict[str, int], key: str) -> dict[str, bytes]:
    """Up to `LOCATIONS` voxels of each label, int32 (n, 3), drawn with the entry's key as seed."""
    generator = np.random.default_rng(int(key.rsplit("-", 1)[1], 16))
    drawn = {}
    for value in voxels:
        indices = np.flatnonzero(values == int(value))
        if len(indices) > LOCATIONS:
            indices = indices[np.sort(generator.choice(len(indices), LOCATIONS, replace=False))]
        voxel = np.unravel_index(indices, values.shape[1:])
        drawn[value] = np.stack(voxel, axis=1).astype(np.int32).tobytes()
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
    """The plan's label values that were annotated in a case."""
    if case.label is None:
        return []
    return [v for v in plan.labels if case.annotated is None or v in case.annotated]


def _write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
