"""A folder of samples: `sample_0000.nii.gz`, its label map and its record, one after the other; or
of drafts, `draft_0000.nii.gz`, with their tokens, `draft_0000.safetensors`.

The record, `sample_0000.json`, holds the origin of the sample, and that it is synthetic. It is
written last: a sample with a record is complete. Running the same request again creates missing
samples; a folder with samples of another request is refused.
"""

import re
from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from medar.errors import MedarError
from medar.files import TEMPORARY, TRACKED, exclusive, read_json, remove_temporaries, write_json
from medar.parallel import is_elsewhere, run_parallel
from medar.progress import track
from medar.shared import Shared
from medar.synthesis.job import SynthesisJob
from medar.synthesis.request import Request
from medar.synthesis.synthesizer import Preview, Synthesizer, SyntheticVolume
from medar.volume import Volume, write_nifti
from medar.volume.marks import SYNTHETIC

SHEET, PREVIEW = "contact_sheet.png", "preview.png"
OURS = re.compile(
    rf"(sample|draft)_\d{{4,}}(_label\.nii\.gz|\.nii\.gz|\.json|\.safetensors)"
    rf"|{SHEET}|{PREVIEW}|{TRACKED}|\{TEMPORARY}.*"
)

FILES = "image", "label", "tokens"
"""Entries of a record that name files beside it."""

EXACT = 1 << 24
"""Integers up to this are exact in float32."""


def write_samples(
    folder: str | Path,
    synthesizer: Synthesizer,
    job: SynthesisJob,
    seeds: Sequence[int],
    *,
    batch_size: int | None = None,
    preview: Preview | None = None,
) -> tuple[list[Path], int]:
    """Write samples into a folder, each as it is ready; existing ones are kept.

    Args:
        folder: new, empty, or left by an earlier run of the same request.
        synthesizer: makes them.
        job: see `Synthesizer.job`.
        seeds: one per sample; sample i has `seeds[i]`.
        batch_size: see `Synthesizer.run`.
        preview: see `Synthesizer.run`.

    Returns:
        The files of all images, and how many of them were made now.

    Raises:
        MedarError: a folder with other files or with samples of another request, one that cannot
            be written to, a batch size below 1, or a preview of samples that a cluster makes.
    """
    folder = Path(folder)
    _check(folder)
    if preview is not None and is_elsewhere():
        raise MedarError("a preview is drawn where samples are made; omit it on a cluster")
    size = synthesizer.batch_size(job, batch_size)
    with exclusive(folder):
        remove_temporaries(folder)
        indices = {seed: index for index, seed in enumerate(seeds)}
        missing = [
            s for s in seeds if not _is_complete(folder / _stem(job, indices[s]), job.about(s))
        ]
        if is_elsewhere():
            assert job.request is not None, "only Synthesizer.job makes jobs"
            batches = [
                [(indices[seed], seed) for seed in missing[start : start + size]]
                for start in range(0, len(missing), size)
            ]
            work = partial(_write_batch, Shared(synthesizer), job.request, folder)
            outcomes = run_parallel(work, batches, workers=1)
            for outcome in track(outcomes, total=len(batches), label="synthesize", unit="batch"):
                outcome.result()
        else:
            made = synthesizer.run(job, missing, batch_size=size, preview=preview)
            for seed, sample in zip(missing, made, strict=True):
                _write(folder / _stem(job, indices[seed]), sample, job)
    stems = [_stem(job, index) for index in range(len(seeds))]
    return [folder / f"{stem}.nii.gz" for stem in stems], len(missing)


def _write_batch(
    synthesizer: Shared[Synthesizer],
    request: Request,
    folder: Path,
    batch: Sequence[tuple[int, int]],
) -> None:
    """Make and write the samples of one batch, given as pairs of index and seed."""
    job, seeds = _job(synthesizer.model, request), [seed for _, seed in batch]
    made = synthesizer.model.run(job, seeds, batch_size=len(seeds))
    for (index, _), sample in zip(batch, made, strict=True):
        _write(folder / _stem(job, index), sample, job)


@lru_cache(maxsize=1)
def _job(synthesizer: Synthesizer, request: Request) -> SynthesisJob:
    return synthesizer.job(request)


def _check(folder: Path) -> None:
    """Refuse to mix samples with other files."""
    if folder.exists() and not folder.is_dir():
        raise MedarError(f"{folder}: is a file; OUT names a folder")
    names = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    others = [name for name in names if not OURS.fullmatch(name)]
    if others:
        raise MedarError(
            f"{folder}: holds other files ({others[0]} ...); OUT must be new, empty, or hold "
            "samples of the same request"
        )


def _is_complete(stem: Path, about: dict[str, Any]) -> bool:
    """Whether there is a sample of the same request.

    Raises:
        MedarError: there is one of another request.
    """
    path = stem.with_suffix(".json")
    if not path.exists():
        return False
    content = read_json(path)
    record = content if isinstance(content, dict) else {}
    for name, value in about.items():
        if record.get(name) != value:
            raise MedarError(
                f"{path}: {name} {record.get(name)}, but {value} is requested; choose another "
                "folder, or delete the samples in this one"
            )
    names = [record.get(name) for name in FILES]
    return all((stem.parent / name).exists() for name in names if name)


def _write(stem: Path, sample: SyntheticVolume, job: SynthesisJob) -> None:
    image, label, tokens = (
        stem.with_name(stem.name + end) for end in (".nii.gz", "_label.nii.gz", ".safetensors")
    )
    _save(image, *_as_source(sample.image, job.source))
    record = {**sample.about, "image": image.name, "label": None}
    if sample.label is not None:
        _save(label, sample.label, None)
        record["label"] = label.name
    if job.until is not None:
        sample.pyramid.save(tokens)
        record["tokens"] = tokens.name
    write_json(stem.with_suffix(".json"), record)


def _save(path: Path, volume: Volume, dtype: np.dtype[Any] | None) -> None:
    """Write on the grid of the file that the volume was read from, if it was read from one."""
    grid = "own" if volume.provenance is None else "source"
    write_nifti(path, volume, dtype=dtype, grid=grid, description=SYNTHETIC)  # type: ignore[arg-type]


def _as_source(image: Volume, source: Volume | None) -> tuple[Volume, np.dtype[Any] | None]:
    """An image in the voxel type of the file that it was filled from, if that holds integers.

    Files whose voxels are scaled to fractions, or too large for float32, are written as float32.
    """
    if source is None or source.provenance is None:
        return image, None
    kind, voxels = np.dtype(source.provenance.dtype), source.array
    integers = bool((voxels == np.rint(voxels)).all()) and abs(voxels).max() <= EXACT
    if kind.kind not in "iu" or not integers:
        return image, None
    bounds = np.iinfo(kind)
    if voxels.min() < bounds.min or voxels.max() > bounds.max:
        return image, None
    return image.with_array(np.clip(np.rint(image.array), bounds.min, bounds.max)), kind


def _stem(job: SynthesisJob, index: int) -> str:
    return f"{'sample' if job.until is None else 'draft'}_{index:04d}"
