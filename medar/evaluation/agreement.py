"""Do samples agree with the label map that they were asked to follow?

    held-out label map -> generator -> sample -> judge -> labels against the map: Dice

The judge (`medar.evaluation.judge`) has seen real volumes alone. Beside its Dice on samples stand
what it reaches on the real volumes of the same maps, on their reconstructions, which are as blurred
as samples, and with samples against the map of the case before: what alike anatomy gives without
any steering.

B batch, X Y Z voxels, K labels.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medar.data.loading import PreparedDataset
from medar.data.manifest import Split
from medar.errors import MedarError
from medar.evaluation.sampling import (
    check_conditions,
    conditions,
    draw,
    evenly,
    notes,
    reconstructed,
)
from medar.generator.folder import Loaded, model_digest
from medar.generator.sampling import SamplingSettings
from medar.losses import to_classes
from medar.progress import track
from medar.segmentation.overlap import DiceMeter
from medar.settings import to_dict
from medar.synthesis.synthesizer import seeds_from

NAME = "conditions-v2"
"""Name and version of the protocol: raise the version whenever a figure changes."""

Dice = dict[str, float | None]
"""Mean by label name over the cases that hold the label; None without any."""


@dataclass(frozen=True, kw_only=True)
class AgreementReport:
    """What `evaluate_conditions` found. docs/reference/evaluation.md defines each value."""

    cases: int
    split: Split
    samples: Dice
    """Of samples against the map that each was given."""
    real: Dice
    """Of the real volumes of these maps."""
    reconstructed: Dice
    """Of their reconstructions by the tokenizer."""
    unrelated: Dice
    """Of samples against the map of the case before."""
    notes: list[str]
    protocol: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """The report as values that JSON holds."""
        return to_dict(self)


def evaluate_conditions(
    loaded: Loaded,
    prepared: str | Path,
    judge: nn.Module,
    split: Split = "test",
    *,
    limit: int | None = None,
    sampling: SamplingSettings | None = None,
    seed: int = 0,
) -> AgreementReport:
    """Segment one sample a held-out label map, and compare.

    Args:
        loaded: a generator that takes label maps.
        prepared: a folder that `prepare` filled, of the generator's size and labels.
        judge: see `train_judge`; (B, C, X, Y, Z) to logits (B, K + 1, X, Y, Z).
        split: whose label maps are given.
        limit: the most cases, spread evenly over the split.
        sampling: how tokens are chosen; default the generator's own settings.
        seed: of the first sample; each further one has the next.

    Raises:
        MedarError: a generator without label maps, or cases that do not fit it or have none.
    """
    check_maps(loaded)
    if limit is not None and limit < 1:
        raise MedarError(f"limit {limit}: a whole number from 1 is needed")
    dataset = PreparedDataset(prepared, split=split)
    check_conditions(loaded, dataset)
    labelled = [k for k in range(len(dataset)) if dataset.prepared[k].label is not None]
    if not labelled:
        raise MedarError(f"{prepared}: no case of the split {split} has a label map")
    count = min(limit or len(labelled), len(labelled))
    places = [labelled[k] for k in evenly(len(labelled), count)]
    settings = sampling or loaded.sampling
    settings.check(loaded.model.schedule)
    meters = _Meters(judge, list(dataset.plan.labels.values()))
    pairs = list(zip(places, seeds_from(seed, len(places)), strict=True))
    for place, own in track(pairs, total=len(pairs), label="follow maps"):
        item = dataset[place]
        sampled, _ = draw(loaded, conditions(loaded, dataset, [place]), [own], settings)
        volumes = torch.stack(
            [sampled[0], item["image"], reconstructed(loaded.tokenizer, item["image"])]
        )
        classes = to_classes(item["label"][None], list(dataset.plan.labels))
        meters.update(volumes, classes, item["annotated"][None])
    return AgreementReport(
        cases=len(places),
        split=split,
        **{name: meter.result() for name, meter in meters.by_name.items()},
        notes=notes(len(places), dataset),
        protocol={
            "name": NAME,
            "plan": dataset.plan.digest,
            "cases": dataset.prepared.digest,
            "class": type(loaded.model).__name__,
            "model": model_digest(loaded.model),
            "sampling": to_dict(settings),
            "seed": seed,
            "dice": "of each label over the cases annotated for it and holding it, then averaged",
        },
    )


def check_maps(loaded: Loaded, name: str = "this generator") -> None:
    """Refuse a generator that takes no label maps.

    Raises:
        MedarError: it does not.
    """
    if loaded.model.config.condition.map != "label":
        raise MedarError(
            f"{name}: was trained without label maps, so that there is nothing for its samples to "
            "follow; train one with condition.map label"
        )


class _Meters:
    """Dice of what the judge sees, of each kind of volume."""

    def __init__(self, judge: nn.Module, names: list[str]) -> None:
        self.judge = judge.eval()
        kinds = ("samples", "real", "reconstructed", "unrelated")
        self.by_name = {kind: DiceMeter(names) for kind in kinds}
        self._before: tuple[Tensor, Tensor] | None = None

    @torch.no_grad()
    def update(self, volumes: Tensor, classes: Tensor, annotated: Tensor) -> None:
        """Take in a case.

        Args:
            volumes: (3, C, X, Y, Z): a sample, the real volume, its reconstruction.
            classes: (1, 1, X, Y, Z), the map's.
            annotated: (1, K).
        """
        device = next(self.judge.parameters()).device
        seen = self.judge(volumes.to(device)).cpu()
        for logits, kind in zip(seen, ("samples", "real", "reconstructed"), strict=True):
            self.by_name[kind].update(logits[None], classes, annotated)
        if self._before is not None:
            self.by_name["unrelated"].update(seen[:1], *self._before)
        self._before = classes, annotated
