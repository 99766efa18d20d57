"""`Stage`: the declaration of one step of a recipe; `StageContext`: arguments of its function."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from medar.training.tracker import Tracker

Facts = Mapping[str, float | str]
"""Facts that a stage records about its result: numbers and short texts."""


class RunTracker(Tracker, Protocol):
    """A tracker that also records data sets, as `medar.tracking.MlflowTracker` does."""

    run_id: str | None

    def log_data(
        self, name: str, digest: str, *, source: str = "", context: str = "training"
    ) -> None:
        """Record a data set that the run reads."""


@dataclass(frozen=True, kw_only=True)
class StageContext:
    """Arguments of a stage's function."""

    out: Path
    """The recipe's folder."""
    folder: Path
    """The stage's own folder."""
    is_rank_zero: bool = True
    """Whether this process writes; the others only train."""
    minutes: float | None = None
    """Time limit of a training, if the recipe has a budget."""
    tracker: RunTracker | None = None
    """The stage's run in MLflow; the recipe closes it."""

    def log_dataset(self, name: str, digest: str, source: Path, context: str) -> None:
        """Record a data set among the inputs of the stage's run."""
        if self.tracker is not None:
            self.tracker.log_data(name, digest, source=str(source), context=context)

    def log_artifact(self, path: Path) -> None:
        """Add a file, or the files of a folder, to the stage's run."""
        if self.tracker is not None:
            self.tracker.log_artifact(path)


@dataclass(frozen=True, kw_only=True)
class TrainingEstimate:
    """Limits of a training, from which its time is estimated."""

    steps: int | None = None
    minutes: float | None = None


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One step of a recipe."""

    name: str
    folder: str
    """Files and folders of the stage, relative to the recipe's folder."""
    run: Callable[[StageContext], Facts]
    """Does the work, or resumes that of a killed process. Its code counts, see
    `medar.recipes.code`."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """All settings that the result depends on, as JSON values."""
    needs: tuple[str, ...] = ()
    """Stages whose results it reads."""
    files: tuple[str, ...] = ()
    """Files in the recipe's folder that it owns besides its folder."""
    inputs: Callable[[], dict[str, str]] | None = None
    """Digests by name of data from outside the recipe."""
    result: Callable[[Path], str] | None = None
    """Digest of its results. Stages that need it run again only if the digest
    differs; without one, each time that this stage runs."""
    describes_needs: bool = False
    """It also describes how its needs were made, and runs again whenever they do."""
    training: TrainingEstimate | None = None
    """Set for trainings. They run in all processes, within the time the budget gives them. Once
    started, a change of code or budget alone does not make them start over: `--force` does."""
    model: Literal["tokenizer", "generator", "segmenter"] | None = None
    """Kind of the model that it leaves in the folder `model` of its own, for MLflow."""
    budget_weight: float = 1.0
    """Its part of a time budget, relative to the other stages."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """Its folder, then its files, below the recipe's folder."""
        return (self.folder, *self.files)
