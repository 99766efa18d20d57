"""What a recipe's run has done, what is running, and what is left, from the files in its folder."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from medar.errors import MedarError
from medar.files import in_use
from medar.recipes.budget import estimate_times, last_value
from medar.recipes.plan import Action, Step
from medar.recipes.stage import Stage
from medar.records import (
    CONFIG_FILE,
    SEGMENTATION,
    SYNTHESIS,
    Records,
    RunRecord,
    StageRecord,
    is_run,
    now,
)

State = Literal["done", "running", "interrupted", "failed", "left"]

ACTIONS: dict[State, Action] = {
    "done": "skip", "running": "resume", "interrupted": "resume", "failed": "resume", "left": "run",
}  # fmt: skip
"""What the next run does with a stage if nothing changes."""


@dataclass(frozen=True, kw_only=True)
class StageStatus:
    """One stage of a run."""

    stage: str
    state: State
    seconds: float | None = None
    """Spent so far; None if it has not started, or if that is unknown."""
    left: float | None = None
    """Expected seconds until it is done; None if unknown."""
    about: str = ""
    """The last step of a training, or the error of a stage that failed."""


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """A run of a recipe."""

    recipe: str
    working: bool
    """Whether a process works in the folder."""
    stages: tuple[StageStatus, ...]

    @property
    def done(self) -> int:
        """Number of stages that are done."""
        return sum(stage.state == "done" for stage in self.stages)

    @property
    def left(self) -> float | None:
        """Expected seconds of what is left; None if the time of a stage is unknown."""
        times = [stage.left for stage in self.stages if stage.state != "done"]
        return None if None in times else sum(time for time in times if time is not None)


def run_status(out: Path) -> RunStatus:
    """The state of a recipe's run.

    Args:
        out: the recipe's folder.

    Raises:
        MedarError: it is none, or a record in it is damaged.
    """
    if not is_run(out):
        raise MedarError(f"{out}: not the folder of a run; name the --out of `medar run`")
    records, working = Records(out), in_use(out)
    run = records.read_run() or RunRecord()
    found = {name: records.read(name) for name in run.stages}
    states = {name: _state(record, working) for name, record in found.items()}
    left = _expected(run, records, states)
    stages = tuple(
        _status(out, name, states[name], found[name], left.get(name)) for name in run.stages
    )
    return RunStatus(recipe=run.recipe or SYNTHESIS, working=working, stages=stages)


def _state(record: StageRecord | None, working: bool) -> State:
    if record is None:
        return "left"
    if record.status == "running":
        return "running" if working else "interrupted"
    return record.status


def _status(
    out: Path, name: str, state: State, record: StageRecord | None, left: float | None
) -> StageStatus:
    if record is None:
        return StageStatus(stage=name, state=state, left=left)
    metrics = out / (record.outputs or [name])[0] / "metrics.jsonl"
    step, trained = (last_value(metrics, key) for key in ("step", "seconds"))
    seconds: float | None = record.seconds
    if state == "running":
        first = record.started if record.attempts == 1 else None
        seconds = trained if first is None else (now() - first).total_seconds()
    about = str(record.facts.get("error", "")) if state == "failed" else ""
    if step is not None and state in ("running", "interrupted"):
        about = f"step {step:.0f}"
    return StageStatus(stage=name, state=state, seconds=seconds, left=left, about=about)


def _expected(
    run: RunRecord, records: Records, states: dict[str, State]
) -> dict[str, float | None]:
    """Expected seconds of each stage, by the settings in the folder; empty if they are unknown."""
    try:
        stages, minutes = _stages(run, records.out)
    except MedarError:  # of another version, or edited
        return {}
    listed = [stage for stage in stages if stage.name in states]
    steps = [Step(stage=stage, action=ACTIONS[states[stage.name]], why="") for stage in listed]
    times = estimate_times(steps, listed, records, minutes)
    return {stage.name: time.seconds for stage, time in zip(listed, times, strict=True)}


def _stages(run: RunRecord, out: Path) -> tuple[Sequence[Stage], float | None]:
    """The stages of a run, and its budget.

    Raises:
        MedarError: settings that this version does not read.
    """
    from medar.recipes.segmentation import segmentation_stages
    from medar.recipes.settings import SegmentationRecipeSettings, SynthesisSettings, load_recipe
    from medar.recipes.synthesis import synthesis_stages

    if run.recipe == SEGMENTATION:
        other = load_recipe(SegmentationRecipeSettings, out / CONFIG_FILE)
        return segmentation_stages(other, out), other.max_minutes
    settings = load_recipe(SynthesisSettings, out / CONFIG_FILE)
    return synthesis_stages(settings, out), settings.max_minutes
