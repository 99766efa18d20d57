"""`Stage`: one step of a recipe as it is declared, and `Work`, what its function is given."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from medar.training.tracker import Tracker

Facts = Mapping[str, float | str]
"""What a stage says of its result: numbers and short texts."""


class RunTracker(Tracker, Protocol):
    """A tracker that can name data sets too, as `medar.tracking.MlflowTracker` does."""

    run_id: str | None

    def log_data(
        self, name: str, digest: str, *, source: str = "", context: str = "training"
    ) -> None:
        """Name a data set that the run reads."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a stage's function is given."""

    out: Path
    """The recipe's folder."""
    folder: Path
    """The stage's own."""
    first: bool = True
    """Whether this process writes; the others only train."""
    minutes: float | None = None
    """The most that a training may take, where the recipe has a budget."""
    tracker: RunTracker | None = None
    """The stage's run; closed by the recipe."""

    def reads(self, name: str, digest: str, source: Path, context: str) -> None:
        """Name a data set among the inputs of the stage's run."""
        if self.tracker is not None:
            self.tracker.log_data(name, digest, source=str(source), context=context)

    def shows(self, path: Path) -> None:
        """Add a file, or those of a folder, to the stage's run."""
        if self.tracker is not None:
            self.tracker.log_artifact(path)


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """What is known of a stage before it runs; None where nothing is."""

    steps: int | None = None
    """Steps of a training."""
    minutes: float | None = None
    """The most that a training takes."""
    parameters: int | None = None
    """Trained numbers."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One step of a recipe."""

    name: str
    folder: str
    """What it owns, below the recipe's folder."""
    run: Callable[[Work], Facts]
    """Does the work, or goes on with what a killed process left of it."""
    rooms: tuple[str, ...]
    """Modules and packages of medar whose code the result depends on; not those that only what it
    needs was made with."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """All that the result depends on, as JSON-able values."""
    needs: tuple[str, ...] = ()
    """Stages whose results it takes."""
    files: tuple[str, ...] = ()
    """What else it owns: files in the recipe's folder."""
    inputs: Callable[[], dict[str, str]] | None = None
    """Digests by name of data that come from outside."""
    result: Callable[[Path], str] | None = None
    """The digest of what it left in its folder. Stages that need it are redone only if that
    differs; without it, each time that this one is."""
    retells: bool = False
    """It also tells how what it needs was made, and is redone whenever that is."""
    training: bool = False
    """It runs in all processes, and within the minutes that it is given. Once it has begun, a
    change of code or budget alone does not make it run anew: that is left to `--force`."""
    model: Literal["tokenizer", "generator", "segmenter"] | None = None
    """What kind of model it leaves in the folder `model` of its own, to be kept in MLflow."""
    share: float = 0.0
    """Of a budget of time."""
    outlook: Callable[[], Outlook] = Outlook
    """Asked before it runs."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """Its folder, then its files, below the recipe's folder."""
        return (self.folder, *self.files)
