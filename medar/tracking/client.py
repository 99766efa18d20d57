"""MLflow's client for one run. Nothing is set globally."""

import contextlib
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from medar.tracking.data import DataSet
from medar.tracking.names import key, resumed

CLIENT_ENV = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
"""Set unless the user has set it: by default MLflow waits for minutes, and prints."""

METRICS, PARAMETERS, LENGTH = 1000, 100, 6000
"""MLflow's limits: metrics and parameters per request, characters per parameter."""

LOST = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
"""MLflow's error codes for an absent run and for an invalid id."""


class Point(NamedTuple):
    """One value of a metric."""

    key: str
    value: float
    timestamp: int
    step: int


def client_of(uri: str) -> Any:
    """MLflow's client of a store; a database that cannot be opened raises at once.

    MLflow itself would try to open it for 100 seconds.
    """
    from mlflow import MlflowClient
    from mlflow.store.db.db_types import DATABASE_ENGINES

    if uri.partition(":")[0].partition("+")[0] in DATABASE_ENGINES:
        from sqlalchemy import create_engine

        engine = create_engine(uri)
        if engine.dialect.name == "sqlite" and engine.url.database:
            Path(engine.url.database).parent.mkdir(parents=True, exist_ok=True)
        engine.connect().close()
        engine.dispose()
    # A new database is announced at level INFO on standard error.
    log = logging.getLogger("mlflow.store.db.utils")
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        return MlflowClient(tracking_uri=uri)
    finally:
        log.setLevel(level)


class RunClient:
    """Requests about one run.

    Args:
        uri: the tracking store.
    """

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._client = client_of(uri)
        self._run: Any = None
        self._parameters: dict[str, str] = {}
        """The parameters as the run was created with them."""
        self._changed: dict[str, str] = {}
        """Values of those that a resumption has changed."""

    def find_or_create(
        self, run_id: str | None, experiment: str, name: str, tags: dict[str, str]
    ) -> str:
        """Find the run with an id, or create one; returns its id.

        An empty run of the same name, folder and host is taken before a new one is created: its
        process was killed before it could write down the id.
        """
        tags = _valid(tags)
        self._run = self._find(run_id) if run_id else None
        if self._run is None:
            experiment_id = self._experiment(experiment)
            self._run = self._orphan(experiment_id, name, tags)
            if self._run is None:
                self._run = self._client.create_run(experiment_id, tags=tags, run_name=name)
        self._parameters = dict(self._run.data.params)
        had = self._run.data.tags
        self._changed = {n: had[resumed(n)] for n in self._parameters if resumed(n) in had}
        return self._id

    @property
    def finished(self) -> bool:
        """Whether the run had the status FINISHED when it was looked up."""
        return bool(self._run.info.status == "FINISHED")

    def differs(self, parameters: dict[str, str]) -> bool:
        """Whether the run lacks some of these parameters or has other values."""
        now = {**self._parameters, **self._changed}
        return any(now.get(name) != value for name, value in parameters.items())

    def lacks(self, tags: dict[str, str]) -> bool:
        """Whether the run lacks some of these tags or has other values."""
        had = self._run.data.tags
        return any(had.get(name) != value for name, value in _valid(tags).items())

    def resume(self, tags: dict[str, str]) -> None:
        """Mark the run as running, with new tags."""
        self._client.update_run(self._id, status="RUNNING")
        self._tag(_valid(tags))

    def _orphan(self, experiment_id: str, name: str, tags: dict[str, str]) -> Any:
        """An empty run of this name, folder and host that has not ended."""
        where = {tag: tags[tag] for tag in ("folder", "host") if tag in tags}
        running = self._client.search_runs([experiment_id], "attributes.status = 'RUNNING'")
        for run in running if where else []:
            same = all(run.data.tags.get(tag) == value for tag, value in where.items())
            empty = not run.data.metrics and not run.data.params
            if same and empty and run.info.run_name == name:
                return run
        return None

    def _find(self, run_id: str) -> Any:
        from mlflow.exceptions import MlflowException

        try:
            run = self._client.get_run(run_id)
        except MlflowException as error:
            if error.error_code not in LOST:
                raise
            return None
        return run if run.info.lifecycle_stage == "active" else None

    def _experiment(self, name: str) -> str:
        experiment = self._client.get_experiment_by_name(name)
        if experiment is not None:
            return str(experiment.experiment_id)
        artifacts = None  # a server decides by itself
        if self._uri.startswith("sqlite:///"):
            database = Path(self._uri.removeprefix("sqlite:///")).resolve()
            artifacts = (database.parent / "mlartifacts").as_uri()
        return str(self._client.create_experiment(name, artifact_location=artifacts))

    def parameters(self, values: dict[str, str]) -> None:
        """Log new parameters; those with another value than before become tags `resumed.NAME`."""
        from mlflow.entities import Param

        had = self._parameters
        new = [Param(name, value) for name, value in values.items() if name not in had]
        for first in range(0, len(new), PARAMETERS):
            batch = new[first : first + PARAMETERS]
            self._client.log_batch(self._id, params=batch)
            had |= {param.key: param.value for param in batch}
        changed = {n: v for n, v in values.items() if v != had[n] or n in self._changed}
        self._tag({resumed(name): value for name, value in changed.items()})
        self._changed |= changed

    def _tag(self, tags: dict[str, str]) -> None:
        from mlflow.entities import RunTag

        entities = [RunTag(name, value) for name, value in tags.items()]
        for first in range(0, len(entities), PARAMETERS):
            self._client.log_batch(self._id, tags=entities[first : first + PARAMETERS])

    def metrics(self, points: list[Point]) -> None:
        """Log metrics."""
        from mlflow.entities import Metric

        for first in range(0, len(points), METRICS):
            batch = [Metric(*point) for point in points[first : first + METRICS]]
            self._client.log_batch(self._id, metrics=batch)

    def data(self, data: DataSet) -> None:
        """Log a data set as an input; one that is logged already is not logged again."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(
            name=data.name,
            digest=data.digest,
            source_type="local",
            source=json.dumps({"uri": data.source}),
            profile=json.dumps(data.profile) if data.profile else None,
        )
        tags = [InputTag("mlflow.data.context", data.context)]
        self._client.log_inputs(self._id, datasets=[DatasetInput(dataset, tags)])

    def file(self, path: Path, folder: str) -> None:
        """Log a file into a folder of the run's artifacts."""
        self._client.log_artifact(self._id, str(path), folder or None)

    def end(self, status: str) -> None:
        """End the run."""
        self._client.set_terminated(self._id, status)

    @property
    def _id(self) -> str:
        return str(self._run.info.run_id)


def _valid(tags: dict[str, str]) -> dict[str, str]:
    """Tags with names and lengths that MLflow accepts."""
    return {key(tag): str(value)[:LENGTH] for tag, value in tags.items()}


@contextlib.contextmanager
def client_env(**others: str) -> Iterator[None]:
    """Environment variables that MLflow reads at each request: `CLIENT_ENV`, unless set already.

    Args:
        others: replacements by name of the variable.
    """
    variables = {**CLIENT_ENV, **others}
    added = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


@contextlib.contextmanager
def global_tracking_uri(uri: str) -> Iterator[None]:
    """Set MLflow's global tracking URI inside the block.

    Only a registry in a database needs it, when it looks up the LoggedModel of a new version.
    """
    import mlflow

    name = "MLFLOW_TRACKING_URI"
    variable = os.environ.get(name)
    before = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else None
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(None if before == variable else before)
        if variable is not None:
            os.environ[name] = variable
