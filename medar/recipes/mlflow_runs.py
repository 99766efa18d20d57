"""A recipe's runs in MLflow: a parent run, and a child run for each stage."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from medar.recipes.stage import Facts, RunTracker

if TYPE_CHECKING:
    from medar.tracking import MlflowTracker


class RecipeRuns:
    """The runs of a recipe; each is created when it first logs something.

    Args:
        out: the recipe's folder.
        name: name of the parent run.
    """

    def __init__(self, out: Path, name: str) -> None:
        from medar.tracking import MlflowTracker

        self._parent: MlflowTracker = MlflowTracker(out, name=name, tags={"medar.kind": "recipe"})

    @property
    def complete(self) -> bool:
        """Whether MLflow took all of the parent run, once it is closed."""
        return self._parent.complete

    @contextlib.contextmanager
    def parent(self, parameters: dict[str, Any]) -> Iterator[RunTracker]:
        """The parent run; it ends with the block, as finished, failed or killed."""
        with contextlib.closing(self._parent):
            self._parent.log_parameters(parameters)
            yield self._parent

    @contextlib.contextmanager
    def stage(
        self, name: str, folder: Path, parameters: Mapping[str, Any]
    ) -> Iterator["MlflowTracker"]:
        """The run of a stage; it ends with the block, as finished, failed or killed."""
        with contextlib.closing(self.tracker(name, folder)) as tracker:
            tracker.log_parameters(dict(parameters))
            yield tracker

    def end_interrupted(self, name: str, folder: Path) -> None:
        """End the run of a stage that was interrupted and will not resume."""
        if (folder / "mlflow.json").exists():
            with contextlib.suppress(KeyboardInterrupt), self.stage(name, folder, {}):
                raise KeyboardInterrupt  # its status becomes KILLED

    def tracker(self, name: str, folder: Path) -> "MlflowTracker":
        """The tracker of a stage's run."""
        from medar.tracking import MlflowTracker

        tags = {"medar.kind": "stage", "medar.stage": name}
        return MlflowTracker(
            folder, name=name, uri=self._parent.uri, parent=self._parent.run_id, tags=tags
        )


def log_stage_model(
    tracker: "MlflowTracker",
    kind: Literal["tokenizer", "generator", "segmenter"],
    facts: Facts,
    register: str | None = None,
    alias: str | None = None,
) -> str:
    """Log the model of a training; a model that is already logged is not copied again.

    Args:
        tracker: of the stage.
        kind: of the model.
        facts: of the stage; numbers become metrics of the model.
        register: name in the registry; the model becomes its next version.
        alias: of that version.

    Returns:
        The model's URI.

    Raises:
        MedarError: MLflow does not answer, or refuses a name.
    """
    from medar.tracking.models import log_model

    metrics = numbers(facts)
    return log_model(
        tracker, tracker.out / "model", kind=kind, metrics=metrics, register=register, alias=alias
    )


def numbers(facts: Facts, prefix: str = "") -> dict[str, float]:
    """The numbers among facts, as metrics."""
    return {f"{prefix}{n}": float(v) for n, v in facts.items() if not isinstance(v, str)}
