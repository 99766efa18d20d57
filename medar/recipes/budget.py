"""Time of stages: dividing a budget, and estimates before a run.

Stages that do not train have no limit: their parts of the budget, by the weights, are reserved, or
what they took before if that was longer. Trainings divide the rest: what a stage takes beyond its
part is taken from the trainings after it, and what it leaves is theirs. No training gets less than
`LEAST` of its part, so that none is left without time.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medar.recipes.plan import Step
from medar.recipes.stage import Stage, TrainingEstimate
from medar.records import Records

LEAST = 0.25
"""Fraction of its part that a training gets, whatever the stages before it took."""
SHORTEST = 0.1
"""Minutes that any stage takes, to load libraries and read files."""


def minutes_for(
    stage: Stage, stages: Sequence[Stage], records: Records, budget: float | None
) -> float | None:
    """Time limit of a training; None for other stages, and without a budget.

    The time of earlier stages is read from their records, so that an interrupted recipe divides
    its time as an uninterrupted one does.

    Args:
        stage: one of `stages`, about to start.
        stages: all stages of the recipe, in order.
        records: of the recipe's folder.
        budget: minutes for all stages.
    """
    if budget is None or stage.training is None:
        return None
    index = [one.name for one in stages].index(stage.name)
    done = [records.read(one.name) for one in stages[:index]]
    spent = sum(record.seconds for record in done if record is not None) / 60
    return round(_limit(stages, index, records, budget, budget - spent), 4)


def expected_minutes(
    steps: Sequence[Step], stages: Sequence[Stage], records: Records, budget: float | None
) -> list[float | None]:
    """Time limits of the trainings of a plan, if each stage takes the time that it took before.

    A stage that never ran is assumed to use its part of the budget.
    """
    limits: list[float | None] = []
    left = budget or 0.0
    for index, step in enumerate(steps):
        record, last = records.read(step.stage.name), records.last_done(step.stage.name)
        minutes = None
        if budget is not None:
            minutes = _limit(stages, index, records, budget, left)
        if step.action == "resume" and record is not None:
            minutes = record.minutes  # as it started
        limits.append(minutes if step.stage.training else None)
        trains = step.stage.training and step.action in ("run", "resume")
        if last is not None and not trains:
            minutes = last.seconds / 60
        left = max(0.0, left - (minutes or 0.0))
    return limits


@dataclass(frozen=True, kw_only=True)
class TimeEstimate:
    """Expected time of a step; None if unknown."""

    seconds: float | None = None
    time: str = "unknown"
    """For people, with the source of the number."""


def estimate_times(
    steps: Sequence[Step], stages: Sequence[Stage], records: Records, budget: float | None
) -> list[TimeEstimate]:
    """Expected time of each step of a plan, from limits and earlier measurements."""
    limits = expected_minutes(steps, stages, records, budget)
    return [_estimate(step, records, limit) for step, limit in zip(steps, limits, strict=True)]


def duration(seconds: float) -> str:
    """Seconds with a readable unit: "12 s", "3.4 min", "2.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    if minutes < 90:
        return f"{minutes:.1f} min" if minutes < 9.95 else f"{minutes:.0f} min"
    return f"{minutes / 60:.1f} h"


def last_value(path: Path, name: str) -> float | None:
    """The last value of a metric in a metrics.jsonl."""
    if not path.exists():
        return None
    for line in reversed(path.read_text(encoding="utf-8").splitlines()):
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):  # a killed process left half a line
            continue
        value = values.get(name) if isinstance(values, dict) else None
        if isinstance(value, int | float):
            return float(value)
    return None


def _estimate(step: Step, records: Records, budget: float | None) -> TimeEstimate:
    if step.action == "skip":
        return TimeEstimate(seconds=0.0, time="-")
    last = records.last_done(step.stage.name)
    if step.stage.training is not None:
        seconds, source = _training_seconds(step, step.stage.training, records, budget)
    elif last is not None:
        seconds, source = last.seconds, "measured before"
    else:
        return TimeEstimate()
    time = source if seconds is None else f"{duration(seconds)} ({source})"
    return TimeEstimate(seconds=seconds, time=time)


def _training_seconds(
    step: Step, training: TrainingEstimate, records: Records, budget: float | None
) -> tuple[float | None, str]:
    """The limit of time, or that of the steps at a measured rate, whichever is less."""
    folder = records.out / step.stage.folder
    runs = [folder, *reversed(records.replaced(step.stage.name))]  # newest first
    rates = (last_value(run / "metrics.jsonl", "steps_per_second") for run in runs)
    rate = next(filter(None, rates), None)
    minutes = training.minutes if budget is None else budget
    limits = []
    if minutes is not None:
        limits.append((60 * minutes, "its limit" if budget is None else "from the budget"))
    if training.steps is not None and rate:
        limits.append((training.steps / rate, f"{training.steps} steps at {rate:.2g} per second"))
    if not limits:
        return None, "unknown"
    seconds, source = min(limits)
    spent = last_value(folder / "metrics.jsonl", "seconds") if step.action == "resume" else None
    return max(0.0, seconds - (spent or 0.0)), source


def _limit(
    stages: Sequence[Stage], index: int, records: Records, budget: float, left: float
) -> float:
    """The time of a stage, in minutes: a training's part of what the other stages leave.

    Args:
        stages: all stages of the recipe, in order.
        index: of the stage.
        records: of the recipe's folder.
        budget: minutes for all stages.
        left: minutes of it that are left.
    """
    own, later = stages[index], stages[index:]
    part = _part(own, stages, budget)
    if own.training is None:
        return part
    trainings = sum(one.budget_weight for one in later if one.training is not None)
    for one in later:
        if one.training is None:
            before = records.last_done(one.name)
            measured = 0.0 if before is None else before.seconds / 60
            left -= max(SHORTEST, _part(one, stages, budget), measured)
    return max(LEAST * part, left * own.budget_weight / trainings)


def _part(stage: Stage, stages: Sequence[Stage], budget: float) -> float:
    """A stage's part of the whole budget, by the weights."""
    return budget * stage.budget_weight / sum(one.budget_weight for one in stages)
