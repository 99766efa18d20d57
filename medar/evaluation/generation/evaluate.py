"""`evaluate_generation`: how good generated volumes are, as a set, compared with real ones.

Protocol `generation-v2`. The reference is the real volumes of the train split, which the generator
has seen; the floor is what held-out real volumes get against it. Four questions: do the volumes
look real (Frechet and kernel distance, intensities, spectral power, no grid), are they as varied
(MS-SSIM), are they new (distance to the nearest training volume), and what do they cost.

The evaluation is independent of the generator: volumes come in batches, in the prepared space of a
plan.

C channels.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from medar.data.loading import PreparedDataset
from medar.devices import any_device
from medar.errors import MedarError, check_positive
from medar.evaluation import distances, grid, similarity, written
from medar.evaluation.distances import FEW, Interval, SetDistance, set_distance
from medar.evaluation.extractors import DEFAULT, make_extractors
from medar.evaluation.extractors import features as extracted
from medar.evaluation.extractors.features import feature_set
from medar.evaluation.extractors.handcrafted import SHAPE, SMALLEST
from medar.evaluation.frechet import Floats, Reference
from medar.evaluation.generation import memorisation
from medar.evaluation.generation.batches import Batch, add_generated, add_real
from medar.evaluation.generation.memorisation import Audit, audit_features, audit_voxels
from medar.evaluation.generation.set_statistics import BINS, KEPT, Meter, SetStatistics
from medar.evaluation.generation.turing import KeptVolumes, TuringReport, turing_test
from medar.evaluation.grid import GridArtifact, grid_artifact
from medar.evaluation.reconstruction.cases import cases_of, evenly_spaced
from medar.evaluation.similarity import MsSsim, pairwise_ms_ssim
from medar.notebook import html_table
from medar.settings import to_dict
from medar.words import format_count

NAME = "generation-v2"
"""Name and version of the protocol: raise the version whenever a value changes."""

HeldOut = Literal["val", "test", "held-out"]
"""Real volumes behind the floors; "held-out" is every case that is not of the train split."""


@dataclass(frozen=True, kw_only=True)
class GenerationReport:
    """Result of `evaluate_generation`. docs/reference/evaluation.md defines each value."""

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
    power_ratio_thirds: list[float]
    """Power over that of the reference in the lowest, middle and highest third of frequencies."""
    power_ratio_thirds_floor: list[float]
    """Of the held-out volumes."""
    grid_artifact: float | None
    """For the period of the decoder's patches; None for sides that are too short."""
    grid_artifact_interval: Interval | None
    grid_artifact_floor: float | None
    """Of the held-out volumes."""
    grid_artifacts: dict[str, GridArtifact]
    """Of the generated volumes, by period in voxels."""
    ms_ssim: float
    ms_ssim_real: float
    memorisation: dict[str, Audit]
    """By space, "features" and "voxels"."""
    seconds_per_volume: float | None
    peak_memory: int | None
    """Bytes."""
    notes: list[str]
    """What to know before the values are compared with others."""
    protocol: dict[str, Any]
    """How each value was computed."""
    turing: TuringReport | None = None
    """Whether a network can tell the volumes from real ones; None if that was not tested."""

    def to_dict(self) -> dict[str, Any]:
        """The report as values that JSON holds."""
        return to_dict(self)

    def _repr_html_(self) -> str:
        """For notebooks: distances, similarity and suspected copies beside their floors."""
        rows: list[tuple[str, object, object]] = [
            (f"Frechet distance, {name}", one.frechet, one.frechet_floor)
            for name, one in self.distances.items()
        ]
        rows.append(("MS-SSIM of pairs", self.ms_ssim, self.ms_ssim_real))
        thirds = self.power_ratio_thirds, self.power_ratio_thirds_floor
        rows.append(("power ratio, thirds of frequencies", *thirds))
        for space, audit in self.memorisation.items():
            rows.append((f"suspected copies, {space}", len(audit.suspects), None))
        title = f"{format_count(self.volumes, 'generated volume')} ({self.held_out} held out)"
        return html_table(title, rows, ("", "generated", "real"), "; ".join(self.notes))


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
    turing: bool = False,
    from_files: bool = False,
    patch_size: int = 2,
) -> GenerationReport:
    """Compare generated volumes with those of a prepared data set.

    Args:
        batches: generated volumes, either all or none with label maps; read once. `LazyBatches`
            are measured on the workers of a cluster (`medar.cluster`), as real volumes are.
        prepared: the folder that `prepare` filled and the generator was trained on.
        split: the held-out volumes.
        extractors: names, see `medar.evaluation.extractors.EXTRACTORS`; the first is also used by
            the memorisation audit. Label maps add `shape-v2`.
        weights: file of a learnt extractor.
        samples: maximum number of generated volumes; default all.
        limit: maximum number of training volumes, evenly spaced; default all. The memorisation
            audit sees no others.
        seed: of subsets, bootstrap draws and pairs.
        batch_size: real volumes per batch.
        device: where features are computed; "auto": CUDA where it is available.
        seconds_per_volume: time that generating a volume took, for the report.
        peak_memory: bytes that this took, for the report.
        turing: also train networks to tell the volumes from real ones, see `turing_test`.
        from_files: the volumes were read from files, see `turing_test`.
        patch_size: period of `grid_artifact` in voxels, that of the decoder's patches.

    Raises:
        MedarError: fewer than two generated or two training volumes, no case of the split, volumes
            of another size than the plan's or too small for the features, extractors that
            cannot be built, or a Turing test on real volumes of a single subject.
    """
    check_positive(samples=samples, limit=limit, batch_size=batch_size)
    built = make_extractors(tuple(extractors), weights, device)
    train = PreparedDataset(prepared, split="train")
    train_subset, held_out_subset = evenly_spaced(train, limit), cases_of(prepared, split)
    if min(train.plan.size) < SMALLEST or len(train_subset) < 2:
        raise MedarError(
            f"{prepared}: needs sides of at least {SMALLEST} voxels and 2 training volumes, got "
            f"{' x '.join(map(str, train.plan.size))} voxels and "
            f"{format_count(len(train_subset), 'volume')}"
        )
    step = written.file_step(train)
    meter = Meter(extractors=built, plan=train.plan, step=step, device=str(device))
    generated, real, reference = (SetStatistics(meter, seed) for _ in range(3))
    kept = KeptVolumes(step, seed, samples)
    labelled = add_generated(generated, kept.over(batches) if turing else batches, samples)
    add_real(reference, train_subset, "reference", batch_size, labelled)
    add_real(real, held_out_subset, "held-out", batch_size, labelled)
    cases = [train.prepared[index].id for index in train_subset.indices]
    units, unit = written.error_units(train)
    channel_units = units.double().mean(dim=0).numpy()
    grids = {
        str(p): grid_artifact(spectrum, reference.grids[p], seed)
        for p, spectrum in generated.grids.items()
    }
    period = max(2, patch_size)
    patch = grids.get(str(period))
    return GenerationReport(
        volumes=generated.count,
        split=split,
        held_out=real.count,
        reference=reference.count,
        distances=_distances(generated, real, reference, seed),
        intensity_distance=_wasserstein(generated, reference, channel_units),
        intensity_floor=_wasserstein(real, reference, channel_units),
        intensity_unit=unit,
        power_ratio_thirds=(generated.thirds / reference.thirds).tolist(),
        power_ratio_thirds_floor=(real.thirds / reference.thirds).tolist(),
        grid_artifact=patch.value if patch else None,
        grid_artifact_interval=patch.interval if patch else None,
        grid_artifact_floor=(
            grid_artifact(real.grids[period], reference.grids[period], seed).value
            if patch
            else None
        ),
        grid_artifacts=grids,
        ms_ssim=pairwise_ms_ssim(generated.kept, seed),
        ms_ssim_real=pairwise_ms_ssim(reference.kept, seed),
        memorisation=_audits(generated, real, reference, built[0].name, cases),
        seconds_per_volume=seconds_per_volume,
        peak_memory=peak_memory,
        notes=_notes(generated, real, reference, train, labelled),
        protocol={
            "name": NAME,
            "plan": train.plan.digest,
            "cases": train.prepared.digest,
            "reference": "train split",
            "held_out": "all but the train split" if split == "held-out" else f"{split} split",
            "seed": seed,
            "extractors": {one.name: one.weights for one in built},
            "volumes": written.PROTOCOL,
            "distances": {**distances.PROTOCOL, "standardisation": extracted.PROTOCOL},
            "intensity": f"Wasserstein-1 of histograms of {BINS} bins over all voxels",
            "power_ratio": "total power of the set over that of the reference",
            "grid_artifact": grid.PROTOCOL,
            "ms_ssim": {
                "pairs": f"at most {similarity.PAIRS}, of at most {KEPT} volumes, by the seed",
                **to_dict(MsSsim.of(train.plan.size)),
            },
            "memorisation": {**memorisation.PROTOCOL, "extractor": built[0].name},
        },
        turing=turing_test(
            kept,
            held_out_subset,
            train,
            from_files=from_files,
            seed=seed,
            device=any_device(device),
        )
        if turing
        else None,
    )


def _distances(
    generated: SetStatistics, real: SetStatistics, reference: SetStatistics, seed: int
) -> dict[str, SetDistance]:
    """By extractor; of shapes if the generated and at least 2 training volumes have label maps."""
    held_out, train = real.features, reference.features
    found = {}
    for name, features in generated.features.items():
        if len(train.get(name, ())) < 2:
            continue
        names, noticeable = feature_set(name, train[name])
        others = held_out.get(name, train[name][:0])
        found[name] = set_distance(
            features, others, train[name], seed, names=names, noticeable=noticeable
        )
    return found


def _audits(
    generated: SetStatistics,
    real: SetStatistics,
    reference: SetStatistics,
    extractor: str,
    cases: list[str],
) -> dict[str, Audit]:
    train = reference.features[extractor]
    standardise = Reference(train, feature_set(extractor, train).noticeable).standardise
    made, held_out, known = (
        standardise(one.features[extractor]) for one in (generated, real, reference)
    )
    return {
        "features": audit_features(made, held_out, known, cases),
        "voxels": audit_voxels(generated.thumbnails, real.thumbnails, reference.thumbnails, cases),
    }


def _wasserstein(first: SetStatistics, second: SetStatistics, units: Floats) -> float:
    """The Wasserstein-1 distance of the voxels' intensities, averaged over channels.

    Args:
        first: a set.
        second: another set.
        units: (C,), intensity difference per unit of [-1, 1] in each channel.
    """
    from scipy.stats import wasserstein_distance

    centres = (np.arange(BINS) + 0.5) * 2 / BINS - 1
    rows = zip(units, first.histogram, second.histogram, strict=True)
    return float(
        np.mean([unit * wasserstein_distance(centres, centres, u, v) for unit, u, v in rows])
    )


def _notes(
    generated: SetStatistics,
    real: SetStatistics,
    reference: SetStatistics,
    train: PreparedDataset,
    labelled: bool,
) -> list[str]:
    sets = {"generated": generated, "held-out": real, "training": reference}
    notes = [
        f"{format_count(one.count, f'{name} volume')}, fewer than {FEW}: all values are rough "
        "estimates"
        for name, one in sets.items()
        if one.count < FEW
    ]
    if reference.count < len(train):
        notes.append(
            f"{reference.count} of {len(train)} training volumes: copies of others are not found"
        )
    if train.plan.mode == "patch":
        notes.append("patches: one of each case, drawn by seed 0")
    if labelled and len(reference.features.get(SHAPE, ())) < 2:
        notes.append("label maps are not evaluated: the training volumes have none")
    return notes
