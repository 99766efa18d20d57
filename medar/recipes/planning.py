"""What is to be done of a recipe, and why: a step for each stage, before anything runs."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from medar.errors import MedarError
from medar.recipes.code import code_digest
from medar.recipes.stage import Stage
from medar.records import Records

Action = Literal["run", "resume", "skip", "depends"]
"""`depends`: skipped, or gone on with, unless a stage before it gives another result."""

UNKNOWN = "not set"


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Which stages are wanted."""

    first: str | None = None
    """The stages before it must be done."""
    last: str | None = None
    """The stages after it are left alone."""
    forced: tuple[str, ...] = ()
    """To be run anew though nothing has changed."""

    def of(self, stages: Sequence[Stage]) -> list[Stage]:
        """The stages up to the last.

        Raises:
            MedarError: no such stage, or an order that leaves none.
        """
        names = [stage.name for stage in stages]
        for option, name in self._named():
            if name not in names:
                raise MedarError(f"{option} {name}: no such stage; there are: {', '.join(names)}")
        start = names.index(self.first) if self.first else 0
        end = names.index(self.last) + 1 if self.last else len(names)
        if start >= end:
            raise MedarError(f"--from {self.first} --until {self.last}: nothing lies between them")
        for name in self.forced:
            if name not in names[start:end]:
                raise MedarError(
                    f"--force {name}: is not among the stages that are to run, "
                    f"{', '.join(names[start:end])}"
                )
        return list(stages[:end])

    def _named(self) -> list[tuple[str, str]]:
        ends = (("--from", self.first), ("--until", self.last))
        return [
            *((option, name) for option, name in ends if name),
            *(("--force", name) for name in self.forced),
        ]


@dataclass(frozen=True, kw_only=True)
class Step:
    """What is to be done with a stage."""

    stage: Stage
    action: Action
    why: str


def make_plan(
    stages: Sequence[Stage], records: Records, choice: Choice, bases: "Bases"
) -> list[Step]:
    """A step for each stage that is wanted.

    Args:
        stages: all of the recipe, in order.
        records: what was done before.
        choice: which are wanted.
        bases: of the same stages.

    Raises:
        MedarError: a stage that is not there, or one before `--from` that is not done.
    """
    steps: dict[str, Step] = {}
    started = choice.first is None
    for stage in choice.of(stages):
        started = started or stage.name == choice.first
        open_ = [name for name in stage.needs if steps[name].action != "skip"]
        action, why = decide(stage, records, bases, open_, forced=stage.name in choice.forced)
        if not started and action != "skip":
            raise MedarError(
                f"--from {choice.first}: {stage.name} comes before it and is to run ({why}); leave "
                "--from out, or name that stage"
            )
        steps[stage.name] = Step(stage=stage, action=action, why=why)
    return list(steps.values())


class Bases:
    """What stages depend on besides their needs, each computed once and only if asked for.

    Args:
        stages: all of the recipe.
        minutes: its budget.
    """

    def __init__(self, stages: Sequence[Stage], minutes: float | None = None) -> None:
        self._stages, self._minutes = {stage.name: stage for stage in stages}, minutes
        self._known: dict[str, dict[str, Any]] = {}

    def __getitem__(self, name: str) -> dict[str, Any]:
        if name not in self._known:
            stage = self._stages[name]
            values = {
                "settings": dict(stage.settings),
                "inputs": stage.inputs() if stage.inputs else {},
                "code": {room: code_digest(room) for room in stage.rooms},
                "budget": {"max_minutes": self._minutes} if stage.training else {},
            }
            self._known[name] = json.loads(json.dumps(values))
        return self._known[name]


def needed(stage: Stage, records: Records) -> dict[str, str | None]:
    """What names the result of each stage that one needs; None where there is none."""
    made = {need: records.read(need) for need in stage.needs}
    return {
        need: None if one is None else one.id if stage.retells else one.result or one.id
        for need, one in made.items()
    }


def decide(
    stage: Stage, records: Records, bases: Bases, open_: Sequence[str] = (), *, forced: bool = False
) -> tuple[Action, str]:
    """Whether a stage runs, goes on or is skipped, and why.

    Args:
        stage: the one.
        records: what was done before.
        bases: what it depends on now.
        open_: stages that it needs and whose result is not known yet.
        forced: run it in any case.
    """
    entry = records.read(stage.name)
    if entry is None:
        return "run", "not done yet"
    if forced:
        return "run", "forced"
    given, around = _changes(entry.basis, bases[stage.name])
    if given or (around and not stage.training):
        return "run", given or around
    for need, result in needed(stage, records).items():
        if need not in open_ and result != entry.needs.get(need):
            return "run", f"{need} has given another result since"
    for need in sorted(entry.needs.keys() - set(stage.needs)):
        return "run", f"it was made from {need}, which is left out now"
    done = entry.status == "done"
    if done and not records.complete(stage.outputs):
        return "run", "its result is gone"
    why = "done" if done else "failed before" if entry.status == "failed" else "was interrupted"
    if around:
        why += f"; {around}" + (f", --force {stage.name} trains anew" if done else "")
    if open_:
        return "depends", f"{why}; runs anew if {open_[0]} gives another result"
    if done:
        return "skip", why if around else f"{why}, nothing has changed"
    return "resume", why


def _changes(before: dict[str, Any], now: dict[str, Any]) -> tuple[str, str]:
    """What has changed, in a few words: first of the settings and the data, then around them.

    A setting that only one of the two knows has come or gone with the code.
    """
    given, around = [], []
    before = {part: before.get(part, {}) for part in now}
    for name, one, other in _differences(before["settings"], now["settings"]):
        if UNKNOWN in (one, other):
            around.append(f"{name} was {one}, now {other}")
        else:
            given.append(f"{name} was {one}, now {other}")
    for name, _, _ in _differences(before["inputs"], now["inputs"]):
        given.append(f"{name} has changed")
    for room, _, _ in _differences(before["code"], now["code"]):
        around.append(f"the code of medar.{room} has changed since")
    for name, one, other in _differences(before["budget"], now["budget"]):
        around.append(f"{name} was {one}, now {other}")
    return (given or [""])[0], (around or [""])[0]


def _differences(
    before: dict[str, Any], now: dict[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """Name and both values of whatever differs in nested mappings."""
    for name in sorted(before.keys() | now.keys()):
        one, other = before.get(name, UNKNOWN), now.get(name, UNKNOWN)
        if isinstance(one, dict) and isinstance(other, dict):
            yield from _differences(one, other, f"{prefix}{name}.")
        elif one != other:
            yield prefix + name, one, other
