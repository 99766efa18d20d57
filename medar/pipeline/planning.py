"""What is to be done of a recipe, and why: a step for each stage, before anything runs."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from medar.errors import MedarError
from medar.files import digest
from medar.pipeline.code import code_digest
from medar.pipeline.ledger import Entry, Ledger
from medar.pipeline.stage import Stage

Action = Literal["run", "resume", "skip"]


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
    stages: Sequence[Stage], ledger: Ledger, choice: Choice, bases: "Bases | None" = None
) -> list[Step]:
    """A step for each stage that is wanted.

    Args:
        stages: all of the recipe, in order.
        ledger: what was done before.
        choice: which are wanted.
        bases: of the same stages, where they are used again.

    Raises:
        MedarError: a stage that is not there, or one before `--from` that is not done.
    """
    bases = bases or Bases(stages)
    steps: dict[str, Step] = {}
    started = choice.first is None
    for stage in choice.of(stages):
        started = started or stage.name == choice.first
        entry = ledger.read(stage.name)
        anew = [name for name in stage.needs if steps[name].action == "run"]
        action, why = _decide(stage, entry, ledger, bases, anew, stage.name in choice.forced)
        if not started and action != "skip":
            raise MedarError(
                f"--from {choice.first}: {stage.name} comes before it and is to run ({why}); leave "
                "--from out, or name that stage"
            )
        steps[stage.name] = Step(stage=stage, action=action, why=why)
    return list(steps.values())


class Bases:
    """What the fingerprints of stages are taken of, each computed once and only if asked for."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        self._stages = {stage.name: stage for stage in stages}
        self._known: dict[str, dict[str, Any]] = {}

    def __getitem__(self, name: str) -> dict[str, Any]:
        if name not in self._known:
            stage = self._stages[name]
            values = {
                "settings": dict(stage.settings),
                "inputs": stage.inputs() if stage.inputs else {},
                "code": {room: code_digest(room) for room in stage.rooms},
                "needs": {need: self.fingerprint(need) for need in stage.needs},
            }
            self._known[name] = json.loads(json.dumps(values))
        return self._known[name]

    def fingerprint(self, name: str) -> str:
        """The hash of all that a stage's result depends on."""
        return digest(self[name])


def _decide(
    stage: Stage, entry: Entry | None, ledger: Ledger, bases: Bases, anew: list[str], forced: bool
) -> tuple[Action, str]:
    """Whether a stage runs, goes on or is skipped, and why."""
    if entry is None:
        return "run", "not done yet"
    if forced:
        return "run", "forced"
    if anew:
        return "run", f"{anew[0]} is run anew"
    for need in stage.needs:
        made = ledger.read(need)
        if made is None or made.id != entry.needs.get(need):
            return "run", f"{need} was run anew since"
    if entry.fingerprint != bases.fingerprint(stage.name):
        return "run", _difference(entry.basis, bases[stage.name])
    if entry.status == "done":
        if ledger.whole(stage):
            return "skip", "done, nothing has changed"
        return "run", "its result is gone"
    return "resume", "failed before" if entry.status == "failed" else "was interrupted"


def _difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    """What has changed, in a few words: the first of the settings, the data or the code."""
    for part, words in (("settings", "{} was {}, now {}"), ("inputs", "{} has changed")):
        then, given = (_flat(basis.get(part, {})) for basis in (before, now))
        for name in sorted(then.keys() | given.keys()):
            one, other = then.get(name, "not set"), given.get(name, "not set")
            if one != other:
                return words.format(name, one, other)
    code = [r for r in now["code"] if now["code"][r] != before.get("code", {}).get(r)]
    if code:
        return f"the code of medar.{code[0]} has changed"
    return f"what it needs has changed: {', '.join(now['needs'])}"


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
