"""Synthetic volumes with their label maps as training cases, beside real ones or in their place.

    items of a run, one after the other: real, real, synthetic, real, ...   by a stated share

What `medar synthesize` leaves is brought to the form of the real cases by their own plan, and cut
and augmented as they are.
"""

import hashlib
from math import floor
from pathlib import Path

from medar.data.loading import Item, PreparedDataset, SeededDataset
from medar.data.manifest import Manifest
from medar.data.plan import Plan
from medar.data.prepared import Prepared
from medar.data.resolve import is_prepared, prepare_for_model
from medar.data.sources import read_manifest
from medar.errors import MedarError
from medar.segmentation.data import AnnotatedDataset, is_annotated
from medar.segmentation.settings import DataSettings
from medar.training.distributed import current_ranks


class MixedDataset(SeededDataset):
    """Real and synthetic cases by a share; items are those of `PreparedDataset`.

    The share holds over a run: item i of epoch e is the (e n + i)-th of all, n being an epoch's
    items, as many as without synthetic cases. Either kind goes round in its own order.

    Args:
        real: the annotated cases.
        pairs: the synthetic ones, every one with a label map.
        share: of the synthetic ones, from 0 to 1.
    """

    def __init__(self, real: AnnotatedDataset, pairs: PreparedDataset, share: float) -> None:
        super().__init__(real.seed)
        self.real, self.pairs, self.share = real, pairs, share
        self.plan, self.subjects = real.plan, real.subjects

    @property
    def digest(self) -> str:
        """A hash of the real cases that are used and of all synthetic ones."""
        both = f"{self.real.digest} {self.pairs.prepared.digest}"
        return hashlib.blake2b(both.encode(), digest_size=8).hexdigest()

    def __len__(self) -> int:
        return len(self.real)

    def __getitem__(self, index: int) -> Item:
        item_seed = self.item_seed(index)
        place = item_seed[1] * len(self) + index
        before = floor(place * self.share)
        if floor((place + 1) * self.share) > before:
            return self.pairs.draw(before % len(self.pairs), item_seed)
        return self.real.draw(place - before, item_seed)


def with_pairs(
    real: AnnotatedDataset, settings: DataSettings, out: str | Path, *, workers: int | None = None
) -> MixedDataset:
    """The training cases of `settings.synthetic`.

    Args:
        real: the annotated cases.
        settings: `synthetic` must be there; foreground and augmentation are used.
        out: a folder to prepare the pairs into, unless they are prepared.
        workers: processes that prepare; default: one per CPU core.

    Raises:
        MedarError: see `prepared_pairs`.
    """
    assert settings.synthetic is not None
    folder = prepared_pairs(settings.synthetic.folder, real.plan, out, workers=workers)
    pairs = PreparedDataset(
        folder,
        augmentation=settings.augmentation,
        seed=real.seed,
        foreground=settings.foreground,
    )
    return MixedDataset(real, pairs, settings.synthetic.share)


def prepared_pairs(
    folder: str | Path, plan: Plan, out: str | Path, *, workers: int | None = None
) -> Path:
    """Volumes and their label maps in a plan's form; what is in `out` already is kept.

    Args:
        folder: what `medar synthesize` left, such folders in one, any labelled data set, or what
            `medar data prepare --plan` made of them; splits do not count.
        plan: of the real cases.
        out: the folder to prepare into.
        workers: processes that prepare; default: one per CPU core.

    Returns:
        `out`, or `folder` where it is prepared already.

    Raises:
        MedarError: no volume, one without a label map, one that cannot be prepared, such as for a
            label that the plan does not name; a prepared folder of another plan; or several
            processes and a folder that is not prepared.
    """
    if not is_prepared(folder) and current_ranks().world_size > 1:
        raise MedarError(
            f"{folder}: is not prepared; with several processes, run `medar data prepare {folder} "
            "--out PAIRS --plan DATA/plan.yaml` first and name PAIRS"
        )

    def read(path: Path, before: Manifest | None) -> Manifest:
        return read_manifest(path, modality=plan.sole_modality, stored=before)

    found = prepare_for_model(folder, plan, out, workers=workers, read=read)
    for name, reason in found.failed.items():
        raise MedarError(f"{folder}: {name} cannot be used: {reason}")
    cases = Prepared(found.folder)
    for place in range(len(cases)):
        if not is_annotated(cases[place]):
            raise MedarError(
                f"{folder}: {cases[place].id} has no label map (NAME_label.nii.gz beside "
                "NAME.nii.gz); the generator needs a tokenizer with a label head, or a --mask"
            )
    return found.folder
