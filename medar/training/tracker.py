"""Metrics: their means over steps, `metrics.jsonl`, and the `Tracker` protocol.

`OUT/metrics.jsonl` is the complete record of a run. Whatever else shows metrics, such as MLflow,
is filled from it.
"""

import contextlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from medar.errors import MedarError
from medar.files import write_text
from medar.training.distributed import all_gather_object, weighted_means


class Meter:
    """Means of the metrics of a loss since the last reading; skipped steps do not count.

    Sums stay on the device and are read at log steps only.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    @torch.no_grad()
    def add(self, metrics: dict[str, Tensor], finite: Tensor) -> None:
        """Add scalars if `finite`, a bool on the device, is true."""
        for name, value in metrics.items():
            pair = torch.stack([value.float(), torch.ones_like(value, dtype=torch.float32)])
            pair = torch.where(finite, pair, torch.zeros_like(pair))
            self._sums[name] = self._sums[name] + pair if name in self._sums else pair

    def read(self) -> dict[str, float]:
        """The means over steps and processes; resets the sums."""
        own = {name: (float(s), float(n)) for name, (s, n) in self._to_cpu().items()}
        self._sums = {}
        return weighted_means(all_gather_object(own))

    def _to_cpu(self) -> dict[str, list[float]]:
        if not self._sums:
            return {}
        values = torch.stack(list(self._sums.values())).tolist()
        return dict(zip(self._sums, values, strict=True))

    def state_dict(self) -> dict[str, Tensor]:
        """State of this process for a checkpoint."""
        return {name: pair.cpu() for name, pair in self._sums.items()}

    def load_state_dict(self, state: dict[str, Tensor], device: torch.device) -> None:
        """Restore `state_dict`."""
        self._sums = {name: value.to(device) for name, value in state.items()}


class Tracker(Protocol):
    """Receives settings, metrics and files. Only rank 0 calls it; the loop never closes it."""

    def log_parameters(self, parameters: dict[str, Any]) -> None:
        """Log the settings; called once per start, also if the run is resumed or has finished."""

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        """Log metrics. Steps rise, but a resumed run repeats those after its checkpoint."""

    def log_artifact(self, path: Path) -> None:
        """Log a file or a folder."""

    def close(self) -> None:
        """End the run; called by the owner of the tracker."""


class JsonlTracker:
    """One JSON object per line: `step` and the metrics; non-finite values are null.

    Args:
        path: file to append to.
        step: later lines are removed, since the run will repeat them.
    """

    def __init__(self, path: Path, step: float = 0) -> None:
        self.path = path
        kept = [values for values in read_metrics(path) if values["step"] <= step]
        write_text(path, "".join(json.dumps(values) + "\n" for values in kept))
        self._file = path.open("a", encoding="utf-8")

    def log_parameters(self, parameters: dict[str, Any]) -> None:
        """Do nothing: settings are in config.yaml."""

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        """Append a line at once.

        Raises:
            MedarError: the disk is full.
        """
        values = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        line = json.dumps({"step": step, **values}, allow_nan=False)
        try:
            self._file.write(line + "\n")
            self._file.flush()
        except OSError as error:
            raise MedarError(f"{self.path}: cannot be written ({error.strerror})") from error

    def log_artifact(self, path: Path) -> None:
        """Do nothing: files are in the same folder."""

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Trackers:
    """Several trackers as one; they are called in order."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self._trackers = trackers

    def log_parameters(self, parameters: dict[str, Any]) -> None:
        """Log settings to each tracker."""
        for tracker in self._trackers:
            tracker.log_parameters(parameters)

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        """Log metrics to each tracker."""
        for tracker in self._trackers:
            tracker.log_metrics(metrics, step)

    def log_artifact(self, path: Path) -> None:
        """Log a file to each tracker."""
        for tracker in self._trackers:
            tracker.log_artifact(path)

    def close(self) -> None:
        """Close each tracker."""
        for tracker in self._trackers:
            tracker.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`, each with its `step`; an absent file has none."""
    return [values for _, values in metrics_lines(path)]


def metrics_lines(path: Path, start: int = 0) -> Iterator[tuple[int, dict[str, Any]]]:
    """The lines of a `metrics.jsonl` from a byte offset: the offset of each line's end, its values.

    Damaged lines are skipped, as is a last line that a killed process left incomplete.
    """
    if not path.exists():
        return
    with path.open("rb") as file:
        file.seek(start)
        for line in file:
            start += len(line)
            with contextlib.suppress(ValueError):
                values = json.loads(line)
                if line.endswith(b"\n") and isinstance(values, dict) and "step" in values:
                    yield start, values


def ends_with(path: Path, metrics: Mapping[str, float], step: int) -> bool:
    """Whether the last line of a `metrics.jsonl` holds these metrics."""
    if not path.exists():
        return False
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 2**20))
        lines = file.read().splitlines()
    try:
        last = json.loads(lines[-1])
    except (IndexError, ValueError):
        return False
    return isinstance(last, dict) and last.get("step") == step and metrics.keys() <= last.keys()
