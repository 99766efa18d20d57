"""What all training commands share: overrides of a configuration, data, tracking, the result."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from medar.cli.output import print_json, print_pairs
from medar.errors import MedarError

if TYPE_CHECKING:
    from medar.tracking import MlflowTracker
    from medar.training import Outcome

Overrides = Annotated[str, Parameter(allow_leading_hyphen=True)]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Training:
    """How a run is started."""

    max_minutes: float | None = None
    """Minutes of training, instead of the configuration's."""
    resume: str = "auto"
    """"auto" goes on with what is in OUT, "never" refuses to, or a checkpoint to go on from."""
    untracked: bool = False
    """Leave MLflow out; OUT/metrics.jsonl is written in any case."""
    json: bool = False
    """Print one JSON object: out, model, step, seconds, best, best_step, metrics."""

    def tracker(self, out: Path, kind: str) -> "MlflowTracker | None":
        """The run in MLflow, unless it is to be left out.

        Args:
            out: the folder of the run.
            kind: what is trained.
        """
        if self.untracked:
            return None
        from medar.tracking import MlflowTracker

        return MlflowTracker(out, name=f"{kind} {out.resolve().name}", tags={"medar.kind": kind})


TRAINING = Training()


def assignments(tokens: Sequence[str]) -> list[str]:
    """Overrides as they are typed, `key.below=value` or `--key.below value`, in the first form.

    Raises:
        MedarError: an option without a dot or without a value.
    """
    found = []
    left = list(tokens)
    while left:
        token = left.pop(0)
        if not token.startswith("-"):
            found.append(token)
            continue
        key = token.lstrip("-")
        if "." not in key.partition("=")[0]:
            raise MedarError(
                f"unknown option {token}; overrides have a dot, such as --training.steps 100"
            )
        if "=" not in key:
            if not left:
                raise MedarError(f"{token}: a value is needed, such as {token}=1")
            key = f"{key}={left.pop(0)}"
        found.append(key)
    return found


def report(out: Path, outcome: "Outcome", *, json: bool) -> int:
    """Say how a run ended."""
    said: dict[str, Any] = {
        "out": str(out),
        "model": str(out / "model"),
        "step": outcome.step,
        "seconds": round(outcome.elapsed, 1),
        "best": outcome.best,
        "best_step": outcome.best_step,
        "metrics": outcome.metrics,
    }
    if json:
        print_json(said)
        return 0
    metrics = said.pop("metrics")
    if outcome.best is not None:
        said["best"] = f"{outcome.best:.4g}"
    print_pairs(str(out / "model"), {n: v for n, v in said.items() if n not in ("out", "model")})
    if metrics:
        print_pairs("last evaluation", {name: f"{value:.4g}" for name, value in metrics.items()})
    return 0
