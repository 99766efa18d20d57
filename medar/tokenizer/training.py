"""Training of a tokenizer: losses, validation, optimisers, and `train_tokenizer`.

    volume -> Tokenizer -> volume, logits  against L1, spectrum, features, labels, discriminator

B batch, C channels, X Y Z voxels, K scales.
"""

import warnings
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from math import nan
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import l1_loss

from medar.data.loading import Item, PreparedDataset, loading_workers, make_loader, set_epoch
from medar.data.resolve import plan_for_training
from medar.devices import device_of
from medar.losses import label_losses, to_classes
from medar.settings import SettingsSource, resolve_settings, to_dict
from medar.tokenizer.losses import (
    Discriminator,
    adaptive_weight,
    adversarial_loss,
    discriminator_loss,
    feature_matching,
    frequency_loss,
)
from medar.tokenizer.perceptual import PerceptualLoss
from medar.tokenizer.settings import (
    AdversarialSettings,
    DataSettings,
    LossSettings,
    TokenizerSettings,
)
from medar.tokenizer.tokenizer import Reconstruction, Tokenizer
from medar.tokenizer.validation import CodeUsage, Validation
from medar.training import Outcome, fit
from medar.training.distributed import current_ranks
from medar.training.folder import Resume
from medar.training.task import ParameterGroup, Task, frozen_call, weight_decay_groups
from medar.training.tracker import Tracker

SETTLED = 0.25
"""Fraction of a run after which a scale that uses few codes counts as collapsed."""

EVALUATION_BATCH = 4
"""Volumes per batch of an evaluation."""

Terms = dict[str, tuple[float | Tensor, Tensor]]
"""Losses by name: weight and value."""


def train_tokenizer(
    settings: TokenizerSettings | SettingsSource,
    data: str | Path,
    out: str | Path,
    tracker: Tracker | None = None,
    *,
    resume: Resume = "auto",
) -> Outcome:
    """Train a tokenizer on a prepared data set; `Tokenizer.from_pretrained(out)` loads it.

    Args:
        settings: the model, its losses and the training, as an object, a mapping or the path of a
            YAML file.
        data: a folder that `prepare` filled, with cases in "train" and "val".
        out: the folder of the run, see `medar.training.folder`.
        tracker: receives settings and metrics, such as `medar.tracking.MlflowTracker`.
        resume: see `medar.training.folder.Resume`.

    Raises:
        MedarError: the plan of the data is not that of the settings, or see `fit`.
        KeyboardInterrupt: interrupted; the same call resumes from the checkpoint that was written.
    """
    settings = resolve_settings(TokenizerSettings, settings)
    return fit(make_task(settings, data), settings.training, out, tracker, resume=resume)


def make_task(settings: TokenizerSettings, data: str | Path) -> "TokenizerTask":
    """The task of `train_tokenizer`, its weights initialised from the seed of the settings.

    Raises:
        MedarError: see `train_tokenizer`.
    """
    seed = settings.training.seed
    train = PreparedDataset(data, split="train", augmentation=settings.data.augmentation, seed=seed)
    validation = PreparedDataset(data, split="val")
    plan = plan_for_training(train.plan, settings.plan, data)
    loading = replace(
        settings.data, workers=loading_workers(settings.data.workers, settings.training.device)
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = Tokenizer(settings.model.config(plan), plan)
        return TokenizerTask(tokenizer, train, validation, settings.loss, loading)


class TokenizerTask(Task[Item]):
    """Train a tokenizer on prepared volumes.

    Args:
        tokenizer: in training mode.
        train: training volumes.
        validation: validation volumes, which decide which weights are best.
        losses: weights of the losses.
        data: how volumes are loaded.

    Raises:
        MedarError: the batch size is not a multiple of the number of processes, the volumes are too
            small for the discriminator, or the perceptual weights cannot be read.
    """

    unit = "voxels"
    metric = "score"
    larger_is_better = True
    unused_parameters = True  # quantiser and discriminator start late

    def __init__(
        self,
        tokenizer: Tokenizer,
        train: PreparedDataset,
        validation: PreparedDataset,
        losses: LossSettings,
        data: DataSettings,
    ) -> None:
        self.model: Tokenizer = tokenizer.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self.train, self.validation, self.losses, self.data = train, validation, losses, data
        self.values = list(train.plan.labels)
        ranks = current_ranks()
        self._first = ranks.is_rank_zero
        self._loader = make_loader(
            train,
            batch_size=ranks.per_rank_batch_size(data.batch_size),
            workers=data.workers or 0,
            rank=ranks.rank,
            world=ranks.world_size,
        )
        self.discriminator: Discriminator | None = None
        if losses.adversarial:
            channels = tokenizer.config.network.channels
            self.discriminator = Discriminator(losses.adversarial.discriminator(channels))
            # It starts late; volumes that are too small are refused now.
            self.discriminator.check(tokenizer.config.size)
            self.discriminator.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self.perceptual = (
            PerceptualLoss(losses.perceptual_file)
            if losses.perceptual_weight and losses.perceptual_file
            else None
        )

    def batches(self, epoch: int, start: int) -> Iterator[Item]:
        """The batches of an epoch, from batch `start` on."""
        set_epoch(self._loader, epoch)
        return islice(iter(self._loader), start, None)

    def amount(self, batch: Item) -> int:
        """Voxels of a batch, each once, whatever the channels."""
        return int(batch["image"][:, 0].numel())

    def loss(self, batch: Item, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum of all losses, and each loss without its weight."""
        volume = batch["image"].contiguous(memory_format=torch.channels_last_3d)
        start = self.model.config.quantiser.start_fraction
        self.model.quantiser.active = self.progress >= start
        reconstruction: Reconstruction = self.model(volume)
        terms = {
            "l1": (1.0, l1_loss(reconstruction.volume.float(), volume)),
            "quantiser": (1.0, reconstruction.quantisation.loss),
            **self._perceptual_terms(reconstruction.volume, volume),
            **self._label_terms(reconstruction.logits, batch),
        }
        if self.progress >= self.losses.texture_start_fraction:
            terms |= self._texture_terms(reconstruction.volume, volume, terms["l1"][1])
        total = torch.stack([weight * value for weight, value in terms.values()]).sum()
        return total, {"loss": total, **{name: value for name, (_, value) in terms.items()}}

    def _perceptual_terms(self, decoded: Tensor, volume: Tensor) -> Terms:
        if self.perceptual is None:
            return {}
        distance = self.perceptual.to(volume.device)(decoded, volume)
        return {"perceptual": (self.losses.perceptual_weight, distance)}

    def _texture_terms(self, decoded: Tensor, volume: Tensor, l1: Tensor) -> Terms:
        terms: Terms = {}
        if self.losses.frequency_weight:
            terms["frequency"] = (self.losses.frequency_weight, frequency_loss(decoded, volume))
        settings = self.losses.adversarial
        if self.discriminator is not None and settings is not None:
            terms |= self._adversarial_terms(self.discriminator, settings, decoded, volume, l1)
        return terms

    def _label_terms(self, logits: Tensor | None, batch: Item) -> Terms:
        if logits is None:
            return {}
        classes = to_classes(batch["label"], self.values)
        losses = label_losses(logits, classes, batch["annotated"])
        weight = self.losses.label_weight
        return {
            "label_cross_entropy": (weight, losses.cross_entropy),
            "label_dice": (weight, losses.dice),
        }

    def _adversarial_terms(
        self,
        discriminator: Discriminator,
        settings: AdversarialSettings,
        decoded: Tensor,
        volume: Tensor,
        l1: Tensor,
    ) -> Terms:
        """The losses of generator and discriminator; each reaches its own parameters alone."""
        real = discriminator(volume)
        fake = discriminator(decoded.detach())
        fooled = frozen_call(discriminator, decoded)
        adversarial = adversarial_loss(fooled.scores)
        weight: float | Tensor = settings.weight
        if settings.adaptive_weight:
            last = self.model.decoder.last_layer
            weight = weight * adaptive_weight(l1, adversarial, last)
        matched = feature_matching(real.features, fooled.features)
        return {
            "adversarial": (weight, adversarial),
            "feature_matching": (settings.feature_matching_weight, matched),
            "discriminator": (1.0, discriminator_loss(real.scores, fake.scores)),
        }

    def evaluate(self) -> dict[str, float]:
        """Reconstruction quality and codebook usage on the validation volumes; see `Validation`.

        `score` decides which weights are best: PSNR, minus the spectral distance if there are
        losses for texture, which cost a little PSNR. It is NaN until quantisation starts. Scales
        that have collapsed give a warning.
        """
        quantised = self.model.quantiser.active
        schedule, size = self.model.config.schedule, self.model.codebook_size
        usage = CodeUsage(schedule, size) if quantised else None
        validation = Validation(usage)
        for volume in self._validation_volumes():
            validation.update(volume, self.model(volume))
        metrics = validation.result()
        if usage is not None and self._first and self.progress >= SETTLED:
            for sentence in usage.warnings(self.model.quantiser.codebook.collapse_advice):
                warnings.warn(sentence, stacklevel=2)
        textured = self.losses.adversarial is not None or self.losses.frequency_weight > 0
        blur = metrics["spectral_distance"] if textured else 0.0
        return {**metrics, "score": metrics["psnr"] - blur if quantised else nan}

    def _validation_volumes(self) -> Iterator[Tensor]:
        device = device_of(self.model)
        number = min(len(self.validation), self.data.validation)
        for start in range(0, number, EVALUATION_BATCH):
            indices = range(start, min(start + EVALUATION_BATCH, number))
            volume = torch.stack([self.validation[index]["image"] for index in indices])
            yield volume.to(device, memory_format=torch.channels_last_3d)

    def companions(self) -> dict[str, nn.Module]:
        """The discriminator, if there is one."""
        return {} if self.discriminator is None else {"discriminator": self.discriminator}

    def compile(self, **options: Any) -> None:
        """Compile encoder and decoder; what is between them starts late and reads its own state."""
        self.model.encoder.compile(**options)
        self.model.decoder.compile(**options)

    def parameter_groups(self) -> dict[str, list[ParameterGroup]]:
        """One optimiser for the tokenizer, one for the discriminator."""
        groups = {"model": weight_decay_groups(self.model)}
        if self.discriminator is not None and self.losses.adversarial:
            factor = self.losses.adversarial.learning_rate_factor
            own = weight_decay_groups(self.discriminator)
            groups["discriminator"] = [{**group, "factor": factor} for group in own]
        return groups

    def describe(self) -> dict[str, Any]:
        """The data, the model and the losses."""
        return {
            "model": to_dict(self.model.config),
            "loss": to_dict(self.losses),
            "data": {
                "batch_size": self.data.batch_size,
                "augmentation": to_dict(self.data)["augmentation"],
                "plan": self.train.plan.digest,
                "train": self.train.prepared.digest,
                "validation": self.validation.prepared.digest,
            },
        }

    def save_model(self, folder: Path) -> None:
        """Write the tokenizer's model folder."""
        self.model.save_pretrained(folder)
