"""`fit`: the loop that trains every model of medar, on a CPU, a GPU, or many under torchrun.

Each step: a few batches, one backward pass each, clip, move, average. Once in a while: metrics,
evaluation, a checkpoint. What is trained is the task's affair (`medar.training.task`).
"""

import contextlib
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medar.files import exclusive
from medar.progress import Gauge
from medar.training.distributed import (
    all_gather_object,
    all_ranks,
    all_reduce_max,
    current_ranks,
    data_parallel,
    mean_over_ranks,
    process_group,
    unsynchronised,
)
from medar.training.folder import Resume, RunConfig, RunFolder, parameters
from medar.training.guard import Guard
from medar.training.precision import Precision, choose_precision
from medar.training.randomness import seed_everything
from medar.training.run import Run
from medar.training.schedule import learning_rate, progress
from medar.training.settings import TrainingSettings
from medar.training.signals import Interruption, interruptible
from medar.training.task import Task
from medar.training.tracker import JsonlTracker, Tracker, Trackers


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run ended."""

    step: int
    elapsed: float
    """Seconds, over all resumptions."""
    best: float | None
    """The best value of the task's metric."""
    best_step: int | None
    metrics: dict[str, float] = field(default_factory=dict)
    """The last evaluation; empty if the run had finished before."""


def fit(
    task: Task[Any],
    settings: TrainingSettings,
    out: str | Path,
    tracker: Tracker | None = None,
    *,
    resume: Resume = "auto",
    clock: Callable[[], float] = time.monotonic,
) -> Outcome:
    """Train a task, or go on with it; a run that has finished is left as it is.

    Under torchrun each process calls this; process 0 alone writes.

    Args:
        task: what to train.
        settings: how.
        out: the folder of the run, see `medar.training.folder`.
        tracker: also receives settings, metrics and the model, besides `metrics.jsonl`. The caller
            closes it.
        resume: "auto", "never" or a checkpoint's path, see `medar.training.folder.Resume`.
        clock: seconds, for `minutes`.

    Raises:
        MedarError: the folder's run is of other settings, or may not be gone on with; losses
            that are not finite; a file that cannot be written.
        KeyboardInterrupt: SIGINT or SIGTERM came; the step was finished and a checkpoint saved.
    """
    ranks = current_ranks()
    precision = choose_precision(settings, ranks.local_rank)
    folder = RunFolder(Path(out), settings.keep_checkpoints)
    config = RunConfig(task=task.describe(), training=settings, processes=ranks.world_size)
    with contextlib.ExitStack() as stack:
        stack.enter_context(process_group(ranks, precision.device))
        if ranks.is_rank_zero:
            stack.enter_context(exclusive(folder.out))
        content = folder.start(resume, config)
        all_gather_object(None)  # nobody writes before everybody has looked
        seed_everything(settings.seed + ranks.rank)
        for network in (task.model, *task.companions().values()):
            network.to(precision.device)
        run = Run(task, config, folder, ranks, precision.device)
        if content is not None:
            run.load(content)
        if run.finished:
            _print(run, f"{out}: already finished at step {run.state.step}")
            if tracker is not None and ranks.is_rank_zero:
                tracker.log_parameters(parameters(config))
            return _outcome(run, {})
        number = "1 process" if ranks.world_size == 1 else f"{ranks.world_size} processes"
        _print(run, f"training on {precision.why}, {number}")
        trackers = _open_trackers(run, tracker, stack)
        loop = Loop(run, precision, trackers, clock)
        return _outcome(run, loop.run_to_the_end(stack.enter_context(interruptible())))


class Loop:
    """The loop itself, over a run that is ready to go.

    Args:
        run: what changes.
        precision: what a forward pass is computed in.
        tracker: what is told.
        clock: seconds.
    """

    def __init__(
        self, run: Run, precision: Precision, tracker: Tracker, clock: Callable[[], float]
    ) -> None:
        self.run, self.precision, self.tracker, self.clock = run, precision, tracker, clock
        if precision.compile:
            run.task.model.compile()
        self.forward = data_parallel(run.task, run.ranks, run.device)
        self.guard = Guard(run.settings, run.device, quiet=not run.ranks.is_rank_zero)
        self.batches = run.batches()
        self.results: dict[str, float] = {}
        self._loss = ""
        self._logged = run.state.step, run.state.elapsed

    def run_to_the_end(self, interruption: Interruption) -> dict[str, float]:
        """Train until the steps or minutes are used up; returns the last evaluation."""
        run, state = self.run, self.run.state
        began = self.clock() - state.elapsed
        gauge = Gauge("training", share=run.progress, quiet=not run.ranks.is_rank_zero)
        with contextlib.closing(gauge):
            while not run.finished:
                self.step()
                state.elapsed, asked = all_reduce_max(self.clock() - began, interruption.asked)
                self.once_in_a_while(save=bool(asked))
                gauge.show(run.progress, f"step {state.step}{self._loss}")
                if asked and not run.finished:
                    raise KeyboardInterrupt("the same command goes on from here")
        return self.results

    def step(self) -> None:
        """One step of the optimisers, on `accumulation_steps` batches."""
        run, settings = self.run, self.run.settings
        run.optimisers.set_rate(self.rate)
        run.task.progress = run.progress
        said: list[dict[str, Tensor]] = []
        for left in reversed(range(settings.accumulation_steps)):
            batch = next(self.batches)
            with unsynchronised(self.forward, left > 0):
                with self.precision.autocast():
                    loss, metrics = self.forward(batch, run.state.step)
                (loss / settings.accumulation_steps).backward()
            said.append(metrics)
        norms = run.optimisers.clip_gradients()
        values = torch.stack([*norms.values(), *(metrics["loss"].float() for metrics in said)])
        finite = all_ranks(values.isfinite().all())
        run.optimisers.step(finite)
        if run.average:
            run.average.update()
        self.guard.note(finite)
        for metrics in [*said, {f"gradient_norm/{name}": norm for name, norm in norms.items()}]:
            run.meter.add(metrics, finite)
        run.state.step += 1
        run.task.after_step(run.state.step)

    @property
    def rate(self) -> float:
        """The learning rate of the step to come, taken at its middle."""
        state, settings = self.run.state, self.run.settings
        return learning_rate(settings, progress(settings, state.step + 0.5, state.elapsed))

    def once_in_a_while(self, *, save: bool) -> None:
        """After a step: look at the losses, log, evaluate and save, each when it is due."""
        run, settings, step = self.run, self.run.settings, self.run.state.step
        metrics: dict[str, float] = {}
        best = False
        log = run.finished or step % settings.log_every == 0
        if log or run.device.type == "cpu":  # elsewhere looking means waiting
            self.guard.check(step)
        if log:
            metrics |= self.readings()
        if run.finished or step % settings.evaluate_every == 0:
            self.results = self.evaluate()
            best = run.update_best(self.results)
            metrics |= {f"validation/{name}": value for name, value in self.results.items()}
        if metrics:
            self.tracker.log_metrics(metrics, step)
        if run.finished and run.state.best_step is None:
            best = True  # a model is left even if no evaluation gave a number
        if save or best or run.finished or step % settings.save_every == 0:
            run.save(best=best)
        if best:
            self.tracker.log_artifact(run.folder.model)

    def readings(self) -> dict[str, float]:
        """What the steps since the last reading said."""
        state, (step, elapsed) = self.run.state, self._logged
        means = self.run.meter.read()
        self._loss = f", loss {means['loss']:.4g}" if "loss" in means else ""
        self._logged = state.step, state.elapsed
        return {
            **{f"train/{name}": value for name, value in means.items()},
            "learning_rate": self.run.optimisers.rate,
            "epoch": state.epoch,
            "seconds": state.elapsed,
            "steps_per_second": (state.step - step) / max(state.elapsed - elapsed, 1e-9),
        }

    def evaluate(self) -> dict[str, float]:
        """The task's evaluation, of the averaged weights."""
        with self.run.for_evaluation(), self.precision.autocast():
            results = self.run.task.evaluate()
        return mean_over_ranks({name: float(value) for name, value in results.items()})


def _open_trackers(run: Run, tracker: Tracker | None, stack: contextlib.ExitStack) -> Tracker:
    """The run's own tracker and the caller's, in rank 0; none in the others."""
    if not run.ranks.is_rank_zero:
        return Trackers([])
    run.folder.checkpoints.forget_after(run.state.step)
    run.folder.write_config(run.config)
    own = JsonlTracker(run.folder.metrics, run.state.step)
    stack.callback(own.close)
    trackers = Trackers([own, tracker] if tracker else [own])
    trackers.log_parameters(parameters(run.config))
    return trackers


def _outcome(run: Run, metrics: dict[str, float]) -> Outcome:
    state = run.state
    return Outcome(
        step=state.step,
        elapsed=state.elapsed,
        best=state.best,
        best_step=state.best_step,
        metrics=metrics,
    )


def _print(run: Run, text: str) -> None:
    if run.ranks.is_rank_zero:
        print(text, file=sys.stderr, flush=True)
