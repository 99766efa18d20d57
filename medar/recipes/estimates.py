"""Time and memory of a step before it runs: what was measured here before, or can be counted.

What is not known is said to be unknown, never guessed.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medar.recipes.planning import Step
from medar.recipes.stage import Outlook, Stage
from medar.records import Records

NUMBERS = 5
"""Float32 numbers kept for each trained one: weight, gradient, two of Adam, averaged weight."""

BYTES = 4


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a step is expected to take; None is unknown."""

    seconds: float | None = None
    time: str = "unknown"
    """In words, with where the figure is from."""
    mib: float | None = None
    memory: str = "unknown"


def estimate(step: Step, records: Records, budget: float | None = None) -> Estimate:
    """What a step takes.

    Args:
        step: of a plan.
        records: with what was measured before.
        budget: minutes that the stage would be given.
    """
    if step.action == "skip":
        return Estimate(seconds=0.0, time="-", mib=0.0, memory="-")
    outlook = step.stage.outlook()
    if step.stage.training:
        seconds, source = _training_seconds(step, outlook, records, budget)
    else:
        seconds, source = _measured_seconds(step.stage, records)
    mib, basis = _memory(step.stage, outlook, records)
    return Estimate(
        seconds=seconds,
        time=source if seconds is None else f"{duration(seconds)} ({source})",
        mib=mib,
        memory=basis if mib is None else f"{mib:.0f} MiB ({basis})",
    )


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    if minutes < 90:
        return f"{minutes:.1f} min" if minutes < 9.95 else f"{minutes:.0f} min"
    return f"{minutes / 60:.1f} h"


def _measured_seconds(stage: Stage, records: Records) -> tuple[float | None, str]:
    before = records.last_done(stage.name)
    return (None, "unknown") if before is None else (before.seconds, "measured before")


def _training_seconds(
    step: Step, outlook: Outlook, records: Records, budget: float | None
) -> tuple[float | None, str]:
    """The limit of time, or that of the steps at a rate that was measured."""
    folder = records.out / step.stage.folder
    minutes = outlook.minutes if budget is None else budget
    found = []
    if minutes is not None:
        found.append((60 * minutes, "its limit" if budget is None else "its share"))
    rates = [_last(run / "metrics.jsonl", "steps_per_second") for run in _runs(step.stage, records)]
    rate = next((one for one in rates if one), None)
    if outlook.steps is not None and rate:
        found.append((outlook.steps / rate, f"{outlook.steps} steps at {rate:.2g} a second"))
    if not found:
        return None, "unknown"
    seconds, source = min(found)
    spent = _last(folder / "metrics.jsonl", "seconds") if step.action == "resume" else None
    return max(0.0, seconds - (spent or 0.0)), source


def _runs(stage: Stage, records: Records) -> list[Path]:
    """Folders of a training's runs, the newest first."""
    return [records.out / stage.folder, *reversed(records.replaced(stage.name))]


def _memory(stage: Stage, outlook: Outlook, records: Records) -> tuple[float | None, str]:
    before = records.last_done(stage.name)
    if before is not None and before.peak_mib is not None:
        return before.peak_mib, "measured before"
    if outlook.parameters is None:
        return None, "unknown"
    held = outlook.parameters * NUMBERS * BYTES / 2**20
    words = f"estimated, at least: {outlook.parameters / 1e6:.2g} M parameters; activations not"
    return held, f"{words} counted"


def _last(path: Path, name: str) -> float | None:
    """The last value of a metric in a metrics.jsonl."""
    if not path.exists():
        return None
    for line in reversed(path.read_text(encoding="utf-8").splitlines()):
        try:
            values: dict[str, Any] = json.loads(line)
        except ValueError:  # a killed process left half a line
            continue
        if values.get(name) is not None:
            return float(values[name])
    return None
