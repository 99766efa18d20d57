"""Preparing a data set: every case to the plan's form, in parallel, into a cache.

What is there already is kept; a case that fails is set aside with its reason; an interrupted run
goes on where it stopped. The folder that results is all that training reads:

    plan.yaml        the plan in force
    cases.jsonl      one line a case: entries in the cache, label values, attributes, split
    failed.jsonl     the cases that were set aside, with reasons
    manifest.jsonl   the data set as it was found, with its splits
    arrays/          the cache, see `medar.data.cache`
"""

import json
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medar.data.cache import ArrayCache
from medar.data.cases import read_image, read_label
from medar.data.hashes import HashIndex
from medar.data.manifest import Case, Manifest
from medar.data.plan import Plan
from medar.data.preparation import VERSION, prepare_image, prepare_label
from medar.errors import MedarError
from medar.files import digest, exclusive, write_text
from medar.parallel import run_parallel
from medar.progress import track
from medar.settings import to_dict

PLAN_FILE = "plan.yaml"
CASES_FILE = "cases.jsonl"
FAILED_FILE = "failed.jsonl"
MANIFEST_FILE = "manifest.jsonl"
HASHES_FILE = "hashes.json"
FINGERPRINT_FILE = "fingerprint.json"
ARRAYS = "arrays"

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
    workers: int,
    hashes: HashIndex | None = None,
) -> Preparation:
    """Bring every case of a data set to the plan's form.

    Args:
        manifest: the cases, with splits.
        plan: the form.
        out: the folder to fill; see this module's description.
        workers: processes, each holding one case in memory.
        hashes: content hashes; default an index kept in `out`.

    Raises:
        MedarError: every case failed, the disk is full, `out` holds something else, or another
            process prepares it.
    """
    out = Path(out)
    check_folder(out)
    # Two runs would remove each other's files.
    with exclusive(out):
        return _prepare(manifest, plan, out, workers, hashes)


def _prepare(
    manifest: Manifest, plan: Plan, out: Path, workers: int, hashes: HashIndex | None
) -> Preparation:
    """What `prepare` does, once the folder is its own."""
    hashes = hashes or HashIndex(out / HASHES_FILE)
    files = [file for case in manifest for file in (*case.images, case.label) if file]
    hashes.prime(files, workers=workers)
    plan.save(out / PLAN_FILE)
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
    done = [job for job in jobs if job.case.id not in failed]
    if not done:
        reason = next(iter(failed.values()))
        raise MedarError(f"{manifest.root}: no case could be prepared; the first: {reason}")
    header = {"plan": plan.digest, "version": VERSION}
    _write_lines(out / CASES_FILE, [header, *(_line(job, plan) for job in done)])
    _write_lines(
        out / FAILED_FILE,
        [{"id": k, "reason": v, "trace": traces.get(k)} for k, v in failed.items()],
    )
    cache.remove(cache.keys() - set().union(*(_entries(job) for job in done)))
    made = sum(job.case.id not in failed for job in todo)
    return Preparation(folder=out, made=made, kept=len(done) - made, failed=failed, notes=notes)


def check_folder(out: Path) -> None:
    """Refuse to mix a prepared data set with other files.

    Raises:
        MedarError: `out` is a file, or a folder that holds something else.
    """
    if out.exists() and not out.is_dir():
        raise MedarError(f"{out}: is a file; --out names a folder")
    known = {PLAN_FILE, CASES_FILE, MANIFEST_FILE, ARRAYS, HASHES_FILE, FINGERPRINT_FILE}
    inside = {p.name for p in out.iterdir()} if out.exists() else set()
    if inside and not inside & known:
        raise MedarError(
            f"{out}: holds other files ({sorted(inside)[0]} ...); --out needs a new or empty "
            "folder, or one that was prepared before"
        )


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
    label = read_label(job.case, plan.reading, image)
    array, trace = prepare_image(image, plan)
    if label is not None and job.label is not None and job.label not in cache:
        values = prepare_label(label, trace.target, plan)
        meta = {
            "voxels": _count(values),
            "locations": {} if whole else _locations(values, job.label),
        }
        cache.put(job.label, values, meta, whole=whole)
    if job.image not in cache:
        cache.put(job.image, array, {"trace": trace.to_dict()}, whole=whole)
    return image.provenance.notes if image.provenance else ()


def _count(values: npt.NDArray[Any]) -> dict[str, int]:
    """Voxels of each label value but 0."""
    found, counts = np.unique(values, return_counts=True)
    return {str(int(v)): int(n) for v, n in zip(found, counts, strict=True) if v}


def _locations(values: npt.NDArray[Any], key: str) -> dict[str, bytes]:
    """Up to `LOCATIONS` voxels of each label, int32 (n, 3), drawn by the entry's own key."""
    generator = np.random.default_rng(int(key.rsplit("-", 1)[1], 16))
    drawn = {}
    for value in np.unique(values[values != 0]):
        places = np.argwhere(values[0] == value).astype(np.int32)
        if len(places) > LOCATIONS:
            places = places[np.sort(generator.choice(len(places), LOCATIONS, replace=False))]
        drawn[str(int(value))] = places.tobytes()
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
