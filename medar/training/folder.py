"""The folder of a run, OUT: its files, and where a run in it begins.

config.yaml    what was trained on what, and the settings
metrics.jsonl  one JSON object a log step
checkpoints/   the newest and the best, see `medar.training.checkpoint`
model/         the averaged weights of the best evaluation
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medar.errors import MedarError
from medar.files import TEMPORARY
from medar.settings import save_yaml, to_dict
from medar.training.checkpoint import Checkpoints, load_checkpoint
from medar.training.settings import TrainingSettings

Resume = str | Path | bool
"""True or "auto": go on if there is a checkpoint. False or "never": refuse a folder that has one.
A path: go on from that file, with the settings given now; what is best is decided anew."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What `config.yaml` says."""

    task: dict[str, Any]
    training: TrainingSettings
    processes: int

    def resume_key(self) -> dict[str, Any]:
        """Plain values that a resumed run must share, as JSON gives them."""
        values = {
            **self.training.resume_key(),
            "processes": self.processes,
            **{f"task.{name}": value for name, value in self.task.items()},
        }
        plain: dict[str, Any] = json.loads(json.dumps(values, default=str))
        return plain


class RunFolder:
    """The files of a run.

    Args:
        out: the folder.
        keep: see `Checkpoints`.
    """

    def __init__(self, out: Path, keep: int) -> None:
        self.out = out
        self.checkpoints = Checkpoints(out / "checkpoints", keep)
        self.metrics = out / "metrics.jsonl"
        self.model = out / "model"

    def start(self, resume: Resume, config: RunConfig) -> dict[str, Any] | None:
        """The checkpoint to go on from; None to begin.

        Raises:
            MedarError: the folder has a run already and `resume` is "never"; its settings differ
                from the present ones; or the checkpoint cannot be read.
        """
        last = self.checkpoints.last()
        if resume in (False, "never"):
            if last is not None:
                raise MedarError(
                    f"{self.out}: has a run already, at {last.name}; choose another folder, or "
                    "resume 'auto' to go on with it"
                )
            return None
        if resume not in (True, "auto"):
            content = load_checkpoint(Path(str(resume)))
            # OUT/model, if there is one, may be of another run or of a later step.
            content["state"].update(best=None, best_step=None)
            return content
        if last is None:
            return None
        content = load_checkpoint(last)
        self._refuse_others(last, content["config"], config.resume_key())
        return content

    def _refuse_others(self, path: Path, then: dict[str, Any], now: dict[str, Any]) -> None:
        for name in dict.fromkeys([*then, *now]):
            before, given = then.get(name), now.get(name)
            if before != given:
                raise MedarError(
                    f"{path}: was made with {name} {before}, now it is {given}; use the same, "
                    f"choose another folder, or resume from {path.name} by its path to change it"
                )

    def write_config(self, config: RunConfig) -> None:
        """Write `config.yaml`."""
        save_yaml(config, self.out / "config.yaml", header="What was run, with every default.")

    def write_model(self, save: Callable[[Path], None]) -> None:
        """Replace `model/` by what `save` puts into an empty folder."""
        fresh, old = (self.out / f"{TEMPORARY}{name}-model" for name in ("new", "old"))
        for left in (fresh, old):
            shutil.rmtree(left, ignore_errors=True)
        fresh.mkdir(parents=True)
        try:
            save(fresh)
        except OSError as error:
            raise MedarError(f"{self.model}: cannot be written ({error.strerror})") from error
        if self.model.exists():
            self.model.rename(old)
        fresh.rename(self.model)
        shutil.rmtree(old, ignore_errors=True)


def parameters(config: RunConfig) -> dict[str, Any]:
    """The configuration for trackers, flat."""
    return {
        **{f"training.{name}": value for name, value in to_dict(config.training).items()},
        **{f"task.{name}": value for name, value in config.task.items()},
        "processes": config.processes,
    }
