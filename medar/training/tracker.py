"""Where metrics go: a small protocol, a file of JSON lines, and several trackers at once."""

import contextlib
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from medar.errors import MedarError
from medar.files import write_text


class Tracker(Protocol):
    """Something that keeps what a run says. The loop calls it in process 0 alone."""

    def log_parameters(self, parameters: dict[str, Any]) -> None:
        """Keep the settings of the run; called once at each start, resumed or not."""

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        """Keep metrics; steps rise, save that a resumed run repeats those after its checkpoint."""

    def log_artifact(self, path: Path) -> None:
        """Keep a file or folder."""

    def close(self) -> None:
        """The run is over, whichever way it ended; called by whoever made the tracker."""


class JsonlTracker:
    """One JSON object a line: `step`, and the metrics; a number that is not finite is null.

    Args:
        path: the file; it is gone on with.
        step: lines after this step are dropped, since the run is to repeat them.
    """

    def __init__(self, path: Path, step: int = 0) -> None:
        self.path = path
        kept = [line for line, values in _lines(path) if values["step"] <= step]
        write_text(path, "".join(kept))
        self._file = path.open("a", encoding="utf-8")

    def log_parameters(self, parameters: dict[str, Any]) -> None:
        """Nothing: settings are in config.yaml."""

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        """Write a line, at once.

        Raises:
            MedarError: the disk is full.
        """
        values = {name: _number(value) for name, value in metrics.items()}
        line = json.dumps({"step": step, **values}, allow_nan=False)
        try:
            self._file.write(line + "\n")
            self._file.flush()
        except OSError as error:
            raise MedarError(f"{self.path}: cannot be written ({error.strerror})") from error

    def log_artifact(self, path: Path) -> None:
        """Nothing: files are beside this one."""

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Trackers:
    """Several trackers as one."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self._trackers = trackers

    def log_parameters(self, parameters: dict[str, Any]) -> None:
        """Tell each tracker."""
        for tracker in self._trackers:
            tracker.log_parameters(parameters)

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        """Tell each tracker."""
        for tracker in self._trackers:
            tracker.log_metrics(metrics, step)

    def log_artifact(self, path: Path) -> None:
        """Tell each tracker."""
        for tracker in self._trackers:
            tracker.log_artifact(path)

    def close(self) -> None:
        """Close each tracker."""
        for tracker in self._trackers:
            tracker.close()


def logged(path: Path) -> list[dict[str, Any]]:
    """What a `JsonlTracker` has written: a mapping a line, `step` in each; none without a file."""
    return [values for _, values in _lines(path)]


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The whole lines of a file; what a killed process left half-written is left out."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    for line in text.splitlines(keepends=True):
        with contextlib.suppress(ValueError):
            values = json.loads(line)
            if line.endswith("\n") and isinstance(values, dict) and "step" in values:
                yield line, values


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
