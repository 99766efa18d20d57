"""The folder of a recipe's run, as the report reads it: files that may or may not be there.

OUT/recipe.json        which recipe it was, and its stages
OUT/stages/NAME.json   the ledger: status, times, memory and facts of each stage
OUT/NAME/              what the stage left
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from medar.errors import MedarError, one_line
from medar.files import read_json_object
from medar.report.blocks import LeftOut
from medar.settings import from_dict

UNEXPECTED = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError)
"""What reading a file of another version, or one that was edited, ends in."""

SIGNATURE, END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"
"""How a PNG begins and ends."""

SYNTHESIS, SEGMENTATION = "synthesis", "segmentation"
"""The recipes that there is a report for."""

STAGES = {
    SYNTHESIS: ("prepare", "tokenizer", "tokens", "generator", "synthesize", "evaluate"),
    SEGMENTATION: ("prepare", "tokenizer", "pretrain", "train", "predict", "evaluate"),
}
"""In order, where the run does not say which it has."""

RECIPE = "recipe.json"
TELLING = "report"
"""The stage that writes the report is not told of in it."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage as the ledger has it."""

    name: str
    status: str
    started: datetime | None = None
    ended: datetime | None = None
    seconds: float | None = None
    peak_mib: float | None = None
    attempts: int = 1
    facts: dict[str, Any] = field(default_factory=dict)


class RunFolder:
    """What a run left.

    Args:
        path: the folder, OUT.

    Raises:
        MedarError: no such folder, or one that holds nothing of a run.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_dir():
            raise MedarError(f"{self.path}: no such folder; a run's is needed")
        parts = ("stages", "prepared", "tokenizer", "tokens", "generator", "samples", "pretrained",
                 "segmenter", "label_maps", "evaluation")  # fmt: skip
        if not any((self.path / part).is_dir() for part in parts):
            raise MedarError(
                f"{self.path}: no run in it (none of {', '.join(parts)}); name the folder that was "
                "given to the recipe as --out"
            )
        self.name = self.path.resolve().name
        said = read_json_object(self.path / RECIPE) if self.holds(RECIPE) else {}
        self.recipe = str(said.get("recipe", SYNTHESIS))
        """Which one it was."""
        names = said.get("stages") or STAGES.get(self.recipe, STAGES[SYNTHESIS])
        self.expected = tuple(str(name) for name in names if name != TELLING)
        """Its stages in order."""
        self.stages = _ledger(self.path / "stages", self.expected)
        """Those of them that were begun."""

    def holds(self, name: str) -> bool:
        """Whether a file or folder is there."""
        return (self.path / name).exists()

    def need(self, name: str, stage: str) -> Path:
        """The path of a file that a stage leaves.

        Raises:
            LeftOut: it is not there, or an earlier run left it, by a stage that this one has not.
        """
        path = self.path / name
        if self.stages and stage not in self.expected:
            raise LeftOut(f"the run has no stage {stage}")
        if path.exists():
            return path
        if not self.stages:
            raise LeftOut(f"no {name}")
        status = self.stages[stage].status if stage in self.stages else None
        happened = {
            None: f"the stage {stage} has not run",
            "failed": f"the stage {stage} failed",
            "running": f"the stage {stage} has not ended",
        }
        raise LeftOut(f"{happened.get(status, f'the stage {stage} did not leave it')} (no {name})")

    def object(self, name: str, stage: str) -> dict[str, Any]:
        """A JSON file of names and values.

        Raises:
            LeftOut: it is not there.
            MedarError: it is damaged.
        """
        return read_json_object(self.need(name, stage))

    def png(self, name: str, stage: str) -> bytes:
        """A picture; raises as `object` does."""
        path = self.need(name, stage)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise MedarError(f"{path}: cannot be read ({one_line(error)})") from error
        if not (data.startswith(SIGNATURE) and data.endswith(END)):
            raise MedarError(f"{path}: no whole PNG")
        return data

    def text(self, name: str, stage: str) -> str:
        """A file of text; raises as `object` does."""
        path = self.need(name, stage)
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise MedarError(f"{path}: cannot be read ({one_line(error)})") from error

    def settings(self, name: str, stage: str) -> dict[str, Any]:
        """A YAML file of names and values; raises as `object` does."""
        path = self.path / name
        try:
            values = yaml.safe_load(self.text(name, stage))
        except yaml.YAMLError as error:
            raise MedarError(f"{path}: cannot be read ({one_line(error)})") from error
        if not isinstance(values, dict):
            raise MedarError(f"{path}: names and values are needed")
        return values

    def lines(self, name: str, stage: str) -> list[dict[str, Any]]:
        """The JSON objects of a file, one a line; a last line that was cut short is left out.

        Raises:
            LeftOut: it is not there.
            MedarError: it is damaged.
        """
        path = self.path / name
        lines = [one for one in self.text(name, stage).split("\n") if one.strip()]
        found = []
        for left, line in zip(reversed(range(len(lines))), lines, strict=True):
            try:
                found.append(json.loads(line))
            except ValueError as error:
                if left:
                    raise MedarError(f"{path}: damaged ({one_line(error)})") from error
        if not all(isinstance(one, dict) for one in found):
            raise MedarError(f"{path}: names and values are needed in each line")
        return found


def _ledger(folder: Path, names: Sequence[str]) -> dict[str, Stage]:
    """The stages by name, in their order."""
    found = {}
    for name in names:
        path = folder / f"{name}.json"
        if path.exists():
            kept = read_json_object(path)
            known = {key: kept[key] for key in Stage.__dataclass_fields__ if key in kept}
            found[name] = from_dict(Stage, known, str(path))
    return found
