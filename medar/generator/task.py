"""`GeneratorTask`: the training of a generator, for the training loop.

    tokens -> corrupted, targets recomputed -> generator, some conditions dropped
           -> cross-entropy of each token that is not known, weighted by scale

B batch, L tokens over all scales, K scales, V codes.
"""

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medar.data.loading import Item, loading_workers, make_loader, set_epoch
from medar.devices import device_of, send
from medar.generator.conditions import Condition, drop
from medar.generator.crops import Crop, cropped_length, draw_crop
from medar.generator.data import GeneratorDataset, Marginals, condition_of
from medar.generator.generator import Generator
from medar.generator.known import draw_known
from medar.generator.objective import corrupt, scale_weights, token_losses
from medar.generator.refinement import chain_draws, draw_revealed
from medar.generator.sampling import sample_and_decode
from medar.generator.settings import GeneratorSettings, SamplingSettings
from medar.settings import to_dict
from medar.tokenizer.tokenizer import Tokenizer
from medar.training.distributed import current_ranks
from medar.training.sharding import is_sharded
from medar.training.task import Task

CHAIN_DRAWS = 4
"""Draws per validation case that estimate the cross-entropy of drawing tokens one by one."""

MAX_EVALUATION_BATCH = 16
"""Largest batch of an evaluation, which is never larger than a training batch."""

Preview = Callable[[int, Tensor], None]
"""Called with the number of steps and (B, C, X, Y, Z) volumes sampled after them."""


class GeneratorTask(Task[Item]):
    """Trains a generator on tokens.

    Args:
        model: in training mode.
        tokenizer: that made the tokens.
        train: the tokens to learn from.
        validation: the tokens that decide which weights are the best.
        settings: of the run.
        preview: called with samples at each evaluation.

    Raises:
        MedarError: the batch cannot be divided among the processes.
    """

    unit = "tokens"
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
        batch_size = self.ranks.per_rank_batch_size(settings.data.batch_size)
        self._evaluation_batch = min(batch_size, MAX_EVALUATION_BATCH)
        self._loader = make_loader(
            train,
            batch_size=batch_size,
            workers=loading_workers(settings.data.workers, settings.training.device),
            rank=self.ranks.rank,
            world=self.ranks.world_size,
        )

    def batches(self, epoch: int, start: int) -> Iterator[Item]:
        """An epoch's batches from number `start` on."""
        set_epoch(self._loader, epoch)
        return islice(iter(self._loader), start, None)

    def amount(self, batch: Item) -> int:
        """Tokens of a batch, those outside of crops not counted."""
        tokens, side = batch["tokens"], self.model.config.model.crop_side
        if side is None:
            return int(tokens.numel())
        return len(tokens) * cropped_length(self.model.schedule, side)

    def loss(self, batch: Item, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted mean cross-entropy over scales, and that of each scale."""
        objective = self.settings.objective
        drop_probability = self.settings.condition.drop_probability
        # Seeded from torch's own random state, which a resumed run gets back.
        random = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
        tokens = batch["tokens"]
        known = send(self._draw_known(len(tokens), random), tokens.device)
        seen, targets = corrupt(
            self.model.quantiser,
            tokens,
            objective.corrupted_token_fraction,
            random,
            items=objective.corrupted_item_fraction,
            known=known,
        )
        condition = drop(self._condition(batch), drop_probability, random, maps=drop_probability)
        crop = self._draw_crop(random, tokens.device)
        if crop is None:
            logits = self.model(seen, condition, known)
            losses = token_losses(logits, targets, objective.label_smoothing)
        else:
            logits = self.model(seen, condition, known, crop.indices)
            targets = targets.index_select(1, crop.indices)
            losses = token_losses(logits, targets, objective.label_smoothing)
            losses = crop.spread(losses, tokens.shape[1])
        by_scale = self._mean_by_scale(losses, ~known)
        self.weights = self.weights.to(by_scale.device)
        total = (by_scale * self.weights).sum()
        scales = {f"scale_{k}": value for k, value in enumerate(by_scale.detach())}
        return total, {"loss": total, **scales}

    def evaluate(self) -> dict[str, float]:
        """Cross-entropy and accuracy of the validation tokens, of all and scale by scale.

        "marginal" is the cross-entropy of the codes' frequencies in the training tokens. For models
        that refine, "independence" is what drawing all tokens of a scale at once loses, and "chain"
        the cross-entropy of drawing them one by one in random order (`chain_draws`). Rank 0 also
        passes samples to the preview.
        """
        schedule, refinement = self.model.schedule, self.model.config.refinement
        names = (
            "cross_entropy",
            "accuracy",
            "marginal",
            *(("independence",) if refinement else ()),
        )
        sums = {name: torch.zeros(len(schedule)) for name in names}
        count = min(len(self.validation), self.settings.data.validation)
        for cases in self._batches(count):
            batch = self._validation_batch(cases)
            tokens = batch["tokens"]
            condition = self._condition(batch)
            logits = self.model(tokens, condition)
            losses = token_losses(logits, tokens)
            values = {
                "cross_entropy": losses,
                "accuracy": (logits.argmax(-1) == tokens).float(),
                "marginal": self.marginals.entropy(tokens.cpu()),
            }
            if refinement:
                values["independence"] = self._independence(tokens, condition, losses, cases)
            for name in names:
                sums[name] += self._sum_by_scale(values[name]).cpu()
        drawn = self.settings.data.previews and not is_sharded(self.model)
        if self.preview is not None and self.ranks.is_rank_zero and drawn:
            self.preview(self._steps, self._samples())
        if refinement:
            sums["chain"] = sums["cross_entropy"] - sums["independence"]
        number = count * torch.tensor(schedule.tokens)
        means = {name: float(sums[name].sum() / number.sum()) for name in sums}
        return means | {
            f"{name}/scale_{k}": float(mean)
            for name in sums
            for k, mean in enumerate(sums[name] / number)
        }

    def shards(self) -> list[nn.Module]:
        """The blocks of the transformer."""
        return list(self.model.blocks)

    def after_step(self, step: int) -> None:
        """Remember the number of steps, for the preview."""
        self._steps = step

    def describe(self) -> dict[str, Any]:
        """Model, conditions, objective and tokens, which must not change on resumption."""
        index = self.train.tokens.about
        return {
            "model": self.model.config.function,
            "parameters": sum(p.numel() for p in self.model.parameters() if p.requires_grad),
            "state": self.model.state_size,
            "drop_probability": self.settings.condition.drop_probability,
            "objective": to_dict(self.settings.objective),
            "data": {
                "batch_size": self.settings.data.batch_size,
                "tokenizer": index.tokenizer,
                "variants": index.variants,
                "original_fraction": self.settings.data.original_fraction,
                "train": self.train.tokens.digest,
                "validation": self.validation.tokens.digest,
            },
        }

    def save_model(self, folder: Path) -> None:
        """Write the model folder, with the tokenizer in it."""
        self.model.save_pretrained(folder, self.train.tokens.tokenizer_folder)

    def _condition(self, batch: Item) -> Condition:
        return condition_of(batch, self.model.config.condition)

    def _draw_known(self, batch: int, random: torch.Generator) -> Tensor:
        """(B, L): which tokens are known: of boxes, of coarse scales, or revealed."""
        objective, schedule = self.settings.objective, self.model.schedule
        known = draw_known(
            schedule, batch, objective.known_box_fraction, objective.known_scale_fraction, random
        )
        if objective.refinement_fraction:
            fraction = objective.refinement_fraction
            known = known | draw_revealed(schedule, batch, fraction, random)
        return known

    def _draw_crop(self, random: torch.Generator, device: torch.device) -> Crop | None:
        """A crop for the whole batch, if the settings ask for crops."""
        sizes = self.model.config.model
        if sizes.crop_side is None:
            return None
        return draw_crop(self.model.schedule, sizes.crop_side, sizes.window_size, random).to(device)

    def _independence(
        self, tokens: Tensor, condition: Condition, losses: Tensor, cases: range
    ) -> Tensor:
        """(B, L), whose mean over a scale estimates what drawing its tokens at once loses.

        The losses with and without revealed tokens are compared at the same tokens: means over
        different ones would differ by more than what is measured.
        """
        total = torch.zeros_like(losses)
        for masks in chain_draws(self.model.schedule, cases, CHAIN_DRAWS):
            revealed, weights = (mask.to(tokens.device) for mask in masks)
            masked = token_losses(self.model(tokens, condition, revealed), tokens)
            total += weights * (losses - masked)
        return total / CHAIN_DRAWS

    def _mean_by_scale(self, values: Tensor, chosen: Tensor) -> Tensor:
        """(K,) means of (B, L) over the chosen tokens of each scale."""
        counts = self._sum_by_scale(chosen.float())
        return self._sum_by_scale(values * chosen) / counts.clamp(min=1)

    def _sum_by_scale(self, values: Tensor) -> Tensor:
        """(K,) sums of (B, L) over the batch and each scale's tokens."""
        return torch.stack([scale.sum() for scale in self.model.schedule.split(values)])

    def _validation_batch(self, cases: range) -> Item:
        """Some validation cases, on the model's device."""
        device, items = device_of(self.model), [self.validation[index] for index in cases]
        return {name: torch.stack([i[name] for i in items]).to(device) for name in items[0]}

    def _samples(self) -> Tensor:
        """(N, C, X, Y, Z) under the conditions of the first validation cases, seeds from 0."""
        tokenizer, images = self.tokenizer.to(device_of(self.model)), []
        for seeds in self._batches(min(self.settings.data.previews, len(self.validation))):
            condition = self._condition(self._validation_batch(seeds))
            samples = sample_and_decode(
                self.model, tokenizer, condition, seeds, SamplingSettings(), batch_size=len(seeds)
            )
            images += [torch.from_numpy(image) for _, image, _ in samples]
        return torch.stack(images)

    def _batches(self, count: int) -> list[range]:
        """The first `count` cases, in batches of an evaluation."""
        cases, size = range(count), self._evaluation_batch
        return [cases[start : start + size] for start in range(0, count, size)]
