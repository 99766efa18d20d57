"""A folder of samples: `sample_0000.nii.gz`, its label map and its record, one after the other.

The record, `sample_0000.json`, says what the sample was made by and that it is synthetic. It is
written last: a sample with a record is whole. So a second run of the same request makes what is
missing, and another request is refused a folder that holds samples already.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medar import __version__
from medar.errors import MedarError
from medar.files import TEMPORARY, TRACKED, exclusive, read_json, remove_temporaries, write_json
from medar.synthesis.job import Job
from medar.synthesis.synthesizer import Preview, Synthesizer, Synthetic
from medar.volume import Volume, write_nifti

SHEET, PREVIEW = "contact_sheet.png", "preview.png"
OURS = re.compile(
    rf"sample_\d{{4,}}(_label\.nii\.gz|\.nii\.gz|\.json)|{SHEET}|{PREVIEW}|{TRACKED}"
    rf"|\{TEMPORARY}.*"
)
DESCRIPTION = f"synthetic, medar {__version__}"

EXACT = 1 << 24
"""Whole numbers up to this are kept by float32."""


@dataclass(frozen=True, kw_only=True)
class Filled:
    """A folder of samples after a run."""

    folder: Path
    made: int
    kept: int
    """Samples that were there before."""
    images: tuple[Path, ...]


def fill(
    folder: str | Path,
    synthesizer: Synthesizer,
    job: Job,
    seeds: Sequence[int],
    *,
    batch_size: int | None = None,
    preview: Preview | None = None,
) -> Filled:
    """Write samples into a folder, each as it is ready; those that are there already stay.

    Args:
        folder: new, empty, or left by an earlier run of the same request.
        synthesizer: makes them.
        job: what is asked for.
        seeds: one a sample; sample i is of `seeds[i]`.
        batch_size: see `Synthesizer.run`.
        preview: see `Synthesizer.run`.

    Raises:
        MedarError: a folder with other files, with samples of another request, or one that cannot
            be written to; or a batch size below 1.
    """
    folder = Path(folder)
    _check(folder)
    size = synthesizer.batch_size(job, batch_size)
    with exclusive(folder):
        remove_temporaries(folder)
        places = {seed: place for place, seed in enumerate(seeds)}
        missing = [seed for seed in seeds if not _there(folder, places[seed], job.about(seed))]
        made = synthesizer.run(job, missing, batch_size=size, preview=preview)
        for seed, sample in zip(missing, made, strict=True):
            _write(folder, places[seed], sample, job)
    images = tuple(folder / f"{_stem(place)}.nii.gz" for place in range(len(seeds)))
    return Filled(folder=folder, made=len(missing), kept=len(seeds) - len(missing), images=images)


def _check(folder: Path) -> None:
    """Refuse to mix samples with other files."""
    if folder.exists() and not folder.is_dir():
        raise MedarError(f"{folder}: is a file; OUT names a folder")
    found = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    others = [name for name in found if not OURS.fullmatch(name)]
    if others:
        raise MedarError(
            f"{folder}: holds other files ({others[0]} ...); OUT needs a new or empty folder, or "
            "one that samples were written to before"
        )


def _there(folder: Path, place: int, about: dict[str, Any]) -> bool:
    """Whether a sample is there, made by the same request.

    Raises:
        MedarError: it was made by another one.
    """
    record = folder / f"{_stem(place)}.json"
    if not record.exists():
        return False
    said = read_json(record)
    odd = [name for name in about if not isinstance(said, dict) or said.get(name) != about[name]]
    if odd:
        found = said.get(odd[0]) if isinstance(said, dict) else said
        raise MedarError(
            f"{record}: {odd[0]} {found}, asked for is {about[odd[0]]}; choose another folder, or "
            "delete the samples in this one"
        )
    return all((folder / name).exists() for name in (said["image"], said["label"]) if name)


def _write(folder: Path, place: int, sample: Synthetic, job: Job) -> None:
    stem = _stem(place)
    image, label = f"{stem}.nii.gz", None if sample.label is None else f"{stem}_label.nii.gz"
    given = job.scene.given
    _save(folder / image, *_as_given(sample.image, given))
    if sample.label is not None and label is not None:
        _save(folder / label, sample.label, None)
    write_json(folder / f"{stem}.json", {**sample.about, "image": image, "label": label})


def _save(path: Path, volume: Volume, dtype: np.dtype[Any] | None) -> None:
    """Write on the grid of the file that the volume came from, where it came from one."""
    grid = "own" if volume.provenance is None else "source"
    write_nifti(path, volume, dtype=dtype, grid=grid, description=DESCRIPTION)  # type: ignore[arg-type]


def _as_given(image: Volume, given: Volume | None) -> tuple[Volume, np.dtype[Any] | None]:
    """An image in the voxel type of the file it is filled from, where that is one of integers.

    Files whose voxels are scaled to fractions, or too large for float32, are written as float32.
    """
    if given is None or given.provenance is None:
        return image, None
    kind = np.dtype(given.provenance.dtype)
    whole = bool((given.array == np.rint(given.array)).all()) and abs(given.array).max() <= EXACT
    if kind.kind not in "iu" or not whole:
        return image, None
    room = np.iinfo(kind)
    if given.array.min() < room.min or given.array.max() > room.max:
        return image, None
    return image.with_array(np.clip(np.rint(image.array), room.min, room.max)), kind


def _stem(place: int) -> str:
    return f"sample_{place:04d}"
