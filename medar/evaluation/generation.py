"""`evaluate_generation`: how good generated volumes are, as a set, beside real ones.

Protocol `generation-v1`. The reference is the real volumes of the train split, which the generator
has seen; the floor is what held-out real volumes get against it. Four questions: are the volumes
drawn like real ones (Frechet and kernel distance, intensities), are they as varied (MS-SSIM), are
they new (distance to the nearest training volume), and what do they cost.

Nothing is known of the generator: volumes come in batches, in the prepared space of a plan.

B batch, C channels, X Y Z voxels.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from medar.data.loading import Item, PreparedDataset
from medar.errors import MedarError
from medar.evaluation import diversity, features, memorisation, shape
from medar.evaluation.distances import PROTOCOL, SetDistance, set_distance
from medar.evaluation.extractors import DEFAULT, Extractor, make_extractors
from medar.evaluation.frechet import FEW, Floats, Reference
from medar.evaluation.gathering import BINS, KEPT, Gathered
from medar.evaluation.memorisation import Audit, audit_features, audit_voxels
from medar.evaluation.realism import spread
from medar.evaluation.reconstruction import error_units
from medar.progress import track
from medar.settings import to_dict

NAME = "generation-v1"
"""Name and version of the protocol: raise the version whenever a figure changes."""

HeldOut = Literal["val", "test", "held-out"]
"""Real volumes behind the floors; "held-out" is every case that is not of the train split."""

Batch = Tensor | tuple[Tensor, Tensor]
"""Volumes (B, C, X, Y, Z) in [-1, 1], or with their label maps (B, 1, X, Y, Z) of the plan's label
values."""


@dataclass(frozen=True, kw_only=True)
class GenerationReport:
    """What `evaluate_generation` found. docs/reference/evaluation.md defines each value."""

    volumes: int
    """Generated."""
    split: HeldOut
    held_out: int
    reference: int
    distances: dict[str, SetDistance]
    """By extractor."""
    intensity_distance: float
    intensity_floor: float
    intensity_unit: str
    ms_ssim: float
    ms_ssim_real: float
    memorisation: dict[str, Audit]
    """By space, "features" and "voxels"."""
    seconds_per_volume: float | None
    peak_memory: int | None
    """Bytes."""
    notes: list[str]
    """What to know before the figures are compared with others."""
    protocol: dict[str, Any]
    """How each figure was taken."""

    def to_dict(self) -> dict[str, Any]:
        """The report as values that JSON holds."""
        return to_dict(self)


def evaluate_generation(
    batches: Iterable[Batch],
    prepared: str | Path,
    *,
    split: HeldOut = "test",
    extractors: Sequence[str] = DEFAULT,
    weights: str | Path | None = None,
    samples: int | None = None,
    limit: int | None = None,
    seed: int = 0,
    batch_size: int = 4,
    device: torch.device | str = "cpu",
    seconds_per_volume: float | None = None,
    peak_memory: int | None = None,
) -> GenerationReport:
    """Judge generated volumes beside those of a prepared data set.

    Args:
        batches: of generated volumes, all with label maps or none; read once.
        prepared: the folder that `prepare` filled and the generator was trained on.
        split: the held-out volumes.
        extractors: names, see `medar.evaluation.extractors.EXTRACTORS`; the first also serves the
            audit. Label maps add `shape-v1`.
        weights: file of a learnt extractor.
        samples: the most generated volumes to take; default all.
        limit: the most training volumes, spread evenly; default all. The audit sees no others.
        seed: of subsets, bootstrap draws and pairs.
        batch_size: real volumes at once.
        device: where features are computed.
        seconds_per_volume: what a volume took to generate, for the report.
        peak_memory: bytes that this took, for the report.

    Raises:
        MedarError: fewer than two generated or two training volumes, no case of the split, volumes
            of another size than the plan's or too small for the features, or extractors that
            cannot be made.
    """
    numbers = {"samples": samples, "limit": limit, "batch_size": batch_size}
    for name, value in numbers.items():
        if value is not None and value < 1:
            raise MedarError(f"{name} {value}: a whole number from 1 is needed")
    place = torch.device(device)
    chosen = make_extractors(tuple(extractors), weights, place)
    train = PreparedDataset(prepared, split="train")
    reference, fresh = spread(train, limit), held_out(prepared, split)
    if min(train.plan.size) < features.SMALLEST or len(reference) < 2:
        raise MedarError(
            f"{prepared}: volumes of {' x '.join(map(str, train.plan.size))} voxels, "
            f"{len(reference)} of them for training; sides from {features.SMALLEST} and 2 training "
            "volumes are needed"
        )
    made = Gathered(chosen, train.plan, seed, place)
    labelled = _take(made, batches, samples)
    known, real = (Gathered(chosen, train.plan, seed, place) for _ in range(2))
    _read(known, reference, "reference", batch_size, labelled)
    _read(real, fresh, "held-out", batch_size, labelled)
    cases = [train.prepared[index].id for index in reference.indices]
    intensity = _intensities(train)
    return GenerationReport(
        volumes=made.count,
        split=split,
        held_out=real.count,
        reference=known.count,
        distances=_distances(made, real, known, seed),
        intensity_distance=_wasserstein(made, known, intensity[0]),
        intensity_floor=_wasserstein(real, known, intensity[0]),
        intensity_unit=intensity[1],
        ms_ssim=diversity.similarity(made.kept, seed),
        ms_ssim_real=diversity.similarity(known.kept, seed),
        memorisation=_audits(made, real, known, chosen[0].name, cases),
        seconds_per_volume=seconds_per_volume,
        peak_memory=peak_memory,
        notes=_notes(made, real, known, train, labelled),
        protocol=_protocol(train, chosen, split, seed),
    )


def held_out(prepared: str | Path, split: HeldOut) -> Subset[Item]:
    """The real volumes behind the floors.

    Raises:
        MedarError: the folder is not a prepared data set, or has no case of the split.
    """
    if split != "held-out":
        return spread(PreparedDataset(prepared, split=split), None)
    every = PreparedDataset(prepared)
    splits = [every.prepared[index].split for index in range(len(every))]
    places = [index for index, one in enumerate(splits) if one != "train"]
    if not places:
        raise MedarError(f"{prepared}: every case is of the train split; held-out ones are needed")
    return Subset(every, places)


def _take(made: Gathered, batches: Iterable[Batch], samples: int | None) -> bool:
    """Take in generated volumes; returns whether they have label maps."""
    kinds = set()
    for batch in batches:
        volumes, labels = batch if isinstance(batch, tuple) else (batch, None)
        room = len(volumes) if samples is None else samples - made.count
        made.update(volumes[:room])
        kinds.add(labels is not None)
        if labels is not None:
            made.update_labels(labels[:room])
        if made.count == samples:
            break
    if made.count < 2:
        raise MedarError(f"generated volumes: {made.count}; sets are compared, 2 are needed")
    if len(kinds) > 1:
        raise MedarError("generated volumes: some have label maps and some none; all or none must")
    return True in kinds


def _read(
    found: Gathered, dataset: Subset[Item], label: str, batch_size: int, labelled: bool
) -> None:
    """Take in real volumes, and label maps that were annotated for every label."""
    loader = DataLoader(dataset, batch_size=batch_size)
    for batch in track(loader, total=len(loader), label=label, unit="batch"):
        found.update(batch["image"])
        if labelled and "label" in batch and (whole := batch["annotated"].all(dim=1)).any():
            found.update_labels(batch["label"][whole])


def _distances(
    made: Gathered, real: Gathered, known: Gathered, seed: int
) -> dict[str, SetDistance]:
    """By extractor; of shapes where generated and enough real volumes have label maps."""
    ours, floors, reference = made.features, real.features, known.features
    names = [name for name in ours if len(reference.get(name, ())) > 1]
    return {
        name: set_distance(ours[name], floors.get(name, reference[name][:0]), reference[name], seed)
        for name in names
    }


def _audits(
    made: Gathered, real: Gathered, known: Gathered, name: str, cases: list[str]
) -> dict[str, Audit]:
    against = Reference(known.features[name])
    ours, others, reference = (
        against.standardise(one.features[name]) for one in (made, real, known)
    )
    return {
        "features": audit_features(ours, others, reference, cases),
        "voxels": audit_voxels(made.thumbnails, real.thumbnails, known.thumbnails, cases),
    }


def _intensities(dataset: PreparedDataset) -> tuple[Floats, str]:
    """What a difference of 1 in [-1, 1] is worth in each channel, (C,), and its unit's name."""
    units, name = error_units(dataset)
    return units.double().mean(dim=0).numpy(), name


def _wasserstein(made: Gathered, known: Gathered, units: Floats) -> float:
    """The Wasserstein-1 distance of the voxels' intensities, averaged over channels."""
    from scipy.stats import wasserstein_distance

    centres = (np.arange(BINS) + 0.5) * 2 / BINS - 1
    rows = zip(units, made.histogram, known.histogram, strict=True)
    return float(
        np.mean([unit * wasserstein_distance(centres, centres, u, v) for unit, u, v in rows])
    )


def _notes(
    made: Gathered, real: Gathered, known: Gathered, train: PreparedDataset, labelled: bool
) -> list[str]:
    notes = []
    counts = {"generated": made, "held-out": real, "training": known}
    for name, one in counts.items():
        if one.count < FEW:
            notes.append(f"{one.count} {name} volumes, fewer than {FEW}: all figures are rough")
    if known.count < len(train):
        notes.append(f"{known.count} of {len(train)} training volumes: copies of others go unseen")
    if train.plan.mode == "patch":
        notes.append("patches: one of each case, drawn by seed 0")
    if labelled and len(known.features.get(shape.NAME, ())) < 2:
        notes.append("label maps are not judged: the training volumes have none")
    return notes


def _protocol(
    train: PreparedDataset, extractors: Sequence[Extractor], split: HeldOut, seed: int
) -> dict[str, Any]:
    """How each figure was taken."""
    settings = diversity.MsSsim.of(train.plan.size)
    return {
        "name": NAME,
        "plan": train.plan.digest,
        "cases": train.prepared.digest,
        "reference": "train split",
        "held_out": "all but the train split" if split == "held-out" else f"{split} split",
        "seed": seed,
        "extractors": {one.name: one.weights for one in extractors},
        "distances": PROTOCOL,
        "intensity": f"Wasserstein-1 of histograms of {BINS} bins over all voxels",
        "ms_ssim": {
            "pairs": f"{diversity.PAIRS} at most, of {KEPT} volumes at most, by the seed",
            "window": settings.window,
            "weights": list(settings.weights),
        },
        "memorisation": {**memorisation.PROTOCOL, "extractor": extractors[0].name},
    }
