"""`fit`: the loop that trains every model of medar, on a CPU, a GPU, or several under torchrun.

Each step: a few batches, a backward pass each, clip, update, average. Once in a while: log,
evaluate, save. The task defines what is trained (`medar.training.task`).
"""

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from medar.files import exclusive
from medar.progress import Gauge
from medar.training.distributed import (
    Forward,
    all_gather_object,
    all_ranks,
    all_reduce_max,
    current_ranks,
    data_parallel,
    gradient_sync,
    mean_over_ranks,
    process_group,
    release,
)
from medar.training.folder import Resume, RunConfig, RunFolder, parameters
from medar.training.operations import Operations
from medar.training.optimisers import NonfiniteGuard, learning_rate, progress
from medar.training.precision import (
    Precision,
    choose_precision,
    fast_convolutions,
    seed_everything,
)
from medar.training.run import Run
from medar.training.settings import TrainingSettings
from medar.training.sharding import Sharding
from medar.training.task import Task
from medar.training.tracker import JsonlTracker, Tracker, Trackers


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of a run."""

    step: int
    elapsed: float
    """Seconds, summed over resumptions."""
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
    """Train a task, or resume its training; a run that has finished is not changed.

    Under torchrun each process calls this; rank 0 alone writes files.

    Args:
        task: what to train.
        settings: how to train it.
        out: the folder of the run, see `medar.training.folder`.
        tracker: also receives settings, metrics and the model, besides `metrics.jsonl`. The caller
            closes it.
        resume: "auto", "never" or the path of a checkpoint, see `medar.training.folder.Resume`.
        clock: seconds, for `minutes`.

    Raises:
        MedarError: the run in the folder has other settings, or may not be resumed; the loss is
            not finite; or a file cannot be written.
        KeyboardInterrupt: SIGINT or SIGTERM came; the step was finished and a checkpoint saved.
    """
    ranks = current_ranks()
    precision = choose_precision(settings, ranks.local_rank)
    folder = RunFolder(Path(out), settings.keep_checkpoints)
    config = RunConfig(task=task.describe(), training=settings, processes=ranks.world_size)
    with contextlib.ExitStack() as stack:
        stack.enter_context(process_group(ranks, precision.device))
        stack.enter_context(fast_convolutions(precision.device))
        if ranks.is_rank_zero:
            stack.enter_context(exclusive(folder.out))
        content = folder.start(resume, config)
        all_gather_object(None)  # no rank writes before all have read the folder
        sharding = None
        if settings.shard and ranks.world_size > 1:
            sharding = Sharding(task, precision.device)
        seed_everything(settings.seed + ranks.rank)
        for network in (task.model, *task.companions().values()):
            network.to(precision.device)
        run = Run(task, config, folder, ranks, precision.device, sharding)
        if content is not None:
            run.load(content)
        if run.finished:
            _log(run, f"{out}: already finished at step {run.state.step}")
            if tracker is not None and ranks.is_rank_zero:
                tracker.log_parameters(parameters(config))
            return _outcome(run, {})
        number = "1 process" if ranks.world_size == 1 else f"{ranks.world_size} processes"
        divided = "" if sharding is None else ", each with a part of the model"
        _log(run, f"training on {precision.why}, {number}{divided}")
        loop = Loop(run, precision, _open_trackers(run, tracker, stack), clock)
        stack.callback(release, loop.forward)
        return _outcome(run, loop.run_to_the_end(stack.enter_context(interruptible())))


class Loop:
    """The loop itself, over a run that is set up.

    Args:
        run: model, optimisers and state.
        precision: of the forward pass.
        tracker: receives metrics and the model.
        clock: seconds.
    """

    def __init__(
        self, run: Run, precision: Precision, tracker: Tracker, clock: Callable[[], float]
    ) -> None:
        self.run, self.precision, self.tracker, self.clock = run, precision, tracker, clock
        if precision.compile:
            run.task.compile()
        if run.sharding is None:
            self.forward = data_parallel(run.task, run.ranks, run.device)
        else:
            self.forward = Forward(run.task)
        self.operations = Operations(precision)
        self.guard = NonfiniteGuard(run.settings, run.device, quiet=not run.ranks.is_rank_zero)
        self.batches = run.batches()
        self.results: dict[str, float] = {}
        self._line = ""
        self._amount = 0  # processed by all processes since the last reading
        self._logged = run.state.step, run.state.elapsed

    def run_to_the_end(self, interruption: "Interruption") -> dict[str, float]:
        """Train until the steps or minutes are used up; returns the last evaluation."""
        run, state = self.run, self.run.state
        start = self.clock() - state.elapsed
        gauge = Gauge("training", fraction=run.progress, quiet=not run.ranks.is_rank_zero)
        with contextlib.closing(gauge):
            while not run.finished:
                self.step()
                state.elapsed, stop = all_reduce_max(self.clock() - start, interruption.requested)
                self.once_in_a_while(save=bool(stop))
                gauge.show(run.progress, f"step {state.step}{self._line}")
                if stop and not run.finished:
                    raise KeyboardInterrupt("run the same command again to continue")
        return self.results

    def step(self) -> None:
        """One optimiser step on `accumulation_steps` batches."""
        run, count = self.run, self.run.settings.accumulation_steps
        run.optimisers.set_rate(self.rate)
        run.task.progress = run.progress
        logged = []
        for k in range(count):
            batch = next(self.batches)
            amount = run.task.amount(batch)
            self._amount += amount * run.ranks.world_size
            with self.operations.counting(amount):
                logged.append(self.backward(batch, last=k == count - 1))
        norms = run.optimisers.clip_gradients()
        values = torch.stack([*norms.values(), *(metrics["loss"].float() for metrics in logged)])
        finite = all_ranks(values.isfinite().all())
        run.optimisers.step(finite)
        if run.average:
            run.average.update()
        self.guard.add(finite)
        for metrics in [*logged, {f"gradient_norm/{name}": norm for name, norm in norms.items()}]:
            run.meter.add(metrics, finite)
        run.state.step += 1
        run.task.after_step(run.state.step)

    def backward(self, batch: Any, *, last: bool) -> dict[str, Tensor]:
        """Add the gradients of a batch; the last one of a step synchronises processes."""
        run = self.run
        if run.sharding is not None:
            run.sharding.synchronise(last)
        with gradient_sync(self.forward, last):
            with self.precision.autocast():
                loss, metrics = self.forward(batch, run.state.step)
            (loss / run.settings.accumulation_steps).backward()
        return dict(metrics)

    @property
    def rate(self) -> float:
        """The learning rate of the next step, at its middle."""
        state, settings = self.run.state, self.run.settings
        return learning_rate(settings, progress(settings, state.step + 0.5, state.elapsed))

    def once_in_a_while(self, *, save: bool) -> None:
        """After a step: check the losses, log, evaluate and save, each when it is due."""
        run, settings, step = self.run, self.run.settings, self.run.state.step
        metrics: dict[str, float] = {}
        best = False

        # once in a while: check that losses are finite, and log
        log = self.is_due(settings.log_every)
        if log or run.device.type == "cpu":  # on other devices the check waits for the step
            self.guard.check(step)
        if log:
            metrics |= self.readings()

        # once in a while: evaluate
        if self.is_due(settings.evaluate_every):
            self.results = self.evaluate()
            best = run.update_best(self.results)
            metrics |= {f"validation/{name}": value for name, value in self.results.items()}
        if metrics:
            self.tracker.log_metrics(metrics, step)

        # once in a while: save; a model is saved even if no evaluation gave a number
        best = best or (run.finished and run.state.best_step is None)
        if save or best or self.is_due(settings.save_every):
            run.save(best=best)
        if best:
            self.tracker.log_artifact(run.folder.model)

    def is_due(self, every: int) -> bool:
        """Whether the step is a multiple of `every`, or the last one."""
        return self.run.finished or self.run.state.step % every == 0

    def readings(self) -> dict[str, float]:
        """Metrics of the steps since the last reading."""
        state, (step, elapsed) = self.run.state, self._logged
        means, unit = self.run.meter.read(), self.run.task.unit
        seconds = max(state.elapsed - elapsed, 1e-9)
        speed = {f"{unit}_per_second": self._amount / seconds} if unit else {}
        fraction = self.operations.fraction(self._amount / seconds / self.run.ranks.world_size)
        self._line = f", loss {means['loss']:.4g}" if "loss" in means else ""
        self._line += "".join(f", {value:.3g} {unit}/s" for value in speed.values())
        if fraction is not None:
            self._line += f", {fraction:.1%} of the GEMM ceiling"
        self._logged, self._amount = (state.step, state.elapsed), 0
        return {
            **{f"train/{name}": value for name, value in means.items()},
            "learning_rate": self.run.optimisers.rate,
            "epoch": state.epoch,
            "seconds": state.elapsed,
            "steps_per_second": (state.step - step) / seconds,
            **speed,
            **({} if fraction is None else {"gemm_fraction": fraction}),
        }

    def evaluate(self) -> dict[str, float]:
        """The task's evaluation of the averaged weights."""
        with contextlib.ExitStack() as stack:
            if self.precision.compile:  # other shapes would be compiled again
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            stack.enter_context(self.run.for_evaluation())
            stack.enter_context(self.precision.autocast())
            results = self.run.task.evaluate()
        return mean_over_ranks({name: float(value) for name, value in results.items()})


class Interruption:
    """Whether a signal has requested the end of the run."""

    def __init__(self) -> None:
        self.requested = False


@contextlib.contextmanager
def interruptible() -> Iterator[Interruption]:
    """Inside the block SIGINT and SIGTERM set `requested`; a second SIGINT interrupts at once.

    Previous handlers are restored at the end. Outside the main thread, where Python allows no
    handlers, nothing changes.
    """
    interruption = Interruption()

    def handle(number: int, frame: FrameType | None) -> None:
        if interruption.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        interruption.requested = True
        print("ending after this step and saving a checkpoint", file=sys.stderr, flush=True)

    if threading.current_thread() is not threading.main_thread():
        yield interruption
        return
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interruption
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _open_trackers(run: Run, tracker: Tracker | None, stack: contextlib.ExitStack) -> Tracker:
    """`metrics.jsonl` and the caller's tracker, in rank 0; none in the others."""
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


def _log(run: Run, text: str) -> None:
    if run.ranks.is_rank_zero:
        print(text, file=sys.stderr, flush=True)
