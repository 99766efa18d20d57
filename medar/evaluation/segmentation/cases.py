"""The cases of an evaluation: images and true label maps on the grids of their files.

No model's plan is used: whatever preparation loses (by resampling, cropping) counts against the
model, and models with different plans are treated alike.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from medar.data.hashes import HashIndex
from medar.data.manifest import Case, Manifest, Split
from medar.data.plan import Plan
from medar.data.prepared import Prepared
from medar.data.reading import read_image, read_label, reading_for
from medar.data.resolve import is_prepared
from medar.data.sources import read_manifest
from medar.errors import MedarError, check_positive
from medar.files import digest
from medar.volume import Grid, ReadOptions, Volume, read_header
from medar.volume.dicom_kinds import segmentation_at


@dataclass(frozen=True, kw_only=True)
class Labels:
    """The labels of label maps."""

    names: dict[int, str]
    """By value, without background (0)."""
    ignore: int | None = None
    """Value of voxels without annotation."""


@dataclass(frozen=True, kw_only=True, eq=False)
class EvaluationCase:
    """One case, in memory."""

    case: Case
    image: Volume
    truth: Volume
    annotated: tuple[int, ...]
    """Label values that the case was annotated for."""


def manifest_of(data: str | Path | Manifest) -> tuple[Manifest, Plan | None]:
    """The files and splits of a data set; for a prepared folder those of its source, and its plan.

    Raises:
        MedarError: not a data set.
    """
    if isinstance(data, Manifest):
        return data, None
    if not is_prepared(data):
        return read_manifest(data), None
    prepared = Prepared(data)
    return prepared.manifest(), prepared.plan


class EvaluationCases:
    """The annotated cases of a split.

    Args:
        manifest: of the data set.
        split: the cases to take.
        labels: to evaluate.
        reading: how to read ambiguous files.
        limit: maximum number of cases, evenly spaced over the split; default all.

    Raises:
        MedarError: no annotated case in the split, a missing file, or labels with other names.
    """

    def __init__(
        self,
        manifest: Manifest,
        split: Split,
        labels: Labels,
        reading: ReadOptions,
        limit: int | None = None,
    ) -> None:
        check_positive(limit=limit)
        self.manifest, self.labels = manifest, labels
        self._reading = reading_for(manifest, reading)
        _check_names(manifest, labels)
        cases = manifest.select(split)
        usable = [case for case in cases if case.label is not None and self.annotated(case)]
        if not usable:
            raise MedarError(
                f"{manifest.root}: {len(cases)} cases in the split {split!r}, none annotated; the "
                "evaluation needs annotated cases"
            )
        self.skipped = len(cases) - len(usable)
        """Cases of the split without annotation."""
        count = len(usable) if limit is None else min(limit, len(usable))
        indices = np.linspace(0, len(usable) - 1, count).round().astype(int)
        self.cases = tuple(usable[index] for index in indices)
        for file in (file for case in self.cases for file in case.files):
            if not file.exists():
                raise MedarError(
                    f"{file}: no such file; label maps are evaluated on the grids of the original "
                    "files, which must be available"
                )

    def annotated(self, case: Case) -> tuple[int, ...]:
        """The labels that a case was annotated for."""
        named = self.manifest.labels or self.labels.names
        return tuple(
            value
            for value in self.labels.names
            if value in named and (case.annotated is None or value in case.annotated)
        )

    def read(self, case: Case) -> EvaluationCase:
        """A case's image and true label map.

        Raises:
            MedarError: a file that cannot be read, or a label value without a name.
        """
        image = read_image(case, self._reading)
        truth = self._label(case, image)
        return EvaluationCase(case=case, image=image, truth=truth, annotated=self.annotated(case))

    def read_label(self, case: Case, image: Volume, path: Path) -> Volume:
        """Another label map of a case on its image's grid.

        Raises:
            MedarError: see `read`; or the map lies on another grid.
        """
        return self._label(replace(case, label=path, further_labels=()), image)

    def _label(self, case: Case, image: Volume) -> Volume:
        label = read_label(case, self._reading, image, self.labels.names)
        assert label is not None
        ignored = () if self.labels.ignore is None else (self.labels.ignore,)
        unknown = set(np.unique(label.array).tolist()) - {0, *self.labels.names, *ignored}
        if unknown:
            listed = ", ".join(map(str, sorted(unknown)))
            raise MedarError(
                f"{case.label}: unknown label values {listed}; expected "
                f"0 and {', '.join(map(str, self.labels.names))}"
            )
        return label

    def tolerance(self) -> float:
        """The default tolerance of NSD: the largest side, in mm, of the cases' median voxel.

        Raises:
            MedarError: a file that cannot be read.
        """
        grids = [self._label_grid(case, case.label) for case in self.cases if case.label]
        return round(float(np.median([grid.spacing for grid in grids], axis=0).max()), 3)

    def _label_grid(self, case: Case, label: Path) -> Grid:
        """The grid of a label map; that of the image for one that is placed on it."""
        placed = segmentation_at(label) is not None
        header = read_header(case.images[0] if placed else label, self._reading)
        return header.grid.to_ras()

    @property
    def digest(self) -> str:
        """A hash of the cases: order, names and files."""
        hashes = HashIndex()
        return digest([[case.id, *(hashes[file] for file in case.files)] for case in self.cases])


def labels_of(manifest: Manifest, stored: Plan | None) -> Labels:
    """The labels of a data set, with its own names or those of the plan it was prepared with.

    Raises:
        MedarError: no label has a name.
    """
    names = manifest.labels or (stored.labels if stored else {})
    if not names:
        raise MedarError(
            f'{manifest.root}: names no labels; add a labels.json such as {{"1": "liver"}}'
        )
    return Labels(names=dict(names), ignore=manifest.ignore_label)


def _check_names(manifest: Manifest, labels: Labels) -> None:
    wrong = [(v, n) for v, n in manifest.labels.items() if labels.names.get(v) != n]
    for value, name in wrong:
        other = labels.names.get(value)
        difference = f"calls it {other!r}" if other else "does not have it"
        raise MedarError(
            f"{manifest.root}: label {value} is {name!r}, but the model {difference}; both must "
            "have the same labels"
        )


def find_files(folder: Path, cases: Iterable[Case]) -> dict[str, Path]:
    """The finished label map of each case, by its id.

    Raises:
        MedarError: no such folder, or a case with no or several label maps.
    """
    from medar.data.sources.files import find_volumes, stem_of

    if not folder.is_dir():
        raise MedarError(f"{folder}: no such folder of label maps")
    paths: dict[str, Path] = {}
    cases = list(cases)
    expected = {case.id for case in cases}
    for path in find_volumes(folder):
        name = stem_of(path, path.parent)
        if name in expected and paths.setdefault(name, path) != path:
            raise MedarError(
                f"{folder}: {paths[name].relative_to(folder)} and {path.relative_to(folder)} are "
                f"both label maps of {name}; keep one"
            )
    missing = [case.id for case in cases if case.id not in paths]
    if missing:
        raise MedarError(
            f"{folder}: {len(missing)} of {len(cases)} cases have no label map; the first missing "
            f"one is {missing[0]}.nii.gz"
        )
    return {case.id: paths[case.id] for case in cases}
