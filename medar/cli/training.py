"""What training commands have in common: configuration, data, tracking, and the result."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from cyclopts import Parameter

from medar.cli.options import DataSet, worker_count
from medar.cli.output import UnknownOptionError, note, print_json, print_pairs
from medar.errors import MedarError

if TYPE_CHECKING:
    from medar.recipes.configs import Kind as ConfigKind
    from medar.tracking import MlflowTracker
    from medar.tracking.names import Kind
    from medar.training import Outcome

S = TypeVar("S")

Overrides = Annotated[str, Parameter(allow_leading_hyphen=True)]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Training:
    """Options of training commands."""

    max_minutes: float | None = None
    """Minutes of training, overriding the configuration."""
    resume: str = "auto"
    """"auto" resumes the run in OUT, "never" refuses to; or a checkpoint to resume from."""
    untracked: bool = False
    """Do not use MLflow; OUT/metrics.jsonl is always written."""
    register: str | None = None
    """Name in MLflow's registry; the finished model becomes its next version."""
    alias: str | None = None
    """Alias of that version, such as champion; the previous version loses it."""
    json: bool = False
    """Print one JSON object: out, model, step, seconds, best, best_step, metrics."""

    @contextlib.contextmanager
    def tracker(self, out: Path, kind: str) -> "Iterator[MlflowTracker | None]":
        """The run in MLflow; it ends with the block. None if untracked.

        Args:
            out: the folder of the run.
            kind: what is trained.

        Raises:
            MedarError: the registry does not accept a name, or MLflow is disabled.
        """
        from medar.tracking import MlflowTracker
        from medar.tracking.names import check_registration

        check_registration(self.register, self.alias, tracked=not self.untracked)
        if self.untracked:
            yield None
            return
        folder = out.resolve().name
        name = kind if folder == kind else f"{kind} {folder}"
        with MlflowTracker(out, name=name, tags={"medar.kind": kind}) as tracker:
            yield tracker

    def log_model(
        self, tracker: "MlflowTracker | None", out: Path, kind: "Kind", outcome: "Outcome"
    ) -> int:
        """Log the model of a finished training to MLflow, with its evaluation.

        Returns:
            The exit code: 1 if the model could not be registered.
        """
        from medar.training.distributed import current_ranks

        if tracker is None or not current_ranks().is_rank_zero:
            return 0
        from medar.tracking.models import log_model

        metrics = evaluation_at(out, outcome.best_step)
        try:
            log_model(
                tracker,
                out / "model",
                kind=kind,
                metrics=metrics,
                register=self.register,
                alias=self.alias,
            )
        except MedarError as error:
            note(str(error))
            return 0 if self.register is None else 1
        return 0


TRAINING = Training()


def evaluation_at(out: Path, step: int | None) -> dict[str, float]:
    """The evaluation in OUT/metrics.jsonl at a step; empty if there is none."""
    from medar.training.tracker import read_metrics

    prefix = "validation/"
    for values in reversed(read_metrics(out / "metrics.jsonl")):
        if values["step"] == step:
            return {
                name.removeprefix(prefix): value
                for name, value in values.items()
                if name.startswith(prefix) and value is not None
            }
    return {}


def load_config(cls: type[S], config: Path, kind: "ConfigKind", overrides: Sequence[str]) -> S:
    """Load the settings of a training from a YAML file or a configuration of medar.

    Args:
        cls: class of the settings.
        config: file, or name of a configuration.
        kind: what is trained.
        overrides: as typed, see `assignments`.

    Raises:
        MedarError: no such file or name, or invalid settings.
    """
    from medar.recipes.configs import find_config
    from medar.settings import load_yaml

    return load_yaml(cls, find_config(config, kind), assignments(overrides))


def assignments(tokens: Sequence[str]) -> list[str]:
    """Overrides typed as `key.below=value` or `--key.below value`, all in the first form.

    Raises:
        UnknownOptionError: an option without a dot.
        MedarError: an option without a value.
    """
    overrides = []
    left = list(tokens)
    while left:
        token = left.pop(0)
        if not token.startswith("-"):
            overrides.append(token)
            continue
        key = token.lstrip("-")
        if "." not in key.partition("=")[0]:
            raise UnknownOptionError(token)
        if "=" not in key:
            if not left:
                raise MedarError(f"{token} needs a value, such as {token}=1")
            key = f"{key}={left.pop(0)}"
        overrides.append(key)
    return overrides


def report(out: Path, outcome: "Outcome", *, json: bool) -> None:
    """Print the outcome of a run."""
    result: dict[str, Any] = {
        "out": str(out),
        "model": str(out / "model"),
        "step": outcome.step,
        "seconds": round(outcome.elapsed, 1),
        "best": outcome.best,
        "best_step": outcome.best_step,
        "metrics": outcome.metrics,
    }
    if json:
        print_json(result)
        return
    metrics = result.pop("metrics")
    if outcome.best is not None:
        result["best"] = f"{outcome.best:.4g}"
    print_pairs(str(out / "model"), {n: v for n, v in result.items() if n not in ("out", "model")})
    if metrics:
        print_pairs("last evaluation", {name: f"{value:.4g}" for name, value in metrics.items()})


def prepared_folder(
    plan: dict[str, Any], data: Path, out: Path, dataset: DataSet, workers: int | None
) -> Path:
    """The folder of prepared cases: DATA itself, or OUT/prepared, which is made from it.

    Args:
        plan: values that the configuration sets in the plan.
        data: a prepared folder, or any data set.
        out: the folder of the run.
        dataset: how a data set is read.
        workers: processes that prepare; None: one per CPU core.
    """
    from medar.data.manifest import Manifest
    from medar.data.prepared import MANIFEST_FILE
    from medar.data.resolve import is_prepared, prepare_for_training
    from medar.training.distributed import current_ranks

    if is_prepared(data):
        return data
    if current_ranks().world_size > 1:
        raise MedarError(
            f"{data}: is not prepared; before training with several processes, run "
            "`medar data prepare` and name its folder"
        )
    stored = out / "prepared" / MANIFEST_FILE
    manifest = dataset.read(data, Manifest.load(stored) if stored.exists() else None)
    workers = worker_count(workers)
    return prepare_for_training(manifest, plan, out / "prepared", workers=workers)
