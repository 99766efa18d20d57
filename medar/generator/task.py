"""`GeneratorTask`: what the training loop needs to train a model of tokens.

    tokens -> some replaced, targets computed anew -> model, under conditions with some left out
           -> cross-entropy of each token that is not given, scale by scale

B batch, L tokens over all scales, K scales, V codes.
"""

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from medar.data.loading import Item, make_loader, set_epoch
from medar.devices import device_of
from medar.generator.conditions import Condition, drop
from medar.generator.correction import corrupt
from medar.generator.data import GeneratorDataset, condition_of
from medar.generator.generator import Generator
from medar.generator.known import draw_known
from medar.generator.marginals import Marginals
from medar.generator.sampling import sample_and_decode
from medar.generator.settings import GeneratorSettings, SamplingSettings
from medar.settings import to_dict
from medar.tokenizer.schedule import ScaleSchedule
from medar.tokenizer.tokenizer import Tokenizer
from medar.training.distributed import current_ranks
from medar.training.task import Task

EVALUATION_BATCH = 16
"""Volumes that an evaluation takes at once, at most: no more than a training step does."""

Preview = Callable[[int, Tensor], None]
"""Shown (B, C, X, Y, Z) volumes that were sampled after so many steps."""


class GeneratorTask(Task[Item]):
    """Train a model on tokens.

    Args:
        model: in training mode.
        tokenizer: that made the tokens.
        train: the tokens to learn from.
        validation: the tokens that decide which weights are the best.
        settings: all of them.
        preview: shown samples at each evaluation.

    Raises:
        MedarError: processes cannot share the batch.
    """

    metric = "cross_entropy"

    def __init__(
        self,
        model: Generator,
        tokenizer: Tokenizer,
        train: GeneratorDataset,
        validation: GeneratorDataset,
        settings: GeneratorSettings,
        preview: Preview | None = None,
    ) -> None:
        self.model: Generator = model
        self.tokenizer = tokenizer.requires_grad_(False).eval()
        self.train, self.validation = train, validation
        self.settings, self.preview = settings, preview
        self.ranks = current_ranks()
        self.marginals = Marginals.of(train.tokens)
        self.weights = scale_weights(model.schedule, settings.objective.scale_weight_power)
        self._steps = 0
        share = self.ranks.per_rank_batch_size(settings.data.batch_size)
        self._at_once = min(share, EVALUATION_BATCH)
        self._loader = make_loader(
            train,
            batch_size=share,
            workers=settings.data.workers,
            rank=self.ranks.rank,
            world=self.ranks.world_size,
        )

    def batches(self, epoch: int, start: int) -> Iterator[Item]:
        """An epoch's batches from number `start` on."""
        set_epoch(self._loader, epoch)
        return islice(iter(self._loader), start, None)

    def loss(self, batch: Item, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy, the mean over scales by their weights, and that of each scale."""
        objective, share = self.settings.objective, self.settings.condition.drop_probability
        # From torch's own random state, which a resumed run gets back: each batch of each process
        # draws anew.
        random = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
        tokens = batch["tokens"]
        known = self._draw_known(len(tokens), random).to(tokens.device, non_blocking=True)
        seen, targets = corrupt(
            self.model.quantiser,
            tokens,
            objective.corrupted_token_fraction,
            random,
            items=objective.corrupted_item_fraction,
            known=known,
        )
        given = drop(self._condition(batch), share, random, maps=share)
        each = token_losses(self.model(seen, given, known), targets, objective.label_smoothing)
        by_scale = self._by_scale(each, known)
        self.weights = self.weights.to(by_scale.device)
        total = (by_scale * self.weights).sum()
        named = {f"scale_{k}": value for k, value in enumerate(by_scale.detach())}
        return total, {"loss": total, **named}

    def evaluate(self) -> dict[str, float]:
        """Cross-entropy and accuracy of the validation tokens, of all and scale by scale.

        Beside each cross-entropy stands that of the training tokens' frequencies, which know the
        scale and nothing else. The first process shows samples as well.
        """
        names, scales = ("cross_entropy", "accuracy", "marginal"), len(self.model.schedule)
        sums = {name: torch.zeros(scales) for name in names}
        number = min(len(self.validation), self.settings.data.validation)
        for places in self._in_parts(number):
            batch = self._validation_batch(places)
            for name, values in self._judged(batch).items():
                sums[name] += self._sums(values).cpu()
        if self.preview is not None and self.ranks.is_rank_zero and self.settings.data.previews:
            self.preview(self._steps, self._samples())
        tokens = number * torch.tensor(self.model.schedule.tokens)
        whole = {name: float(sums[name].sum() / tokens.sum()) for name in names}
        return whole | {
            f"{name}/scale_{k}": float(value)
            for name in names
            for k, value in enumerate(sums[name] / tokens)
        }

    def after_step(self, step: int) -> None:
        """Notes how many steps are done, for the samples."""
        self._steps = step

    def describe(self) -> dict[str, Any]:
        """Model, conditions, objective and tokens: what a resumed run must agree with."""
        about = self.train.tokens.about
        return {
            "model": to_dict(self.model.config),
            "parameters": sum(p.numel() for p in self.model.parameters() if p.requires_grad),
            "state": self.model.state_size,
            "drop_probability": self.settings.condition.drop_probability,
            "objective": to_dict(self.settings.objective),
            "data": {
                "batch_size": self.settings.data.batch_size,
                "tokenizer": about.tokenizer,
                "variants": about.variants,
                "train": self.train.tokens.digest,
                "validation": self.validation.tokens.digest,
            },
        }

    def save_model(self, folder: Path) -> None:
        """The model's folder, its tokenizer within."""
        self.model.save_pretrained(folder, self.train.tokens.tokenizer_folder)

    def _condition(self, batch: Item) -> Condition:
        return condition_of(batch, self.model.config.condition.map_channels)

    def _draw_known(self, batch: int, random: torch.Generator) -> Tensor:
        """(B, L): which tokens are known."""
        boxes, scales = (
            self.settings.objective.known_box_fraction,
            self.settings.objective.known_scale_fraction,
        )
        return draw_known(self.model.schedule, batch, boxes, scales, random)

    def _by_scale(self, each: Tensor, known: Tensor) -> Tensor:
        """(K,) the means of (B, L) over the tokens of each scale that are not given."""
        free = (~known).float()
        return self._sums(each * free) / self._sums(free).clamp(min=1)

    def _judged(self, batch: Item) -> dict[str, Tensor]:
        """What an evaluation takes the means of, (B, L) each."""
        tokens = batch["tokens"]
        logits = self.model(tokens, self._condition(batch))
        return {
            "cross_entropy": token_losses(logits, tokens),
            "accuracy": (logits.argmax(-1) == tokens).float(),
            "marginal": self.marginals.entropy(tokens.cpu()),
        }

    def _sums(self, values: Tensor) -> Tensor:
        """(B, L) summed over the batch and each scale's tokens, (K,)."""
        return torch.stack([one.sum() for one in self.model.schedule.split(values)])

    def _validation_batch(self, places: range) -> Item:
        """Some validation cases, on the model's device."""
        device = next(self.model.parameters()).device
        items = [self.validation[place] for place in places]
        return {name: torch.stack([i[name] for i in items]).to(device) for name in items[0]}

    def _samples(self) -> Tensor:
        """(N, C, X, Y, Z) under the conditions of the first validation cases, seeds from 0."""
        tokenizer, images = self.tokenizer.to(device_of(self.model)), []
        for seeds in self._in_parts(min(self.settings.data.previews, len(self.validation))):
            condition = self._condition(self._validation_batch(seeds))
            made = sample_and_decode(
                self.model, tokenizer, condition, seeds, SamplingSettings(), batch_size=len(seeds)
            )
            images += [torch.from_numpy(image) for _, image, _ in made]
        return torch.stack(images)

    def _in_parts(self, number: int) -> list[range]:
        """The first cases, as many at once as an evaluation takes."""
        cases, size = range(number), self._at_once
        return [cases[start : start + size] for start in range(0, number, size)]


def token_losses(logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of each token, (B, L), in nats, of (B, L, V) logits."""
    flat = logits.float().flatten(0, 1)
    each = cross_entropy(flat, targets.flatten(), reduction="none", label_smoothing=smoothing)
    return each.view_as(targets)


def scale_weights(schedule: ScaleSchedule, balance: float) -> Tensor:
    """(K,) weights of the scales' mean losses, which sum to 1: as T ** balance for T tokens."""
    weights = torch.tensor(schedule.tokens, dtype=torch.float32) ** balance
    return weights / weights.sum()
