"""Training of a detail decoder: `train_detail`.

    volume x -> tokenizer -> D(z); residual = (x - D(z)) / expected size
    noise, residual, time -> DetailDecoder -> velocity     against noise - residual

With `model.correlation: auto` the noise has the residuals' correlation between neighbouring voxels,
measured before the run.

The tokenizer is frozen, so that tokens and generators stay valid. In the last part of the run the
decoder learns to draw in one step, from noise at time 1: of two draws for each volume, the energy
score (`medar.tokenizer.energy_score`) is minimised. From the beginning it does not find the
texture; from the flow's weights it does.

B batch, C channels, X Y Z voxels.
"""

from collections.abc import Iterator
from itertools import islice
from math import nan
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medar.data.loading import Item, PreparedDataset, loading_workers, make_loader, set_epoch
from medar.devices import device_of, memory_budget, without_tf32
from medar.errors import MedarError
from medar.progress import track
from medar.settings import SettingsSource, resolve_settings, to_dict
from medar.tokenizer.detail import SPREAD, DetailConfig, DetailDecoder
from medar.tokenizer.energy_score import WINDOWS, energy_score
from medar.tokenizer.noise import Correlation, correlated, measure_correlation
from medar.tokenizer.settings import DetailSettings
from medar.tokenizer.tokenizer import Tokenizer
from medar.training import Outcome, fit
from medar.training.distributed import current_ranks
from medar.training.folder import Resume
from medar.training.task import ParameterGroup, Task, weight_decay_groups
from medar.training.tracker import Tracker

CACHE_FRACTION = 0.25
"""Fraction of the free memory for the decoded training volumes; if they need more, they are decoded
at each step."""

LIMIT = 6.0
"""Residuals are clipped to this many standard deviations: a lesion that the tokens lost is not
texture."""

SCALE_WEIGHT = 0.1
"""Weight of the loss of the expected size."""

MEASURED_VOXELS = 4_000_000
"""After so many voxels of residuals, their correlation is measured well enough."""


def train_detail(
    settings: DetailSettings | SettingsSource,
    tokenizer: str | Path,
    data: str | Path,
    out: str | Path,
    tracker: Tracker | None = None,
    *,
    resume: Resume = "auto",
) -> Outcome:
    """Train a detail decoder; OUT/model is the tokenizer with it.

    Args:
        settings: of model and training, as an object, a mapping or the path of a YAML file.
        tokenizer: its folder, or that of its training run.
        data: a folder that `prepare` filled by the tokenizer's plan.
        out: the folder of the run, see `medar.training.folder`.
        tracker: receives settings and metrics.
        resume: see `medar.training.folder.Resume`.

    Raises:
        MedarError: the data were prepared by another plan than the tokenizer's, or see `fit`.
        KeyboardInterrupt: interrupted; the same call resumes from the checkpoint that was written.
    """
    settings = resolve_settings(DetailSettings, settings)
    task = make_task(settings, Tokenizer.from_pretrained(tokenizer, "cpu"), data)
    return fit(task, settings.training, out, tracker, resume=resume)


def make_task(settings: DetailSettings, tokenizer: Tokenizer, data: str | Path) -> "DetailTask":
    """The task of `train_detail`, its weights initialised from the seed of the settings.

    Raises:
        MedarError: see `train_detail`.
    """
    seed = settings.training.seed
    train = PreparedDataset(data, split="train", seed=seed, labels=False)
    validation = PreparedDataset(data, split="val", labels=False)
    plan = tokenizer.require_plan()
    if train.plan.digest != plan.digest:
        raise MedarError(
            f"{data}: prepared by another plan than the tokenizer's; prepare the data with the "
            "preprocess.json of the tokenizer's folder as --plan"
        )
    model_settings = settings.model
    correlation = model_settings.correlation
    if correlation == "auto":
        correlation = residual_correlation(tokenizer, train)
    config = DetailConfig.for_network(
        tokenizer.config.network,
        model_settings.widths,
        model_settings.steps if settings.one_step is None else 1,
        correlation,
        model_settings.prediction,
        model_settings.method if settings.one_step is None else "one_step",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = DetailDecoder(config)
    return DetailTask(model, tokenizer, train, validation, settings)


class DetailTask(Task[Item]):
    """Train a detail decoder for a tokenizer.

    Args:
        model: in training mode.
        tokenizer: whose decoded volumes get detail.
        train: training volumes.
        validation: validation volumes, which decide which weights are best.
        settings: of the run.

    Raises:
        MedarError: the batch size is not a multiple of the number of processes.
    """

    unit = "voxels"
    metric = "energy_score"

    def __init__(
        self,
        model: DetailDecoder,
        tokenizer: Tokenizer,
        train: PreparedDataset,
        validation: PreparedDataset,
        settings: DetailSettings,
    ) -> None:
        self.model: DetailDecoder = model.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self.tokenizer = tokenizer.eval().requires_grad_(False)
        self.train, self.validation, self.settings = train, validation, settings
        self.flips = [2 + "xyz".index(axis) for axis in settings.data.flips]
        ranks = current_ranks()
        self._loader = make_loader(
            train,
            batch_size=ranks.per_rank_batch_size(settings.data.batch_size),
            workers=loading_workers(settings.data.workers, settings.training.device),
            rank=ranks.rank,
            world=ranks.world_size,
        )
        self._decoded: Tensor | None = None
        self._room: bool | None = None

    def batches(self, epoch: int, start: int) -> Iterator[Item]:
        """The batches of an epoch, from batch `start` on."""
        set_epoch(self._loader, epoch)
        return islice(iter(self._loader), start, None)

    @property
    def in_one_step(self) -> bool:
        """Whether the last part of the run has begun."""
        one_step = self.settings.one_step
        return one_step is not None and self.progress >= one_step.start_fraction

    def amount(self, batch: Item) -> int:
        """Voxels of a batch, each once, whatever the channels."""
        return int(batch["image"][:, 0].numel())

    def loss(self, batch: Item, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum of the losses of draws and expected size, and each."""
        volume, decoded = self._flipped(batch["image"], self._decode(batch))
        predicted = self.model.log_size(decoded)
        difference = volume - decoded
        scale = (difference.abs() / predicted.exp() + predicted).mean()
        deviation, log_size = predicted.detach().exp() * SPREAD, predicted.detach()
        if self.in_one_step:
            first, second = (
                decoded + deviation * self.model.in_one_step(noise, decoded, log_size)
                for noise in (self._noise(volume), self._noise(volume))
            )
            terms = {"energy": energy_score(volume, first, second, _random_offset())}
        else:
            residual = (difference / deviation).clamp(-LIMIT, LIMIT)
            terms = {"flow": self._flow(residual, decoded, log_size)}
        total = sum(terms.values()) + SCALE_WEIGHT * scale
        return total, {"loss": total, **terms, "scale": scale}

    def _flow(self, residual: Tensor, decoded: Tensor, log_size: Tensor) -> Tensor:
        """The squared error of the velocity at random times."""
        noise = self._noise(residual)
        times = torch.sigmoid(torch.randn(len(residual), device=residual.device))
        t = times[:, None, None, None, None].to(residual.dtype)
        point = (1 - t) * residual + t * noise
        velocity: Tensor = self.model(point, decoded, log_size, times)
        return (velocity.float() - (noise - residual)).square().mean()

    def _noise(self, residual: Tensor) -> Tensor:
        return correlated(torch.randn_like(residual), self.model.config.correlation)

    def reconstruct(self, volume: Tensor) -> Tensor:
        """D(z) of volumes, (B, C, X, Y, Z) within [-1, 1]."""
        if device_of(self.tokenizer) != volume.device:
            self.tokenizer.to(volume.device)
        return through_tokens(self.tokenizer, volume)

    def evaluate(self) -> dict[str, float]:
        """How well draws agree with the validation volumes.

        `energy_score`: see `medar.tokenizer.energy_score`; smaller is better. NaN until the last
        part of the run has begun, if there is one.
        """
        device, scores, squares = device_of(self.model), [], []
        for index in range(min(len(self.validation), self.settings.data.validation)):
            item = self.validation[index]
            volume = item["image"][None].to(device)
            decoded = self.reconstruct(volume)
            first, second = (
                self.model.draw(decoded, [2 * index + draw]).float() for draw in (0, 1)
            )
            scores.append(energy_score(volume, first, second))
            squares.append((volume - first).square().mean())
        score, square = torch.stack(scores).mean(), torch.stack(squares).mean()
        waits = self.settings.one_step is not None and not self.in_one_step
        return {
            "energy_score": nan if waits else float(score),
            "draw_energy_score": float(score),
            "draw_psnr": float(10 * torch.log10(4 / square)),
        }

    def parameter_groups(self) -> dict[str, list[ParameterGroup]]:
        """One optimiser, for the model."""
        return {"model": weight_decay_groups(self.model)}

    def describe(self) -> dict[str, Any]:
        """The data, the tokenizer and the model."""
        values = to_dict(self.settings)
        return {
            "model": to_dict(self.model.config),
            "tokenizer": self.tokenizer.digest,
            "one_step": values["one_step"],
            "data": {
                "batch_size": self.settings.data.batch_size,
                "flips": values["data"]["flips"],
                "train": self.train.prepared.digest,
                "validation": self.validation.prepared.digest,
            },
        }

    def save_model(self, folder: Path) -> None:
        """Write the tokenizer's model folder, with the detail decoder inside."""
        self.tokenizer.with_detail(self.model).save_pretrained(folder)

    def _decode(self, batch: Item) -> Tensor:
        """D(z) of a batch, rounded to float16.

        All training volumes are decoded at the first step, if memory allows. In patch mode the
        volume of a case differs from epoch to epoch.
        """
        volume = batch["image"]
        if self._room is None:
            needed = len(self.train) * volume[0].numel() * 2
            self._room = needed <= memory_budget(volume.device, CACHE_FRACTION)
        if self.train.plan.mode == "patch" or not self._room:
            return self.reconstruct(volume).half().float()  # as the kept ones are
        if self._decoded is None:
            cases = track(range(len(self.train)), total=len(self.train), label="decode")
            shape = len(self.train), *volume.shape[1:]
            self._decoded = torch.empty(shape, dtype=torch.float16, device=volume.device)
            for index in cases:
                image = self.train[index]["image"][None].to(volume.device)
                self._decoded[index] = self.reconstruct(image)[0]
        return self._decoded[batch["index"]].float()

    def _flipped(self, volume: Tensor, decoded: Tensor) -> tuple[Tensor, Tensor]:
        """Both volumes, mirrored along each axis of `flips` or not, at random."""
        axes = [axis for axis in self.flips if float(torch.rand(())) < 0.5]
        return (volume.flip(axes), decoded.flip(axes)) if axes else (volume, decoded)


@torch.no_grad()
def through_tokens(tokenizer: Tokenizer, volume: Tensor) -> Tensor:
    """(B, C, X, Y, Z) encoded and decoded, in full precision, within [-1, 1]."""
    with without_tf32(), torch.autocast(volume.device.type, enabled=False):
        tokens = tokenizer.quantiser.encode(tokenizer.encoder(volume))
        decoded: Tensor = tokenizer.decoder(tokenizer.quantiser.decode(tokens)).volume
    return decoded.float().clamp(-1.0, 1.0)


def residual_correlation(tokenizer: Tokenizer, data: PreparedDataset) -> Correlation:
    """The correlation between neighbouring voxels of x - D(z), of the first volumes of `data`."""
    residuals, voxels = [], 0
    for index in range(len(data)):
        volume = data[index]["image"]
        residuals.append(volume - through_tokens(tokenizer, volume[None])[0])
        voxels += volume.numel()
        if voxels >= MEASURED_VOXELS:
            break
    return measure_correlation(residuals)


def _random_offset() -> list[int]:
    drawn: list[int] = torch.randint(max(WINDOWS), (3,)).tolist()
    return drawn
