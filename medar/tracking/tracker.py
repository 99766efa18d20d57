"""`MlflowTracker`: a run in MLflow, filled from the run's own `metrics.jsonl`.

Metrics are not buffered in memory: every few seconds the tracker sends the lines of
`OUT/metrics.jsonl` that MLflow does not have yet, and `OUT/mlflow.json` records how far it got. A
server that is away therefore costs a short wait now and then, never a metric: the rest is sent by a
later delivery, when the tracker is closed, or by the next run in the same folder.

Nothing outside this room imports mlflow, and mlflow is imported at the first delivery only.
"""

import contextlib
import importlib
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from medar.environment import environment
from medar.errors import MedarError
from medar.files import read_json, write_json
from medar.settings import read_yaml
from medar.tracking.client import LENGTH, METRICS, Point, RunClient, client_env
from medar.tracking.data import DataSet, data_set
from medar.tracking.names import failure, finite, flat, log, public
from medar.training.tracker import Tracker, ends_with, metrics_lines, read_metrics

INTERVAL, LONGEST = 5.0, 300.0
"""Seconds between deliveries; the wait doubles while they fail, up to the longest."""

METRICS_FILE = "metrics.jsonl"

SMALL = 10 * 2**20
SHOWN = frozenset(
    {".csv", ".html", ".jpg", ".json", ".md", ".png", ".svg", ".txt", ".yaml", ".yml"}
)
"""Files worth looking at, by maximum size in bytes and by suffix; others are not sent."""

MONITORS = {
    "cpu_monitor": "CPUMonitor",
    "disk_monitor": "DiskMonitor",
    "network_monitor": "NetworkMonitor",
    "gpu_monitor": "GPUMonitor",
}
"""Of `mlflow.system_metrics.metrics`; the first three need psutil, the last nvidia-ml-py."""


class MlflowTracker(Tracker):
    """One run in MLflow, resumed when the training in `out` is. A context manager.

    Args:
        out: the folder of the run.
        name: name of the run in MLflow.
        experiment: its experiment; created if absent.
        uri: the tracking store. Default: `MLFLOW_TRACKING_URI`, or the database `mlflow.db` in the
            folder that holds `out`.
        parent: id of the parent run. Default: `MLFLOW_RUN_ID`, which `mlflow run` sets.
        tags: tags in addition to versions, hardware and git state.
        clock: seconds, for the time between deliveries.
        system: also send system metrics with each delivery.

    Raises:
        MedarError: `out/mlflow.json` is damaged.
    """

    def __init__(
        self,
        out: str | Path,
        *,
        name: str,
        experiment: str = "medar",
        uri: str | None = None,
        parent: str | None = None,
        tags: Mapping[str, str] | None = None,
        clock: Callable[[], float] = time.monotonic,
        system: bool = True,
    ) -> None:
        self.out = Path(out)
        beside = (self.out.resolve().parent / "mlflow.db").as_posix()
        self.uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{beside}"
        self.run_id: str | None = None
        """The run in MLflow; None before there is one."""
        self.complete = True
        """False once the tracker was closed while MLflow did not take everything."""
        parent = parent or os.environ.get("MLFLOW_RUN_ID")
        self._name, self._experiment, self._clock = name, experiment, clock
        self._tags = {**(tags or {}), **({"mlflow.parentRunId": parent} if parent else {})}
        self._client: RunClient | None = None
        self._running = False  # the run is open in MLflow, and ours to end
        self._log = self.out / METRICS_FILE
        self._sent = -1  # the last step of metrics.jsonl that MLflow has
        self._offset = 0  # the byte of metrics.jsonl up to which MLflow has it
        self._newest = -1  # the last step of the metrics that are not in metrics.jsonl
        self._recall()
        self._others: list[Point] = []
        self._parameters: dict[str, str] = {}
        self._files: dict[Path, str] = {}
        self._data: list[DataSet] = []
        self._system = SystemMetrics() if system else None
        self._wait, self._due = INTERVAL, -math.inf
        self._outside = sys.exception()

    @property
    def step(self) -> int:
        """The last step whose metrics MLflow has; -1 if there is none."""
        return max(self._sent, self._newest)

    @property
    def open(self) -> bool:
        """Whether this tracker has reached MLflow and is not closed yet."""
        return self._client is not None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def log_parameters(self, parameters: dict[str, Any]) -> None:
        """Start or resume the run, and send everything that MLflow does not have yet.

        A parameter whose value has changed since the run began becomes the tag `resumed.NAME`. A
        finished run that MLflow has completely is not changed.
        """
        self._parameters |= {name: value[:LENGTH] for name, value in flat(parameters)}
        # A resumed training has removed the lines that it is going to repeat.
        last = max((values["step"] for values in read_metrics(self._log)), default=-1)
        self._sent, self._offset = min(self._sent, last), 0
        self.log_artifact(self.out / "config.yaml")
        self._send()

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        """Send metrics with the next delivery; non-finite values are left out.

        They are read from `OUT/metrics.jsonl` if `fit` has written them there. Others wait in
        memory.
        """
        if not ends_with(self._log, metrics, step):
            self._others += _points(metrics, step)
        if self._clock() >= self._due:
            self._send()

    def log_artifact(self, path: Path) -> None:
        """Send a small file, or those of a folder, with the next delivery; never weights."""
        path = Path(path)
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in files:
            if file.is_file() and file.suffix in SHOWN and file.stat().st_size <= SMALL:
                folder = file.parent.relative_to(path.parent).as_posix()
                self._files[file] = "" if folder == "." else folder

    def log_data(
        self, name: str, digest: str, *, source: str = "", context: str = "training"
    ) -> None:
        """Log a data set that the run reads.

        Args:
            name: of the data set, at most 500 characters.
            digest: hash of its content or of its plan, at most 36 characters.
            source: its location.
            context: purpose, such as "training" or "evaluation".

        Raises:
            MedarError: a name or a digest that MLflow does not accept.
        """
        for what, text, most in (("name", name, 500), ("digest", digest, 36)):
            if not 0 < len(text) <= most:
                raise MedarError(
                    f"data set {name!r}: {what} {text!r} must have 1 to {most} characters"
                )
        self._data.append(DataSet(name, digest, source, context, {}))

    def log_folder(self, folder: str | Path, *, context: str = "training") -> None:
        """Log a folder of prepared cases or of tokens as a data set, see `data_set`.

        Raises:
            MedarError: it holds neither, or is damaged.
        """
        self._data.append(data_set(folder, context))

    def catch_up(self) -> None:
        """Send what MLflow lacks of a training that has finished: settings and metrics."""
        self.log_parameters(_settings(self.out / "config.yaml"))

    def close(self) -> None:
        """Send the rest and end the run: FINISHED, or FAILED or KILLED by a pending exception."""
        if self._client is None and not (self._others or self._parameters):
            return
        error = sys.exception()
        status = "FINISHED"
        if error is not None and error is not self._outside:
            status = "FAILED" if isinstance(error, Exception) else "KILLED"
        self.complete = self._send(status)
        if self._running or self._client is None:
            self._report_unsent()
        self._client, self._running = None, False

    def _report_unsent(self) -> None:
        metrics = len(self._others) + sum(len(points) for *_, points in self._unsent())
        left = [
            f"{number} {what}{'s' if number > 1 else ''}"
            for number, what in (
                (metrics, "metric"),
                (len(self._parameters), "parameter"),
                (len(self._data), "data set"),
                (len(self._files), "file"),
            )
            if number
        ]
        if left:
            log(f"{', '.join(left)} did not reach MLflow; metrics are in {self._log}")

    def _send(self, status: str | None = None) -> bool:
        """Deliver; a failure is reported once and postpones the next attempt. Whether it worked."""
        try:
            with client_env():
                self._deliver(status)
        except Exception as error:  # whatever a server or its client raises, training continues
            if self._wait == INTERVAL:
                log(
                    f"{failure(self.uri, error)}; training continues, metrics are kept in "
                    f"{self._log} and sent later"
                )
            self._due = self._clock() + self._wait
            self._wait = min(2 * self._wait, LONGEST)
            return False
        if self._wait > INTERVAL:
            log(f"MLflow at {public(self.uri)} has received the stored entries")
        self._wait, self._due = INTERVAL, self._clock() + INTERVAL
        return True

    def _deliver(self, status: str | None) -> None:
        """Send everything, metrics first: what MLflow refuses must not hold them back."""
        client = self._client = self._client or self._connect()
        if not self._running:
            if self._is_complete(client):
                return
            client.resume(self._all_tags())
            self._running = True
        newest = None
        for points, end, step in self._batches():
            client.metrics(points)
            self._offset = end
            self._remember(step)
            newest = points[-1] if points else newest
        while self._others:
            newest = self._others[min(METRICS, len(self._others)) - 1]
            client.metrics(self._others[:METRICS])
            del self._others[:METRICS]
            self._newest = max(self._newest, newest.step)
        seen = self._system.read() if self._system else {}
        if newest and seen:
            client.metrics([newest._replace(key=name, value=v) for name, v in seen.items()])
        if status:
            client.end(status)
        if self._parameters:
            client.parameters(self._parameters)
            self._parameters = {}
        while self._data:
            client.data(self._data[0])
            del self._data[0]
        for file in list(self._files):
            if file.exists():
                client.file(file, self._files[file])
            del self._files[file]

    def _is_complete(self, client: RunClient) -> bool:
        """Whether MLflow has the run's end, its settings and all of its metrics."""
        unsent = bool(self._others) or any(True for _ in self._unsent())
        changed = client.differs(self._parameters) or client.lacks(self._tags)
        return client.finished and not unsent and not changed

    def _connect(self) -> RunClient:
        client = RunClient(self.uri)
        before = self.run_id
        self.run_id = client.find_or_create(before, self._experiment, self._name, self._all_tags())
        if before != self.run_id:  # a new run gets everything
            self._sent, self._offset = -1, 0
        self._remember(self._sent)
        log(f"MLflow: run {self._name} ({self.run_id}) at {public(self.uri)}")
        return client

    def _all_tags(self) -> dict[str, str]:
        tags = {**environment(), "folder": str(self.out.resolve()), **self._tags}
        if "git.commit" in tags:
            tags["mlflow.source.git.commit"] = tags["git.commit"]  # where MLflow's pages look
        return tags

    def _unsent(self) -> Iterator[tuple[int, int, list[Point]]]:
        """The lines of metrics.jsonl that MLflow lacks: end of the line, step, metrics."""
        for end, values in metrics_lines(self._log, self._offset):
            step = values.pop("step")
            if step > self._sent:
                yield end, step, _points(values, step)

    def _batches(self) -> Iterator[tuple[list[Point], int, int]]:
        """Unsent lines, grouped by request: metrics, end of the last line, its step."""
        batch: list[Point] = []
        end = step = 0
        for next_end, next_step, points in self._unsent():
            if batch and len(batch) + len(points) > METRICS:
                yield batch, end, step
                batch = []
            batch += points
            end, step = next_end, next_step
        if end:
            yield batch, end, step

    def _recall(self) -> None:
        """Read which run the folder belongs to, if it is in the same store."""
        path = self.out / "mlflow.json"
        if not path.exists():
            return
        try:
            kept = read_json(path)
            uri, run_id, sent = kept["uri"], str(kept["run_id"]), int(kept["sent"])
        except (MedarError, KeyError, TypeError, ValueError, OverflowError) as error:
            raise MedarError(
                f"{path}: damaged, without uri, run_id or sent; delete it to start a new run in "
                "MLflow"
            ) from error
        if uri == public(self.uri):
            self.run_id, self._sent = run_id, sent

    def _remember(self, sent: int) -> None:
        self._sent = sent
        values = {"uri": public(self.uri), "run_id": self.run_id, "sent": sent}
        write_json(self.out / "mlflow.json", values)


class SystemMetrics:
    """Load of CPU, memory, disk, network and GPUs, as MLflow's own monitors measure it.

    The monitors are read at each delivery rather than by a thread. Without nvidia-ml-py torch
    reports the memory of GPUs. What cannot be measured is left out.
    """

    def __init__(self) -> None:
        self._monitors: list[Any] | None = None

    def read(self) -> dict[str, float]:
        """Values by MLflow's names; empty at the first call, which only starts the counters."""
        first = self._monitors is None
        if self._monitors is None:
            monitors = (_monitor(module, name) for module, name in MONITORS.items())
            self._monitors = [monitor for monitor in monitors if monitor is not None]
        values: dict[str, float] = {}
        for monitor in self._monitors:
            with contextlib.suppress(Exception):  # no failing driver may cost a metric
                monitor.collect_metrics()
                values |= monitor.aggregate_metrics()
                monitor.clear_metrics()
        if not any(name.startswith("gpu_") for name in values):
            values |= _gpu_memory()
        return {} if first else {f"system/{name}": float(value) for name, value in values.items()}


def _monitor(module: str, name: str) -> Any:
    """One of MLflow's monitors, or None if it does not work here."""
    try:
        return getattr(importlib.import_module(f"mlflow.system_metrics.metrics.{module}"), name)()
    except Exception:  # whatever a driver or a container raises
        return None


def _gpu_memory() -> dict[str, float]:
    """Memory in use on each GPU, by any process, as torch reports it; empty without CUDA."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return {}
    values = {}
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        values[f"gpu_{index}_memory_usage_megabytes"] = round((total - free) / 1e6, 1)
        values[f"gpu_{index}_memory_usage_percentage"] = round(100 * (1 - free / total), 1)
    return values


def _points(metrics: Mapping[str, float | None], step: int) -> list[Point]:
    now = int(time.time() * 1000)
    return [Point(name, value, now, step) for name, value in finite(metrics)]


def _settings(path: Path) -> dict[str, Any]:
    """A run's config.yaml, whose keys are the names of its parameters; empty without one."""
    try:
        values = read_yaml(path)
    except MedarError:
        return {}
    return values if isinstance(values, dict) else {}
