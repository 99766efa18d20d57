"""The figures of a bundle, measured on its weights as they are stored.

figures.json holds the digests of the models that were measured, one row per figure with the value
that real volumes get, one line for `medar models`, the cost of rounding, and how all was measured.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from medar.data.prepared import Prepared
from medar.evaluation.generation import GenerationReport, evaluate_generation
from medar.evaluation.generation.evaluate import HeldOut
from medar.evaluation.generation.sampling import SampledVolumes
from medar.evaluation.reconstruction import ReconstructionReport, evaluate_tokenizer
from medar.evaluation.segmentation import SegmentationReport, evaluate_segmentation
from medar.model_folder import digest_of, weight_bytes
from medar.segmentation.segmenter import Segmenter
from medar.settings import plain
from medar.synthesis.synthesizer import Synthesizer

Split = Literal["val", "test"]
"""The held-out cases that are segmented."""

BESIDE: HeldOut = "held-out"
"""The cases that samples are judged beside, and that are reconstructed: all but the train split."""

THIRDS = ("lowest", "middle", "highest")


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One row of a card's table."""

    name: str
    value: float
    real: float | None = None
    """What real volumes get: a floor for distances, a target for all else."""
    volumes: int
    """That `value` was measured on; the floor too."""


def measure(
    synthesizer: Synthesizer,
    segmenter: Segmenter | None,
    data: Path,
    split: Split,
    samples: int,
    seed: int,
    turing: bool,
) -> dict[str, Any]:
    """Evaluate the models of a bundle on a prepared data set.

    Args:
        synthesizer: loaded from the bundle.
        segmenter: loaded from the bundle, if it holds one.
        data: the folder that `prepare` filled and the models were trained on.
        split: the cases to segment; all else is judged beside all held-out ones.
        samples: number of volumes to make.
        seed: of the first one.
        turing: also train networks to tell samples from real volumes.

    Returns:
        The content of figures.json without the cost of rounding.

    Raises:
        MedarError: cases that do not fit the models.
    """
    volumes = SampledVolumes(synthesizer, data, split=BESIDE, samples=samples, seed=seed)
    generation = volumes.complete(
        evaluate_generation(
            volumes,
            data,
            split=BESIDE,
            seed=seed,
            turing=turing,
            patch_size=synthesizer.tokenizer.config.network.patch_size,
        )
    )
    number = next(iter(generation.distances.values())).frechet_samples
    reconstruction = evaluate_tokenizer(
        synthesizer.tokenizer, data, BESIDE, by_scale=False, frechet_samples=number
    )
    segmentation = None if segmenter is None else evaluate_segmentation(segmenter, data, split)
    figures = [*_of_reconstruction(reconstruction), *_of_generation(generation)]
    notes = {*reconstruction.notes, *generation.notes}
    protocols = {"reconstruction": reconstruction.protocol, "generation": generation.protocol}
    if segmentation is not None:
        figures += _of_segmentation(segmentation)
        notes |= set(segmentation.notes)
        protocols["segmentation"] = segmentation.protocol
    return {
        "models": digests(synthesizer, segmenter),
        "summary": _summary(generation),
        "split": split,
        "cases": Prepared(data).digest,
        "figures": plain(figures),
        "notes": sorted(notes),
        "protocols": plain(protocols),
    }


def digests(synthesizer: Synthesizer, segmenter: Segmenter | None) -> dict[str, str]:
    """What identifies the weights that figures belong to."""
    found = {"generator": synthesizer.model.digest, "tokenizer": synthesizer.tokenizer.digest}
    if (detail := synthesizer.tokenizer.detail) is not None:
        found["detail decoder"] = digest_of(weight_bytes(detail.state_dict(), str(detail.config)))
    if segmenter is not None:
        found["segmentation network"] = segmenter.digest
    return found


def _of_reconstruction(report: ReconstructionReport) -> list[Figure]:
    cases, frechet = report.cases, []
    if report.frechet is not None:
        frechet = [
            Figure(
                name="Frechet distance of reconstructions",
                value=report.frechet,
                real=report.frechet_floor,
                volumes=report.frechet_samples or cases,
            )
        ]
    return [
        Figure(name="PSNR of reconstructions, dB", value=report.psnr, volumes=cases),
        Figure(name="SSIM of reconstructions", value=report.ssim, volumes=cases),
        *frechet,
        *_grid("reconstructions", report.grid_artifact, 1.0, cases),
    ]


def _of_generation(report: GenerationReport) -> list[Figure]:
    distances = [
        Figure(
            name=f"Frechet distance of samples, {name}",
            value=one.frechet,
            real=one.frechet_floor,
            volumes=one.frechet_samples,
        )
        for name, one in report.distances.items()
    ]
    copies = [
        Figure(
            name=f"suspected copies of training volumes, by {name}",
            value=len(audit.suspects),
            volumes=report.volumes,
        )
        for name, audit in report.memorisation.items()
    ]
    pairs = Figure(
        name="MS-SSIM of pairs of samples",
        value=report.ms_ssim,
        real=report.ms_ssim_real,
        volumes=report.volumes,
    )
    tests = []
    if (test := report.turing) is not None:
        tests = [
            Figure(
                name="AUC of networks that tell samples from real volumes",
                value=test.auc,
                real=test.floor,
                volumes=test.volumes,
            )
        ]
    power = [
        Figure(
            name=f"power of samples over that of real volumes, {third} third of frequencies",
            value=value,
            real=floor,
            volumes=report.volumes,
        )
        for third, value, floor in zip(
            THIRDS, report.power_ratio_thirds, report.power_ratio_thirds_floor, strict=True
        )
    ]
    grid = _grid("samples", report.grid_artifact, report.grid_artifact_floor, report.volumes)
    return [*distances, pairs, *power, *grid, *tests, *copies]


def _grid(of: str, value: float | None, real: float | None, volumes: int) -> list[Figure]:
    """The row of the patch grid; none where volumes are too small for it."""
    if value is None:
        return []
    return [Figure(name=f"grid artifact of {of}", value=value, real=real, volumes=volumes)]


def _of_segmentation(report: SegmentationReport) -> list[Figure]:
    (model,) = report.models
    return [
        Figure(name=f"Dice of the segmentation network, {name}", value=dice, volumes=one.cases)
        for name, one in model.labels.items()
        if (dice := one.dice) is not None
    ]


def _summary(report: GenerationReport) -> str:
    """The line in the list of models."""
    name, first = next(iter(report.distances.items()))
    floor = "" if first.frechet_floor is None else f", floor {first.frechet_floor:.3g}"
    suspects = max(len(audit.suspects) for audit in report.memorisation.values())
    return (
        f"Frechet distance {first.frechet:.3g} ({name}, {first.frechet_samples} volumes{floor}); "
        f"MS-SSIM {report.ms_ssim:.2f} (real {report.ms_ssim_real:.2f}); "
        f"{suspects or 'no'} suspected copies"
    )
