"""The state of a run: its counters, networks and optimisers, and how checkpoints hold them."""

import contextlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch

from medar.errors import MedarError, one_line
from medar.training.distributed import Ranks, all_gather_object
from medar.training.folder import RunConfig, RunFolder
from medar.training.muon import hidden_matrices
from medar.training.optimisers import Average, Optimisers, progress
from medar.training.precision import random_state, restore_random_state
from medar.training.settings import TrainingSettings
from medar.training.sharding import Sharding
from medar.training.task import Task, to_device
from medar.training.tracker import Meter

_END = object()


@dataclass
class State:
    """The counters of a run."""

    step: int = 0
    """Optimiser steps done."""
    epoch: int = 0
    batch: int = 0
    """Batches of this epoch that are done."""
    elapsed: float = 0.0
    """Seconds, summed over resumptions."""
    best: float | None = None
    """The best value of the task's metric."""
    best_step: int | None = None


class Run:
    """Everything that changes in training; saved to checkpoints and loaded from them.

    Args:
        task: what to train; its networks are on `device` already.
        config: the settings, saved in checkpoints for comparison.
        folder: where checkpoints and the model are written.
        ranks: this process.
        device: where batches are moved.
        sharding: of the task's model, if it is divided among processes.
    """

    def __init__(
        self,
        task: Task[Any],
        config: RunConfig,
        folder: RunFolder,
        ranks: Ranks,
        device: torch.device,
        sharding: Sharding | None = None,
    ) -> None:
        self.sharding = sharding
        self.task, self.config, self.folder = task, config, folder
        self.ranks, self.device = ranks, device
        self.state = State()
        self.meter = Meter()
        networks = [task.model, *task.companions().values()]
        matrices = {weight for network in networks for weight in hidden_matrices(network)}
        self.optimisers = Optimisers(task.parameter_groups(), matrices, self.settings)
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
        """Endless batches from the present position; updates epoch and batch.

        Loading does not change torch's random state: a resumed run, which loads its epoch again,
        would otherwise continue with another one.
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
                    f"epoch {state.epoch} has no batch; use a smaller batch size or more cases"
                )
            state.epoch, state.batch = state.epoch + 1, 0

    @contextlib.contextmanager
    def for_evaluation(self) -> Iterator[None]:
        """The model has its averaged weights and is in evaluation mode inside the block."""
        modes = {module: module.training for module in self.task.model.modules()}
        self.task.model.eval()
        try:
            averaged = self.average.applied() if self.average else contextlib.nullcontext()
            with torch.no_grad(), averaged:
                yield
        finally:
            for module, training in modes.items():
                module.training = training

    def update_best(self, results: dict[str, float]) -> bool:
        """Whether an evaluation is the best so far; if so, it is recorded.

        Raises:
            MedarError: the task's metric is not among the results.
        """
        name, state = self.task.metric, self.state
        if name not in results:
            raise MedarError(
                f"the evaluation has no {name!r}, which determines the best weights; it has "
                f"{', '.join(results)}"
            )
        value = results[name]
        sign = 1 if self.task.larger_is_better else -1
        if value != value or (state.best is not None and sign * value <= sign * state.best):
            return False
        state.best, state.best_step = value, state.step
        return True

    def save(self, *, best: bool) -> None:
        """Write a checkpoint in rank 0; before it the model, if it is the best."""
        own = {"random": random_state(self.device), "meter": self.meter.state_dict()}
        processes = all_gather_object(own)
        if not self.ranks.is_rank_zero and self.sharding is None:
            return
        if best:
            self._write_model()
        networks = {
            "model": self.task.model.state_dict(),
            "companions": {n: m.state_dict() for n, m in self.task.companions().items()},
            "optimisers": self.optimisers.state_dict(),
            "average": self.average.state_dict() if self.average else None,
        }
        if self.sharding is not None:
            networks = self.sharding.gather(networks)
        if not self.ranks.is_rank_zero:
            return
        content = {
            "config": self.config.resume_key(),
            "state": asdict(self.state),
            **networks,
            "task": self.task.state_dict(),
            "processes": processes,
        }
        self.folder.checkpoints.save(self.state.step, content, best=best)

    def _write_model(self) -> None:
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.for_evaluation())
            if self.sharding is not None:
                stack.enter_context(self.sharding.whole_model(self.task))
            if self.ranks.is_rank_zero:
                self.folder.write_model(self.task.save_model)

    def _divided(self, content: dict[str, Any]) -> dict[str, Any]:
        """A checkpoint whose networks are divided among processes, as this run's are."""
        if self.sharding is None:
            return content
        divide, own = self.sharding.divide, self.task.model.state_dict()
        average = content["average"] and {
            "updates": content["average"]["updates"],
            "averages": {n: divide(v, own[n]) for n, v in content["average"]["averages"].items()},
        }
        return {
            **content,
            "model": {name: divide(value, own[name]) for name, value in content["model"].items()},
            "optimisers": {
                name: self.sharding.divide_states(state, self.optimisers.parameters(name))
                for name, state in content["optimisers"].items()
            },
            "average": average,
        }

    def load(self, content: dict[str, Any]) -> None:
        """Restore a checkpoint, of any number of processes.

        Raises:
            MedarError: it belongs to other networks.
        """
        self.state = State(**content["state"])
        try:
            content = self._divided(content)
            self.task.model.load_state_dict(content["model"])
            for name, companion in self.task.companions().items():
                companion.load_state_dict(content["companions"][name])
            self.optimisers.load_state_dict(content["optimisers"])
            if self.average:
                self.average = Average(self.task.model, self.settings.ema_decay)
                self.average.load_state_dict(content["average"] or self.average.state_dict())
        except (RuntimeError, ValueError, KeyError) as error:
            raise MedarError(
                f"{self.folder.out}: the checkpoint at step {self.state.step} belongs to another "
                f"model ({one_line(error)}); build the same model, or choose another folder"
            ) from error
        self.task.load_state_dict(content["task"])
        if self.ranks.rank < len(content["processes"]):
            own = content["processes"][self.ranks.rank]
            self.meter.load_state_dict(own["meter"], self.device)
            restore_random_state(own["random"], self.device)
