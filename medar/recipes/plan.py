"""The plan of a recipe: for each stage run, resume or skip, and the reason."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from medar.errors import MedarError
from medar.recipes.code import code_digests
from medar.recipes.stage import Stage
from medar.records import Records
from medar.settings import did_you_mean

Action = Literal["run", "resume", "skip", "depends"]
"""`depends`: skipped or resumed, unless a stage before it gives another result."""

UNKNOWN = "not set"


@dataclass(frozen=True, kw_only=True)
class StageSelection:
    """Which stages to run."""

    first: str | None = None
    """The stages before it must be done."""
    last: str | None = None
    """The stages after it are not run."""
    forced: tuple[str, ...] = ()
    """Stages to run again even if nothing has changed."""

    def of(self, stages: Sequence[Stage]) -> list[Stage]:
        """The stages up to the last.

        Raises:
            MedarError: an unknown stage, or an order that selects none.
        """
        names = [stage.name for stage in stages]
        options = [("--from", self.first), ("--until", self.last)]
        options += [("--force", name) for name in self.forced]
        for option, name in options:
            if name is not None and name not in names:
                hint = did_you_mean(name, names, listed="known stages")
                raise MedarError(f"{option} {name}: unknown stage; {hint}")
        start = names.index(self.first) if self.first else 0
        end = names.index(self.last) + 1 if self.last else len(names)
        if start >= end:
            raise MedarError(
                f"--from {self.first} --until {self.last}: {self.last} comes before {self.first}"
            )
        for name in self.forced:
            if name not in names[start:end]:
                raise MedarError(
                    f"--force {name}: not among the selected stages, {', '.join(names[start:end])}"
                )
        return list(stages[:end])


@dataclass(frozen=True, kw_only=True)
class Step:
    """What to do with a stage, and why."""

    stage: Stage
    action: Action
    why: str


class StageInputs:
    """What each stage depends on besides its needs; computed once, and only on demand.

    Args:
        stages: all stages of the recipe.
        minutes: the recipe's budget.
    """

    def __init__(self, stages: Sequence[Stage], minutes: float | None = None) -> None:
        self._stages, self._minutes = {stage.name: stage for stage in stages}, minutes
        self._computed: dict[str, dict[str, Any]] = {}

    def __getitem__(self, name: str) -> dict[str, Any]:
        if name not in self._computed:
            stage = self._stages[name]
            values = {
                "settings": dict(stage.settings),
                "inputs": stage.inputs() if stage.inputs else {},
                "code": code_digests(stage.run),
                "budget": {"max_minutes": self._minutes} if stage.training else {},
            }
            self._computed[name] = json.loads(json.dumps(values))
        return self._computed[name]


def make_plan(
    stages: Sequence[Stage], records: Records, selection: StageSelection, inputs: StageInputs
) -> list[Step]:
    """A step for each selected stage.

    Args:
        stages: all stages of the recipe, in order.
        records: of the recipe's folder.
        selection: which stages to run.
        inputs: of the same stages.

    Raises:
        MedarError: an unknown stage, or one before `--from` that is not done.
    """
    steps: dict[str, Step] = {}
    started = selection.first is None
    for stage in selection.of(stages):
        started = started or stage.name == selection.first
        undecided = [name for name in stage.needs if steps[name].action != "skip"]
        forced = stage.name in selection.forced
        action, why = decide(stage, records, inputs, undecided, forced=forced)
        if not started and action != "skip":
            raise MedarError(
                f"--from {selection.first}: {stage.name} comes before it and has to run ({why}); "
                "leave --from out, or name that stage"
            )
        steps[stage.name] = Step(stage=stage, action=action, why=why)
    return list(steps.values())


def results_needed(stage: Stage, records: Records) -> dict[str, str | None]:
    """What identifies the result of each stage that one needs; None if there is none."""
    made = {need: records.read(need) for need in stage.needs}
    return {
        need: None if one is None else one.id if stage.describes_needs else one.result or one.id
        for need, one in made.items()
    }


def decide(
    stage: Stage,
    records: Records,
    inputs: StageInputs,
    undecided: Sequence[str] = (),
    *,
    forced: bool = False,
) -> tuple[Action, str]:
    """Whether a stage runs, resumes or is skipped, and why.

    Args:
        stage: the stage.
        records: of the recipe's folder.
        inputs: of the stage, in their current state.
        undecided: stages it needs whose result is not known yet.
        forced: run it in any case.
    """
    record = records.read(stage.name)
    if record is None:
        return "run", "not done yet"
    if forced:
        return "run", "forced"
    change, code_change = _changes(record.basis, inputs[stage.name])
    if change or (code_change and not stage.training):
        return "run", change or code_change
    for need, result in results_needed(stage, records).items():
        if need not in undecided and result != record.needs.get(need):
            return "run", f"the result of {need} has changed"
    for need in sorted(record.needs.keys() - set(stage.needs)):
        return "run", f"it was made from {need}, which is no longer part of the recipe"
    done = record.status == "done"
    if done and not records.complete(stage.outputs):
        return "run", "its result is missing"
    why = "done" if done else "failed before" if record.status == "failed" else "was interrupted"
    if code_change:
        why += f"; {code_change}" + (f", --force {stage.name} trains again" if done else "")
    if undecided:
        return "depends", f"{why}; runs again if the result of {undecided[0]} changes"
    if done:
        return "skip", why if code_change else f"{why}, nothing has changed"
    return "resume", why


def _changes(before: dict[str, Any], now: dict[str, Any]) -> tuple[str, str]:
    """The first change of settings or data, and the first one of code or budget; "" for none.

    A setting that only one of the two has was added or removed with the code.
    """
    changes: list[str] = []
    code_changes: list[str] = []
    before = {part: before.get(part, {}) for part in now}
    for name, old, new in _differences(before["settings"], now["settings"]):
        kind = code_changes if UNKNOWN in (old, new) else changes
        kind.append(f"{name} was {old}, now {new}")
    for name, _, _ in _differences(before["inputs"], now["inputs"]):
        changes.append(f"{name} has changed")
    for name, _, _ in _differences(before["code"], now["code"]):
        code_changes.append(f"the code of {name} has changed")
    for name, old, new in _differences(before["budget"], now["budget"]):
        code_changes.append(f"{name} was {old}, now {new}")
    return (changes or [""])[0], (code_changes or [""])[0]


def _differences(
    before: dict[str, Any], now: dict[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """Name and both values of each difference between nested mappings."""
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name, UNKNOWN), now.get(name, UNKNOWN)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _differences(old, new, f"{prefix}{name}.")
        elif old != new:
            yield prefix + name, old, new
