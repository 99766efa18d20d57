"""The folder of a run, OUT: its files and checkpoints, and where a run in it starts.

config.yaml    the task, its data, and the settings
metrics.jsonl  one JSON object per log step
checkpoints/   the newest and the best checkpoint
model/         the averaged weights of the best evaluation

`checkpoints/step-00000500.pt` holds everything that a run needs to resume exactly; a run resumes
from the newest one. Files are complete or absent, and are read without running code.
"""

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from medar.errors import MedarError, one_line
from medar.files import TEMPORARY, atomic_path, remove_temporaries
from medar.settings import save_yaml, to_dict
from medar.training.settings import TrainingSettings

Resume = str | Path | bool
"""True or "auto": resume if there is a checkpoint. False or "never": refuse a folder with a run.
A path: resume from that checkpoint with the present settings, and reset the best evaluation."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The content of `config.yaml`."""

    task: dict[str, Any]
    training: TrainingSettings
    processes: int

    def resume_key(self) -> dict[str, Any]:
        """Values that must be the same when a run is resumed, in JSON types."""
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
        keep: number of newest checkpoints to keep.
    """

    def __init__(self, out: Path, keep: int) -> None:
        self.out = out
        self.checkpoints = Checkpoints(out / "checkpoints", keep)
        self.metrics = out / "metrics.jsonl"
        self.model = out / "model"

    def start(self, resume: Resume, config: RunConfig) -> dict[str, Any] | None:
        """The checkpoint to resume from, or None for a new run.

        Raises:
            MedarError: the folder has a run and `resume` is "never"; the run has other settings; or
                the checkpoint cannot be read.
        """
        last = self.checkpoints.last()
        if resume in (False, "never"):
            if last is not None:
                raise MedarError(
                    f"{self.out}: has a run already, at {last.name}; choose another folder, or "
                    "resume it with 'auto'"
                )
            return None
        if resume not in (True, "auto"):
            content = load_checkpoint(Path(str(resume)))
            # An existing OUT/model may belong to another run or to a later step.
            content["state"].update(best=None, best_step=None)
            return content
        if last is None:
            return None
        content = load_checkpoint(last)
        self._check_same(last, content["config"], config.resume_key())
        return content

    def _check_same(self, path: Path, then: dict[str, Any], now: dict[str, Any]) -> None:
        for name in dict.fromkeys([*then, *now]):
            before, present = then.get(name), now.get(name)
            if before != present:
                raise MedarError(
                    f"{path}: was made with {name} {before}, now it is {present}; use the same "
                    f"value, choose another folder, or give the path of {path.name} to resume from "
                    "it with the new one"
                )

    def write_config(self, config: RunConfig) -> None:
        """Write `config.yaml`."""
        save_yaml(config, self.out / "config.yaml", header="The run, with every default.")

    def write_model(self, save: Callable[[Path], None]) -> None:
        """Replace `model/` by what `save` writes into an empty folder."""
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
    """The configuration as flat parameters for trackers."""
    return {
        **{f"training.{name}": value for name, value in to_dict(config.training).items()},
        **{f"task.{name}": value for name, value in config.task.items()},
        "processes": config.processes,
    }


VERSION = 2
"""Version of the content of a checkpoint."""

_NAME = re.compile(r"step-(\d+)\.pt")


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: where they are; created at the first save.
        keep: number of newest checkpoints to keep, besides the best.
    """

    def __init__(self, folder: Path, keep: int = 1) -> None:
        self.folder = folder
        self.keep = keep
        self.best = folder / "best.pt"

    def all(self) -> dict[int, Path]:
        """The checkpoints by step, the newest last."""
        matches = {p: _NAME.fullmatch(p.name) for p in self.folder.glob("step-*.pt")}
        return dict(sorted((int(match[1]), path) for path, match in matches.items() if match))

    def last(self) -> Path | None:
        """The newest checkpoint."""
        return next(reversed(self.all().values()), None)

    def save(self, step: int, content: dict[str, Any], *, best: bool) -> Path:
        """Write a checkpoint, then remove old ones.

        Raises:
            MedarError: the disk is full; earlier checkpoints are still there.
        """
        path = self.folder / f"step-{step:08d}.pt"
        try:
            with atomic_path(path) as temporary:
                torch.save({"version": VERSION, **content}, temporary)
            if best:
                self._mark_best(path)
        except (OSError, RuntimeError) as error:
            # torch's own writer reports a full disk as a RuntimeError.
            raise MedarError(
                f"{path}: the checkpoint cannot be written ({one_line(error)}); free some space "
                "and run the same command again"
            ) from error
        for old in list(self.all().values())[: -self.keep]:
            old.unlink(missing_ok=True)
        return path

    def forget_after(self, step: int) -> None:
        """Remove checkpoints after a step, from which the run is resumed."""
        remove_temporaries(self.folder)
        for later, path in self.all().items():
            if later > step:
                path.unlink(missing_ok=True)

    def _mark_best(self, path: Path) -> None:
        with atomic_path(self.best) as temporary:
            temporary.unlink()
            try:
                os.link(path, temporary)
            except OSError:  # a file system without links
                shutil.copyfile(path, temporary)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU; it may hold only tensors and plain values.

    Raises:
        MedarError: the file is absent, damaged, or of another version.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise MedarError(f"{path}: no such checkpoint") from error
    except Exception as error:  # damage makes the unpickler raise anything
        raise MedarError(f"{path}: not a readable checkpoint ({one_line(error)})") from error
    if not isinstance(content, dict) or content.get("version") != VERSION:
        raise MedarError(f"{path}: not a checkpoint of version {VERSION}, which this medar reads")
    return content
