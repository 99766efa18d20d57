"""Runs in MLflow: the tracker that `medar.training.fit` tells of settings, metrics and files.

Nothing outside this room imports mlflow, and nothing is imported or written before a run says
something, so that under torchrun process 0 alone meets the server. What a run says goes into a
buffer, and every few seconds from there to MLflow. A server that does not answer costs a short wait
now and then, never the run: OUT/metrics.jsonl has every metric, and a resumed run sends what it
finds there and MLflow has not got. OUT/mlflow.json remembers the run.
"""

import math
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import yaml

from medar.environment import environment
from medar.errors import MedarError
from medar.files import read_json, write_json
from medar.tracking.data import DataSet, data_set
from medar.tracking.names import failure, finite, flat, public, say
from medar.tracking.store import LENGTH, METRICS, Point, Store, manners
from medar.tracking.system import System
from medar.training.tracker import Tracker, logged

INTERVAL, LONGEST = 5.0, 300.0
"""Seconds between two deliveries; while they fail the wait doubles, up to the longest."""

BUFFER = 200_000
"""Metrics that wait at most; the oldest are given up for new ones."""

METRICS_FILE = "metrics.jsonl"

SMALL = 10 * 2**20
SHOWN = frozenset(
    {".csv", ".html", ".jpg", ".json", ".md", ".png", ".svg", ".txt", ".yaml", ".yml"}
)
"""Files that are sent, by size in bytes and by ending: what a person looks at."""


class MlflowTracker(Tracker):
    """One run in MLflow, resumed when the training in `out` is; closed as a context manager.

    Args:
        out: the folder of the run.
        name: what MLflow shows the run as.
        experiment: what the run belongs to; made if absent.
        uri: the tracking store. Without it `MLFLOW_TRACKING_URI`, or the database `mlflow.db` in
            the folder that holds `out`.
        parent: id of the run that this one is a stage of. Without it `MLFLOW_RUN_ID`, which
            `mlflow run` sets.
        tags: more words on the run, besides versions, hardware and git state.
        clock: seconds, for the time between deliveries.
        system: with each delivery of metrics, what the machine is doing (`medar.tracking.system`).

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
        parent = parent or os.environ.get("MLFLOW_RUN_ID")
        self._name, self._experiment, self._clock = name, experiment, clock
        self._tags = {**(tags or {}), **({"mlflow.parentRunId": parent} if parent else {})}
        self._store: Store | None = None
        self._sent = -1  # the last step that MLflow has
        self._recall()
        self._parameters: dict[str, str] = {}
        self._points: deque[Point] = deque(maxlen=BUFFER)
        self._given_up = 0
        self._caught_up = False  # with what OUT/metrics.jsonl has from before
        self._files: dict[Path, str] = {}
        self._data: list[DataSet] = []
        self._system = System() if system else None
        self._wait, self._due = INTERVAL, -math.inf
        self._outside = sys.exception()

    @property
    def step(self) -> int:
        """The last step whose metrics MLflow has; -1 before there is one."""
        return self._sent

    @property
    def open(self) -> bool:
        """Whether the run is going on, as far as MLflow was told by this tracker."""
        return self._store is not None

    def log_parameters(self, parameters: dict[str, Any]) -> None:
        """Begin the run or go on with it. A value other than the run's first goes into a tag."""
        self._parameters |= {name: value[:LENGTH] for name, value in flat(parameters)}
        if not self._caught_up:
            self._catch_up(self._sent, math.inf)
            self._caught_up = True
        self.log_artifact(self.out / "config.yaml")
        self._send()

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        """Keep metrics for the next delivery; those that are not finite are left out."""
        self._add(metrics, step)
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
        """Name a data set that the run reads.

        Args:
            name: what it is called.
            digest: hash of its content or of its plan, at most 36 characters.
            source: where it is.
            context: what it is for, such as "training" or "evaluation".

        Raises:
            MedarError: a name or a digest that MLflow does not take.
        """
        for what, text, most in (("name", name, 500), ("digest", digest, 36)):
            if not 0 < len(text) <= most:
                raise MedarError(f"data set {name!r}: {what} {text!r}; 1 to {most} characters")
        self._data.append(DataSet(name, digest, source, context, {}))

    def log_folder(self, folder: str | Path, *, context: str = "training") -> None:
        """Name the data set that a folder of prepared cases or of tokens is, see `data_set`.

        Raises:
            MedarError: it holds neither, or is damaged.
        """
        self._data.append(data_set(folder, context))

    def close(self) -> None:
        """Deliver what is left and end the run: FINISHED, or by the exception on its way out."""
        if self._store is None and not (self._points or self._parameters):
            return
        error = sys.exception()
        status = "FINISHED"
        if error is not None and error is not self._outside:
            status = "FAILED" if isinstance(error, Exception) else "KILLED"
        self._send(status)
        left = [
            f"{number} {what}{'s' if number > 1 else ''}"
            for number, what in (
                (len(self._points) + self._given_up, "metric"),
                (len(self._parameters), "parameter"),
                (len(self._data), "data set"),
                (len(self._files), "file"),
            )
            if number
        ]
        if left:
            say(f"{', '.join(left)} did not reach MLflow; metrics are in {self.out}/metrics.jsonl")
        self._store = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def settle(self) -> None:
        """Send what MLflow has not got of a training that is over: OUT/metrics.jsonl, and its end.

        A training that finished while the server was away is not trained again, so nobody else
        would. Where MLflow has it all, nothing is sent.
        """
        if self._is_settled():
            return
        self._points.clear()
        self._given_up, self._caught_up = 0, False
        self.log_parameters(_settings(self.out / "config.yaml"))
        if self.open:
            self.close()

    def _is_settled(self) -> bool:
        """Whether MLflow has the run's end and all of its metrics."""
        behind = any(values["step"] > self._sent for values in logged(self.out / METRICS_FILE))
        if self.run_id is None or behind:
            return False
        try:
            with manners():
                return Store(self.uri).finished(self.run_id)
        except Exception:  # the delivery that follows says what it is
            return False

    def _add(self, metrics: dict[str, float], step: int) -> None:
        now = int(time.time() * 1000)
        points = [Point(name, value, now, step) for name, value in finite(metrics)]
        self._given_up += max(0, len(self._points) + len(points) - BUFFER)
        self._points.extend(points)

    def _send(self, status: str | None = None) -> None:
        """Deliver what waits; a failure is said once and puts the next try off."""
        try:
            with manners():
                self._deliver(status)
        except Exception as error:  # whatever a server or its client raises, training goes on
            if self._wait == INTERVAL:
                say(
                    f"{failure(self.uri, error)}; training goes on, metrics are kept in "
                    f"{self.out}/metrics.jsonl and sent later"
                )
            self._due = self._clock() + self._wait
            self._wait = min(2 * self._wait, LONGEST)
            return
        if self._wait > INTERVAL:
            say(f"MLflow at {public(self.uri)} has got what was kept for it")
        self._wait, self._due = INTERVAL, self._clock() + INTERVAL

    def _deliver(self, status: str | None) -> None:
        """Send all that waits, metrics first: what MLflow refuses must not keep them back."""
        store = self._store = self._store or self._begin()
        newest = self._points[-1] if self._points else None
        while self._points:
            batch = [self._points[i] for i in range(min(METRICS, len(self._points)))]
            store.metrics(batch)
            for _ in batch:
                self._points.popleft()
            if not self._points:
                self._remember(batch[-1].step)
        seen = self._system.read() if self._system else {}
        if newest and seen:
            store.metrics([newest._replace(key=name, value=v) for name, v in seen.items()])
        if status:
            store.end(status)
        if self._parameters:
            store.parameters(self._parameters)
            self._parameters = {}
        while self._data:
            store.data(self._data[0])
            del self._data[0]
        for file in list(self._files):
            if file.exists():
                store.file(file, self._files[file])
            del self._files[file]

    def _begin(self) -> Store:
        store = Store(self.uri)
        before = self.run_id
        self.run_id = store.begin(before, self._experiment, self._name, self._all_tags())
        if before not in (None, self.run_id):
            newer = list(self._points)
            self._points.clear()
            self._catch_up(-1, self._sent)
            self._points.extend(newer)
        self._remember(self._sent if before == self.run_id else -1)
        say(f"MLflow: run {self._name} ({self.run_id}) at {public(self.uri)}")
        return store

    def _all_tags(self) -> dict[str, str]:
        tags = {**environment(), "folder": str(self.out.resolve()), **self._tags}
        if "git.commit" in tags:
            tags["mlflow.source.git.commit"] = tags["git.commit"]  # where MLflow's pages look
        return tags

    def _recall(self) -> None:
        """Find the run that the folder belongs to, if it is in the same store."""
        path = self.out / "mlflow.json"
        if not path.exists():
            return
        try:
            kept = read_json(path)
            uri, run_id, sent = kept["uri"], str(kept["run_id"]), int(kept["sent"])
        except (MedarError, KeyError, TypeError, ValueError, OverflowError) as error:
            raise MedarError(
                f"{path}: damaged, without uri, run_id or sent; delete it to begin a new run in "
                "MLflow"
            ) from error
        if uri == public(self.uri):
            self.run_id, self._sent = run_id, sent

    def _remember(self, sent: int) -> None:
        self._sent = sent
        values = {"uri": public(self.uri), "run_id": self.run_id, "sent": sent}
        write_json(self.out / "mlflow.json", values)

    def _catch_up(self, after: float, until: float) -> None:
        """Take the metrics of some steps from OUT/metrics.jsonl."""
        for metrics in logged(self.out / METRICS_FILE):
            step = metrics.pop("step")
            if after < step <= until:
                self._add(metrics, step)


def _settings(path: Path) -> dict[str, Any]:
    """A run's config.yaml, which names settings as its parameters do; nothing without one."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return values if isinstance(values, dict) else {}
