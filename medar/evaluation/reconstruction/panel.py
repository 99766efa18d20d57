"""`evaluate_panel`: what reconstructions lose, in the terms of those who read scans.

    organs       mean and spread of the intensities of each label, sharpness of its border
    segmenter    Dice of a segmentation network on originals and on reconstructions
    structures   contrast recovered of inserted spheres, tubes and plates, by size

after VTBench (arXiv 2505.13439), which judges tokenizers of images by what they lose, such as
legible text, apart from any generator. What reconstructs is a function from batches to batches, so
that decoders, other autoencoders and plain interpolation are compared on the same cases and
structures.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader

from medar.data.loading import PreparedDataset
from medar.data.manifest import Split
from medar.devices import device_of
from medar.errors import MedarError, check_positive
from medar.evaluation import written
from medar.evaluation.distances import FEW
from medar.evaluation.reconstruction.cases import evenly_spaced
from medar.evaluation.reconstruction.organs import BOX, Intensities
from medar.evaluation.reconstruction.panel_meters import (
    OrganMeter,
    Reconstruct,
    Shown,
    StructureMeter,
)
from medar.evaluation.reconstruction.panel_report import (
    DETECTED,
    MethodReport,
    PanelReport,
    detection_limits,
    organ_reports,
    structure_reports,
    summary,
)
from medar.evaluation.reconstruction.structures import SHAPES, SHELL, StructureSettings
from medar.progress import track
from medar.segmentation.segmenter import Segmenter
from medar.settings import to_dict
from medar.tokenizer.detail import Detail
from medar.tokenizer.tokenizer import Tokenizer
from medar.words import format_count

NAME = "panel-v1"
"""Name and version of the protocol: raise the version whenever a value changes."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Panel:
    """Result of `evaluate_panel`: the report, and slices to draw."""

    report: PanelReport
    shown: list[Shown]
    """Spheres of the strongest contrast in the first case, one per diameter."""


def methods_of(
    tokenizer: Tokenizer, detail: Detail = "auto", seed: int = 0
) -> dict[str, Reconstruct]:
    """What reconstructs with a tokenizer, by name, on its own device.

    "decoder" is the deterministic decoder D(z). "detail", if the tokenizer has a detail decoder,
    adds its detail, drawn from the same noise for every volume: what differs between two
    reconstructions is not the noise.

    Args:
        tokenizer: in evaluation mode.
        detail: number of steps of the detail decoder; "none" leaves it out.
        seed: of the detail.

    Raises:
        MedarError: see `Tokenizer.detail_steps`.
    """

    def decoder(volumes: Tensor) -> Tensor:
        pyramid = tokenizer.encode(volumes.to(device_of(tokenizer)))
        return tokenizer.decode_map(pyramid).volume.clamp(-1, 1)

    def detailed(volumes: Tensor) -> Tensor:
        return tokenizer.add_detail(decoder(volumes), [seed] * len(volumes), detail)

    if tokenizer.detail_steps(detail) == 0:
        return {"decoder": decoder}
    return {"decoder": decoder, "detail": detailed}


def evaluate_panel(
    methods: Mapping[str, Reconstruct],
    prepared: str | Path,
    split: Split = "test",
    *,
    segmenter: Segmenter | None = None,
    structures: StructureSettings | None = None,
    limit: int | None = None,
    batch_size: int = 4,
) -> Panel:
    """Compare ways of reconstructing held-out cases.

    Args:
        methods: what reconstructs, by name; networks in evaluation mode.
        prepared: a folder that `prepare` filled.
        split: the cases to reconstruct.
        segmenter: trained for the labels of the data, and not on these cases.
        structures: what is inserted; default `StructureSettings()`.
        limit: maximum number of cases, evenly spaced over the split; default all.
        batch_size: volumes per batch.

    Raises:
        MedarError: no method; the folder is not a prepared data set or has no case of the split;
            the segmenter was trained for other labels, channels, size, spacing or intensities; or a
            method returns another shape, or values that are not finite.
    """
    check_positive(limit=limit, batch_size=batch_size)
    if not methods:
        raise MedarError("methods must name at least one function that reconstructs, got none")
    settings = structures or StructureSettings()
    dataset = PreparedDataset(prepared, split=split)
    if segmenter is not None:
        check_segmenter(segmenter, dataset)
        segmenter = segmenter.eval()
    intensities = Intensities.of(dataset)
    cases = evenly_spaced(dataset, limit)
    organs = OrganMeter(methods, dataset, intensities, segmenter)
    loader = DataLoader(cases, batch_size=batch_size)
    for batch in track(loader, total=len(loader), label="reconstruct", unit="batch"):
        organs.update(batch)
    holding = evenly_spaced(dataset, min(settings.cases, len(cases)))
    inserted = StructureMeter(methods, dataset, intensities, settings)
    for number in track(range(len(holding)), total=len(holding), label="insert structures"):
        inserted.update(holding[number], batch_size)
    subjects = {
        case.id: case.subject for case in map(dataset.prepared.__getitem__, range(len(dataset)))
    }
    reports = {}
    for name in methods:
        by_size = structure_reports([row for row in inserted.rows if row.method == name], subjects)
        limits = detection_limits(by_size)
        reports[name] = MethodReport(
            summary=summary(limits, intensities.unit),
            fidelity=organs.fidelity[name].result(),
            organs=organ_reports([row for row in organs.rows if row.method == name], subjects),
            structures=by_size,
            limits=limits,
        )
    report = PanelReport(
        cases=len(cases),
        structure_cases=len(holding),
        split=split,
        unit=intensities.unit,
        methods=reports,
        notes=_notes(dataset, organs, inserted, len(cases), segmenter is not None),
        protocol=_protocol(dataset, settings, inserted, segmenter),
        case_organs=organs.rows,
        case_structures=inserted.rows,
    )
    return Panel(report=report, shown=inserted.shown)


def check_segmenter(segmenter: Segmenter, dataset: PreparedDataset) -> None:
    """Check that a segmentation network takes the cases of a prepared data set as they are.

    Raises:
        MedarError: it was trained for other labels, channels, size, spacing or intensities.
    """
    theirs, own = to_dict(segmenter.plan), to_dict(dataset.plan)
    for name in ("labels", "channels", "size", "spacing", "intensity"):
        if theirs[name] != own[name]:
            raise MedarError(
                f"{dataset.prepared.folder}: has {name} {own[name]}, but the segmenter was trained "
                f"for {theirs[name]}; train one on this folder with `medar segmentation train`"
            )


def _notes(
    dataset: PreparedDataset,
    organs: OrganMeter,
    inserted: StructureMeter,
    cases: int,
    segmented: bool,
) -> list[str]:
    notes = []
    if dataset.plan.mode == "patch":
        notes.append("patches: one of each case, drawn by seed 0")
    if cases < FEW:
        number = format_count(cases, "case")
        notes.append(f"{number}, fewer than {FEW}: all values are rough estimates")
    if not organs.rows:
        notes.append("no case has a label: nothing is known about organs")
    if segmented:
        notes.append("Dice of the segmenter counts only if it was not trained on these cases")
    for shape in SHAPES:
        sizes = set(inserted.settings.sizes(shape))
        missing = sorted(sizes - {row.voxels for row in inserted.rows if row.shape == shape})
        if missing:
            listed = ", ".join(f"{size:g}" for size in missing)
            notes.append(f"no {shape} of {listed} voxels: too large for these volumes")
    clipped = sum(row.recovered is None for row in inserted.rows)
    if clipped:
        notes.append(
            f"{clipped} of {len(inserted.rows)} structures left out: less than half of their "
            "contrast fits into the intensity window where they are"
        )
    return notes


def _protocol(
    dataset: PreparedDataset,
    settings: StructureSettings,
    inserted: StructureMeter,
    segmenter: Segmenter | None,
) -> dict[str, Any]:
    return {
        "name": NAME,
        "plan": dataset.plan.digest,
        "cases": dataset.prepared.digest,
        "structures": {**to_dict(settings), "contrasts": list(inserted.contrasts)},
        "segmenter": segmenter.digest if segmenter is not None else None,
        "values": written.PROTOCOL,
        "spread": "over voxels of a label whose neighbours have it too",
        "gradient": "between neighbours inside and outside a label, weighted by the original's "
        f"contrast in boxes of {BOX} voxels",
        "contrast": "mean over the structure, weighted by the fraction that it fills of each voxel,"
        f" less mean over the voxels {SHELL[0]:g} to {SHELL[1]:g} voxels outside its surface; "
        "with the structure less without it",
        "detected": f"mean recovered contrast of at least {DETECTED:g}, here and at larger sizes",
    }
