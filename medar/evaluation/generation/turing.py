"""`turing_test`: can a network that is trained for it tell generated volumes from real ones?

Equal numbers of generated and real volumes are scored by networks that were trained on others
(`discriminator`). The area under the ROC curve is 0.5 where they cannot be told apart, 1 where
every generated volume gives itself away. Two halves of the real volumes, tested in the same way,
show what the test itself makes of sets that do not differ.

An area of 0.5 does not prove that a difference is absent: the network is small and learns from few
volumes. An area far above it proves that there is one.

B batch, C channels, X Y Z voxels, N volumes.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Subset

from medar.data.loading import Item, PreparedDataset
from medar.data.plan import Plan
from medar.evaluation import written
from medar.evaluation.auc import Area, Interval, area_under_roc, interval_at
from medar.evaluation.distances import FEW
from medar.evaluation.generation import discriminator
from medar.evaluation.generation.discriminator import (
    Scores,
    VolumeSet,
    assign_folds,
    discriminate,
)
from medar.evaluation.written import as_written

NAME = "turing-v1"
"""Name and version of the protocol: raise the version whenever a value changes."""

MAX_VOLUMES = 100
"""Of each side: more narrow the interval by less than they cost."""

B = TypeVar("B", bound=Tensor | tuple[Tensor, Tensor])


@dataclass(frozen=True, kw_only=True)
class VolumeScore:
    """What a network that was not trained on a volume says about it."""

    kind: Literal["real", "synthetic"]
    volume: str
    """Case id of a real volume; index of a generated one, from 0."""
    fold: int
    score: float
    """Log-odds of being synthetic, comparable within a fold only."""


@dataclass(frozen=True, kw_only=True)
class TuringReport:
    """Result of `turing_test`. docs/reference/evaluation.md defines each value."""

    volumes: int
    """Of each side."""
    held_out: int
    """Real volumes that are held out; the others are from the train split."""
    auc: float
    interval: tuple[float, float]
    floor_volumes: int
    """Of each half of the real volumes."""
    floor: float | None
    floor_interval: tuple[float, float] | None
    scores: list[VolumeScore]
    notes: list[str]
    protocol: dict[str, str | int]


class KeptVolumes:
    """Keeps generated volumes, as files hold them, while an evaluation reads them batch by batch.

    Of more than `MAX_VOLUMES`, a random subset is kept in which each has the same probability.

    Args:
        step: (C,), see `medar.evaluation.written`.
        seed: of the choice.
        limit: volumes after these many are passed on but not kept; default none.
    """

    def __init__(self, step: Tensor, seed: int = 0, limit: int | None = None) -> None:
        self.step = step
        self._random = np.random.default_rng(seed)
        self._limit = limit
        self._count = 0
        self._kept: dict[int, tuple[int, Tensor]] = {}

    def over(self, batches: Iterable[B]) -> Iterator[B]:
        """The batches, unchanged."""
        for batch in batches:
            for volume in batch[0] if isinstance(batch, tuple) else batch:
                if self._count != self._limit:
                    self._keep(_half(volume, self.step))
            yield batch

    def _keep(self, volume: Tensor) -> None:
        """Reservoir sampling: the slot of an earlier volume, or none, once all are taken."""
        slot = self._count
        if slot >= MAX_VOLUMES:
            slot = int(self._random.integers(self._count + 1))
        if slot < MAX_VOLUMES:
            self._kept[slot] = self._count, volume
        self._count += 1

    def __len__(self) -> int:
        return len(self._kept)

    def draw(self, count: int) -> tuple[list[int], Tensor]:
        """Indices and volumes, (N, C, X, Y, Z) float16, of a random choice, in their order."""
        some = self._random.permutation(len(self._kept))[:count]
        rows = sorted((self._kept[int(slot)] for slot in some), key=lambda row: row[0])
        return [index for index, _ in rows], torch.stack([volume for _, volume in rows])


def turing_test(
    generated: KeptVolumes,
    held_out: Subset[Item],
    train: PreparedDataset,
    *,
    from_files: bool = False,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> TuringReport:
    """Train networks to tell generated volumes from real ones, and test them on others.

    The real volumes are the held-out ones, and if these are fewer than the generated ones also some
    of the train split.

    Args:
        generated: at least 2 volumes.
        held_out: real volumes that the generator has not seen.
        train: real volumes that it has seen.
        from_files: the generated volumes were read from files, so that an intensity window by
            percentiles was measured on them once more; the same is then done to the real ones.
        seed: of choices, folds, weights and crops.
        device: where the networks are trained.

    Raises:
        MedarError: the real volumes are of a single subject.
    """
    device, random = torch.device(device), np.random.default_rng(seed)
    assert isinstance(held_out.dataset, PreparedDataset)
    sources = [(held_out.dataset, index) for index in random.permutation(held_out.indices)]
    fresh = len(sources)
    sources += [(train, index) for index in random.permutation(len(train))]
    count = min(len(generated), len(sources))
    sources = sources[: 2 * count]
    names, subjects = zip(
        *((source.prepared[k].id, source.prepared[k].subject) for source, k in sources), strict=True
    )
    volumes = torch.stack(
        [_half(_real(source, int(k), from_files), generated.step) for source, k in sources]
    )
    indices, synthetic = generated.draw(count)
    real, made = discriminate(
        VolumeSet(volumes[:count], subjects[:count]),
        VolumeSet(synthetic, range(count)),
        seed,
        device,
    )
    area = area_under_roc(real.values, made.values, (real.folds, made.folds))
    sizes = zip(np.bincount(real.folds), np.bincount(made.folds), strict=True)
    chance = interval_at(0.5, [(int(m), int(n)) for m, n in sizes])
    half, floor = _floor(VolumeSet(volumes, subjects), count, seed, device, random)
    return TuringReport(
        volumes=count,
        held_out=min(count, fresh),
        auc=area.value,
        interval=area.interval,
        floor_volumes=half,
        floor=floor.value if floor else None,
        floor_interval=floor.interval if floor else None,
        scores=[*_rows("real", names, real), *_rows("synthetic", map(str, indices), made)],
        notes=_notes(count, min(count, fresh), half, floor, chance),
        protocol={
            "name": NAME,
            "seed": seed,
            "device": device.type,
            **discriminator.PROTOCOL,
            "volumes": written.PROTOCOL,
            "auc": "mean over pairs within a fold; 95 % interval by Newcombe's method 5, "
            "variance corrected for folds that share training volumes (Nadeau and Bengio)",
            "floor": "two halves of the real volumes, split by subject",
            "windows": "measured twice" if from_files else "measured once",
        },
    )


def _real(dataset: PreparedDataset, index: int, refit: bool) -> Tensor:
    """A case, (C, X, Y, Z), with its windows measured once more if `refit`."""
    volume: Tensor = dataset[index]["image"]
    if refit:
        volume = _refitted(volume, dataset.plan, dataset.prepared[index].modality)
    return volume


def _half(volume: Tensor, step: Tensor) -> Tensor:
    """A volume as a file holds it, in half precision, which tells neighbouring values apart."""
    return as_written(volume[None], step)[0].half().cpu()


def _refitted(volume: Tensor, plan: Plan, modality: str | None) -> Tensor:
    """A prepared volume after the windows that are percentiles were measured on it again."""
    rules = plan.rules(len(volume), modality)
    channels = [
        rule.fit(channel).normalise(channel) if rule.kind == "percentiles" else channel
        for rule, channel in zip(rules, volume.numpy(), strict=True)
    ]
    return torch.from_numpy(np.stack(channels))


def _floor(
    real: VolumeSet, count: int, seed: int, device: torch.device, random: np.random.Generator
) -> tuple[int, Area | None]:
    """Number of volumes of each half, at most `count`, and the area; None for too few subjects."""
    half_of = assign_folds(real.groups, 2, random)
    halves = [np.flatnonzero(half_of == half)[:count] for half in range(2)]
    size = min(len(half) for half in halves)
    sets = [
        VolumeSet(real.volumes[half[:size]], [real.groups[k] for k in half[:size]])
        for half in halves
    ]
    if any(len(set(one.groups)) < 2 for one in sets):
        return size, None
    first, second = discriminate(sets[0], sets[1], seed, device)
    return size, area_under_roc(first.values, second.values, (first.folds, second.folds))


def _rows(
    kind: Literal["real", "synthetic"], names: Iterable[str], scores: Scores
) -> list[VolumeScore]:
    rows = zip(names, scores.folds, scores.values, strict=False)
    return [
        VolumeScore(kind=kind, volume=name, fold=int(fold), score=float(value))
        for name, fold, value in rows
    ]


def _notes(count: int, held_out: int, half: int, floor: Area | None, chance: Interval) -> list[str]:
    """What to know before the area is believed; `chance` are areas that equal sets may have."""
    notes = []
    if count < FEW:
        low, high = chance
        notes.append(
            f"Turing test on {count} volumes per side, fewer than {FEW}: too few to say anything; "
            f"an AUC from {low:.2f} to {high:.2f} may be chance"
        )
    if held_out < count:
        notes.append(
            f"Turing test: {count - held_out} of {count} real volumes are of the train split; "
            "copies of them pass as real"
        )
    if floor is None:
        notes.append("Turing test: no floor, because the real volumes are of too few subjects")
    elif not floor.interval[0] <= 0.5 <= floor.interval[1]:
        notes.append(
            f"Turing test: two halves of {half} real volumes each seem to differ (AUC "
            f"{floor.value:.2f}); use another seed or more volumes before you trust the AUC"
        )
    return notes
