"""The ledger of a recipe: OUT/stages/NAME.json says what became of each stage.

An entry is written before its stage touches anything, and again when it ends, atomically: whatever
kills the process, the next one knows where it stopped.
"""

import shutil
import uuid
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from medar.errors import MedarError
from medar.files import read_json, write_json
from medar.recipes.stage import Stage
from medar.settings import from_dict

FOLDER, OLD, KEPT = "stages", "old", "stage.json"
"""Below OUT: entries; results that were moved aside; an entry that was, in its result's folder."""


@dataclass(kw_only=True)
class Entry:
    """What is known of a stage."""

    name: str
    status: Literal["running", "done", "failed"] = "running"
    """"running" also where the process was interrupted or killed."""
    fingerprint: str
    basis: dict[str, Any]
    """What the fingerprint is the hash of, with `needs`: settings, inputs, code."""
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    """Of this making; another one each time that the stage is run anew."""
    result: str | None = None
    """The digest of what it left, where the stage takes one."""
    needs: dict[str, str | None] = field(default_factory=dict)
    """The results that it was made from: digests, or ids where there are none."""
    started: str
    ended: str | None = None
    seconds: float = 0.0
    """Over all attempts, save those that were killed."""
    peak_mib: float | None = None
    attempts: int = 0
    minutes: float | None = None
    """What a budget gave it."""
    outputs: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


class Ledger:
    """Entries and results of a recipe's folder.

    Args:
        out: the folder.
    """

    def __init__(self, out: Path) -> None:
        self.out = out

    def path(self, name: str) -> Path:
        """The file of a stage's entry."""
        return self.out / FOLDER / f"{name}.json"

    def read(self, name: str) -> Entry | None:
        """A stage's entry, if it has begun.

        Raises:
            MedarError: the file is damaged.
        """
        return _read(self.path(name))

    def write(self, entry: Entry) -> None:
        """Replace a stage's entry."""
        write_json(self.path(entry.name), asdict(entry))

    def known(self, name: str) -> Entry | None:
        """The newest entry of a finished stage, also of a result that was moved aside."""
        entries = [self.read(name), *(_read(f / KEPT) for f in reversed(self.aside(name)))]
        return next((one for one in entries if one is not None and one.status == "done"), None)

    def aside(self, name: str) -> list[Path]:
        """Results of a stage that were moved aside, the newest last."""
        found = (self.out / OLD).glob(f"{name}-*")
        numbered = [(path.name.removeprefix(f"{name}-"), path) for path in found]
        return [path for number, path in sorted(numbered, key=_number) if number.isdigit()]

    def present(self, stage: Stage) -> bool:
        """Whether there is anything of a stage's result."""
        return any(path.exists() for path in self.results(stage))

    def whole(self, stage: Stage) -> bool:
        """Whether all that a finished stage leaves is there."""
        return all(path.exists() for path in self.results(stage))

    def results(self, stage: Stage) -> list[Path]:
        """The paths that a stage owns."""
        return [self.out / name for name in (stage.folder, *stage.files)]

    def move_aside(self, stage: Stage) -> Path | None:
        """Move what a stage left to OUT/old/NAME-1 and so on, its entry with it.

        Returns:
            Where to; None if there was nothing.
        """
        if not self.present(stage):
            return None
        last = self.aside(stage.name)
        number = 1 + int(last[-1].name.rpartition("-")[2]) if last else 1
        target = self.out / OLD / f"{stage.name}-{number}"
        target.parent.mkdir(parents=True, exist_ok=True)
        folder, *files = self.results(stage)
        if folder.exists():
            folder.rename(target)
        target.mkdir(exist_ok=True)
        for file in files:
            if file.exists():
                file.rename(target / file.name)
        if self.path(stage.name).exists():
            shutil.copyfile(self.path(stage.name), target / KEPT)
        return target


def now() -> str:
    """The time in ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _read(path: Path) -> Entry | None:
    if not path.exists():
        return None
    try:
        return from_dict(Entry, read_json(path), str(path))
    except MedarError as error:
        raise MedarError(f"{error}; delete it, and the stage is done anew") from error


def _number(named: tuple[str, Path]) -> int:
    return int(named[0]) if named[0].isdigit() else 0
