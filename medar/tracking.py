"""Runs in MLflow: the tracker that `medar.training.fit` tells of settings, metrics and files.

Nothing else imports mlflow, and nothing is imported or written before a run says something, so that
under torchrun process 0 alone meets the server. What a run says goes into a buffer, and every few
seconds from there to MLflow. A server that does not answer costs a short wait now and then, never
the run: OUT/metrics.jsonl has every metric, and a resumed run sends what it finds there and MLflow
has not got. OUT/mlflow.json remembers the run. Weights stay where they are.
"""

import contextlib
import json
import math
import os
import posixpath
import re
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from medar.environment import environment
from medar.errors import MedarError, one_line
from medar.files import read_json, write_json
from medar.training.tracker import Tracker

INTERVAL, LONGEST = 5.0, 300.0
"""Seconds between two deliveries; while they fail the wait doubles, up to the longest."""

MANNERS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
"""What MLflow is told where the user has not: by default it waits minutes, and prints."""

METRICS, PARAMETERS, LENGTH = 1000, 100, 6000
"""MLflow's limits: metrics and parameters of one request, characters of a parameter."""

BUFFER = 200_000
"""Metrics that wait at most; the oldest are given up for new ones."""

SMALL = 10 * 2**20
SHOWN = frozenset(
    {".csv", ".html", ".jpg", ".json", ".md", ".png", ".svg", ".txt", ".yaml", ".yml"}
)
"""Files that are sent, by size in bytes and by ending: what a person looks at."""


class _Point(NamedTuple):
    key: str
    value: float
    timestamp: int
    step: int


class MlflowTracker(Tracker):
    """One run in MLflow, which goes on when `out`'s training does.

    Args:
        out: the folder of the run.
        name: what MLflow shows the run as.
        experiment: what the run belongs to; made if absent.
        uri: the tracking store. Without it `MLFLOW_TRACKING_URI`, or the database `mlflow.db` in
            the folder that holds `out`.
        parent: id of the run that this one is a stage of.
        tags: more words on the run, besides versions, hardware and git state.
        clock: seconds, for the time between deliveries.

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
    ) -> None:
        self.out = Path(out)
        beside = (self.out.resolve().parent / "mlflow.db").as_posix()
        self.uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{beside}"
        self.run_id: str | None = None
        """The run in MLflow; None before there is one."""
        self._name, self._experiment, self._clock = name, experiment, clock
        self._tags = {**(tags or {}), **({"mlflow.parentRunId": parent} if parent else {})}
        self._store: _Store | None = None
        self._sent = -1  # the last step that MLflow has
        self._recall()
        self._parameters: dict[str, str] = {}
        self._points: deque[_Point] = deque(maxlen=BUFFER)
        self._given_up = 0
        self._files: dict[Path, str] = {}
        self._data: list[tuple[str, str, str, str]] = []
        self._wait, self._due = INTERVAL, -math.inf
        self._outside = sys.exception()

    def log_parameters(self, parameters: dict[str, Any]) -> None:
        """Begin the run or go on with it. A value other than the run's first goes into a tag."""
        self._parameters |= {name: value[:LENGTH] for name, value in _flat(parameters)}
        self._catch_up(self._sent, math.inf)
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
        """
        self._data.append((name, digest, source, context))

    def close(self) -> None:
        """Deliver what is left and end the run: FINISHED, or by the exception on its way out."""
        if self._store is None and not (self._points or self._parameters or self._data):
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
            _say(f"{', '.join(left)} did not reach MLflow; metrics are in {self.out}/metrics.jsonl")
        self._store = None

    def _add(self, metrics: dict[str, float], step: int) -> None:
        now = int(time.time() * 1000)
        points = [
            _Point(_key(name), float(value), now, step)
            for name, value in metrics.items()
            if value is not None and math.isfinite(value)
        ]
        self._given_up += max(0, len(self._points) + len(points) - BUFFER)
        self._points.extend(points)

    def _send(self, status: str | None = None) -> None:
        """Deliver what waits; a failure is said once and puts the next try off."""
        try:
            with _manners():
                self._deliver(status)
        except Exception as error:  # whatever a server or its client raises, training goes on
            if self._wait == INTERVAL:
                _say(
                    f"MLflow at {_public(self.uri)} is not reached "
                    f"({_public(one_line(error, 120))}); training goes on, metrics are kept in "
                    f"{self.out}/metrics.jsonl and sent later"
                )
            self._due = self._clock() + self._wait
            self._wait = min(2 * self._wait, LONGEST)
            return
        if self._wait > INTERVAL:
            _say(f"MLflow at {_public(self.uri)} has got what was kept for it")
        self._wait, self._due = INTERVAL, self._clock() + INTERVAL

    def _deliver(self, status: str | None) -> None:
        """Send all that waits, metrics first: what MLflow refuses must not keep them back."""
        store = self._store = self._store or self._begin()
        while self._points:
            batch = [self._points[i] for i in range(min(METRICS, len(self._points)))]
            store.metrics(batch)
            for _ in batch:
                self._points.popleft()
            if not self._points:
                self._remember(batch[-1].step)
        if status:
            store.end(status)
        if self._parameters:
            store.parameters(self._parameters)
            self._parameters = {}
        while self._data:
            store.data(*self._data[0])
            del self._data[0]
        for file in list(self._files):
            if file.exists():
                store.file(file, self._files[file])
            del self._files[file]

    def _begin(self) -> "_Store":
        store = _Store(self.uri)
        before = self.run_id
        self.run_id = store.begin(before, self._experiment, self._name, self._all_tags())
        if before not in (None, self.run_id):
            self._catch_up(-1, self._sent)
        self._remember(self._sent if before == self.run_id else -1)
        _say(f"MLflow: run {self._name} ({self.run_id}) at {_public(self.uri)}")
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
        kept = read_json(path)
        try:
            uri, run_id, sent = kept["uri"], str(kept["run_id"]), int(kept["sent"])
        except (KeyError, TypeError, ValueError) as error:
            raise MedarError(
                f"{path}: no uri, run_id or sent in it; delete it to begin a new run in MLflow"
            ) from error
        if uri == _public(self.uri):
            self.run_id, self._sent = run_id, sent

    def _remember(self, sent: int) -> None:
        self._sent = sent
        values = {"uri": _public(self.uri), "run_id": self.run_id, "sent": sent}
        write_json(self.out / "mlflow.json", values)

    def _catch_up(self, after: float, until: float) -> None:
        """Take the metrics of some steps from OUT/metrics.jsonl."""
        with contextlib.suppress(OSError, ValueError, KeyError):
            for line in (self.out / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
                metrics = json.loads(line)
                step = metrics.pop("step")
                if after < step <= until:
                    self._add(metrics, step)


class _Store:
    """What is asked of MLflow, about one run."""

    def __init__(self, uri: str) -> None:
        from mlflow import MlflowClient

        self._uri = uri
        self._client = MlflowClient(tracking_uri=uri)
        self._run: Any = None

    def begin(self, run_id: str | None, experiment: str, name: str, tags: dict[str, str]) -> str:
        """Go on with a run if there still is one of that id, or make one; returns its id."""
        self._run = self._there(run_id) if run_id else None
        if self._run is None:
            place = self._experiment(experiment)
            self._run = self._client.create_run(place, tags=tags, run_name=name)
        else:
            self._client.update_run(run_id, status="RUNNING")
            self._tag(tags)
        return str(self._run.info.run_id)

    def _there(self, run_id: str) -> Any:
        from mlflow.exceptions import MlflowException

        try:
            run = self._client.get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        return run if run.info.lifecycle_stage == "active" else None

    def _experiment(self, name: str) -> str:
        found = self._client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        artifacts = None  # a server has a place of its own
        if self._uri.startswith("sqlite:///"):
            database = Path(self._uri.removeprefix("sqlite:///")).resolve()
            artifacts = (database.parent / "mlartifacts").as_uri()
        return str(self._client.create_experiment(name, artifact_location=artifacts))

    def parameters(self, values: dict[str, str]) -> None:
        """New ones as parameters; those that differ from the run's as tags `resumed.NAME`."""
        from mlflow.entities import Param

        known, tags = self._run.data.params, self._run.data.tags
        new = [Param(name, value) for name, value in values.items() if name not in known]
        for first in range(0, len(new), PARAMETERS):
            self._client.log_batch(self._id, params=new[first : first + PARAMETERS])
        changed = {f"resumed.{n}": v for n, v in values.items() if v != known.get(n, v)}
        again = {f"resumed.{n}": v for n, v in values.items() if f"resumed.{n}" in tags}
        self._tag({**changed, **again})

    def _tag(self, tags: dict[str, str]) -> None:
        from mlflow.entities import RunTag

        entities = [RunTag(name, value) for name, value in tags.items()]
        for first in range(0, len(entities), PARAMETERS):
            self._client.log_batch(self._id, tags=entities[first : first + PARAMETERS])

    def metrics(self, points: list[_Point]) -> None:
        """At most `METRICS` of them."""
        from mlflow.entities import Metric

        self._client.log_batch(self._id, metrics=[Metric(*point) for point in points])

    def data(self, name: str, digest: str, source: str, context: str) -> None:
        """A data set among the run's inputs."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(name=name, digest=digest, source_type="local", source=source)
        tags = [InputTag("mlflow.data.context", context)]
        self._client.log_inputs(self._id, datasets=[DatasetInput(dataset, tags)])

    def file(self, path: Path, folder: str) -> None:
        """A file, into a folder among the run's artifacts."""
        self._client.log_artifact(self._id, str(path), folder or None)

    def end(self, status: str) -> None:
        """The run is over."""
        self._client.set_terminated(self._id, status)

    @property
    def _id(self) -> str:
        return str(self._run.info.run_id)


@contextlib.contextmanager
def _manners() -> Iterator[None]:
    """`MANNERS` in the environment, which MLflow reads at each request."""
    added = {name: value for name, value in MANNERS.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested mappings as pairs, `a.b.c` and text."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield _key(f"{prefix}{name}"), str(value)


def _key(name: str) -> str:
    """A name that MLflow takes on every system: a relative path of plain characters."""
    plain = posixpath.normpath(re.sub(r"[^/\w.\- ]", "_", name)).lstrip("/")[:250]
    parts = [part for part in plain.split("/") if part not in ("", ".", "..")]
    return "/".join(parts) or "_"


def _public(text: str) -> str:
    """An address, or words around one, without user and password."""
    return re.sub(r"(\w+://)[^/\s@]*@", r"\1", text)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
