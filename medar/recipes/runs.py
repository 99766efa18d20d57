"""A recipe's runs in MLflow: one for the whole, and one for each stage below it."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from medar.recipes.stage import Facts, RunTracker

if TYPE_CHECKING:
    from medar.tracking import MlflowTracker


class Runs:
    """The runs of a recipe; none of them exists before it is asked for.

    Args:
        out: the recipe's folder.
        name: what MLflow shows the recipe's run as.
    """

    def __init__(self, out: Path, name: str) -> None:
        from medar.tracking import MlflowTracker

        self._name = name
        self._whole = MlflowTracker(out, name=name, tags={"medar.kind": "recipe"})

    @contextlib.contextmanager
    def whole(self, parameters: dict[str, Any]) -> Iterator[RunTracker]:
        """The recipe's run, which ends with the block, and says how."""
        with contextlib.closing(self._whole):
            self._whole.log_parameters(parameters)
            yield self._whole

    @contextlib.contextmanager
    def stage(
        self, name: str, folder: Path, parameters: Mapping[str, Any]
    ) -> Iterator["MlflowTracker"]:
        """The run of a stage, which ends with the block, and says how."""
        with contextlib.closing(self.tracker(name, folder)) as tracker:
            tracker.log_parameters(dict(parameters))
            yield tracker

    def give_up(self, name: str, folder: Path) -> None:
        """End the run of a stage that was interrupted and will not be gone on with."""
        if (folder / "mlflow.json").exists():
            with contextlib.suppress(KeyboardInterrupt), self.stage(name, folder, {}):
                raise KeyboardInterrupt  # which makes it KILLED, as it was

    def tracker(self, name: str, folder: Path) -> "MlflowTracker":
        """The run of a stage, which begins when it is told something."""
        from medar.tracking import MlflowTracker

        tags = {"medar.kind": "stage", "medar.stage": name}
        return MlflowTracker(
            folder, name=name, uri=self._whole.uri, parent=self._whole.run_id, tags=tags
        )


def keep_model(
    tracker: "MlflowTracker",
    kind: Literal["tokenizer", "generator", "segmenter"],
    facts: Facts,
    register: str | None = None,
    alias: str | None = None,
) -> str:
    """Put the model that a training left into MLflow; one that is there already is not copied.

    Args:
        tracker: of the stage.
        kind: what the model is.
        facts: numbers among them say how good it is.
        register: a name in the registry, of which it becomes the next version.
        alias: what that version is called.

    Returns:
        The model's address.

    Raises:
        MedarError: no answer from MLflow, or a name that it does not take.
    """
    from medar.tracking.models import log_model

    metrics = {name: float(value) for name, value in facts.items() if not isinstance(value, str)}
    return log_model(
        tracker, tracker.out / "model", kind=kind, metrics=metrics, register=register, alias=alias
    )


class Held:
    """A tracker that somebody else closes: `fit` closes its own when a training ends.

    Args:
        tracker: the one that is told.
    """

    def __init__(self, tracker: RunTracker) -> None:
        self._tracker = tracker
        self.run_id = tracker.run_id

    def log_parameters(self, parameters: dict[str, Any]) -> None:
        """Tell the tracker."""
        self._tracker.log_parameters(parameters)

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        """Tell the tracker."""
        self._tracker.log_metrics(metrics, step)

    def log_artifact(self, path: Path) -> None:
        """Tell the tracker."""
        self._tracker.log_artifact(path)

    def log_data(
        self, name: str, digest: str, *, source: str = "", context: str = "training"
    ) -> None:
        """Tell the tracker."""
        self._tracker.log_data(name, digest, source=source, context=context)

    def close(self) -> None:
        """Nothing."""
