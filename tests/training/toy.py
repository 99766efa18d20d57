"""A tiny regression task, and a command that trains it: `python toy.py OUT [name=value ...]`.

A script as well as a module, so that whole processes can be killed and torchrun can start it.
"""

import os
import signal
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from medar.training import Task, TrainingSettings, fit
from medar.training.distributed import current_ranks

ITEMS = 24


def items() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(ITEMS, 3, generator=generator)
    return x, (x.sin() + 0.3 * x.roll(1, 1)).sum(1, keepdim=True)


class Toy(Task[tuple[Tensor, Tensor]]):
    """An MLP with input noise from torch's random state."""

    metric = "error"
    unit = "numbers"

    def __init__(self, batch_size: int = 4, noise: float = 0.0) -> None:
        torch.manual_seed(3)
        self.model = nn.Sequential(nn.Linear(3, 8), nn.LayerNorm(8), nn.SiLU(), nn.Linear(8, 1))
        self.ranks = current_ranks()
        self.batch_size, self.noise = batch_size, noise
        self.after: list[int] = []

    def batches(self, epoch: int, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        torch.rand(epoch + start + 1)  # as a DataLoader does
        order = torch.randperm(ITEMS, generator=torch.Generator().manual_seed(epoch))
        x, y = items()
        size = self.ranks.per_rank_batch_size(self.batch_size)
        for batch in range(start, ITEMS // self.batch_size):
            first = batch * self.batch_size + self.ranks.rank * size
            chosen = order[first : first + size]
            yield x[chosen], y[chosen]

    def amount(self, batch: tuple[Tensor, Tensor]) -> int:
        return batch[0].numel()

    def loss(self, batch: tuple[Tensor, Tensor], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        x, y = batch
        x = x + self.noise * torch.randn_like(x)
        loss = nn.functional.mse_loss(self.model(x), y)
        return loss, {"root": loss.sqrt()}

    def evaluate(self) -> dict[str, float]:
        x, y = items()
        return {"error": float(nn.functional.mse_loss(self.model(x), y))}

    def shards(self) -> list[nn.Module]:
        return [self.model[0], self.model[3]]

    def after_step(self, step: int) -> None:
        self.after.append(step)

    def describe(self) -> dict[str, Any]:
        return {"batch_size": self.batch_size, "widths": (3, 8, 1)}


SETTINGS: dict[str, Any] = {
    "steps": 30, "learning_rate": 0.02, "ema_decay": 0.9, "precision": "fp32", "device": "cpu",
    "log_every": 4, "evaluate_every": 7, "save_every": 5,
}  # fmt: skip


def settings(**changed: Any) -> TrainingSettings:
    return TrainingSettings(**{**SETTINGS, **changed})


def main(out: str, *words: str) -> None:
    torch.set_num_threads(1)
    options = {name: float(value) for name, _, value in (word.partition("=") for word in words)}
    task = Toy(batch_size=int(options.pop("batch_size", 4)), noise=options.pop("noise", 0.0))
    shard = bool(options.pop("shard", 0))
    kill, end = options.pop("kill", None), options.pop("end", None)

    def send(step: int) -> None:
        if step == kill:
            os.kill(os.getpid(), signal.SIGKILL)
        if step == end and current_ranks().rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    task.after_step = send  # type: ignore[method-assign]
    try:
        numbers = {name: int(value) for name, value in options.items()}
        fit(task, settings(**numbers, shard=shard), out)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main(*sys.argv[1:])
