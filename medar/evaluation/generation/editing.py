"""How well a generator fills a region and raises resolution, on held-out cases.

    volume without a box  -> known tokens outside the box  -> samples -> compare the boxes
    volume with sides 1/f -> known tokens of coarse scales -> samples -> compare the whole volumes

Known tokens and latents come from the functions that `medar synthesize` uses, but in the prepared
space: intensities are not measured again on the remaining part of a volume. The samples are
compared with simple baselines without anatomy, and with the tokenizer's reconstruction of the whole
real volume, which no sample can be expected to surpass by much.

A mean over samples keeps only their common content: it is blurred, and closer in PSNR than any
single sample.

S samples, C channels, X Y Z voxels.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medar.data.loading import PreparedDataset
from medar.data.manifest import Split
from medar.errors import MedarError, check_positive
from medar.evaluation.generation.edits import Edit, box_removed, lowered
from medar.evaluation.generation.sampling import (
    check_conditions,
    conditions,
    notes_on,
    protocol_of,
    reconstructed,
    sample_volumes,
)
from medar.evaluation.reconstruction.cases import evenly_spaced
from medar.evaluation.similarity import PROTOCOL, ssim
from medar.generator.conditions import Condition
from medar.generator.known import KnownTokens
from medar.generator.settings import SamplingSettings
from medar.progress import track
from medar.settings import to_dict
from medar.synthesis.synthesizer import Synthesizer, seeds_from
from medar.synthesis.upscaling import scales_given
from medar.tokenizer.tokenizer import Tokenizer
from medar.tokenizer.validation import psnr

NAME = "editing-v1"
"""Name and version of the protocol: raise the version whenever a value changes."""

SAMPLED, AVERAGED, ENCODED = "sampled", "mean of samples", "reconstructed"


@dataclass(frozen=True, kw_only=True)
class Similarity:
    """To the real content, mean over cases."""

    psnr: float
    """dB."""
    ssim: float


@dataclass(frozen=True, kw_only=True)
class EditingTask:
    """Result of one kind of edit."""

    known_fraction: float
    """Of the tokens that are known, mean over cases."""
    similarity: dict[str, Similarity]
    """Of the samples, and of the baselines they are compared with."""


@dataclass(frozen=True, kw_only=True)
class EditingReport:
    """Result of `evaluate_editing`. docs/reference/evaluation.md defines each value."""

    cases: int
    split: Split
    samples: int
    """Per case."""
    box: float
    """Sides of the region, as a fraction of the volume's."""
    factor: int
    """By which the resolution was lowered."""
    known_scales: int
    """That a volume of low resolution determines."""
    inpainting: EditingTask
    upscaling: EditingTask
    notes: list[str]
    protocol: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """The report as values that JSON holds."""
        return to_dict(self)


def evaluate_editing(
    synthesizer: Synthesizer,
    prepared: str | Path,
    split: Split = "test",
    *,
    samples: int = 4,
    box: float = 0.5,
    factor: int = 2,
    scales: int | None = None,
    limit: int | None = None,
    sampling: SamplingSettings | None = None,
    seed: int = 0,
) -> EditingReport:
    """Fill a random box of each case, and raise its resolution.

    Args:
        synthesizer: the generator.
        prepared: a folder that `prepare` filled, of the generator's size.
        split: the cases.
        samples: per case and task.
        box: sides of the region, as a fraction of the volume's.
        factor: by which the resolution is lowered along each axis.
        scales: determined by the volume of low resolution; default: limited by its spacing,
            see `medar.synthesis.upscaling`.
        limit: maximum number of cases, evenly spaced over the split; default all.
        sampling: settings of the sampler; default the generator's own.
        seed: of boxes and samples.

    Raises:
        MedarError: a number out of range, sides that are not multiples of the factor, or cases
            that do not fit the generator.
    """
    check_positive(samples=samples, limit=limit)
    if not 0 < box < 1:
        raise MedarError(f"box must be a fraction between 0 and 1, got {box:g}")
    dataset = PreparedDataset(prepared, split=split)
    check_conditions(synthesizer, dataset)
    scales = _known_scales(synthesizer.tokenizer, dataset, factor, scales)
    settings = sampling or synthesizer.sampling
    settings.check(synthesizer.model.schedule, synthesizer.model.config.refinement)
    indices = evenly_spaced(dataset, limit).indices
    inpainting, upscaling = _EditingMeter(), _EditingMeter()
    for index in track(indices, total=len(indices), label="edit"):
        seeds = seeds_from(seed, samples * (index + 1))[-samples:]
        real = dataset[index]["image"]
        condition = conditions(synthesizer, dataset, [index], maps=False)
        encoded = reconstructed(synthesizer.tokenizer, real)
        edits = (
            (inpainting, box_removed(synthesizer.tokenizer, real, box, [seed, index])),
            (upscaling, lowered(synthesizer.tokenizer, real, factor, scales)),
        )
        for meter, edit in edits:
            sampled = _samples(synthesizer, edit.known, condition, seeds, settings)
            meter.update(edit, torch.stack([edit.finish(one) for one in sampled]), encoded, real)
    return EditingReport(
        cases=len(indices),
        split=split,
        samples=samples,
        box=box,
        factor=factor,
        known_scales=scales,
        inpainting=inpainting.result(),
        upscaling=upscaling.result(),
        notes=notes_on(len(indices), dataset),
        protocol={
            **protocol_of(NAME, synthesizer, dataset, settings, seed),
            "conditions": "attributes of the case, no label map",
            "psnr": PROTOCOL["psnr"] + "; within the box for inpainting",
            "ssim": PROTOCOL["ssim"] + "; within the box for inpainting",
        },
    )


class _EditingMeter:
    """Accumulates the similarity of each kind of result, case by case."""

    def __init__(self) -> None:
        self._rows: dict[str, list[Tensor]] = {}
        self._known: list[float] = []

    def update(self, edit: Edit, samples: Tensor, encoded: Tensor, real: Tensor) -> None:
        """Add a case: samples (S, C, X, Y, Z), its reconstruction and the real volume."""
        rows = {name: volume[None] for name, volume in edit.baselines.items()}
        rows |= {
            SAMPLED: samples,
            AVERAGED: samples.mean(dim=0, keepdim=True),
            ENCODED: encoded[None],
        }
        target = real[(slice(None), *edit.part)]
        for name, volumes in rows.items():
            part = volumes[(slice(None), slice(None), *edit.part)]
            truth = target.expand_as(part)
            values = torch.stack([psnr(part, truth), ssim(part, truth)], dim=1)
            self._rows.setdefault(name, []).append(values.double().mean(dim=0))
        self._known.append(float(edit.known.mask.double().mean()))

    def result(self) -> EditingTask:
        """The means over cases."""
        means = {name: torch.stack(rows).mean(dim=0).tolist() for name, rows in self._rows.items()}
        return EditingTask(
            known_fraction=float(np.mean(self._known)),
            similarity={name: Similarity(psnr=p, ssim=s) for name, (p, s) in means.items()},
        )


def _samples(
    synthesizer: Synthesizer,
    known: KnownTokens,
    condition: Condition,
    seeds: range,
    settings: SamplingSettings,
) -> Tensor:
    """(S, C, X, Y, Z) under the same conditions."""
    condition, known = condition.expand(len(seeds)), known.expand(len(seeds))
    return sample_volumes(synthesizer, condition, seeds, settings, known)[0]


def _known_scales(
    tokenizer: Tokenizer, dataset: PreparedDataset, factor: int, scales: int | None
) -> int:
    """The scales that volumes of low resolution determine."""
    plan, schedule = dataset.plan, tokenizer.config.schedule
    if factor < 2 or any(side % factor for side in plan.size):
        raise MedarError(
            f"factor must be at least 2 and divide each side of the volumes, "
            f"{' x '.join(map(str, plan.size))}, got {factor}"
        )
    if scales is None:
        x, y, z = (side * factor for side in plan.spacing)
        return scales_given(schedule, plan.spacing, (x, y, z))
    if not 1 <= scales < len(schedule):
        raise MedarError(f"known scales must be from 1 to {len(schedule) - 1}, got {scales}")
    return scales
