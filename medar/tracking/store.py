"""What is asked of MLflow about one run, through its client: nothing of it is set globally."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from medar.tracking.data import DataSet
from medar.tracking.names import key, resumed

MANNERS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
"""What MLflow is told where the user has not: by default it waits minutes, and prints."""

METRICS, PARAMETERS, LENGTH = 1000, 100, 6000
"""MLflow's limits: metrics and parameters of one request, characters of a parameter."""

LOST = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
"""MLflow's words for a run that is not there and for an id that no run can have."""


class Point(NamedTuple):
    """One value of a metric."""

    key: str
    value: float
    timestamp: int
    step: int


def client_of(uri: str) -> Any:
    """MLflow's client of a store; a database that cannot be opened is an error at once.

    MLflow itself tries to open one for 100 seconds, with a paragraph on each try.
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
    return MlflowClient(tracking_uri=uri)


class Store:
    """What is asked of MLflow, about one run."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._client = client_of(uri)
        self._run: Any = None
        self._known: dict[str, str] = {}
        """The run's parameters."""
        self._resumed: set[str] = set()
        """Names of those that a resumption has changed."""

    def finished(self, run_id: str) -> bool:
        """Whether MLflow knows a run as one that has come to its end."""
        run = self._there(run_id)
        return run is not None and run.info.status == "FINISHED"

    def begin(self, run_id: str | None, experiment: str, name: str, tags: dict[str, str]) -> str:
        """Go on with a run if there still is one of that id, or make one; returns its id.

        A run that was made here before and was told nothing yet is taken instead: whoever made it
        was killed before it could note its id.
        """
        tags = {key(tag): str(value)[:LENGTH] for tag, value in tags.items()}
        self._run = self._there(run_id) if run_id else None
        if self._run is None:
            place = self._experiment(experiment)
            self._run = self._orphan(place, name, tags)
            if self._run is None:
                self._run = self._client.create_run(place, tags=tags, run_name=name)
        else:
            self._client.update_run(run_id, status="RUNNING")
        self._tag(tags)
        self._known = dict(self._run.data.params)
        self._resumed = {name for name in self._known if resumed(name) in self._run.data.tags}
        return str(self._run.info.run_id)

    def _orphan(self, place: str, name: str, tags: dict[str, str]) -> Any:
        """A run of an experiment that lasts, of this name, folder and host, with nothing in it."""
        where = {tag: tags[tag] for tag in ("folder", "host") if tag in tags}
        lasting = self._client.search_runs([place], "attributes.status = 'RUNNING'")
        for run in lasting if where else []:
            same = all(run.data.tags.get(tag) == value for tag, value in where.items())
            bare = not run.data.metrics and not run.data.params
            if same and bare and run.info.run_name == name:
                return run
        return None

    def _there(self, run_id: str) -> Any:
        from mlflow.exceptions import MlflowException

        try:
            run = self._client.get_run(run_id)
        except MlflowException as error:
            if error.error_code not in LOST:
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

        known = self._known
        new = [Param(name, value) for name, value in values.items() if name not in known]
        for first in range(0, len(new), PARAMETERS):
            batch = new[first : first + PARAMETERS]
            self._client.log_batch(self._id, params=batch)
            known |= {param.key: param.value for param in batch}
        self._resumed |= {name for name, value in values.items() if value != known[name]}
        self._tag({resumed(name): v for name, v in values.items() if name in self._resumed})

    def _tag(self, tags: dict[str, str]) -> None:
        from mlflow.entities import RunTag

        entities = [RunTag(name, value) for name, value in tags.items()]
        for first in range(0, len(entities), PARAMETERS):
            self._client.log_batch(self._id, tags=entities[first : first + PARAMETERS])

    def metrics(self, points: list[Point]) -> None:
        """At most `METRICS` of them."""
        from mlflow.entities import Metric

        self._client.log_batch(self._id, metrics=[Metric(*point) for point in points])

    def data(self, data: DataSet) -> None:
        """A data set among the run's inputs; one that is there already is not put there again."""
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
        """A file, into a folder among the run's artifacts."""
        self._client.log_artifact(self._id, str(path), folder or None)

    def end(self, status: str) -> None:
        """The run is over."""
        self._client.set_terminated(self._id, status)

    @property
    def _id(self) -> str:
        return str(self._run.info.run_id)


@contextlib.contextmanager
def manners(**others: str) -> Iterator[None]:
    """`MANNERS` in the environment, which MLflow reads at each request.

    Args:
        others: values in their place, by the variable's name.
    """
    wanted = {**MANNERS, **others}
    added = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


@contextlib.contextmanager
def everywhere(uri: str) -> Iterator[None]:
    """`uri` as MLflow's global address, for the one place in MLflow that asks for no other.

    That is a registry in a database, as it looks up the LoggedModel of a new version.
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
