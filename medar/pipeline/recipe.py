"""`Recipe`: stages in order. What is done is skipped, what was interrupted goes on.

OUT/config.yaml      the resolved settings
OUT/environment.json versions, hardware, git state
OUT/recipe.json      whether a run is under way, or was killed
OUT/stages/          the ledger, see `medar.pipeline.ledger`
OUT/old/             results that a later run replaced: moved there, never deleted

Under torchrun all processes run the same recipe; see `medar.pipeline.team`.
"""

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from medar.environment import environment
from medar.errors import MedarError, one_line
from medar.files import exclusive, read_json_object, write_json
from medar.pipeline.budget import expected_minutes, minutes_for
from medar.pipeline.estimates import Estimate, duration, estimate
from medar.pipeline.ledger import Entry, Ledger, now
from medar.pipeline.memory import forget_peak, peak_mib
from medar.pipeline.planning import Bases, Choice, Step, make_plan
from medar.pipeline.runs import Held, Runs
from medar.pipeline.stage import Facts, RunTracker, Stage, Work
from medar.pipeline.team import Team, together
from medar.settings import save_yaml, to_dict

STATE = "recipe.json"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Stages, and where they leave what they make."""

    name: str
    out: Path
    settings: Any
    """A settings dataclass, kept as OUT/config.yaml."""
    stages: tuple[Stage, ...]
    max_minutes: float | None = None
    """A budget for all stages together."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where trainings run."""
    tracked: bool = True
    """Tell MLflow."""

    def plan(self, choice: Choice) -> list[Step]:
        """What is to be done; nothing is written.

        Raises:
            MedarError: see `make_plan`.
        """
        _check(self.out)
        return make_plan(self.stages, Ledger(self.out), choice)

    def estimates(self, steps: Sequence[Step]) -> list[Estimate]:
        """What each step takes, as far as that is known."""
        ledger = Ledger(self.out)
        given = expected_minutes(steps, self.stages, ledger, self.max_minutes)
        return [estimate(step, ledger, part) for step, part in zip(steps, given, strict=True)]

    def run(self, choice: Choice) -> list[Step]:
        """Do it.

        Returns:
            The steps that were done or skipped.

        Raises:
            MedarError: what a stage raises; or another process is at work in the folder.
            KeyboardInterrupt: SIGINT or SIGTERM came; the same call goes on.
        """
        _check(self.out)
        with contextlib.ExitStack() as stack:
            stack.enter_context(_terminable(self._go_on(choice)))
            team = stack.enter_context(together(self.device))
            # The first process alone locks the folder, plans, and keeps ledger and runs.
            team.tell(lambda: stack.enter_context(exclusive(self.out)))
            desk = Desk(self, team, choice)
            names = team.tell(desk.begin)
            with desk.whole():
                for name, action in names:
                    if action != "skip":
                        desk.do(name)
            return desk.steps

    @staticmethod
    def _go_on(choice: Choice) -> str:
        return f"the same command{' without --force' if choice.forced else ''} goes on from here"


class Desk:
    """A run of a recipe: what is done with each step, and where that is written down.

    Args:
        recipe: whose.
        team: the processes.
        choice: the stages that are wanted.
    """

    def __init__(self, recipe: Recipe, team: Team, choice: Choice) -> None:
        self.recipe, self.team, self.choice = recipe, team, choice
        self.ledger = Ledger(recipe.out)
        self.bases = Bases(recipe.stages)
        self.steps: list[Step] = []
        self._runs: Runs | None = None
        self._whole: RunTracker | None = None

    def begin(self) -> list[tuple[str, str]]:
        """Plan, say so, and keep the settings: name and action of each step."""
        self.steps = make_plan(self.recipe.stages, self.ledger, self.choice)
        for step in self.steps:
            self.bases.fingerprint(step.stage.name)  # data that cannot be read stop the run now
        header = f"The recipe {self.recipe.name}, resolved: every setting, defaults included."
        save_yaml(self.recipe.settings, self.recipe.out / "config.yaml", header=header)
        write_json(self.recipe.out / "environment.json", environment())
        for step, expected in zip(self.steps, self.recipe.estimates(self.steps), strict=True):
            took = "" if step.action == "skip" else f"; time {expected.time}"
            _say(f"{step.stage.name}: {step.action} ({step.why}){took}")
        return [(step.stage.name, step.action) for step in self.steps]

    @contextlib.contextmanager
    def whole(self) -> Iterator[None]:
        """The recipe's run in MLflow lasts as long as the block; a killed one is ended, too."""
        state = self.recipe.out / STATE
        if not self.team.first or (not self._work_left() and _closed(state)):
            yield
            return
        write_json(state, {"status": "running", "recipe": self.recipe.name, "started": now()})
        with contextlib.ExitStack() as stack:
            if self.recipe.tracked:
                self._runs = Runs(self.recipe.out, self.recipe.name)
                values = to_dict(self.recipe.settings)
                self._whole = stack.enter_context(self._runs.whole(values))
            yield
        write_json(state, {"status": "done", "recipe": self.recipe.name, "ended": now()})

    def do(self, name: str) -> None:
        """Run a stage: a training in all processes, any other in the first one alone."""
        stage = next(one for one in self.recipe.stages if one.name == name)
        if not stage.training:
            self.team.tell(lambda: self._attempt(stage, self._open(stage)))
            return
        entry = self.team.tell(lambda: self._open(stage))
        if self.team.first:
            self._attempt(stage, entry)
        else:
            folder = self.recipe.out / stage.folder
            stage.run(Work(out=self.recipe.out, folder=folder, first=False, minutes=entry.minutes))
        self.team.tell(lambda: None)  # the first one has written all

    def _open(self, stage: Stage) -> Entry:
        """The entry to work under: that of before, or a new one, the old result moved aside."""
        step = next(one for one in self.steps if one.stage.name == stage.name)
        entry = self.ledger.read(stage.name)
        if step.action == "run" or entry is None:
            self._clear(stage, entry)
            entry = Entry(
                name=stage.name,
                basis=self.bases[stage.name],
                fingerprint=self.bases.fingerprint(stage.name),
                started=now(),
                needs={need: self._id(need) for need in stage.needs},
                minutes=minutes_for(
                    stage, self.recipe.stages, self.ledger, self.recipe.max_minutes
                ),
                outputs=[stage.folder, *stage.files],
            )
        entry.status, entry.ended, entry.attempts = "running", None, entry.attempts + 1
        self.ledger.write(entry)
        (self.recipe.out / stage.folder).mkdir(parents=True, exist_ok=True)
        return entry

    def _clear(self, stage: Stage, entry: Entry | None) -> None:
        """Move aside what an earlier run left, and end its run in MLflow if it has no end."""
        if entry is not None and entry.status == "running" and self._runs is not None:
            self._runs.give_up(stage.name, self.recipe.out / stage.folder)
        moved = self.ledger.move_aside(stage)
        if moved is not None:
            _say(f"{stage.name}: what was there before is now in {moved}")

    def _attempt(self, stage: Stage, entry: Entry) -> None:
        """Run a stage in the first process, and write down how it ended."""
        number = [one.name for one in self.recipe.stages].index(stage.name) + 1
        limit = "" if entry.minutes is None else f", {entry.minutes:.1f} minutes at most"
        _say(f"[{number}/{len(self.recipe.stages)}] {stage.name}{limit}")
        began = time.monotonic()
        forget_peak()
        try:
            entry.facts = dict(self._tracked(stage, entry))
            entry.status = "done"
        except Exception as error:
            entry.status, entry.facts = "failed", {"error": one_line(error, 500)}
            raise
        finally:
            entry.seconds = round(entry.seconds + time.monotonic() - began, 2)
            entry.ended, entry.peak_mib = now(), _larger(entry.peak_mib, peak_mib())
            self.ledger.write(entry)
        _say(f"{stage.name}: done in {duration(entry.seconds)}")
        if self._whole is not None:
            took = {"seconds": entry.seconds, **entry.facts}
            self._whole.log_metrics(_numbers(took, f"{stage.name}/"), 0)

    def _tracked(self, stage: Stage, entry: Entry) -> Facts:
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
            tracker.log_metrics(_numbers(facts, "result/"), int(facts.get("step", 0)))
            return facts

    def _work_left(self) -> bool:
        return any(step.action != "skip" for step in self.steps)

    def _id(self, name: str) -> str:
        entry = self.ledger.read(name)
        assert entry is not None  # a stage comes after those that it needs
        return entry.id


def _closed(state: Path) -> bool:
    """Whether the last run came to its end, so that nothing is left open in MLflow."""
    return state.exists() and read_json_object(state).get("status") == "done"


def _check(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise MedarError(f"{out}: is a file; --out names a folder")


def _numbers(facts: Facts, prefix: str) -> dict[str, float]:
    return {f"{prefix}{n}": float(v) for n, v in facts.items() if not isinstance(v, str)}


def _larger(one: float | None, other: float | None) -> float | None:
    known = [value for value in (one, other) if value is not None]
    return max(known) if known else None


@contextlib.contextmanager
def _terminable(words: str) -> Iterator[None]:
    """SIGTERM, which schedulers send, ends the block as Ctrl-C does; both say how to go on."""

    def end(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    own = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, end) if own else None
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(words) from None
    finally:
        if own:
            signal.signal(signal.SIGTERM, before)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
