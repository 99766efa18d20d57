"""Volumes of a set, made and measured batch by batch, here or on a cluster (`medar.cluster`).

Batches are added to their statistics in order, so that the result is the same wherever they were
measured.

B batch, C channels, X Y Z voxels.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

import torch
from torch import Tensor
from torch.utils.data import Subset

from medar.data.loading import Item, PreparedDataset
from medar.errors import MedarError
from medar.evaluation.generation.set_statistics import Measured, Meter, SetStatistics
from medar.parallel import run_parallel
from medar.progress import track

Batch = Tensor | tuple[Tensor, Tensor]
"""Volumes (B, C, X, Y, Z) in [-1, 1], or with their label maps (B, 1, X, Y, Z) of the plan's label
values."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class LazyBatches(Generic[T]):
    """Batches that are made where they are measured; iterating makes them here."""

    items: Sequence[Sequence[T]]
    """Of each batch, one item per volume."""
    make: Callable[[Sequence[T]], Batch]
    """The batch of its items. Both can be pickled."""

    def __iter__(self) -> Iterator[Batch]:
        return map(self.make, self.items)


def add_generated(
    generated: SetStatistics, batches: Iterable[Batch], samples: int | None = None
) -> bool:
    """Add generated volumes, at most `samples`; returns whether they have label maps.

    Raises:
        MedarError: fewer than two, only some with label maps, or see `Meter.measure`.
    """
    labelled = set()
    if isinstance(batches, LazyBatches) and samples is None:
        for measured in _measured(generated, batches, "generated"):
            labelled.add(measured.shapes is not None)
    else:
        for batch in batches:
            volumes, labels = batch if isinstance(batch, tuple) else (batch, None)
            missing = len(volumes) if samples is None else samples - generated.count
            generated.update(volumes[:missing], None if labels is None else labels[:missing])
            labelled.add(labels is not None)
            if generated.count == samples:
                break
    if generated.count < 2:
        raise MedarError(
            f"the number of generated volumes must be at least 2, got {generated.count}"
        )
    if len(labelled) > 1:
        raise MedarError("only some generated volumes have label maps; either all or none must")
    return True in labelled


def add_real(
    statistics: SetStatistics, dataset: Subset[Item], label: str, batch_size: int, labelled: bool
) -> None:
    """Add real volumes and, if `labelled`, their label maps that are annotated for every label."""
    indices, cases = list(dataset.indices), dataset.dataset
    assert isinstance(cases, PreparedDataset)
    batches = LazyBatches(
        items=[indices[k : k + batch_size] for k in range(0, len(indices), batch_size)],
        make=partial(_real, dataset=cases, labelled=labelled),
    )
    for _ in _measured(statistics, batches, label):
        pass


def _real(indices: Sequence[int], dataset: PreparedDataset, labelled: bool) -> Batch:
    """Prepared cases, with the label maps of those that are annotated for every label."""
    cases = [dataset[index] for index in indices]
    volumes = torch.stack([case["image"] for case in cases])
    whole = [case["label"] for case in cases if labelled and "label" in case]
    whole = [one for one, case in zip(whole, cases, strict=False) if case["annotated"].all()]
    return (volumes, torch.stack(whole)) if whole else volumes


@dataclass(frozen=True, kw_only=True)
class _Part(Generic[T]):
    """A batch in its set."""

    items: Sequence[T]
    first: int
    """Index of its first volume."""
    slots: Sequence[int | None]
    """See `SetStatistics.draw`."""


def _measured(statistics: SetStatistics, batches: LazyBatches[T], label: str) -> Iterator[Measured]:
    """Measure batches and add them in their order; yields each."""
    parts, first = [], 0
    for items in batches.items:
        parts.append(_Part(items=items, first=first, slots=statistics.draw(len(items))))
        first += len(items)
    work = partial(_measure, make=batches.make, meter=statistics.meter)
    outcomes = run_parallel(work, parts, workers=1)
    early: dict[int, Measured] = {}
    waiting = iter(parts)
    part = next(waiting, None)
    for outcome in track(outcomes, total=len(parts), label=label, unit="batch"):
        early[outcome.item.first] = outcome.result()
        while part is not None and part.first in early:
            measured = early.pop(part.first)
            statistics.add(measured, part.slots)
            yield measured
            part = next(waiting, None)


def _measure(part: _Part[T], make: Callable[[Sequence[T]], Batch], meter: Meter) -> Measured:
    """Make and measure a batch, here or on a cluster."""
    batch = make(part.items)
    volumes, labels = batch if isinstance(batch, tuple) else (batch, None)
    whole = [index for index, slot in enumerate(part.slots) if slot is not None]
    return meter.measure(volumes, labels, first=part.first, whole=whole)
