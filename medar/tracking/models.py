"""`log_model`: a trained model as a LoggedModel of its run in MLflow, and in MLflow's registry.

MLflow stores the model folder itself (safetensors and JSON, never pickle), a few lines of code that
load it, a signature and requirements. The hash of the folder is a tag: a folder is logged once,
however often `log_model` is called.
"""

import shutil
import tempfile
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medar.errors import MedarError, one_line
from medar.files import digest, file_digest
from medar.tracking.client import METRICS, client_env, client_of, global_tracking_uri
from medar.tracking.names import Kind, check_names, finite, kind_of, log, public, resumed
from medar.tracking.tracker import MlflowTracker
from medar.version import __version__

DIGEST = "medar.digest"
"""The tag with the hash of a model's files."""

PATIENCE = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "120", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2"}
"""Timeouts while weights are sent; whether the server answers is known by then."""


def log_model(
    tracker: MlflowTracker,
    folder: str | Path,
    *,
    kind: Kind,
    metrics: Mapping[str, float],
    register: str | None = None,
    alias: str | None = None,
) -> str:
    """Log a model folder to MLflow; a folder that is logged already is not copied again.

    Args:
        tracker: of the run that trained the model; the caller closes it.
        folder: the model folder.
        kind: of the model.
        metrics: of the model; logged to the LoggedModel and to the run.
        register: name in the registry; the model becomes its next version.
        alias: of that version, such as "champion"; taken from the version that had it.

    Returns:
        The URI of the LoggedModel, `models:/m-...`.

    Raises:
        MedarError: MLflow does not accept a name or does not answer, or the folder holds no such
            model.
    """
    check_names(register, alias)
    folder = Path(folder)
    if (actual := kind_of(folder)) != kind:
        raise MedarError(f"{folder}: holds a {actual}, not a {kind}")
    hashed = _hash(folder)
    try:
        models = _registry_of(tracker)
        with client_env(**PATIENCE), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # MLflow's, about MLflow's own type hints
            model_id = models.put(folder, kind, hashed)
            models.measure(model_id, metrics)
            version = ""
            if register is not None:
                number = models.register(model_id, register, alias)
                version = f", {register} version {number}" + (f" @{alias}" if alias else "")
    except Exception as error:  # whatever a server or its client raises
        raise MedarError(
            f"{folder}: not logged as a model at {public(tracker.uri)} "
            f"({public(one_line(error, 200))}); run the same command again to try again"
        ) from error
    log(f"MLflow: {kind} models:/{model_id}{version}")
    return f"models:/{model_id}"


def _hash(folder: Path) -> str:
    """The hash of all files of a folder and their relative paths."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return digest([[path.relative_to(folder).as_posix(), file_digest(path)] for path in files])


def _registry_of(tracker: MlflowTracker) -> "ModelRegistry":
    """The registry of the tracker's run; MLflow has received all of the run by then."""
    if not tracker.open:
        tracker.catch_up()
    if tracker.run_id is None:
        raise MedarError("no run there")
    with client_env():
        return ModelRegistry(tracker.uri, tracker.run_id, max(tracker.step, 0))


class ModelRegistry:
    """Requests about the models of one run; they belong to one step of it."""

    def __init__(self, uri: str, run_id: str, step: int) -> None:
        self._uri, self._step, self._client = uri, step, client_of(uri)
        self._run = self._client.get_run(run_id)

    def put(self, folder: Path, kind: Kind, hashed: str) -> str:
        """The id of the folder's LoggedModel, which is created if absent; resumes an upload."""
        from mlflow.entities import LoggedModelOutput

        model = self._find(hashed)
        if model is None:
            model = self._client.create_logged_model(
                self._run.info.experiment_id,
                name=kind,
                source_run_id=self._run.info.run_id,
                tags={DIGEST: hashed, "medar.kind": kind},
                params=self._parameters(),
                model_type=kind,
            )
        outputs = self._run.outputs.model_outputs if self._run.outputs else []
        if model.model_id not in (output.model_id for output in outputs):
            output = LoggedModelOutput(model.model_id, self._step)
            self._client.log_outputs(self._run.info.run_id, [output])
        if model.status != "READY":
            self._upload(model, folder, kind)
            self._client.finalize_logged_model(model.model_id, "READY")
        return str(model.model_id)

    def _parameters(self) -> dict[str, str]:
        """The run's parameters, as of its last resumption."""
        tags = self._run.data.tags
        return {n: tags.get(resumed(n), value) for n, value in self._run.data.params.items()}

    def _find(self, hashed: str) -> Any:
        """The run's LoggedModel of the same files, or None."""
        models = self._client.search_logged_models(
            [self._run.info.experiment_id],
            filter_string=f"source_run_id = '{self._run.info.run_id}' "
            f"AND tags.`{DIGEST}` = '{hashed}'",
        )
        return next((model for model in models if model.status != "FAILED"), None)

    def _upload(self, model: Any, folder: Path, kind: Kind) -> None:
        from mlflow.models import Model
        from mlflow.pyfunc import save_model

        from medar.tracking.serving import signature

        with tempfile.TemporaryDirectory() as scratch:
            written = Path(scratch) / "model"
            save_model(
                path=str(written),
                mlflow_model=Model(
                    artifact_path=model.artifact_location,
                    run_id=self._run.info.run_id,
                    model_uuid=model.model_id,
                    model_id=model.model_id,
                ),
                python_model=str(Path(__file__).with_name("pyfunc.py")),
                artifacts={"model": folder.resolve().as_uri()},
                signature=signature(kind),
                pip_requirements=requirements(),
                metadata={"medar": __version__, "kind": kind},
            )
            for left in written.rglob("__pycache__"):
                shutil.rmtree(left)
            self._client.log_model_artifacts(model.model_id, str(written))

    def measure(self, model_id: str, metrics: Mapping[str, float]) -> None:
        """Log metrics of the model and of its run, except those that the model has already."""
        from mlflow.entities import Metric

        has = self._client.get_logged_model(model_id).metrics or []
        logged = {(metric.key, metric.value) for metric in has}
        now = int(time.time() * 1000)
        new = [
            Metric(name, value, now, self._step, model_id=model_id)
            for name, value in finite(metrics)
            if (name, value) not in logged
        ]
        for first in range(0, len(new), METRICS):
            self._client.log_batch(self._run.info.run_id, metrics=new[first : first + METRICS])

    def register(self, model_id: str, name: str, alias: str | None) -> str:
        """The version of the LoggedModel under a registered name, created if absent."""
        from mlflow.exceptions import MlflowException

        try:
            self._client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        source = f"models:/{model_id}"
        versions = self._client.search_model_versions(f"name = '{name}'")
        version = next((one.version for one in versions if one.source == source), None)
        if version is None:
            with global_tracking_uri(self._uri):
                made = self._client.create_model_version(
                    name, source, run_id=self._run.info.run_id, model_id=model_id
                )
            version = made.version
        if alias is not None:
            self._client.set_registered_model_alias(name, alias, str(version))
        return str(version)


def requirements() -> list[str]:
    """Packages that a model needs where it is loaded, besides the dependencies of medar."""
    from importlib.metadata import version

    torch = version("torch").partition("+")[0]
    return [f"medar=={__version__}", f"mlflow=={version('mlflow')}", f"torch=={torch}"]
