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
from medar.generator.conditions import Condition, drop
from medar.generator.correction import corrupt
from medar.generator.data import GeneratorDataset, condition_of
from medar.generator.folder import save_model
from medar.generator.known import draw_known
from medar.generator.marginals import Marginals
from medar.generator.model import TokenModel
from medar.generator.sampling import SamplingSettings, sample
from medar.generator.settings import GeneratorSettings
from medar.settings import to_dict
from medar.tokenizer.pyramid import TokenPyramid
from medar.tokenizer.schedule import ScaleSchedule
from medar.tokenizer.tokenizer import Tokenizer
from medar.training.distributed import ranks
from medar.training.task import Task

EVALUATION_BATCH = 16
"""Volumes that an evaluation takes at once."""

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
        model: TokenModel,
        tokenizer: Tokenizer,
        train: GeneratorDataset,
        validation: GeneratorDataset,
        settings: GeneratorSettings,
        preview: Preview | None = None,
    ) -> None:
        self.model: TokenModel = model
        self.tokenizer = tokenizer.requires_grad_(False).eval()
        self.train, self.validation, self.settings, self.preview = (
            train, validation, settings, preview
        )  # fmt: skip
        self.place = ranks()
        self.marginals = Marginals.of(train.tokens, model.codes)
        self.weights = scale_weights(model.schedule, settings.objective.balance)
        self._steps = 0
        self._loader = make_loader(
            train,
            batch_size=self.place.share(settings.data.batch_size),
            workers=settings.data.workers,
            rank=self.place.rank,
            world=self.place.world,
        )

    def batches(self, epoch: int, start: int) -> Iterator[Item]:
        """An epoch's batches from number `start` on."""
        set_epoch(self._loader, epoch)
        return islice(iter(self._loader), start, None)

    def loss(self, batch: Item, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy, the mean over scales by their weights, and that of each scale."""
        objective, condition = self.settings.objective, self.settings.condition
        random = torch.Generator().manual_seed(self._seed(step))
        tokens, schedule = batch["tokens"], self.model.schedule
        known = draw_known(
            schedule, len(tokens), objective.known_boxes, objective.known_scales, random
        ).to(tokens.device)
        seen, targets = tokens, tokens
        if objective.correction:
            seen, targets = corrupt(
                self.model.quantiser,
                tokens,
                objective.correction,
                random,
                items=objective.correction_items,
                known=known,
            )
        given = drop(self._condition(batch), condition.drop, random, maps=condition.drop)
        logits = self.model(seen, given, known)
        by_scale = self._by_scale(logits, targets, known, objective.smoothing)
        total = (by_scale * self.weights.to(by_scale.device)).sum()
        named = {f"scale_{k}": value for k, value in enumerate(by_scale.detach())}
        return total, {"loss": total, **named}

    def evaluate(self) -> dict[str, float]:
        """Cross-entropy and accuracy of the validation tokens, of all and scale by scale.

        Beside each cross-entropy stands that of the training tokens' frequencies, which know the
        scale and nothing else. The first process shows samples as well.
        """
        entropy = torch.zeros(len(self.model.schedule))
        right, base = torch.zeros_like(entropy), torch.zeros_like(entropy)
        count = 0
        for batch in self._validation_batches():
            tokens = batch["tokens"]
            logits = self.model(tokens, self._condition(batch)).float()
            each = cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="none")
            entropy += self._sums(each.view_as(tokens))
            right += self._sums((logits.argmax(-1) == tokens).float())
            base += self._sums(self.marginals.entropy(tokens.cpu()))
            count += len(tokens)
        if self.preview is not None and self.place.first and self.settings.data.previews:
            self.preview(self._steps, self._samples())
        per_token = torch.tensor(self.model.schedule.tokens) * count
        found = {"cross_entropy": entropy, "accuracy": right, "marginal": base}
        whole = {name: float(sums.sum() / per_token.sum()) for name, sums in found.items()}
        return whole | {
            f"{name}/scale_{k}": float(value)
            for name, sums in found.items()
            for k, value in enumerate(sums / per_token)
        }

    def after_step(self, step: int) -> None:
        """Notes how many steps are done, for the samples."""
        self._steps = step

    def describe(self) -> dict[str, Any]:
        """Model, conditions, objective and tokens: what a resumed run must agree with."""
        settings = to_dict(self.settings)
        about = self.train.tokens.about
        return {
            "kind": "generator",
            "parameters": sum(p.numel() for p in self.model.parameters() if p.requires_grad),
            "state": self.model.state_size,
            **{name: settings[name] for name in ("model", "condition", "objective")},
            "data": {
                "batch_size": self.settings.data.batch_size,
                "tokenizer": about.tokenizer,
                "variants": about.variants,
                "cases": len(self.train),
            },
        }

    def save_model(self, folder: Path) -> None:
        """The model's folder, its tokenizer within."""
        save_model(folder, self.model, self.train.tokens.tokenizer_folder)

    def _condition(self, batch: Item) -> Condition:
        return condition_of(batch, self.model.config.condition.map_channels)

    def _by_scale(self, logits: Tensor, targets: Tensor, known: Tensor, smoothing: float) -> Tensor:
        """(K,) cross-entropy over the tokens of each scale that are not given."""
        each = cross_entropy(
            logits.float().flatten(0, 1),
            targets.flatten(),
            reduction="none",
            label_smoothing=smoothing,
        ).view_as(targets)
        free = (~known).float()
        split = self.model.schedule.split
        pairs = zip(split(each * free), split(free), strict=True)
        return torch.stack([lost.sum() / left.sum().clamp(min=1) for lost, left in pairs])

    def _sums(self, values: Tensor) -> Tensor:
        """(B, L) summed over the batch and each scale's tokens, (K,)."""
        return torch.stack([one.sum() for one in self.model.schedule.split(values)]).cpu()

    def _validation_batches(self) -> Iterator[Item]:
        device = next(self.model.parameters()).device
        number = min(len(self.validation), self.settings.data.validation)
        for start in range(0, number, EVALUATION_BATCH):
            chosen = range(start, min(start + EVALUATION_BATCH, number))
            items = [self.validation[place] for place in chosen]
            yield {name: torch.stack([i[name] for i in items]).to(device) for name in items[0]}

    def _samples(self) -> Tensor:
        """Volumes with the conditions of the first validation cases, each of its own seed."""
        batch = next(self._validation_batches())
        wanted = self.settings.data.previews
        condition = self._condition(batch)[:wanted]
        number = len(condition)
        tokens = sample(self.model, condition, range(number), SamplingSettings())
        device = next(self.model.parameters()).device
        self.tokenizer.to(device)
        pyramid = TokenPyramid.from_flat(tokens, self.model.schedule, self.model.codes)
        return self.tokenizer.decode(pyramid).volume.float().cpu()

    def _seed(self, step: int) -> int:
        """One for each step and process: a resumed run draws what it would have drawn."""
        return (self.settings.training.seed * 1_000_003 + step) * 4096 + self.place.rank


def scale_weights(schedule: ScaleSchedule, balance: float) -> Tensor:
    """(K,) weights of the scales' mean losses, which sum to 1: T ** balance for T tokens."""
    weights = torch.tensor(schedule.tokens, dtype=torch.float32) ** balance
    return weights / weights.sum()
