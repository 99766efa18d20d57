"""The cases to judge: images and truth as their files hold them, on the files' own grid.

Nothing of a model's plan is used: whatever is lost on the way to a model and back (resampling,
cropping) counts against the model, and models of different plans are judged alike.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from medar.data.cases import read_image, read_label, reading_for
from medar.data.hashes import HashIndex
from medar.data.manifest import Case, Manifest, Split
from medar.data.plan import Plan
from medar.data.prepared import Prepared
from medar.data.resolve import is_prepared
from medar.data.sources import read_manifest
from medar.errors import MedarError
from medar.files import digest
from medar.volume import ReadOptions, Volume, read_header


@dataclass(frozen=True, kw_only=True)
class Labels:
    """What label maps hold."""

    names: dict[int, str]
    """By value, without background (0)."""
    ignore: int | None = None
    """Value of voxels that nobody looked at."""


@dataclass(frozen=True, kw_only=True, eq=False)
class JudgedCase:
    """One case, in memory."""

    case: Case
    image: Volume
    truth: Volume
    annotated: tuple[int, ...]
    """Label values that somebody looked for."""


def manifest_of(data: str | Path | Manifest) -> tuple[Manifest, Plan | None]:
    """The files and splits of a data set; of a prepared folder those of its source, and its plan.

    Raises:
        MedarError: no data set there.
    """
    if isinstance(data, Manifest):
        return data, None
    if not is_prepared(data):
        return read_manifest(data), None
    prepared = Prepared(data)
    return prepared.manifest(), prepared.plan


class Judged:
    """The annotated cases of a split.

    Args:
        manifest: of the data set.
        split: the cases to take.
        labels: to judge.
        reading: what to do about files that leave a question open.
        limit: the most cases, spread evenly over the split; default all.

    Raises:
        MedarError: no annotated case of the split, a file that is not there, or labels that are
            named otherwise.
    """

    def __init__(
        self,
        manifest: Manifest,
        split: Split,
        labels: Labels,
        reading: ReadOptions,
        limit: int | None = None,
    ) -> None:
        if limit is not None and limit < 1:
            raise MedarError(f"limit {limit}: a whole number from 1 is needed")
        self.manifest, self.labels = manifest, labels
        self._reading = reading_for(manifest, reading)
        _check_names(manifest, labels)
        every = manifest.select(split)
        usable = [case for case in every if case.label is not None and self.annotated(case)]
        if not usable:
            raise MedarError(
                f"{manifest.root}: {len(every)} cases in the split {split!r}, none annotated; "
                "label maps are judged by annotated cases"
            )
        self.passed_over = len(every) - len(usable)
        """Cases of the split that nobody annotated."""
        count = len(usable) if limit is None else min(limit, len(usable))
        places = np.linspace(0, len(usable) - 1, count).round().astype(int)
        self.cases = tuple(usable[place] for place in places)
        for file in (file for case in self.cases for file in case.files):
            if not file.exists():
                raise MedarError(
                    f"{file}: no such file; label maps are judged on the files' own grid, so that "
                    "the data set itself is needed"
                )

    def annotated(self, case: Case) -> tuple[int, ...]:
        """The labels that somebody looked for in a case."""
        named = self.manifest.labels or self.labels.names
        return tuple(
            value
            for value in self.labels.names
            if value in named and (case.annotated is None or value in case.annotated)
        )

    def read(self, case: Case) -> JudgedCase:
        """A case's image and truth.

        Raises:
            MedarError: a file that cannot be read, or a label value without a name.
        """
        image = read_image(case, self._reading)
        truth = self.read_label(case, image, case.label)
        return JudgedCase(case=case, image=image, truth=truth, annotated=self.annotated(case))

    def read_label(self, case: Case, image: Volume, path: Path | None) -> Volume:
        """A label map of a case on its image's grid.

        Raises:
            MedarError: see `read`; or the map lies on another grid.
        """
        label = read_label(replace(case, label=path), self._reading, image)
        assert label is not None
        ignored = () if self.labels.ignore is None else (self.labels.ignore,)
        odd = set(np.unique(label.array).tolist()) - {0, *self.labels.names, *ignored}
        if odd:
            raise MedarError(
                f"{path}: label values {', '.join(map(str, sorted(odd)))}; known are 0 and "
                f"{', '.join(map(str, self.labels.names))}"
            )
        return label

    def tolerance(self) -> float:
        """The largest side, in mm, of the cases' median voxel: what an annotator can tell apart.

        Raises:
            MedarError: a file that cannot be read.
        """
        labels = (case.label for case in self.cases if case.label is not None)
        grids = [read_header(label, self._reading).grid.to_ras() for label in labels]
        return round(float(np.median([grid.spacing for grid in grids], axis=0).max()), 3)

    @property
    def digest(self) -> str:
        """A hash of the cases: their order, names and files."""
        hashes = HashIndex()
        return digest([[case.id, *(hashes[file] for file in case.files)] for case in self.cases])


def labels_of(manifest: Manifest, stored: Plan | None) -> Labels:
    """The labels of a data set, by its own names or those of the plan that it was prepared by.

    Raises:
        MedarError: nobody names any.
    """
    names = manifest.labels or (stored.labels if stored else {})
    if not names:
        raise MedarError(
            f'{manifest.root}: names no labels; write labels.json into it, such as {{"1": "liver"}}'
        )
    return Labels(names=dict(names), ignore=manifest.ignore_label)


def _check_names(manifest: Manifest, labels: Labels) -> None:
    wrong = [(v, n) for v, n in manifest.labels.items() if labels.names.get(v) != n]
    for value, name in wrong:
        known = labels.names.get(value)
        said = f"calls it {known!r}" if known else "does not have it"
        raise MedarError(
            f"{manifest.root}: label {value} is {name!r}, the model {said}; the same labels are "
            "needed"
        )


def find_files(folder: Path, cases: Iterable[Case]) -> dict[str, Path]:
    """The finished label map of each case, by its id.

    Raises:
        MedarError: no such folder, a case with several maps, or one without: left out, it would
            not count.
    """
    from medar.data.sources.files import find_volumes, split_ending

    if not folder.is_dir():
        raise MedarError(f"{folder}: no such folder; one of label maps named by case is needed")
    there: dict[str, Path] = {}
    cases = list(cases)
    wanted = {case.id for case in cases}
    for path in find_volumes(folder):
        name = split_ending(path.name)[0]
        if name in wanted and there.setdefault(name, path) != path:
            raise MedarError(
                f"{folder}: {there[name].relative_to(folder)} and {path.relative_to(folder)} are "
                f"both label maps of {name}; one is needed"
            )
    missing = [case.id for case in cases if case.id not in there]
    if missing:
        raise MedarError(
            f"{folder}: no label map of {len(missing)} of {len(cases)} cases; the first would be "
            f"{missing[0]}.nii.gz"
        )
    return {case.id: there[case.id] for case in cases}
