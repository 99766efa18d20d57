"""`evaluate_tokenizer`: how well a tokenizer gives volumes back, by prefix of its scales.

Cases of one split go the whole way, in fp32 and without augmentation; the prefix of k scales is
what the decoder makes of the coarsest k alone. Nearness (PSNR, SSIM, errors) compares a
reconstruction with its own volume, realism (`medar.evaluation.realism`) the reconstructions as a
set with other real volumes: against their own originals even a poor set would look near.

K scales, L tokens, V codes, B batch, C channels, X Y Z voxels.
"""

from dataclasses import dataclass
from itertools import accumulate
from math import log2, prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from medar.data.loading import Item, PreparedDataset
from medar.data.manifest import Split
from medar.errors import MedarError
from medar.evaluation import features
from medar.evaluation.fidelity import PROTOCOL, FidelityMeter
from medar.evaluation.frechet import FEW
from medar.evaluation.realism import Realism, judge, real_features, spread
from medar.losses import to_classes
from medar.progress import track
from medar.segmentation.overlap import DiceMeter
from medar.settings import to_dict
from medar.tokenizer.tokenizer import Tokenizer
from medar.tokenizer.validation import CodeUsage


@dataclass(frozen=True, kw_only=True)
class ReconstructionReport:
    """What `evaluate_tokenizer` found. docs/reference/evaluation.md defines each value.

    Lists `..._per_scale` have a value for each scale, coarse to fine; those of fidelity are for the
    prefix that ends with the scale, and empty where prefixes were not asked for.
    """

    cases: int
    split: Split
    psnr: float
    ssim: float
    mae: float
    mae_unit: str
    high_frequency_error: float
    power_ratio: float
    frechet: float | None
    """None with fewer than two volumes on either side, or sides below 8 voxels."""
    frechet_floor: float | None
    codebook_usage: float
    bits_per_voxel: float
    compression: float
    dice: dict[str, float | None] | None
    """By label name; None without a label head."""
    psnr_per_scale: list[float]
    ssim_per_scale: list[float]
    mae_per_scale: list[float]
    high_frequency_error_per_scale: list[float]
    power_ratio_per_scale: list[float]
    usage_per_scale: list[float]
    perplexity_per_scale: list[float]
    residual_energy_per_scale: list[float]
    scales: list[str]
    tokens_per_scale: list[int]
    warnings: list[str]
    """Collapsed scales, in words."""
    notes: list[str]
    """What to know before the figures are compared with others."""
    protocol: dict[str, Any]
    """How each figure was taken."""

    def to_dict(self) -> dict[str, Any]:
        """The report as values that JSON holds."""
        return to_dict(self)


def evaluate_tokenizer(
    tokenizer: Tokenizer,
    prepared: str | Path,
    split: Split = "test",
    *,
    by_scale: bool = True,
    limit: int | None = None,
    batch_size: int = 4,
) -> ReconstructionReport:
    """Measure a tokenizer on prepared cases, on the device where it is.

    Args:
        tokenizer: as trained; it is left in the mode that it was in.
        prepared: a folder that `prepare` filled, of the tokenizer's size.
        split: the cases to reconstruct.
        by_scale: decode every prefix of scales too.
        limit: the most cases to reconstruct, spread evenly over the split.
        batch_size: volumes at once.

    Raises:
        MedarError: the folder is not a prepared data set, not of the tokenizer's size or channels,
            has no case of the split, or another number of labels than the label head.
    """
    for name, value in (("limit", limit), ("batch_size", batch_size)):
        if value is not None and value < 1:
            raise MedarError(f"{name} {value}: a whole number from 1 is needed")
    dataset = PreparedDataset(prepared, split=split)
    check_fit(tokenizer, dataset)
    loader = DataLoader(spread(dataset, limit), batch_size=batch_size)
    training = tokenizer.training
    tokenizer.eval()
    try:
        found = _Findings(tokenizer, dataset, by_scale)
        for batch in track(loader, total=len(loader), label="reconstruct", unit="batch"):
            found.update(batch)
    finally:
        tokenizer.train(training)
    realism = Realism()
    if found.made:
        others = real_features(prepared, split, batch_size=batch_size, device=found.device)
        made, real = (torch.cat(one).numpy() for one in (found.made, found.real))
        realism = judge(made, real, others, split)
    return found.report(split, realism)


def check_fit(tokenizer: Tokenizer, dataset: PreparedDataset) -> None:
    """Refuse prepared cases that a tokenizer is not made for.

    Raises:
        MedarError: another size, number of channels or number of labels.
    """
    plan, network = dataset.plan, tokenizer.config.network
    pairs = [
        ("size", list(plan.size), list(tokenizer.config.size)),
        ("channels", len(plan.channels) or 1, network.channels),
        ("labels", len(plan.labels), network.labels or len(plan.labels)),
    ]
    for name, there, wanted in pairs:
        if there != wanted:
            raise MedarError(
                f"{dataset.prepared.folder}: {name} {there}, the tokenizer is made for {wanted}; "
                "prepare the data with the tokenizer's own plan"
            )


class _Findings:
    """Everything that one pass over the cases adds up."""

    def __init__(self, tokenizer: Tokenizer, dataset: PreparedDataset, by_scale: bool) -> None:
        schedule = tokenizer.config.schedule
        self.tokenizer = tokenizer
        self.dataset = dataset
        self.by_scale = by_scale
        self.device = next(tokenizer.parameters()).device
        self.cases = 0
        self.meters = [FidelityMeter() for _ in range(len(schedule) if by_scale else 1)]
        self.usage = CodeUsage(schedule, tokenizer.codebook_size)
        self.energy = torch.zeros(len(schedule) + 1, dtype=torch.float64)
        names = list(dataset.plan.labels.values())
        self.dice = DiceMeter(names) if tokenizer.config.network.labels else None
        self.units, self.unit = error_units(dataset)
        self.made: list[Tensor] = []
        self.real: list[Tensor] = []

    @torch.no_grad()
    def update(self, batch: Item) -> None:
        """Take in a batch of the loader."""
        volumes = batch["image"].to(self.device)
        latent = self.tokenizer.encoder(volumes).float()
        indices = self.tokenizer.quantiser.encode(latent)
        sums = list(accumulate(self.tokenizer.quantiser.contributions(indices)))
        left = [latent, *(latent - one for one in sums)]
        self.energy += torch.stack([one.double().square().sum() for one in left]).cpu()
        self.usage.update(indices)
        units = self.units[batch["index"]]
        for meter, total in zip(self.meters, sums if self.by_scale else sums[-1:], strict=True):
            decoded = self.tokenizer.decoder(total)
            meter.update(volumes, decoded.volume, units)
        if self.dice is not None:
            classes = to_classes(batch["label"], list(self.dataset.plan.labels)).to(self.device)
            self.dice.update(decoded.logits, classes, batch["annotated"])
        if min(self.dataset.plan.size) >= features.SMALLEST:
            self.real.append(features.radiomics(volumes))
            self.made.append(features.radiomics(decoded.volume))
        self.cases += len(volumes)

    def report(self, split: Split, realism: Realism) -> ReconstructionReport:
        """All of it, put together."""
        schedule, plan = self.tokenizer.config.schedule, self.dataset.plan
        every = [meter.result() for meter in self.meters]
        prefixes = every if self.by_scale else []
        bits = schedule.length * log2(self.tokenizer.codebook_size) / prod(plan.size)
        energy = (self.energy / self.energy[0].clamp(min=1e-30)).tolist()
        return ReconstructionReport(
            cases=self.cases,
            split=split,
            **to_dict(every[-1]),
            mae_unit=self.unit,
            frechet=realism.distance,
            frechet_floor=realism.floor,
            codebook_usage=self.usage.total_usage,
            bits_per_voxel=bits,
            compression=16 * self.tokenizer.config.network.channels / bits,
            dice=self.dice.result() if self.dice is not None else None,
            psnr_per_scale=[one.psnr for one in prefixes],
            ssim_per_scale=[one.ssim for one in prefixes],
            mae_per_scale=[one.mae for one in prefixes],
            high_frequency_error_per_scale=[one.high_frequency_error for one in prefixes],
            power_ratio_per_scale=[one.power_ratio for one in prefixes],
            usage_per_scale=self.usage.usage,
            perplexity_per_scale=self.usage.perplexity,
            residual_energy_per_scale=energy[1:],
            scales=["x".join(map(str, grid)) for grid in schedule.grids],
            tokens_per_scale=list(schedule.tokens),
            warnings=self.usage.warnings(self.tokenizer.quantiser.codebook.collapse_advice),
            notes=_notes(self.cases, self.dataset, realism),
            protocol={
                "tokenizer": self.tokenizer.digest,
                "plan": plan.digest,
                **PROTOCOL,
                "frechet": to_dict(realism.protocol) if realism.protocol else None,
            },
        )


def error_units(dataset: PreparedDataset) -> tuple[Tensor, str]:
    """What a difference of 1 in [-1, 1] is worth: (cases, C), and the unit's name.

    Fixed windows have the volume's own unit, HU where all is CT. Percentiles differ from volume to
    volume, so that only a share of the window can be compared.
    """
    prepared, channels = dataset.prepared, len(dataset.plan.channels) or 1
    modalities = [prepared[place].modality for place in range(len(prepared))]
    rules = [dataset.plan.rules(channels, modality) for modality in modalities]
    if any(rule.kind != "window" for row in rules for rule in row):
        return torch.full((len(rules), len(rules[0])), 0.5), "share of the intensity window"
    unit = "HU" if set(modalities) == {"CT"} else "units of the volume"
    return torch.tensor([[(rule.high - rule.low) / 2 for rule in row] for row in rules]), unit


def _notes(cases: int, dataset: PreparedDataset, realism: Realism) -> list[str]:
    notes = []
    if dataset.plan.mode == "patch":
        notes.append("patches: one of each case, drawn by seed 0")
    if cases < FEW:
        notes.append(f"{cases} cases, fewer than {FEW}: all figures are rough")
    if realism.protocol is None:
        notes.append(
            "no Frechet distance: it needs 2 volumes and 2 others to compare them with, and sides "
            f"of {features.SMALLEST} voxels"
        )
    elif realism.protocol.reference != "train split":
        notes.append(f"Frechet distance against {realism.protocol.reference}, not against train")
    return notes
