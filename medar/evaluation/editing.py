"""How well a generator fills a region and raises resolution, on held-out cases.

    volume without a box  -> known tokens outside it       -> samples -> the box against the real
    volume with sides 1/f -> known tokens of coarse scales -> samples -> all of it against the real

Known tokens and latents come from the functions that `medar synthesize` uses, but in the prepared
space: intensities are not measured anew on what is left of a volume. Beside the samples stand
fillings that know no anatomy, and the tokenizer's reconstruction of the whole real volume, which no
sample can be expected to surpass by much.

A mean over samples keeps only what they agree on. It is blurred, and nearer in PSNR, than any one.

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
from medar.errors import MedarError
from medar.evaluation.edits import Edit, box_removed, lowered
from medar.evaluation.fidelity import PROTOCOL, ssim
from medar.evaluation.realism import spread
from medar.evaluation.sampling import check_conditions, conditions, draw, notes, reconstructed
from medar.generator.conditions import Condition
from medar.generator.folder import Loaded, model_digest
from medar.generator.model import Known
from medar.generator.sampling import SamplingSettings
from medar.progress import track
from medar.settings import to_dict
from medar.synthesis.synthesizer import seeds_from
from medar.synthesis.upscaling import scales_given
from medar.tokenizer.tokenizer import Tokenizer
from medar.tokenizer.validation import psnr

NAME = "editing-v1"
"""Name and version of the protocol: raise the version whenever a figure changes."""

SAMPLED, AVERAGED, ENCODED = "sampled", "mean of samples", "reconstructed"


@dataclass(frozen=True, kw_only=True)
class Likeness:
    """How near the real content, mean over cases."""

    psnr: float
    """dB."""
    ssim: float


@dataclass(frozen=True, kw_only=True)
class Task:
    """One kind of edit."""

    known: float
    """Share of the tokens that were given, mean over cases."""
    likeness: dict[str, Likeness]
    """Of the model's results, and of what they are compared with."""


@dataclass(frozen=True, kw_only=True)
class EditingReport:
    """What `evaluate_editing` found. docs/reference/evaluation.md defines each value."""

    cases: int
    split: Split
    samples: int
    """A case."""
    box: float
    """Sides of the region, as a share of the volume's."""
    factor: int
    """By which the resolution was lowered."""
    known_scales: int
    """That a volume of low resolution gave."""
    inpainting: Task
    upscaling: Task
    notes: list[str]
    protocol: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """The report as values that JSON holds."""
        return to_dict(self)


def evaluate_editing(
    loaded: Loaded,
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
        loaded: the generator.
        prepared: a folder that `prepare` filled, of the generator's size.
        split: the cases.
        samples: a case and task.
        box: sides of the region, as a share of the volume's.
        factor: by which the resolution is lowered along each axis.
        scales: that a volume of low resolution gives; default as many as its spacing allows, see
            `medar.synthesis.upscaling`.
        limit: the most cases, spread evenly over the split.
        sampling: how tokens are chosen; default the generator's own settings.
        seed: of boxes and samples.

    Raises:
        MedarError: a number out of its range, sides that are no multiples of the factor, or cases
            that do not fit the generator.
    """
    for name, value in (("samples", samples), ("limit", limit)):
        if value is not None and value < 1:
            raise MedarError(f"{name} {value}: a whole number from 1 is needed")
    if not 0 < box < 1:
        raise MedarError(f"box {box:g}: a share of each side, above 0 and below 1, is needed")
    dataset = PreparedDataset(prepared, split=split)
    check_conditions(loaded, dataset)
    scales = _scales(loaded.tokenizer, dataset, factor, scales)
    settings = sampling or loaded.sampling
    settings.check(loaded.model.schedule)
    chosen = spread(dataset, limit).indices
    found = {"inpainting": _Findings(), "upscaling": _Findings()}
    for place in track(chosen, total=len(chosen), label="edit"):
        seeds = seeds_from(seed, samples * (place + 1))[-samples:]
        real = dataset[place]["image"]
        condition = conditions(loaded, dataset, [place], maps=False)
        encoded = reconstructed(loaded.tokenizer, real)
        edits = {
            "inpainting": box_removed(loaded.tokenizer, real, box, [seed, place]),
            "upscaling": lowered(loaded.tokenizer, real, factor, scales),
        }
        for name, edit in edits.items():
            made = _samples(loaded, edit.known, condition, seeds, settings)
            made = torch.stack([edit.finish(one) for one in made])
            found[name].update(edit, made, encoded, real)
    return EditingReport(
        cases=len(chosen),
        split=split,
        samples=samples,
        box=box,
        factor=factor,
        known_scales=scales,
        inpainting=found["inpainting"].result(),
        upscaling=found["upscaling"].result(),
        notes=notes(len(chosen), dataset),
        protocol={
            "name": NAME,
            "plan": dataset.plan.digest,
            "cases": dataset.prepared.digest,
            "class": type(loaded.model).__name__,
            "model": model_digest(loaded.model),
            "sampling": to_dict(settings),
            "conditions": "attributes of the case, no label map",
            "seed": seed,
            "psnr": PROTOCOL["psnr"] + "; of the box alone for inpainting",
            "ssim": PROTOCOL["ssim"] + "; of the box alone for inpainting",
        },
    )


class _Findings:
    """Likeness by what made the volume, case by case."""

    def __init__(self) -> None:
        self._rows: dict[str, list[Tensor]] = {}
        self._known: list[float] = []

    def update(self, edit: Edit, made: Tensor, encoded: Tensor, real: Tensor) -> None:
        """Take in a case: samples (S, C, X, Y, Z), its reconstruction and the real volume."""
        rows = {name: volume[None] for name, volume in edit.others.items()}
        rows |= {SAMPLED: made, AVERAGED: made.mean(dim=0, keepdim=True), ENCODED: encoded[None]}
        wanted = real[(slice(None), *edit.part)]
        for name, volumes in rows.items():
            part = volumes[(slice(None), slice(None), *edit.part)]
            truth = wanted.expand_as(part)
            each = torch.stack([psnr(part, truth), ssim(part, truth)], dim=1)
            self._rows.setdefault(name, []).append(each.double().mean(dim=0))
        self._known.append(float(edit.known.mask.double().mean()))

    def result(self) -> Task:
        """The means over cases."""
        means = {name: torch.stack(rows).mean(dim=0).tolist() for name, rows in self._rows.items()}
        return Task(
            known=float(np.mean(self._known)),
            likeness={name: Likeness(psnr=p, ssim=s) for name, (p, s) in means.items()},
        )


def _samples(
    loaded: Loaded, known: Known, condition: Condition, seeds: range, settings: SamplingSettings
) -> Tensor:
    """(S, C, X, Y, Z) under the same conditions."""
    count = len(seeds)
    repeated = Condition(attributes=condition.attributes.expand(count, -1))
    latent = known.latent.expand(count, -1, -1, -1, -1)
    given = Known(mask=known.mask.expand(count, -1), latent=latent)
    return draw(loaded, repeated, seeds, settings, given)[0]


def _scales(tokenizer: Tokenizer, dataset: PreparedDataset, factor: int, scales: int | None) -> int:
    """The scales that volumes of low resolution give."""
    plan, schedule = dataset.plan, tokenizer.config.schedule
    if factor < 2 or any(side % factor for side in plan.size):
        raise MedarError(
            f"factor {factor}: a whole number from 2 that divides each side of the volumes, "
            f"{' x '.join(map(str, plan.size))}, is needed"
        )
    if scales is None:
        x, y, z = (side * factor for side in plan.spacing)
        return scales_given(schedule, plan.spacing, (x, y, z))
    if not 1 <= scales < len(schedule):
        raise MedarError(f"known scales {scales}: 1 to {len(schedule) - 1} are possible")
    return scales
