"""`Recipe`: stages in order, and `RecipeRunner`, the loop that runs them.

A stage that is done is skipped, an interrupted one resumes, and one whose inputs have changed runs
again; its old result is moved aside. What lies in the recipe's folder is in `medar.records`. Under
torchrun all processes run the same recipe; see `medar.recipes.processes`.
"""

import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from medar.devices import peak_memory_mib, reset_peak_memory
from medar.environment import environment
from medar.errors import MedarError, one_line
from medar.files import digest, exclusive, write_json
from medar.interruption import terminable
from medar.recipes.budget import TimeEstimate, duration, estimate_times, minutes_for
from medar.recipes.mlflow_runs import RecipeRuns, log_stage_model, numbers
from medar.recipes.plan import (
    StageInputs,
    StageSelection,
    Step,
    decide,
    make_plan,
    results_needed,
)
from medar.recipes.processes import RecipeProcesses, recipe_processes
from medar.recipes.stage import Facts, RunTracker, Stage, StageContext
from medar.records import (
    CONFIG_FILE,
    ENVIRONMENT_FILE,
    STAGES,
    Records,
    RunRecord,
    StageRecord,
    now,
)
from medar.settings import save_yaml, to_dict

if TYPE_CHECKING:
    from medar.tracking import MlflowTracker


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Stages, and the folder in which they leave their results."""

    name: str
    out: Path
    settings: Any
    """Settings of the recipe, a dataclass; stored as OUT/config.yaml."""
    stages: tuple[Stage, ...]
    max_minutes: float | None = None
    """Time budget of all stages together."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where trainings run."""
    tracked: bool = True
    """Whether to log to MLflow."""
    register: str | None = None
    """Name in MLflow's registry; the last stage's model becomes its next version."""
    alias: str | None = None
    """Alias of that version, such as "champion"."""

    @property
    def records(self) -> Records:
        """The records in the recipe's folder."""
        return Records(self.out)

    def plan(self, selection: StageSelection) -> list[Step]:
        """The plan of a run; nothing is written.

        Raises:
            MedarError: what `run` would raise before a stage starts.
        """
        self._check()
        inputs = StageInputs(self.stages, self.max_minutes)
        steps = make_plan(self.stages, self.records, selection, inputs)
        self.check_steps(steps, inputs)
        return steps

    def estimates(self, steps: Sequence[Step]) -> list[TimeEstimate]:
        """Expected time of each step, if known."""
        return estimate_times(steps, self.stages, self.records, self.max_minutes)

    def run(self, selection: StageSelection) -> list[Step]:
        """Run the stages that are not done.

        Returns:
            The steps that ran or were skipped; empty in processes other than the first.

        Raises:
            MedarError: what a stage raises; or another process works in the folder.
            KeyboardInterrupt: SIGINT or SIGTERM came; the same call resumes.
        """
        self._check()
        without_force = " without --force" if selection.forced else ""
        with contextlib.ExitStack() as stack:
            hint = f"run the same command again{without_force} to continue"
            stack.enter_context(_interruptible(hint))
            processes = stack.enter_context(recipe_processes(self.device))
            # Rank 0 alone locks the folder, plans, and writes records.
            processes.run_on_rank_zero(lambda: stack.enter_context(exclusive(self.out)))
            runner = RecipeRunner(self, processes, selection)
            actions = processes.run_on_rank_zero(runner.start)
            with runner.open_run():
                for name, action in actions:
                    if action != "skip":
                        runner.run_stage(name)
            return runner.steps

    def last_run(self) -> RunRecord:
        """The record of the last run in the folder; an empty one if it is absent or damaged."""
        with contextlib.suppress(MedarError):
            return self.records.read_run() or RunRecord()
        return RunRecord()

    def _check(self) -> None:
        """Raise for options that cannot be used, and for a folder that holds something else."""
        from medar.tracking.names import check_registration

        check_registration(self.register, self.alias, tracked=self.tracked)
        if self.out.exists() and not self.out.is_dir():
            raise MedarError(f"{self.out}: is a file; --out names a folder")
        if (self.out / CONFIG_FILE).exists() and not (self.out / STAGES).exists():
            raise MedarError(
                f"{self.out}: holds another kind of run ({CONFIG_FILE}, no {STAGES}/); choose "
                "another --out"
            )
        other = self.last_run().recipe
        if other not in (None, self.name):
            raise MedarError(
                f"{self.out}: holds a run of the recipe {other}, not {self.name}; choose another "
                "--out"
            )

    def check_steps(self, steps: Sequence[Step], inputs: StageInputs) -> None:
        """Raise if the data of a step cannot be read, or there is no model to register."""
        if self.register is not None:
            self.model_stage(coming=[step.stage.name for step in steps])
        for step in steps:
            inputs[step.stage.name]  # reads them

    def model_stage(self, coming: Sequence[str] = ()) -> tuple[Stage, StageRecord | None]:
        """The stage whose model is to be registered, and its record.

        Raises:
            MedarError: it is neither done nor among `coming`.
        """
        stage = next(one for one in reversed(self.stages) if one.model is not None)
        record = self.records.read(stage.name)
        if stage.name not in coming and (record is None or record.status != "done"):
            raise MedarError(
                f"--register {self.register}: {stage.name} is not done yet; run it first"
            )
        return stage, record


class RecipeRunner:
    """One run of a recipe.

    Args:
        recipe: what to run.
        processes: the processes of the run.
        selection: which stages to run.
    """

    def __init__(
        self, recipe: Recipe, processes: RecipeProcesses, selection: StageSelection
    ) -> None:
        self.recipe, self.processes, self.selection = recipe, processes, selection
        self.records = recipe.records
        self.inputs = StageInputs(recipe.stages, recipe.max_minutes)
        self.steps: list[Step] = []
        self._runs: RecipeRuns | None = None
        self._parent: RunTracker | None = None

    def start(self) -> list[tuple[str, str]]:
        """Plan, print the plan, and store the settings: name and action of each step."""
        recipe = self.recipe
        self.steps = make_plan(recipe.stages, self.records, self.selection, self.inputs)
        recipe.check_steps(self.steps, self.inputs)
        # First, because this file identifies the folder as that of a recipe.
        (recipe.out / STAGES).mkdir(parents=True, exist_ok=True)
        header = f"The recipe {recipe.name}, resolved: every setting, defaults included."
        save_yaml(recipe.settings, recipe.out / CONFIG_FILE, header=header)
        if any(step.action != "skip" for step in self.steps):
            write_json(recipe.out / ENVIRONMENT_FILE, environment())
        for step, expected in zip(self.steps, recipe.estimates(self.steps), strict=True):
            expectation = "" if step.action == "skip" else f"; time {expected.time}"
            _log(f"{step.stage.name}: {step.action} ({step.why}){expectation}")
        return [(step.stage.name, step.action) for step in self.steps]

    @contextlib.contextmanager
    def open_run(self) -> Iterator[None]:
        """Keep the record and the MLflow run of the recipe open during the block.

        The run of a recipe that was killed is ended, too.
        """
        recipe = self.recipe
        last, unsent = recipe.last_run(), self._unsent()
        work_left = recipe.register is not None or any(s.action != "skip" for s in self.steps)
        work_left |= bool(unsent) or (recipe.tracked and last.unsent)
        was_closed = last.status == "done"
        if not self.processes.is_rank_zero or (was_closed and not work_left):
            yield
            return
        names = tuple(stage.name for stage in recipe.stages)
        run = RunRecord(recipe=recipe.name, stages=names, status="running", started=now())
        self.records.write_run(run)
        with contextlib.ExitStack() as stack:
            if recipe.tracked:
                self._runs = RecipeRuns(recipe.out, recipe.name)
                self._parent = stack.enter_context(self._runs.parent(to_dict(recipe.settings)))
                for stage, record in unsent:
                    self._send_stored(stage, record)
            yield
            if recipe.register is not None:
                self._register()
        left = self._runs is not None and not self._runs.complete
        self.records.write_run(replace(run, status="done", ended=now(), unsent=left))

    def _unsent(self) -> list[tuple[Stage, StageRecord]]:
        """Stages that are done, but that MLflow did not take when they ended."""
        records = [(stage, self.records.read(stage.name)) for stage in self.recipe.stages]
        return [
            (stage, record)
            for stage, record in records
            if self.recipe.tracked and record is not None and record.unsent
            if record.status == "done"
        ]

    def _send_stored(self, stage: Stage, record: StageRecord) -> None:
        """Log a stage that ended in an earlier run, while MLflow was away."""
        assert self._runs is not None
        folder = self.recipe.out / stage.folder
        with self._runs.stage(stage.name, folder, _parameters(stage)) as tracker:
            if stage.training is not None:
                tracker.catch_up()
            record.facts = self._log_facts(tracker, stage, record.facts)
        record.unsent = not tracker.complete
        self.records.write(record)
        self._log_in_parent(stage, record)

    def run_stage(self, name: str) -> None:
        """Run a stage: a training in all processes, any other in rank 0 alone."""
        stage = next(one for one in self.recipe.stages if one.name == name)
        record = self.processes.run_on_rank_zero(lambda: self._open_record(stage))
        if record is None:
            return
        if stage.training is None:
            self.processes.run_on_rank_zero(lambda: self._attempt(stage, record))
            return
        if self.processes.is_rank_zero:
            self._attempt(stage, record)
        else:
            context = self._context(stage, record)
            stage.run(replace(context, is_rank_zero=False))
        self.processes.run_on_rank_zero(lambda: None)  # until rank 0 has written everything

    def _context(self, stage: Stage, record: StageRecord) -> StageContext:
        out = self.recipe.out
        return StageContext(out=out, folder=out / stage.folder, minutes=record.minutes)

    def _open_record(self, stage: Stage) -> StageRecord | None:
        """The record to work under: the earlier one to resume, else a new one.

        An old result is moved aside. None if nothing has to be done after all: the results that
        the stage needs came out as before.
        """
        recipe, forced = self.recipe, stage.name in self.selection.forced
        action, why = decide(stage, self.records, self.inputs, forced=forced)
        record = self.records.read(stage.name)
        if action == "skip":
            _log(f"{stage.name}: skip ({why})")
            return None
        if action == "run" or record is None:
            basis, needs = self.inputs[stage.name], results_needed(stage, self.records)
            minutes = minutes_for(stage, recipe.stages, self.records, recipe.max_minutes)
            self._move_aside(stage, record)
            record = StageRecord(
                name=stage.name,
                basis=basis,
                fingerprint=digest({**basis, "needs": needs}),
                started=now(),
                needs=needs,
                minutes=minutes,
                outputs=list(stage.outputs),
            )
        record.status, record.ended, record.attempts = "running", None, record.attempts + 1
        self.records.write(record)
        (recipe.out / stage.folder).mkdir(parents=True, exist_ok=True)
        return record

    def _move_aside(self, stage: Stage, record: StageRecord | None) -> None:
        """Move an old result aside, and end its run in MLflow if it was interrupted."""
        if record is not None and record.status == "running" and self._runs is not None:
            self._runs.end_interrupted(stage.name, self.recipe.out / stage.folder)
        moved = self.records.move_aside(stage.name, stage.outputs)
        if moved is not None:
            _log(f"{stage.name}: the old result is now in {moved}")

    def _attempt(self, stage: Stage, record: StageRecord) -> None:
        """Run a stage in rank 0, and record how it ended."""
        number = [one.name for one in self.recipe.stages].index(stage.name) + 1
        limit = "" if record.minutes is None else f", at most {duration(60 * record.minutes)}"
        _log(f"[{number}/{len(self.recipe.stages)}] {stage.name}{limit}")
        began = time.monotonic()
        reset_peak_memory()
        try:
            record.facts = dict(self._run_tracked(stage, record))
            if stage.result is not None:
                record.result = stage.result(self.recipe.out / stage.folder)
            record.status = "done"
        except Exception as error:
            record.status, record.facts = "failed", {"error": one_line(error, 500)}
            raise
        finally:
            peaks = [peak for peak in (record.peak_mib, peak_memory_mib()) if peak is not None]
            record.seconds = round(record.seconds + time.monotonic() - began, 2)
            record.ended, record.peak_mib = now(), max(peaks, default=None)
            self.records.write(record)
        _log(f"{stage.name}: done in {duration(record.seconds)}")
        self._log_in_parent(stage, record)

    def _log_in_parent(self, stage: Stage, record: StageRecord) -> None:
        """Log the facts and files of a stage in the recipe's own run."""
        if self._parent is not None:
            facts = {"seconds": record.seconds, **record.facts}
            self._parent.log_metrics(numbers(facts, f"{stage.name}/"), 0)
            for name in stage.files:
                self._parent.log_artifact(self.recipe.out / name)

    def _run_tracked(self, stage: Stage, record: StageRecord) -> Facts:
        """Run a stage's function within a child run of the recipe's run."""
        context = self._context(stage, record)
        if self._runs is None:
            return stage.run(context)
        with self._runs.stage(stage.name, context.folder, _parameters(stage)) as tracker:
            facts = stage.run(replace(context, tracker=tracker))
            facts = self._log_facts(tracker, stage, facts)
        record.unsent = not tracker.complete
        return facts

    def _log_facts(self, tracker: "MlflowTracker", stage: Stage, facts: Facts) -> dict[str, Any]:
        """Log what is known of a stage, and its model: the facts, with that model's URI."""
        # At a training's own last step: MLflow expects steps to grow.
        tracker.log_metrics(numbers(facts), int(facts.get("step", 0)))
        if stage.model is None:
            return dict(facts)
        try:
            return {**facts, "model": log_stage_model(tracker, stage.model, facts)}
        except MedarError as error:  # a server that is away is no reason to stop
            _log(str(error))
            return dict(facts)

    def _register(self) -> None:
        """Register the last model, also if an earlier run trained it."""
        stage, record = self.recipe.model_stage()
        assert self._runs is not None  # `check_registration` made sure
        assert stage.model is not None
        assert record is not None
        names = (self.recipe.register, self.recipe.alias)
        with self._runs.tracker(stage.name, self.recipe.out / stage.folder) as tracker:
            log_stage_model(tracker, stage.model, record.facts, *names)


def _parameters(stage: Stage) -> dict[str, Any]:
    """The settings of a stage for MLflow.

    A training logs its own settings itself, with the minutes that it was given.
    """
    skipped = ("training",) if stage.training else ()
    return {name: value for name, value in stage.settings.items() if name not in skipped}


@contextlib.contextmanager
def _interruptible(hint: str) -> Iterator[None]:
    """Ctrl-C and SIGTERM end the block, and give the hint."""
    try:
        with terminable():
            yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(hint) from None


def _log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
