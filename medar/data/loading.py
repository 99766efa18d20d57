"""A torch data set over prepared cases: whole volumes or patches, augmented, by the seed alone.

What an item holds depends on (seed, epoch, index) and on nothing else: not on the number of
workers, nor on which of them makes it.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from medar.data.augmentation import Augmentation, Augmenter
from medar.data.manifest import Split
from medar.data.prepared import Prepared, PreparedCase
from medar.errors import MedarError
from medar.volume import Shape3

Item = dict[str, Any]

UNKNOWN = -1
"""Label value of voxels that nobody looked at: ignored by losses and metrics."""


class DrawnDataset(Dataset[Item], ABC):
    """Items that are drawn by (seed, epoch, index) and by nothing else.

    Args:
        seed: of all draws.

    Raises:
        MedarError: a negative seed.
    """

    def __init__(self, seed: int) -> None:
        if seed < 0:
            raise MedarError(f"seed {seed}: a whole number from 0 is needed")
        self.seed = seed
        # Shared memory: workers that live on see the epoch change.
        self._epoch = torch.zeros((), dtype=torch.int64)
        self._epoch.share_memory_()  # type: ignore[no-untyped-call]

    def set_epoch(self, epoch: int) -> None:
        """Draw otherwise from now on."""
        self._epoch.fill_(epoch)

    def drawn_by(self, index: int) -> list[int]:
        """What the item of a place is drawn by, now."""
        return [self.seed, int(self._epoch), index]

    @abstractmethod
    def __len__(self) -> int:
        """Items of an epoch."""


class PreparedDataset(DrawnDataset):
    """Volumes or patches of a prepared data set.

    An item is a dictionary: `image` (C, X, Y, Z) float32 in [-1, 1]; where there are labels,
    `label` (1, X, Y, Z) of `plan.label_dtype`, -1 where unknown, and `annotated` (labels,) bool, in
    the order of `plan.labels`; `index`, the case's place in `self.prepared`.

    Args:
        folder: what `prepare` filled.
        split: the cases to take; None for all.
        splits: of subjects, in place of those that the folder says; see `Prepared`.
        augmentation: None for none.
        seed: of patches and augmentation.
        foreground: share of patches, in patch mode, that are centred on a labelled voxel, each
            label of the case being equally likely.
        labels: False leaves the labels out, as if the plan named none.

    Raises:
        MedarError: the folder is not a finished prepared data set; a negative seed, or a share
            beyond 0 to 1.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        split: Split | None = None,
        splits: Mapping[str, Split] | None = None,
        augmentation: Augmentation | None = None,
        seed: int = 0,
        foreground: float = 1 / 3,
        labels: bool = True,
    ) -> None:
        if not 0 <= foreground <= 1:
            raise MedarError(f"foreground {foreground}: a share from 0 to 1 is needed")
        super().__init__(seed)
        self.prepared = Prepared(folder, split=split, splits=splits)
        self.plan = self.prepared.plan
        self.foreground = foreground
        self.labels = self.plan.labels if labels else {}
        self._augmenter = (
            Augmenter(augmentation, self.labels, self.plan.spacing)
            if augmentation is not None
            else None
        )

    def __len__(self) -> int:
        return len(self.prepared)

    def __getitem__(self, index: int) -> Item:
        return self.draw(index, self.drawn_by(index))

    def draw(self, index: int, seed: Sequence[int]) -> Item:
        """The item of a case, its patch and augmentation drawn by `seed` alone.

        Raises:
            MedarError: an entry of the case is missing or damaged.
        """
        case = self.prepared[index]
        try:
            return self._item(case, index, seed)
        except MedarError as error:
            raise MedarError(f"case {case.id} of {self.prepared.folder}: {error}") from error
        except Exception as error:
            raise RuntimeError(
                f"case {case.id} of {self.prepared.folder}: {type(error).__name__}: {error}"
            ) from error

    def _item(self, case: PreparedCase, index: int, seed: Sequence[int]) -> Item:
        start, generator = None, None
        if self.plan.mode == "patch" or self._augmenter:
            generator = np.random.default_rng(list(seed))
        if self.plan.mode == "patch" and generator:
            start = self._start(case, generator)
        item: Item = {"image": self._read(case.image, start, fill=-1.0), "index": index}
        if self.labels:
            item["label"] = self.label(case, start)
            known = [value in case.annotated for value in self.labels]
            item["annotated"] = torch.tensor(known)
        if self._augmenter and generator:
            item = self._augmenter(item, seed=int(generator.integers(2**63)))
        return item

    def _start(self, case: PreparedCase, generator: np.random.Generator) -> Shape3:
        """Where a patch begins: around a labelled voxel, or anywhere."""
        shape = np.asarray(self.prepared.cache.open(case.image).shape[1:])
        size = np.asarray(self.plan.size)
        room = np.maximum(shape - size, 0)
        if self.labels and case.label and generator.random() < self.foreground:
            stored = self.prepared.cache.meta(case.label)["locations"]
            found = [str(value) for value in sorted(self.labels) if str(value) in stored]
            if found:
                places = stored[found[generator.integers(len(found))]]
                voxels = np.frombuffer(places, dtype=np.int32).reshape(-1, 3)
                start = voxels[generator.integers(len(voxels))] - size // 2
                start = np.clip(start, 0, room)
                return int(start[0]), int(start[1]), int(start[2])
        x, y, z = (int(generator.integers(r + 1)) for r in room)
        return x, y, z

    def label(self, case: PreparedCase, start: Shape3 | None = None) -> Tensor:
        """(1, X, Y, Z): a case's label map whole, or the patch that begins at `start`.

        Raises:
            MedarError: its entry is missing or damaged.
        """
        if case.label is None:
            unknown = np.full((1, *self.plan.size), UNKNOWN, dtype=self.plan.label_dtype)
            return torch.from_numpy(unknown)
        label = self._read(case.label, start, fill=0)
        if self.plan.ignore_label is not None:
            label[label == self.plan.ignore_label] = UNKNOWN
        return label

    def _read(self, key: str, start: Shape3 | None, fill: float) -> Tensor:
        """An entry whole, or the patch that begins at `start`, padded where the entry ends."""
        if start is None:
            return torch.from_numpy(self.prepared.cache.read(key))
        shape = self.prepared.cache.open(key).shape[1:]
        x, y, z = (min(s + n, m) for s, n, m in zip(start, self.plan.size, shape, strict=True))
        part = torch.from_numpy(self.prepared.cache.box(key, start, (x, y, z)))
        short = [n - m for n, m in zip(self.plan.size, part.shape[1:], strict=True)]
        if not any(short):
            return part
        pads = [side for n in reversed(short) for side in (n // 2, n - n // 2)]
        return torch.nn.functional.pad(part, pads, value=fill)


def make_loader(
    dataset: DrawnDataset,
    *,
    batch_size: int,
    shuffle: bool = True,
    workers: int = 0,
    rank: int = 0,
    world: int = 1,
) -> DataLoader[Item]:
    """Batches of a data set; call `set_epoch(loader, epoch)` before each epoch.

    Args:
        dataset: what to load.
        batch_size: items a batch, on this process.
        shuffle: another order each epoch, by the data set's seed; the last short batch is dropped.
        workers: loading processes; 0 loads in this one.
        rank: this process among `world` that share the data.
        world: number of processes that share the data.
    """
    sampler: DistributedSampler[Item] = DistributedSampler(
        dataset, num_replicas=world, rank=rank, shuffle=shuffle, seed=dataset.seed
    )
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=workers,
        drop_last=shuffle and len(dataset) // world >= batch_size,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=workers > 0,
    )


def set_epoch(loader: DataLoader[Item], epoch: int) -> None:
    """Another order and other draws, all by the seed and the epoch."""
    if isinstance(loader.sampler, DistributedSampler):
        loader.sampler.set_epoch(epoch)
    if isinstance(loader.dataset, DrawnDataset):
        loader.dataset.set_epoch(epoch)
