"""The cases that segmentation learns from: annotated ones, of a share of the subjects.

A share of the labels is a share of the subjects, in an order that a seed and each name decide: the
subjects of 5 % are among those of 10 %, whatever else the data set holds. An epoch has as many
items whatever the share: cases come again, one after the other, cut and augmented otherwise.
"""

import hashlib
from collections.abc import Mapping, Sequence
from math import ceil
from pathlib import Path

from medar.data.loading import Item, PreparedDataset, SeededDataset
from medar.data.manifest import Split
from medar.data.prepared import Prepared, PreparedCase
from medar.data.splits import in_order
from medar.errors import MedarError
from medar.segmentation.settings import DataSettings


class AnnotatedDataset(SeededDataset):
    """Annotated training cases of a prepared data set; items are those of `PreparedDataset`.

    Args:
        folder: what `prepare` filled.
        settings: share of the labels, foreground and augmentation are used.
        seed: of patches and augmentation.
        splits: of subjects, in place of those that the folder says; see `fold_splits`.

    Raises:
        MedarError: no prepared data set, none with labels, or no annotated case in "train".
    """

    def __init__(
        self,
        folder: str | Path,
        settings: DataSettings,
        seed: int = 0,
        splits: Mapping[str, Split] | None = None,
    ) -> None:
        super().__init__(seed)
        self.base = PreparedDataset(
            folder,
            split="train",
            splits=splits,
            augmentation=settings.augmentation,
            seed=seed,
            foreground=settings.foreground,
        )
        self.plan = self.base.plan
        cases = [self.base.prepared[place] for place in range(len(self.base))]
        usable = {place: case for place, case in enumerate(cases) if is_annotated(case)}
        if not usable:
            raise MedarError(
                f"{folder}: no annotated case in the split 'train'; segmentation needs labels"
            )
        names = {case.subject for case in usable.values()}
        count = max(1, ceil(len(names) * settings.labels - 1e-9))
        self.subjects = in_order(names, settings.labels_seed)[:count]
        """Whose labels are used."""
        chosen = set(self.subjects)
        self.places = [place for place, case in usable.items() if case.subject in chosen]
        """The cases, by their places in `base.prepared`."""
        self._length = len(usable)

    @property
    def digest(self) -> str:
        """A hash of the cases that are used."""
        prepared = self.base.prepared
        ids = " ".join(prepared[place].id for place in self.places)
        return hashlib.blake2b(f"{prepared.digest} {ids}".encode(), digest_size=8).hexdigest()

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Item:
        item_seed = self.item_seed(index)
        return self.draw(item_seed[1] * len(self) + index, item_seed)

    def draw(self, number: int, seed: Sequence[int]) -> Item:
        """The item that comes after so many, its patch and augmentation drawn by `seed` alone."""
        return self.base.draw(self.places[number % len(self.places)], seed)


def fold_splits(folder: str | Path, settings: DataSettings) -> dict[str, Split] | None:
    """The splits of a fold of cross-validation, by subject; None where the settings name no fold.

    The annotated subjects of train and val together are dealt out to the folds in an order that
    their names alone decide; those of the fold are val, all others train.

    Args:
        folder: what `prepare` filled.
        settings: `fold` and `folds` are used.

    Raises:
        MedarError: no prepared data set, or fewer subjects than folds.
    """
    if settings.fold is None:
        return None
    prepared = Prepared(folder)
    cases = (prepared[place] for place in range(len(prepared)))
    names = {one.subject for one in cases if one.split in ("train", "val") and is_annotated(one)}
    if len(names) < settings.folds:
        raise MedarError(
            f"folds {settings.folds}: {folder} has {len(names)} annotated subjects in train and "
            "val; no more folds than these are possible"
        )
    dealt = enumerate(in_order(names, 0))
    return {
        name: "val" if place % settings.folds == settings.fold else "train" for place, name in dealt
    }


def is_annotated(case: PreparedCase) -> bool:
    """Whether anybody looked for any label in a case."""
    return case.label is not None and bool(case.annotated)


def annotated_places(data: PreparedDataset, most: int) -> list[int]:
    """Places of at most so many annotated cases, spread evenly over a data set.

    Raises:
        MedarError: there is none.
    """
    prepared = data.prepared
    usable = [place for place in range(len(prepared)) if is_annotated(prepared[place])]
    if not usable:
        raise MedarError(f"{prepared.folder}: no annotated case to validate with")
    count = min(len(usable), most)
    return [usable[n * len(usable) // count] for n in range(count)]
