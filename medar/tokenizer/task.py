"""`TokenizerTask`: what the training loop needs to train a tokenizer.

    volume -> Tokenizer -> volume, logits  against L1, spectrum, features, labels, discriminator

B batch, C channels, X Y Z voxels, K scales.
"""

import warnings
from collections.abc import Iterator
from itertools import islice
from math import nan
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import l1_loss

from medar.data.loading import Item, PreparedDataset, make_loader, set_epoch
from medar.losses import label_losses, to_classes
from medar.settings import to_dict
from medar.tokenizer.losses import (
    Discriminator,
    adaptive_weight,
    adversarial_loss,
    discriminator_loss,
    feature_matching,
    frequency_loss,
)
from medar.tokenizer.perceptual import PerceptualLoss
from medar.tokenizer.settings import AdversarialSettings, DataSettings, LossSettings
from medar.tokenizer.tokenizer import Reconstruction, Tokenizer
from medar.tokenizer.validation import CodeUsage, Validation
from medar.training.distributed import current_ranks
from medar.training.task import ParameterGroup, Task, decayed_apart, frozen_call

SETTLED = 0.25
"""Share of a run after which a scale that uses few codes is called collapsed."""
EVALUATION_BATCH = 4
"""Volumes that an evaluation takes at once."""

Terms = dict[str, tuple[float | Tensor, Tensor]]
"""Losses by name: weight and value."""


class TokenizerTask(Task[Item]):
    """Train a tokenizer on prepared volumes.

    Args:
        tokenizer: in training mode.
        train: the volumes to learn from.
        validation: the volumes that decide which weights are the best.
        losses: what to train against.
        data: how volumes are loaded.

    Raises:
        MedarError: processes cannot share the batch, the volumes are too small for the
            discriminator, or the perceptual weights cannot be read.
    """

    metric = "score"
    larger_is_better = True

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
            workers=data.workers,
            rank=ranks.rank,
            world=ranks.world_size,
        )
        self.discriminator: Discriminator | None = None
        if losses.adversarial:
            channels = tokenizer.config.network.channels
            self.discriminator = Discriminator(losses.adversarial.discriminator(channels))
            # It joins in late: what does not fit is said now.
            self.discriminator.check(tokenizer.config.size)
            self.discriminator.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self.perceptual = (
            PerceptualLoss(losses.perceptual_file)
            if losses.perceptual_weight and losses.perceptual_file
            else None
        )

    def batches(self, epoch: int, start: int) -> Iterator[Item]:
        """An epoch's batches from number `start` on."""
        set_epoch(self._loader, epoch)
        return islice(iter(self._loader), start, None)

    def loss(self, batch: Item, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum of all losses, and each of them without its weight."""
        volume = batch["image"].contiguous(memory_format=torch.channels_last_3d)
        start = self.model.config.quantiser.start_fraction
        self.model.quantiser.active = self.progress >= start
        made: Reconstruction = self.model(volume)
        terms = {
            "l1": (1.0, l1_loss(made.volume.float(), volume)),
            "quantiser": (1.0, made.quantisation.loss),
            **self._of_features(made, volume),
            **self._of_labels(made, batch),
        }
        if self.progress >= self.losses.texture_start_fraction:
            terms |= self._of_texture(made.volume, volume, terms["l1"][1])
        total = torch.stack([weight * value for weight, value in terms.values()]).sum()
        return total, {"loss": total, **{name: value for name, (_, value) in terms.items()}}

    def _of_features(self, made: Reconstruction, volume: Tensor) -> Terms:
        if self.perceptual is None:
            return {}
        distance = self.perceptual.to(volume.device)(made.volume, volume)
        return {"perceptual": (self.losses.perceptual_weight, distance)}

    def _of_texture(self, made: Tensor, volume: Tensor, l1: Tensor) -> Terms:
        terms: Terms = {}
        if self.losses.frequency_weight:
            terms["frequency"] = (self.losses.frequency_weight, frequency_loss(made, volume))
        settings = self.losses.adversarial
        if self.discriminator is not None and settings is not None:
            terms |= self._adversarial(self.discriminator, settings, made, volume, l1)
        return terms

    def _of_labels(self, made: Reconstruction, batch: Item) -> Terms:
        if made.logits is None:
            return {}
        classes = to_classes(batch["label"], self.values)
        losses = label_losses(made.logits, classes, batch["annotated"])
        weight = self.losses.label_weight
        return {
            "label_cross_entropy": (weight, losses.cross_entropy),
            "label_dice": (weight, losses.dice),
        }

    def _adversarial(
        self,
        discriminator: Discriminator,
        settings: AdversarialSettings,
        made: Tensor,
        volume: Tensor,
        l1: Tensor,
    ) -> Terms:
        """Both players' losses: each reaches its own parameters alone."""
        real = discriminator(volume)
        fake = discriminator(made.detach())
        judged = frozen_call(discriminator, made)
        scored = adversarial_loss(judged.scores)
        weight = torch.as_tensor(settings.weight, device=made.device)
        if settings.adaptive_weight:
            last = self.model.decoder.last_layer
            weight = weight * adaptive_weight(l1, scored, last)
        matched = feature_matching(real.features, judged.features)
        return {
            "adversarial": (weight, scored),
            "feature_matching": (settings.feature_matching_weight, matched),
            "discriminator": (1.0, discriminator_loss(real.scores, fake.scores)),
        }

    def evaluate(self) -> dict[str, float]:
        """How validation volumes come back, and which codes they took; see `Validation`.

        `score` decides what is the best: PSNR, less the spectral distance where there are losses
        for texture, which give a little PSNR away. It is NaN while quantisation has not begun. A
        collapsed scale is said in words.
        """
        quantised = self.model.quantiser.active
        schedule, size = self.model.config.schedule, self.model.codebook_size
        usage = CodeUsage(schedule, size) if quantised else None
        validation = Validation(usage)
        for volume in self._validation_volumes():
            validation.update(volume, self.model(volume))
        found = validation.result()
        if usage is not None and self._first and self.progress >= SETTLED:
            for sentence in usage.warnings(self.model.quantiser.codebook.collapse_advice):
                warnings.warn(sentence, stacklevel=2)
        textured = self.losses.adversarial is not None or self.losses.frequency_weight > 0
        blur = found["spectral_distance"] if textured else 0.0
        return {**found, "score": found["psnr"] - blur if quantised else nan}

    def _validation_volumes(self) -> Iterator[Tensor]:
        device = next(self.model.parameters()).device
        number = min(len(self.validation), self.data.validation)
        for start in range(0, number, EVALUATION_BATCH):
            chosen = range(start, min(start + EVALUATION_BATCH, number))
            volume = torch.stack([self.validation[place]["image"] for place in chosen])
            yield volume.to(device, memory_format=torch.channels_last_3d)

    def companions(self) -> dict[str, nn.Module]:
        """The discriminator, where there is one."""
        return {} if self.discriminator is None else {"discriminator": self.discriminator}

    def parameter_groups(self) -> dict[str, list[ParameterGroup]]:
        """One optimiser for the tokenizer, one for the discriminator."""
        groups = {"model": decayed_apart(self.model)}
        if self.discriminator is not None and self.losses.adversarial:
            factor = self.losses.adversarial.learning_rate_factor
            own = decayed_apart(self.discriminator)
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
        """The tokenizer's folder."""
        self.model.save_pretrained(folder)
