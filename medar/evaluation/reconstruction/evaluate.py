"""`evaluate_tokenizer`: how well a tokenizer reconstructs volumes, by prefix of its scales.

Protocol `reconstruction-v2`. The cases of one split are encoded and decoded in fp32, without
augmentation; the prefix of k scales is decoded from the coarsest k scales only. Decoded volumes are
judged as a file would hold them (`medar.evaluation.written`). Fidelity (PSNR, SSIM, errors) is that
of a reconstruction and its own original, realism (`medar.evaluation.reconstruction.realism`) that
of the reconstructions as a set and other real volumes.

K scales, B batch, C channels, X Y Z voxels.
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
from medar.devices import device_of, without_tf32
from medar.errors import MedarError, check_positive
from medar.evaluation import grid, written
from medar.evaluation.distances import FEW, Interval, SetDistance
from medar.evaluation.extractors.handcrafted import SMALLEST, radiomics
from medar.evaluation.frechet import Contribution
from medar.evaluation.grid import GridArtifact, grid_artifact, grid_spectra
from medar.evaluation.reconstruction.cases import EvaluatedSplit, cases_of, check_fit
from medar.evaluation.reconstruction.realism import (
    FrechetProtocol,
    measure_realism,
    real_features,
)
from medar.evaluation.similarity import PROTOCOL, FidelityMeter
from medar.losses import to_classes
from medar.notebook import html_table
from medar.progress import track
from medar.segmentation.dice import DiceMeter
from medar.settings import to_dict
from medar.tokenizer.detail import Detail
from medar.tokenizer.spectrum import TINY, third_powers
from medar.tokenizer.tokenizer import Tokenizer
from medar.tokenizer.validation import CodeUsage
from medar.words import format_count

NAME = "reconstruction-v2"
"""Name and version of the protocol: raise the version whenever a value changes."""

Realism = tuple[SetDistance, FrechetProtocol]


@dataclass(frozen=True, kw_only=True)
class ReconstructionReport:
    """Result of `evaluate_tokenizer`. docs/reference/evaluation.md defines each value.

    Lists `..._per_scale` have one value per scale, coarse to fine. Those of fidelity are for the
    prefix that ends with the scale, and empty with `by_scale=False`.
    """

    cases: int
    split: EvaluatedSplit
    psnr: float
    ssim: float
    mae: float
    mae_unit: str
    high_frequency_error: float
    power_ratio: float
    power_ratio_thirds: list[float]
    """In the lowest, the middle and the highest third of the frequencies."""
    grid_artifact: float | None
    """For the period of the decoder's patches; None for sides that are too short."""
    grid_artifact_interval: Interval | None
    grid_artifacts: dict[str, GridArtifact]
    """By period in voxels."""
    frechet: float | None
    """None with fewer than two volumes on either side, or sides below 8 voxels."""
    frechet_floor: float | None
    frechet_interval: Interval | None
    frechet_samples: int | None
    """Volumes per set, behind the distance and its floor."""
    frechet_contributions: list[Contribution]
    """Of the features that contribute most to `frechet`."""
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
    """Scales whose codebook has collapsed."""
    notes: list[str]
    """What to know before the values are compared with others."""
    protocol: dict[str, Any]
    """How each value was computed."""

    def to_dict(self) -> dict[str, Any]:
        """The report as values that JSON holds."""
        return to_dict(self)

    def _repr_html_(self) -> str:
        """For notebooks: fidelity, realism and use of the codebook."""
        rows = [
            ("PSNR, dB", self.psnr),
            ("SSIM", self.ssim),
            (f"mean absolute error, {self.mae_unit}", self.mae),
            ("power ratio, thirds of frequencies", self.power_ratio_thirds),
            ("codes used, fraction", self.codebook_usage),
        ]
        if self.frechet is not None:
            real = "" if self.frechet_floor is None else f" (real: {self.frechet_floor:.4g})"
            rows.insert(3, (f"Frechet distance{real}", self.frechet))
        rows += [(f"Dice, {name}", dice) for name, dice in (self.dice or {}).items()]
        title = f"{format_count(self.cases, 'reconstruction')} ({self.split})"
        return html_table(title, rows, notes="; ".join([*self.warnings, *self.notes]))


def evaluate_tokenizer(
    tokenizer: Tokenizer,
    prepared: str | Path,
    split: EvaluatedSplit = "test",
    *,
    by_scale: bool = True,
    limit: int | None = None,
    batch_size: int = 4,
    frechet_samples: int | None = None,
    detail: Detail = "auto",
) -> ReconstructionReport:
    """Evaluate a tokenizer on prepared cases, on its own device.

    Args:
        tokenizer: as trained; its mode (training or evaluation) is restored.
        prepared: a folder that `prepare` filled, of the tokenizer's size.
        split: the cases to reconstruct; "held-out" is all but the train split.
        by_scale: also decode every prefix of scales.
        limit: maximum number of cases, evenly spaced over the split; default all.
        batch_size: volumes per batch.
        frechet_samples: largest number of volumes per set for the Frechet distance, the mean over
            random subsets, to compare it with a distance that has no more; default: all.
        detail: steps of the detail decoder, for realism: Frechet distance, power ratio of all
            scales, grid artifact. Fidelity is that of D(z), which is closer to the original. Case
            i has the detail of seed i.

    Raises:
        MedarError: the folder is not a prepared data set, not of the tokenizer's size or channels,
            has no case of the split, or another number of labels than the label head.
    """
    check_positive(limit=limit, batch_size=batch_size)
    if frechet_samples is not None and frechet_samples < 2:
        raise MedarError(f"frechet_samples must be at least 2, got {frechet_samples}")
    subset = cases_of(prepared, split, limit)
    dataset = subset.dataset
    assert isinstance(dataset, PreparedDataset)
    check_fit(tokenizer, dataset)
    loader = DataLoader(subset, batch_size=batch_size)
    training, steps = tokenizer.training, tokenizer.detail_steps(detail)
    tokenizer.eval()
    try:
        meter = _ReconstructionMeter(tokenizer, dataset, by_scale, steps)
        for batch in track(loader, total=len(loader), label="reconstruct", unit="batch"):
            meter.update(batch)
    finally:
        tokenizer.train(training)
    realism = None
    if meter.decoded:
        others = real_features(
            prepared, split, step=meter.step, batch_size=batch_size, device=meter.device
        )
        decoded, real = (torch.cat(one).numpy() for one in (meter.decoded, meter.real))
        realism = measure_realism(decoded, real, others, split, samples=frechet_samples)
    return meter.report(split, realism)


class _ReconstructionMeter:
    """Accumulates every value in one pass over the cases."""

    def __init__(
        self, tokenizer: Tokenizer, dataset: PreparedDataset, by_scale: bool, detail_steps: int
    ) -> None:
        schedule = tokenizer.config.schedule
        self.tokenizer = tokenizer
        self.dataset = dataset
        self.by_scale = by_scale
        self.detail_steps = detail_steps
        self.device = device_of(tokenizer)
        self.cases = 0
        self.meters = [FidelityMeter() for _ in range(len(schedule) if by_scale else 1)]
        self.usage = CodeUsage(schedule, tokenizer.codebook_size)
        self.energy = torch.zeros(len(schedule) + 1, dtype=torch.float64)
        names = list(dataset.plan.labels.values())
        self.dice = DiceMeter(names) if tokenizer.config.network.labels else None
        self.units, self.unit = written.error_units(dataset)
        self.step = written.file_step(dataset)
        self.grids = [grid_spectra(dataset.plan.size) for _ in ("decoded", "real")]
        self.powers: list[Tensor] = []
        self.decoded: list[Tensor] = []
        self.real: list[Tensor] = []

    @torch.no_grad()
    def update(self, batch: Item) -> None:
        """Add a batch of the loader."""
        volumes = batch["image"].to(self.device)
        with without_tf32():
            latent = self.tokenizer.encoder(volumes).float()
            indices = self.tokenizer.quantiser.encode(latent)
        sums = list(accumulate(self.tokenizer.quantiser.contributions(indices)))
        residuals = [latent, *(latent - one for one in sums)]
        self.energy += torch.stack([one.double().square().sum() for one in residuals]).cpu()
        self.usage.update(indices)
        units = self.units[batch["index"]]
        for meter, total in zip(self.meters, sums if self.by_scale else sums[-1:], strict=True):
            decoded = self.tokenizer.decoder(total)
            volume = written.as_written(decoded.volume.float(), self.step)
            meter.update(volumes, volume, units)
        if self.dice is not None:
            classes = to_classes(batch["label"], list(self.dataset.plan.labels)).to(self.device)
            self.dice.update(decoded.logits, classes, batch["annotated"])
        if self.detail_steps:
            drawn = self.tokenizer.add_detail(
                decoded.volume.float(), batch["index"].tolist(), self.detail_steps
            )
            volume = written.as_written(drawn, self.step)
        real = written.as_written(volumes, self.step)
        self.powers.append(torch.stack([third_powers(volume), third_powers(real)], dim=1).cpu())
        for spectra, one in zip(self.grids, (volume, real), strict=True):
            for spectrum in spectra.values():
                spectrum.update(one)
        if min(self.dataset.plan.size) >= SMALLEST:
            self.real.append(radiomics(real))
            self.decoded.append(radiomics(volume))
        self.cases += len(volumes)

    def report(self, split: EvaluatedSplit, realism: Realism | None) -> ReconstructionReport:
        """The result over all batches."""
        schedule, plan = self.tokenizer.config.schedule, self.dataset.plan
        every = [meter.result() for meter in self.meters]
        prefixes = every if self.by_scale else []
        bits = schedule.length * log2(self.tokenizer.codebook_size) / prod(plan.size)
        distance, protocol = realism or (None, None)
        powers, real_powers = torch.cat(self.powers).double().mean(dim=0)
        ratios = (powers / real_powers.clamp(min=TINY)).tolist()
        made, own = self.grids
        grids = {str(p): grid_artifact(made[p], own[p], paired=True) for p in made}
        patch = grids.get(str(max(2, self.tokenizer.config.network.patch_size)))
        energy = (self.energy / self.energy[0].clamp(min=1e-30)).tolist()
        return ReconstructionReport(
            cases=self.cases,
            split=split,
            **{**to_dict(every[-1]), "power_ratio": ratios[-1], "power_ratio_thirds": ratios},
            mae_unit=self.unit,
            grid_artifact=patch.value if patch else None,
            grid_artifact_interval=patch.interval if patch else None,
            grid_artifacts=grids,
            frechet=distance.frechet if distance else None,
            frechet_floor=distance.frechet_floor if distance else None,
            frechet_interval=distance.frechet_interval if distance else None,
            frechet_samples=distance.frechet_samples if distance else None,
            frechet_contributions=distance.contributions if distance else [],
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
            notes=_notes(self.cases, self.dataset, protocol),
            protocol={
                "name": NAME,
                "tokenizer": self.tokenizer.digest,
                "detail_steps": self.detail_steps,
                "plan": plan.digest,
                "volumes": written.PROTOCOL,
                **PROTOCOL,
                "grid_artifact": grid.PROTOCOL,
                "frechet": to_dict(protocol) if protocol else None,
            },
        )


def _notes(cases: int, dataset: PreparedDataset, protocol: FrechetProtocol | None) -> list[str]:
    notes = []
    if dataset.plan.mode == "patch":
        notes.append("patches: one of each case, drawn by seed 0")
    if cases < FEW:
        number = format_count(cases, "case")
        notes.append(f"{number}, fewer than {FEW}: all values are rough estimates")
    if protocol is None:
        notes.append(
            "no Frechet distance: it needs 2 volumes and 2 others to compare them with, and sides "
            f"of {SMALLEST} voxels"
        )
    elif protocol.reference != "train split":
        notes.append(f"Frechet distance against {protocol.reference}, not against train")
    return notes
