"""Files and records of a recipe's run, read by recipes and by reports.

OUT/config.yaml        the resolved settings
OUT/environment.json   versions, hardware, git state
OUT/recipe.json        which recipe, its stages, whether a run is in progress (or was killed)
OUT/stages/NAME.json   the record of each stage
OUT/old/NAME-1/        a result that a later run replaced: moved there, never deleted

A stage's record is written before the stage touches anything and again when it ends, atomically:
whatever kills the process, the next one knows where it stopped.
"""

import shutil
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from medar.errors import MedarError
from medar.files import read_json, read_json_object, write_json
from medar.settings import from_dict

CONFIG_FILE, ENVIRONMENT_FILE, RUN_FILE = "config.yaml", "environment.json", "recipe.json"
STAGES, OLD, OLD_RECORD = "stages", "old", "stage.json"
"""Below OUT: records; replaced results; the record of a replaced result, in its folder."""

SYNTHESIS, SEGMENTATION = "synthesis", "segmentation"
"""The recipes by name."""

PREPARED, TOKENIZER, DETAIL, TOKENS, GENERATOR, SAMPLES = (
    "prepared", "tokenizer", "detail", "tokens", "generator", "samples",
)  # fmt: skip
PRETRAINED, SEGMENTER, LABEL_MAPS = "pretrained", "segmenter", "label_maps"
EVALUATION = "evaluation"
"""Folders of the stages, below OUT; a tokenizer's evaluation is below the tokenizer's folder."""

MODELS = {
    "tokenizer": (DETAIL, TOKENIZER),
    "generator": (GENERATOR,),
    "segmentation network": (SEGMENTER, PRETRAINED),
}
"""Folders of the stages that train a model of a kind, the one to use first."""


@dataclass(kw_only=True)
class StageRecord:
    """What happened to a stage."""

    name: str
    status: Literal["running", "done", "failed"] = "running"
    """"running" also if the process was interrupted or killed."""
    fingerprint: str = ""
    """Hash of `basis` and `needs`."""
    basis: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Everything that the result depends on: settings, inputs, code, budget."""
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    """New each time that the stage starts over."""
    result: str | None = None
    """Digest of the stage's results, if it computes one."""
    needs: dict[str, str | None] = field(default_factory=dict)
    """Results it was made from, by stage: their `result`, or `id` if there is none."""
    started: datetime | None = None
    ended: datetime | None = None
    seconds: float = 0.0
    """Over all attempts, except those that were killed."""
    peak_mib: float | None = None
    """Peak resident memory of the process."""
    attempts: int = 0
    minutes: float | None = None
    """Time limit that a budget gave it."""
    outputs: list[str] = field(default_factory=list)
    """Its folder and files, below OUT."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Numbers and short texts about the result."""
    unsent: bool = False
    """Whether MLflow, which the run was to be logged to, did not take all of it."""

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON holds it, times in ISO 8601."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        return {name: _plain(value) for name, value in values.items()}


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """OUT/recipe.json: the last run of a recipe in this folder."""

    recipe: str | None = None
    stages: tuple[str, ...] = ()
    """Names in order."""
    status: Literal["running", "done"] | None = None
    """"running" also if the process was interrupted or killed."""
    started: datetime | None = None
    ended: datetime | None = None
    unsent: bool = False
    """As in `StageRecord`."""


class Records:
    """The records of a recipe's folder, and the results they are about.

    Args:
        out: the folder.
    """

    def __init__(self, out: str | Path) -> None:
        self.out = Path(out)

    def path(self, name: str) -> Path:
        """The file of a stage's record."""
        return self.out / STAGES / f"{name}.json"

    def read(self, name: str) -> StageRecord | None:
        """A stage's record; None if the stage has not started.

        Raises:
            MedarError: the file is damaged.
        """
        return _read(self.path(name))

    def write(self, record: StageRecord) -> None:
        """Replace a stage's record."""
        write_json(self.path(record.name), record.to_dict())

    def read_run(self) -> RunRecord | None:
        """The record of the last run; None if there is no file.

        Raises:
            MedarError: the file is damaged.
        """
        path = self.out / RUN_FILE
        return from_dict(RunRecord, read_json_object(path), str(path)) if path.exists() else None

    def write_run(self, record: RunRecord) -> None:
        """Replace the record of the last run."""
        values = {one.name: _plain(getattr(record, one.name)) for one in fields(record)}
        write_json(self.out / RUN_FILE, {k: v for k, v in values.items() if v is not None})

    def last_done(self, name: str) -> StageRecord | None:
        """The newest record of a stage that finished, including replaced results."""
        records = [
            self.read(name), *(_read(path / OLD_RECORD) for path in reversed(self.replaced(name)))
        ]  # fmt: skip
        return next((one for one in records if one is not None and one.status == "done"), None)

    def replaced(self, name: str) -> list[Path]:
        """Folders of a stage's replaced results, oldest first."""
        numbered = [
            (path.name.removeprefix(f"{name}-"), path)
            for path in (self.out / OLD).glob(f"{name}-*")
        ]
        return [p for _, p in sorted((int(n), p) for n, p in numbered if n.isdigit())]

    def complete(self, outputs: Sequence[str]) -> bool:
        """Whether all outputs of a stage are there."""
        return all((self.out / name).exists() for name in outputs)

    def move_aside(self, name: str, outputs: Sequence[str]) -> Path | None:
        """Move the results and the record of a stage to OUT/old/NAME-1, NAME-2 and so on.

        Args:
            name: the stage.
            outputs: its folder, then its files, below OUT.

        Returns:
            The new folder; None if there was nothing to move.
        """
        folder, *files = (self.out / output for output in outputs)
        if not any(path.exists() for path in (folder, *files)):
            return None
        last = self.replaced(name)
        number = 1 + int(last[-1].name.rpartition("-")[2]) if last else 1
        target = self.out / OLD / f"{name}-{number}"
        target.parent.mkdir(parents=True, exist_ok=True)
        if folder.exists():
            folder.rename(target)
        target.mkdir(exist_ok=True)
        for file in files:
            if file.exists():
                file.rename(target / file.name)
        if self.path(name).exists():
            shutil.copyfile(self.path(name), target / OLD_RECORD)
        return target


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a recipe's run."""
    return (folder / RUN_FILE).is_file() and (folder / STAGES).is_dir()


def trained_in(run: Path, kind: str) -> list[Path]:
    """Folders of the trainings of a run that may hold a model, the one to use first.

    Args:
        run: the recipe's folder.
        kind: "tokenizer", "generator", "segmentation network", or "model" for the recipe's last.

    Raises:
        MedarError: the record of the run is damaged.
    """
    last = Records(run).read_run()
    # The folder of a detail decoder remains where the recipe no longer trains one.
    dropped = last is not None and bool(last.stages) and DETAIL not in last.stages
    names = MODELS.get(kind, (GENERATOR, SEGMENTER))
    return [run / name for name in names if not (dropped and name == DETAIL)]


def now() -> datetime:
    """The time in UTC, to the second."""
    return datetime.now(UTC).replace(microsecond=0)


def _read(path: Path) -> StageRecord | None:
    if not path.exists():
        return None
    try:
        return from_dict(StageRecord, read_json(path), str(path))
    except MedarError as error:
        raise MedarError(f"{error}; delete it to run the stage again") from error


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat(timespec="seconds")
    return list(value) if isinstance(value, tuple) else value
