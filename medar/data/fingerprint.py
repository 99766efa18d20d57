"""`Fingerprint`: shapes, spacings, intensities and label volumes of a data set, measured once."""

from collections.abc import Mapping
from dataclasses import field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from medar.data.hashes import HashIndex
from medar.data.manifest import Case, Manifest
from medar.data.plan import check_reading, foreground
from medar.data.reading import read_image, read_label, reading_for
from medar.data.segments import names_in_key
from medar.errors import MedarError
from medar.files import digest, read_json, write_json
from medar.parallel import run_parallel
from medar.progress import track
from medar.settings import from_dict, settings, to_dict
from medar.volume import ReadOptions, Shape3, Spacing
from medar.volume.counts import value_counts

QUANTILES = (0.0, 0.5, 1.0, 5.0, 25.0, 50.0, 75.0, 95.0, 99.0, 99.5, 99.9, 100.0)
"""Percentages at which foreground intensities are recorded."""

VERSION = 1


@settings
class CaseFingerprint:
    """Measurements of one case."""

    id: str
    key: str
    """Hash of the files and reading options that were measured."""
    modality: str | None
    shape: Shape3
    """Voxels along RAS+ axes."""
    spacing: Spacing
    """mm"""
    quantiles: tuple[tuple[float, ...], ...]
    """Per channel, foreground intensities at `QUANTILES`."""
    label_ml: dict[int, float] = field(default_factory=dict)
    """Volume of each label that has voxels, in millilitres."""


@settings
class Fingerprint:
    """Measurements of all cases that could be read, and the errors of the others."""

    cases: tuple[CaseFingerprint, ...]
    failed: dict[str, str] = field(default_factory=dict)
    quantiles: tuple[float, ...] = QUANTILES

    def save(self, path: str | Path) -> None:
        """Write as JSON, atomically."""
        write_json(path, to_dict(self))

    @classmethod
    def load(cls, path: str | Path) -> "Fingerprint":
        """Read what `save` wrote."""
        return from_dict(cls, read_json(path), str(path))

    @property
    def spacings(self) -> Any:
        """(cases, 3) in mm."""
        return np.array([case.spacing for case in self.cases])

    @property
    def extents(self) -> Any:
        """(cases, 3): sides of the volumes in mm."""
        return np.array([case.shape for case in self.cases]) * self.spacings


def take_fingerprint(
    manifest: Manifest,
    options: ReadOptions,
    *,
    workers: int,
    hashes: HashIndex,
    cached: Fingerprint | None = None,
) -> Fingerprint:
    """Measure every case, except those of `cached` whose files have not changed.

    Raises:
        MedarError: no case can be read, or NaN and Inf are to be kept.
    """
    check_reading(options)
    options = reading_for(manifest, options)
    unchanged = {case.key: case for case in cached.cases if case.key} if cached else {}
    hashes.prime([file for case in manifest for file in case.files], workers=workers)
    measured: dict[str, CaseFingerprint] = {}
    todo = []
    for case in manifest:
        key = _key(case, options, hashes, manifest.labels)
        if key in unchanged:
            measured[case.id] = replace(unchanged[key], id=case.id)
        else:
            todo.append(case)
    failed = {}
    outcomes = run_parallel(
        partial(_measure, options=options, names=manifest.labels), todo, workers=workers
    )
    for outcome in track(outcomes, total=len(todo), label="fingerprint"):
        case = outcome.item
        if outcome.value is None:
            failed[case.id] = outcome.error or "unknown"
            continue
        measured[case.id] = replace(outcome.value, key=_key(case, options, hashes, manifest.labels))
    if not measured:
        reason = next(iter(failed.values()))
        raise MedarError(f"{manifest.root}: no case can be read; the first: {reason}")
    return Fingerprint(
        cases=tuple(measured[case.id] for case in manifest if case.id in measured), failed=failed
    )


def _key(case: Case, options: ReadOptions, hashes: HashIndex, names: Mapping[int, str]) -> str:
    """Hash of everything a case's measurements depend on; empty if a file cannot be read."""
    try:
        contents = [hashes[file] for file in case.files]
        named = names_in_key(case.labels, names)
    except (MedarError, OSError):
        return ""  # measuring the case reports the error
    basis = [VERSION, contents, options.to_dict(), case.modality]
    return digest([*basis, named] if named else basis)


def _measure(case: Case, options: ReadOptions, names: Mapping[int, str]) -> CaseFingerprint:
    image = read_image(case, options)
    label = read_label(case, options, image, names)
    millilitres = {}
    if label is not None:
        voxel = float(np.prod(image.spacing)) / 1000.0
        counts = value_counts(label.array)
        millilitres = {value: round(n * voxel, 4) for value, n in counts.items() if value}
    return CaseFingerprint(
        id=case.id,
        key="",
        modality=image.modality,
        shape=image.shape,
        spacing=image.spacing,
        quantiles=tuple(
            tuple(float(q) for q in np.percentile(foreground(c, image.modality), QUANTILES))
            for c in image.array
        ),
        label_ml=millilitres,
    )
