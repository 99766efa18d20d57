"""`Desk`: a run of a recipe, stage by stage, and where each outcome is written down."""

import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from medar.devices import peak_memory_mib, reset_peak_memory
from medar.environment import environment
from medar.errors import MedarError, one_line
from medar.files import digest, write_json
from medar.recipes.budget import minutes_for
from medar.recipes.estimates import duration
from medar.recipes.planning import Bases, Choice, Step, decide, make_plan, needed
from medar.recipes.runs import Held, Runs, keep_model
from medar.recipes.stage import Facts, RunTracker, Stage, Work
from medar.recipes.team import Team
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
    from medar.recipes.recipe import Recipe


class Desk:
    """A run of a recipe: what is done with each step, and where that is written down.

    Args:
        recipe: whose.
        team: the processes.
        choice: the stages that are wanted.
    """

    def __init__(self, recipe: "Recipe", team: Team, choice: Choice) -> None:
        self.recipe, self.team, self.choice = recipe, team, choice
        self.records = Records(recipe.out)
        self.bases = Bases(recipe.stages, recipe.max_minutes)
        self.steps: list[Step] = []
        self._runs: Runs | None = None
        self._whole: RunTracker | None = None

    def begin(self) -> list[tuple[str, str]]:
        """Plan, say so, and keep the settings: name and action of each step."""
        self.steps = make_plan(self.recipe.stages, self.records, self.choice, self.bases)
        if self.recipe.register is not None:
            self._named(coming=[step.stage.name for step in self.steps])
        for step in self.steps:
            self.bases[step.stage.name]  # data that cannot be read stop the run now
        # First of all: it tells a recipe's folder from that of another run, see `Recipe`.
        (self.recipe.out / STAGES).mkdir(parents=True, exist_ok=True)
        header = f"The recipe {self.recipe.name}, resolved: every setting, defaults included."
        save_yaml(self.recipe.settings, self.recipe.out / CONFIG_FILE, header=header)
        if any(step.action != "skip" for step in self.steps):
            write_json(self.recipe.out / ENVIRONMENT_FILE, environment())
        for step, expected in zip(self.steps, self.recipe.estimates(self.steps), strict=True):
            took = "" if step.action == "skip" else f"; time {expected.time}"
            _say(f"{step.stage.name}: {step.action} ({step.why}){took}")
        return [(step.stage.name, step.action) for step in self.steps]

    @contextlib.contextmanager
    def whole(self) -> Iterator[None]:
        """The recipe's run in MLflow lasts as long as the block; a killed one is ended, too."""
        last = last_run(self.records)
        closed = last.status == "done"  # nothing is left open in MLflow
        if not self.team.first or (closed and not self._work_left()):
            yield
            return
        names = tuple(stage.name for stage in self.recipe.stages)
        run = RunRecord(recipe=self.recipe.name, stages=names, status="running", started=now())
        self.records.write_run(run)
        with contextlib.ExitStack() as stack:
            if self.recipe.tracked:
                self._runs = Runs(self.recipe.out, self.recipe.name)
                values = to_dict(self.recipe.settings)
                self._whole = stack.enter_context(self._runs.whole(values))
            yield
            if self.recipe.register is not None:
                self._register()
        self.records.write_run(replace(run, status="done", ended=now()))

    def do(self, name: str) -> None:
        """Run a stage: a training in all processes, any other in the first one alone."""
        stage = next(one for one in self.recipe.stages if one.name == name)
        entry = self.team.tell(lambda: self._open(stage))
        if entry is None:
            return
        if not stage.training:
            self.team.tell(lambda: self._attempt(stage, entry))
            return
        if self.team.first:
            self._attempt(stage, entry)
        else:
            folder = self.recipe.out / stage.folder
            stage.run(Work(out=self.recipe.out, folder=folder, first=False, minutes=entry.minutes))
        self.team.tell(lambda: None)  # the first one has written all

    def _open(self, stage: Stage) -> StageRecord | None:
        """The entry to work under: that of before, or a new one, the old result moved aside.

        Returns:
            None if it turns out that there is nothing to do: what it needs is as it was.
        """
        forced = stage.name in self.choice.forced
        action, why = decide(stage, self.records, self.bases, forced=forced)
        entry = self.records.read(stage.name)
        if action == "skip":
            _say(f"{stage.name}: skip ({why})")
            return None
        if action == "run" or entry is None:
            recipe, basis, needs = self.recipe, self.bases[stage.name], needed(stage, self.records)
            # Refused before anything is moved, where no time is left.
            minutes = minutes_for(stage, recipe.stages, self.records, recipe.max_minutes)
            self._clear(stage, entry)
            entry = StageRecord(
                name=stage.name,
                basis=basis,
                fingerprint=digest({**basis, "needs": needs}),
                started=now(),
                needs=needs,
                minutes=minutes,
                outputs=list(stage.outputs),
            )
        entry.status, entry.ended, entry.attempts = "running", None, entry.attempts + 1
        self.records.write(entry)
        (self.recipe.out / stage.folder).mkdir(parents=True, exist_ok=True)
        return entry

    def _clear(self, stage: Stage, entry: StageRecord | None) -> None:
        """Move aside what an earlier run left, and end its run in MLflow if it has no end."""
        if entry is not None and entry.status == "running" and self._runs is not None:
            self._runs.give_up(stage.name, self.recipe.out / stage.folder)
        moved = self.records.move_aside(stage.name, stage.outputs)
        if moved is not None:
            _say(f"{stage.name}: what was there before is now in {moved}")

    def _attempt(self, stage: Stage, entry: StageRecord) -> None:
        """Run a stage in the first process, and write down how it ended."""
        number = [one.name for one in self.recipe.stages].index(stage.name) + 1
        limit = "" if entry.minutes is None else f", {entry.minutes:.1f} minutes at most"
        _say(f"[{number}/{len(self.recipe.stages)}] {stage.name}{limit}")
        began = time.monotonic()
        reset_peak_memory()
        try:
            entry.facts = dict(self._tracked(stage, entry))
            if stage.result is not None:
                entry.result = stage.result(self.recipe.out / stage.folder)
            entry.status = "done"
        except Exception as error:
            entry.status, entry.facts = "failed", {"error": one_line(error, 500)}
            raise
        finally:
            entry.seconds = round(entry.seconds + time.monotonic() - began, 2)
            entry.ended, entry.peak_mib = now(), _larger(entry.peak_mib, peak_memory_mib())
            self.records.write(entry)
        _say(f"{stage.name}: done in {duration(entry.seconds)}")
        if self._whole is not None:
            took = {"seconds": entry.seconds, **entry.facts}
            self._whole.log_metrics(_numbers(took, f"{stage.name}/"), 0)
            for name in stage.files:
                self._whole.log_artifact(self.recipe.out / name)

    def _tracked(self, stage: Stage, entry: StageRecord) -> Facts:
        """Run a stage's function, within a run of its own below the recipe's."""
        folder = self.recipe.out / stage.folder
        work = Work(out=self.recipe.out, folder=folder, minutes=entry.minutes)
        if self._runs is None:
            return stage.run(work)
        # A training tells its own settings itself, with the minutes that it was given.
        told = {n: v for n, v in stage.settings.items() if not stage.training or n != "training"}
        with self._runs.stage(stage.name, folder, told) as tracker:
            facts = stage.run(replace(work, tracker=Held(tracker)))
            # A training's own last step: MLflow is never told of an earlier one after a later.
            tracker.log_metrics(_numbers(facts), int(facts.get("step", 0)))
            if stage.model is None:
                return facts
            try:
                return {**facts, "model": keep_model(tracker, stage.model, facts)}
            except MedarError as error:  # a server that is away is no reason to stop
                _say(str(error))
                return facts

    def _register(self) -> None:
        """Give the last model its name in the registry, though it be of an earlier run."""
        stage, entry = self._named()
        assert self._runs is not None  # was checked before
        assert stage.model is not None
        assert entry is not None
        tracker = self._runs.tracker(stage.name, self.recipe.out / stage.folder)
        keep_model(tracker, stage.model, entry.facts, self.recipe.register, self.recipe.alias)

    def _named(self, coming: Sequence[str] = ()) -> tuple[Stage, StageRecord | None]:
        """The stage whose model is to be registered, and its entry.

        Raises:
            MedarError: it is neither done nor among those that are coming.
        """
        stage = next(one for one in reversed(self.recipe.stages) if one.model is not None)
        entry = self.records.read(stage.name)
        if stage.name not in coming and (entry is None or entry.status != "done"):
            raise MedarError(
                f"--register {self.recipe.register}: {stage.name} is not done yet; let it run first"
            )
        return stage, entry

    def _work_left(self) -> bool:
        return self.recipe.register is not None or any(s.action != "skip" for s in self.steps)


def last_run(records: Records) -> RunRecord:
    """The record of the last run in a folder; an empty one if it is absent or damaged."""
    with contextlib.suppress(MedarError):
        return records.read_run() or RunRecord()
    return RunRecord()


def _numbers(facts: Facts, prefix: str = "") -> dict[str, float]:
    return {f"{prefix}{n}": float(v) for n, v in facts.items() if not isinstance(v, str)}


def _larger(one: float | None, other: float | None) -> float | None:
    known = [value for value in (one, other) if value is not None]
    return max(known) if known else None


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
