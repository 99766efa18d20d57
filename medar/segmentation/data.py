"""Training cases of segmentation: annotated ones of a fraction of the subjects, and synthetic ones.

The subjects of a label fraction depend on a seed and on their names only: those of 5 % are among
those of 10 %, whatever else the data set holds. An epoch has the same number of items for every
fraction: cases repeat, with other patches and augmentation.
"""

import hashlib
from collections.abc import Mapping, Sequence
from math import ceil, floor
from pathlib import Path

from medar.data.loading import Item, PreparedDataset, SeededDataset
from medar.data.manifest import Manifest, Split
from medar.data.plan import Plan
from medar.data.prepared import Prepared, PreparedCase
from medar.data.resolve import is_prepared, prepare_for_model
from medar.data.sources import read_manifest
from medar.data.splits import in_order
from medar.errors import MedarError
from medar.segmentation.settings import DataSettings
from medar.training.distributed import current_ranks

SAMPLED_CASES = 64
"""Largest number of training cases that statistics before training are taken from."""
SAMPLED_VOXELS = 1_000_000
"""Approximate number of voxels per case and channel that they are taken from."""


class AnnotatedDataset(SeededDataset):
    """Annotated training cases of a prepared data set; items are those of `PreparedDataset`.

    Args:
        folder: a prepared data set.
        settings: uses the label fraction, foreground and augmentation.
        seed: of patches and augmentation.
        splits: splits by subject that replace the folder's; see `fold_splits`.

    Raises:
        MedarError: not a prepared data set, or no annotated case in "train".
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
            foreground=settings.foreground_fraction,
        )
        self.plan = self.base.plan
        cases = [self.base.prepared[index] for index in range(len(self.base))]
        usable = {index: case for index, case in enumerate(cases) if is_annotated(case)}
        if not usable:
            raise MedarError(
                f"{folder}: no annotated case in the split 'train'; segmentation needs labels"
            )
        names = {case.subject for case in usable.values()}
        count = max(1, ceil(len(names) * settings.label_fraction - 1e-9))
        self.subjects = in_order(names, settings.label_seed)[:count]
        """Subjects whose labels are used."""
        chosen = set(self.subjects)
        self.indices = [index for index, case in usable.items() if case.subject in chosen]
        """Their cases, as indices into `base.prepared`."""
        self._length = len(usable)

    @property
    def digest(self) -> str:
        """A hash of the cases that are used."""
        prepared = self.base.prepared
        ids = " ".join(prepared[index].id for index in self.indices)
        return _digest(f"{prepared.digest} {ids}")

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Item:
        item_seed = self.item_seed(index)
        return self.draw(item_seed[1] * len(self) + index, item_seed)

    def draw(self, number: int, seed: Sequence[int]) -> Item:
        """Item `number` of the run; patch and augmentation depend on `seed` only."""
        return self.base.draw(self.indices[number % len(self.indices)], seed)


class MixedDataset(SeededDataset):
    """Real and synthetic cases; items are those of `PreparedDataset`.

    The fraction holds over a run: item i of epoch e is number e n + i of the run, where n is the
    length of an epoch, which synthetic cases do not change. Either kind is traversed in its own
    order.

    Args:
        real: the annotated cases.
        synthetic: the synthetic cases, each with a label map.
        fraction: of synthetic items, from 0 to 1.
    """

    def __init__(self, real: AnnotatedDataset, synthetic: PreparedDataset, fraction: float) -> None:
        super().__init__(real.seed)
        self.real, self.synthetic, self.fraction = real, synthetic, fraction
        self.plan, self.subjects = real.plan, real.subjects

    @property
    def digest(self) -> str:
        """A hash of the real cases that are used and of all synthetic ones."""
        return _digest(f"{self.real.digest} {self.synthetic.prepared.digest}")

    def __len__(self) -> int:
        return len(self.real)

    def __getitem__(self, index: int) -> Item:
        item_seed = self.item_seed(index)
        number = item_seed[1] * len(self) + index
        synthetic_before = floor(number * self.fraction)
        if floor((number + 1) * self.fraction) > synthetic_before:
            return self.synthetic.draw(synthetic_before % len(self.synthetic), item_seed)
        return self.real.draw(number - synthetic_before, item_seed)


def add_synthetic(
    real: AnnotatedDataset, settings: DataSettings, out: str | Path, *, workers: int | None = None
) -> MixedDataset:
    """Mix the cases of `settings.synthetic` into the training cases.

    Args:
        real: the annotated cases.
        settings: `synthetic` must be set; foreground and augmentation are used.
        out: folder to prepare the synthetic cases in, unless they are prepared already.
        workers: processes that prepare; default one per CPU core.

    Raises:
        MedarError: see `prepare_synthetic`.
    """
    assert settings.synthetic is not None
    folder = prepare_synthetic(settings.synthetic.folder, real.plan, out, workers=workers)
    synthetic = PreparedDataset(
        folder,
        augmentation=settings.augmentation,
        seed=real.seed,
        foreground=settings.foreground_fraction,
    )
    return MixedDataset(real, synthetic, settings.synthetic.fraction)


def prepare_synthetic(
    folder: str | Path, plan: Plan, out: str | Path, *, workers: int | None = None
) -> Path:
    """Prepare volumes and their label maps under a plan; cases already in `out` are kept.

    Args:
        folder: output of `medar synthesize`, a folder of such outputs, any labelled data set, or
            the output of `medar data prepare --plan` for these; splits are ignored.
        plan: of the real cases.
        out: the folder to prepare into.
        workers: processes that prepare; default one per CPU core.

    Returns:
        `out`, or `folder` if it is prepared already.

    Raises:
        MedarError: no volume; a volume without a label map, or one that cannot be prepared, for
            example because its labels are not the plan's; a prepared folder with another plan; or
            several processes and a folder that is not prepared.
    """
    if not is_prepared(folder) and current_ranks().world_size > 1:
        raise MedarError(
            f"{folder}: is not prepared; with several processes, run `medar data prepare {folder} "
            "--out PAIRS --plan DATA/plan.yaml` first and name PAIRS"
        )

    def read(path: Path, before: Manifest | None) -> Manifest:
        return read_manifest(path, modality=plan.sole_modality, stored=before)

    result = prepare_for_model(folder, plan, out, workers=workers, read=read)
    for name, reason in result.failed.items():
        raise MedarError(f"{folder}: {name} cannot be used: {reason}")
    cases = Prepared(result.folder)
    for index in range(len(cases)):
        if not is_annotated(cases[index]):
            raise MedarError(
                f"{folder}: {cases[index].id} has no label map (NAME_label.nii.gz beside "
                "NAME.nii.gz); the generator needs a tokenizer with a label head, or a --mask"
            )
    return result.folder


def fold_splits(folder: str | Path, settings: DataSettings) -> dict[str, Split] | None:
    """Splits by subject for one fold of cross-validation; None if no fold is set.

    The annotated subjects of train and val are dealt to the folds in an order that depends on their
    names only; those of the fold become val, all others train.

    Args:
        folder: a prepared data set.
        settings: `fold` and `folds` are used.

    Raises:
        MedarError: not a prepared data set, or fewer subjects than folds.
    """
    if settings.fold is None:
        return None
    prepared = Prepared(folder)
    cases = (prepared[index] for index in range(len(prepared)))
    names = {c.subject for c in cases if c.split in ("train", "val") and is_annotated(c)}
    if len(names) < settings.folds:
        raise MedarError(
            f"folds must be at most {len(names)}, the number of annotated subjects in train and "
            f"val of {folder}; got {settings.folds}"
        )
    return {
        name: "val" if number % settings.folds == settings.fold else "train"
        for number, name in enumerate(in_order(names, 0))
    }


def is_annotated(case: PreparedCase) -> bool:
    """Whether a case was annotated for at least one label."""
    return case.label is not None and bool(case.annotated)


def annotated_indices(data: PreparedDataset, most: int) -> list[int]:
    """Indices of annotated cases, at most `most`, spread evenly over a data set.

    Raises:
        MedarError: there is none.
    """
    prepared = data.prepared
    usable = [index for index in range(len(prepared)) if is_annotated(prepared[index])]
    if not usable:
        raise MedarError(f"{prepared.folder}: no annotated case to validate with")
    return spread(usable, most)


def spread(indices: Sequence[int], most: int) -> list[int]:
    """All indices, or `most` of them, spread evenly."""
    count = min(len(indices), most)
    return [indices[n * len(indices) // count] for n in range(count)]


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
