"""A torch data set of prepared cases: whole volumes or patches, augmented.

An item depends on (seed, epoch, index) alone: not on the number of workers, nor on which of them
loads it.
"""

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from medar.data.augmentation import Augmentation, Augmenter
from medar.data.manifest import Split
from medar.data.prepared import Prepared, PreparedCase
from medar.devices import DeviceName
from medar.errors import MedarError
from medar.parallel import default_workers
from medar.volume import Shape3
from medar.volume.resample import crop_or_pad

Item = dict[str, Any]

MAX_WORKERS = 16
"""Loading processes that a training on CUDA starts by itself; each holds a few batches."""

UNKNOWN = -1
"""Label value of voxels that were not annotated: ignored by losses and metrics."""


class SeededDataset(Dataset[Item], ABC):
    """A data set whose items depend on (seed, epoch, index) and on nothing else.

    Args:
        seed: of all random draws, 0 or larger.

    Raises:
        MedarError: the seed is negative.
    """

    def __init__(self, seed: int) -> None:
        if seed < 0:
            raise MedarError(f"seed must be at least 0, got {seed}")
        self.seed = seed
        # In shared memory, so that persistent workers see the epoch change.
        self._epoch = torch.zeros((), dtype=torch.int64)
        self._epoch.share_memory_()  # type: ignore[no-untyped-call]

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that seeds random draws."""
        self._epoch.fill_(epoch)

    def item_seed(self, index: int) -> list[int]:
        """The seed of an item's random draws in the present epoch."""
        return [self.seed, int(self._epoch), index]

    @abstractmethod
    def __len__(self) -> int:
        """Number of items in an epoch."""


class PreparedDataset(SeededDataset):
    """Volumes or patches of a prepared data set.

    An item is a dictionary: `image` (C, X, Y, Z) float32 in [-1, 1]; where there are labels,
    `label` (1, X, Y, Z) of `plan.label_dtype`, -1 where unknown, and `annotated` (labels,) bool, in
    the order of `plan.labels`; with sources, `source` (1, X, Y, Z) float32 in [-1, 1], NaN where
    unknown; `index`, the case's index in `self.prepared`.

    Args:
        folder: a folder that `prepare` filled.
        split: the split to load; None for all cases.
        splits: split by subject, in place of the folder's own; see `Prepared`.
        augmentation: random changes of each item; None for none.
        seed: of patches and augmentation.
        foreground: fraction of patches, in patch mode, that are centred on a labelled voxel; each
            label of the case is equally likely.
        labels: whether to load the labels.
        sources: the source of a case on its whole grid, (1, X, Y, Z); see `medar.data.source`.

    Raises:
        MedarError: the folder is not a finished prepared data set, the seed is negative, or
            `foreground` lies outside 0 to 1.
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
        sources: Callable[[PreparedCase], Tensor] | None = None,
    ) -> None:
        if not 0 <= foreground <= 1:
            raise MedarError(f"foreground must be from 0 to 1, got {foreground}")
        super().__init__(seed)
        self.prepared = Prepared(folder, split=split, splits=splits)
        self.plan = self.prepared.plan
        self.foreground = foreground
        self.labels = self.plan.labels if labels else {}
        self.sources = sources
        self._augmenter = (
            Augmenter(augmentation, self.labels, self.plan.spacing)
            if augmentation is not None
            else None
        )

    def __len__(self) -> int:
        return len(self.prepared)

    def __getitem__(self, index: int) -> Item:
        return self.draw(index, self.item_seed(index))

    def draw(self, index: int, seed: Sequence[int]) -> Item:
        """The item of a case, with the patch and augmentation of `seed`.

        Raises:
            MedarError: a cache entry of the case is missing or damaged.
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
            item["annotated"] = torch.tensor([value in case.annotated for value in self.labels])
        if self.sources is not None:
            item["source"] = self._window(self.sources(case), start, fill=math.nan)
        if self._augmenter and generator:
            item = self._augmenter(item, seed=int(generator.integers(2**63)))
        return item

    def _start(self, case: PreparedCase, generator: np.random.Generator) -> Shape3:
        """First voxel of a patch: around a labelled voxel, or at random."""
        shape = np.asarray(self.prepared.cache.open(case.image).shape[1:])
        size = np.asarray(self.plan.size)
        room = np.maximum(shape - size, 0)
        if self.labels and case.label and generator.random() < self.foreground:
            stored = self.prepared.cache.meta(case.label)["locations"]
            present = [str(value) for value in sorted(self.labels) if str(value) in stored]
            if present:
                label = present[generator.integers(len(present))]
                voxels = np.frombuffer(stored[label], dtype=np.int32).reshape(-1, 3)
                start = voxels[generator.integers(len(voxels))] - size // 2
                start = np.clip(start, 0, room)
                return int(start[0]), int(start[1]), int(start[2])
        x, y, z = (int(generator.integers(r + 1)) for r in room)
        return x, y, z

    def label(self, case: PreparedCase, start: Shape3 | None = None) -> Tensor:
        """A case's label map, or its patch that begins at `start`: (1, X, Y, Z), -1 where unknown.

        Raises:
            MedarError: its cache entry is missing or damaged.
        """
        if case.label is None:
            unknown = np.full((1, *self.plan.size), UNKNOWN, dtype=self.plan.label_dtype)
            return torch.from_numpy(unknown)
        label = self._read(case.label, start, fill=0)
        if self.plan.ignore_label is not None:
            label[label == self.plan.ignore_label] = UNKNOWN
        return label

    def _read(self, key: str, start: Shape3 | None, fill: float) -> Tensor:
        """A cache entry, or its patch that begins at `start`, padded to the plan's size."""
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

    def _window(self, whole: Tensor, start: Shape3 | None, fill: float) -> Tensor:
        """The part of an array that `_read` would return of an entry."""
        if start is None:
            return whole
        x, y, z = (
            s - max(n - m, 0) // 2
            for s, n, m in zip(start, self.plan.size, whole.shape[1:], strict=True)
        )
        return torch.from_numpy(crop_or_pad(whole.numpy(), (x, y, z), self.plan.size, fill))


def make_loader(
    dataset: SeededDataset,
    *,
    batch_size: int,
    shuffle: bool = True,
    workers: int = 0,
    rank: int = 0,
    world: int = 1,
) -> DataLoader[Item]:
    """A loader of batches; call `set_epoch(loader, epoch)` before each epoch.

    Args:
        dataset: the data set to load.
        batch_size: items per batch on this process.
        shuffle: shuffle in each epoch, by the data set's seed, and drop a last short batch.
        workers: loading processes; 0 loads in this one.
        rank: index of this process among those that share the data.
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


def loading_workers(workers: int | None, device: DeviceName) -> int:
    """The number of loading processes of a training process.

    Args:
        workers: as requested; None: on CUDA, the processors that this process may use, divided
            among the processes that torchrun started on this machine, at most `MAX_WORKERS`; on a
            CPU none, since loading would take processors from the training.
        device: of the training.
    """
    if workers is not None:
        return workers
    if device == "cpu" or not torch.cuda.is_available():
        return 0
    return min(default_workers() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")), MAX_WORKERS)


def set_epoch(loader: DataLoader[Item], epoch: int) -> None:
    """Set the epoch that seeds the order of the items and their random draws."""
    if isinstance(loader.sampler, DistributedSampler):
        loader.sampler.set_epoch(epoch)
    if isinstance(loader.dataset, SeededDataset):
        loader.dataset.set_epoch(epoch)
