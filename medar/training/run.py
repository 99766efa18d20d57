"""A run in progress: its few numbers, its networks and optimisers, and how they are kept."""

import contextlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch

from medar.errors import MedarError, one_line
from medar.training.averaging import Average
from medar.training.distributed import Ranks, all_gather_object
from medar.training.folder import RunConfig, RunFolder
from medar.training.meter import Meter
from medar.training.optimisers import Optimisers
from medar.training.randomness import random_state, restore_random_state
from medar.training.schedule import progress
from medar.training.settings import TrainingSettings
from medar.training.task import Task, to_device

_END = object()


@dataclass
class State:
    """Where a run is."""

    step: int = 0
    """Optimiser steps done."""
    epoch: int = 0
    batch: int = 0
    """Batches of this epoch that were used."""
    elapsed: float = 0.0
    """Seconds spent, over all resumptions."""
    best: float | None = None
    """The best value of the task's metric."""
    best_step: int | None = None


class Run:
    """Everything that changes in training, and its way into a checkpoint and back.

    Args:
        task: what is trained; its networks are on `device` already.
        config: the settings, kept in checkpoints for comparison.
        folder: where checkpoints and model go.
        ranks: this process.
        device: where batches go.
    """

    def __init__(
        self,
        task: Task[Any],
        config: RunConfig,
        folder: RunFolder,
        ranks: Ranks,
        device: torch.device,
    ) -> None:
        self.task, self.config, self.folder = task, config, folder
        self.ranks, self.device = ranks, device
        self.state = State()
        self.meter = Meter()
        self.optimisers = Optimisers(task.parameter_groups(), self.settings)
        decay = self.settings.ema_decay
        self.average = Average(task.model, decay) if decay else None

    @property
    def settings(self) -> TrainingSettings:
        """The settings of the run."""
        return self.config.training

    @property
    def progress(self) -> float:
        """Fraction of the run that is over."""
        return progress(self.settings, self.state.step, self.state.elapsed)

    @property
    def finished(self) -> bool:
        """Whether the steps or the minutes are used up."""
        return self.progress >= 1

    def batches(self) -> Iterator[Any]:
        """Batches without end, from where the run is; epoch and batch are kept up to date.

        Loading leaves torch's random state as it was: a resumed run, which opens its epoch anew,
        would otherwise go on with another one.
        """
        state = self.state
        while True:
            batches = None
            while True:
                with torch.random.fork_rng(devices=[]):
                    batches = batches or iter(self.task.batches(state.epoch, state.batch))
                    batch = next(batches, _END)
                if batch is _END:
                    break
                state.batch += 1
                yield to_device(batch, self.device)
            if state.batch == 0:
                raise MedarError(
                    f"epoch {state.epoch} has no batch; a smaller batch size or more cases are "
                    "needed"
                )
            state.epoch, state.batch = state.epoch + 1, 0

    @contextlib.contextmanager
    def for_evaluation(self) -> Iterator[None]:
        """The model has averaged weights and evaluation mode inside the block."""
        modes = {module: module.training for module in self.task.model.modules()}
        self.task.model.eval()
        try:
            with torch.no_grad(), self.average.applied() if self.average else _nothing():
                yield
        finally:
            for module, training in modes.items():
                module.training = training

    def update_best(self, results: dict[str, float]) -> bool:
        """Whether an evaluation is the best so far, which is then noted.

        Raises:
            MedarError: the metric that decides is not among the results.
        """
        name, state = self.task.metric, self.state
        if name not in results:
            raise MedarError(
                f"the evaluation gives no {name!r}, which decides what is best; it gives: "
                f"{', '.join(results)}"
            )
        value = results[name]
        sign = 1 if self.task.larger_is_better else -1
        if value != value or (state.best is not None and sign * value <= sign * state.best):
            return False
        state.best, state.best_step = value, state.step
        return True

    def save(self, *, best: bool) -> None:
        """Write a checkpoint, in process 0; if it is the best one, the model before it."""
        own = {"random": random_state(self.device), "meter": self.meter.state_dict()}
        processes = all_gather_object(own)
        if not self.ranks.is_rank_zero:
            return
        if best:
            with self.for_evaluation():
                self.folder.write_model(self.task.save_model)
        content = {
            "config": self.config.resume_key(),
            "state": asdict(self.state),
            "model": self.task.model.state_dict(),
            "companions": {n: m.state_dict() for n, m in self.task.companions().items()},
            "optimisers": self.optimisers.state_dict(),
            "average": self.average.state_dict() if self.average else None,
            "task": self.task.state_dict(),
            "processes": processes,
        }
        self.folder.checkpoints.save(self.state.step, content, best=best)

    def load(self, content: dict[str, Any]) -> None:
        """Go on from a checkpoint.

        Raises:
            MedarError: it is of other networks.
        """
        self.state = State(**content["state"])
        try:
            self.task.model.load_state_dict(content["model"])
            for name, companion in self.task.companions().items():
                companion.load_state_dict(content["companions"][name])
            self.optimisers.load_state_dict(content["optimisers"])
            if self.average:
                self.average = Average(self.task.model, self.settings.ema_decay)
                self.average.load_state_dict(content["average"] or self.average.state_dict())
        except (RuntimeError, ValueError, KeyError) as error:
            raise MedarError(
                f"{self.folder.out}: the checkpoint at step {self.state.step} is of another model "
                f"({one_line(error)}); build the same one, or choose another folder"
            ) from error
        self.task.load_state_dict(content["task"])
        if self.ranks.rank < len(content["processes"]):
            own = content["processes"][self.ranks.rank]
            self.meter.load_state_dict(own["meter"], self.device)
            restore_random_state(own["random"], self.device)


def _nothing() -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext()
