"""`RunFolder`: the files of a recipe's run that a report is made from, loaded into typed objects.

Any file may be missing or damaged. Each loader raises a `MedarError` then, whose message becomes
the note in place of the section that needs the file.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from medar.data.fingerprint import Fingerprint
from medar.data.manifest import Manifest
from medar.data.plan import Plan
from medar.data.prepared import (
    CASES_FILE,
    FAILED_FILE,
    FINGERPRINT_FILE,
    MANIFEST_FILE,
    PLAN_FILE,
    PreparedCase,
)
from medar.errors import MedarError, one_line
from medar.evaluation.generation import GenerationReport
from medar.evaluation.reconstruction import ReconstructionReport
from medar.evaluation.segmentation.report import SegmentationReport
from medar.files import read_json_object
from medar.records import (
    DETAIL,
    EVALUATION,
    GENERATOR,
    LABEL_MAPS,
    PREPARED,
    PRETRAINED,
    SAMPLES,
    SEGMENTATION,
    SEGMENTER,
    STAGES,
    SYNTHESIS,
    TOKENIZER,
    TOKENS,
    Records,
    StageRecord,
)
from medar.settings import from_dict, parse_yaml

T = TypeVar("T")

PNG_START, PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"
REPORT_FILE = f"{EVALUATION}/report.json"
TOKENIZER_EVALUATION = f"{TOKENIZER}/evaluation"
DETAIL_EVALUATION = f"{DETAIL}/evaluation"
DEFAULT_STAGES = {
    SYNTHESIS: ("prepare", "tokenizer", "tokens", "generator", "synthesize", "evaluate"),
    SEGMENTATION: ("prepare", "tokenizer", "pretrain", "train", "predict", "evaluate"),
}
"""Stages in order, for runs that do not list theirs."""
FOLDERS = (STAGES, PREPARED, TOKENIZER, DETAIL, TOKENS, GENERATOR, SAMPLES, PRETRAINED, SEGMENTER,
           LABEL_MAPS, EVALUATION)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class FailedCase:
    """A line of failed.jsonl."""

    id: str
    reason: str = ""
    part: Literal["case", "label"] = "case"
    """What was left out."""


@dataclass(frozen=True, kw_only=True)
class SampleRecord:
    """Values that a report reads of the record of a synthetic volume."""

    attributes: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None


class Metrics:
    """The lines of a training's metrics.jsonl."""

    def __init__(self, lines: list[dict[str, Any]]) -> None:
        self.lines = lines

    def points(self, name: str, factor: float = 1.0) -> list[tuple[float, float]]:
        """(step, value) pairs of a metric, values multiplied by a factor."""
        return [
            (line["step"], factor * line[name]) for line in self.lines if line.get(name) is not None
        ]

    def names(self, prefix: str) -> list[str]:
        """Names of the metrics that start with a prefix, in order of appearance."""
        return list({name: 0 for line in self.lines for name in line if name.startswith(prefix)})

    @property
    def steps(self) -> int:
        """The last step; 0 without any line."""
        return int(self.lines[-1]["step"]) if self.lines else 0

    @property
    def seconds(self) -> float | None:
        """Training time at the last line that records it."""
        times = [value for _, value in self.points("seconds")]
        return times[-1] if times else None


class RunFolder:
    """The folder of a recipe's run.

    Args:
        path: the folder.
        real_volumes: whether its report may hold whole real volumes.

    Raises:
        MedarError: there is no such folder, no run in it, or the record of a stage is damaged.
    """

    def __init__(self, path: str | Path, *, real_volumes: bool = False) -> None:
        self.path = Path(path)
        self.real_volumes = real_volumes
        if not self.path.is_dir():
            raise MedarError(f"{self.path}: no such folder; must be the folder of a run")
        if not any((self.path / name).is_dir() for name in FOLDERS):
            raise MedarError(
                f"{self.path}: no run in it (none of {', '.join(FOLDERS)}); must be the folder "
                "that was passed to the recipe as --out"
            )
        self.name = self.path.resolve().name
        records = Records(self.path)
        last = records.read_run()
        self.recipe = last.recipe if last is not None and last.recipe else SYNTHESIS
        """Name of the recipe."""
        names = last.stages if last is not None else ()
        names = names or DEFAULT_STAGES.get(self.recipe, DEFAULT_STAGES[SYNTHESIS])
        self.expected = tuple(name for name in names if name != "report")
        """Names of the stages in order, without the one that writes the report."""
        stages = {name: records.read(name) for name in self.expected}
        self.stages: dict[str, StageRecord] = {k: v for k, v in stages.items() if v is not None}
        """Records of the stages that have started."""

    def has(self, name: str) -> bool:
        """Whether a file or folder exists."""
        return (self.path / name).exists()

    def require(self, name: str, stage: str) -> Path:
        """The path of a file that a stage writes.

        Raises:
            MedarError: it does not exist, or a stage of an earlier run wrote it.
        """
        path = self.path / name
        if self.stages and stage not in self.expected:
            raise MedarError(f"the run has no stage {stage}")
        if path.exists():
            return path
        if not self.stages:
            raise MedarError(f"no {name}")
        reasons = {
            None: "has not run",
            "failed": "failed",
            "running": "has not finished",
            "done": "did not write it",
        }
        status = self.stages[stage].status if stage in self.stages else None
        raise MedarError(f"the stage {stage} {reasons[status]} (no {name})")

    def object(self, cls: type[T], name: str, stage: str) -> T:
        """Load a dataclass from a JSON file; keys that it does not have are ignored.

        Raises:
            MedarError: the file is missing or damaged.
        """
        path = self.require(name, stage)
        return from_dict(cls, read_json_object(path), str(path))

    def png(self, name: str, stage: str) -> bytes:
        """The bytes of a picture.

        Raises:
            MedarError: the file is missing or incomplete.
        """
        path = self.require(name, stage)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise MedarError(f"{path}: cannot be read ({one_line(error)})") from error
        if not (data.startswith(PNG_START) and data.endswith(PNG_END)):
            raise MedarError(f"{path}: not a complete PNG")
        return data

    def text(self, name: str, stage: str) -> str:
        """The content of a text file.

        Raises:
            MedarError: the file is missing or cannot be read.
        """
        path = self.require(name, stage)
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise MedarError(f"{path}: cannot be read ({one_line(error)})") from error

    def lines(self, cls: type[T], name: str, stage: str) -> list[T]:
        """Load objects from a JSONL file; an incomplete last line is dropped.

        Raises:
            MedarError: the file is missing or damaged.
        """
        path = self.path / name
        lines = [line for line in self.text(name, stage).split("\n") if line.strip()]
        values = []
        for remaining, line in zip(reversed(range(len(lines))), lines, strict=True):
            try:
                values.append(json.loads(line))
            except (ValueError, RecursionError) as error:
                if remaining:
                    raise MedarError(f"{path}: damaged ({one_line(error)})") from error
        if not all(isinstance(value, dict) for value in values):
            raise MedarError(f"{path}: each line must hold a JSON object")
        return values if cls is dict else [from_dict(cls, value, str(path)) for value in values]

    def metrics(self, folder: str, stage: str) -> Metrics:
        """The metrics of a training; raises as `lines` does."""
        name = f"{folder}/metrics.jsonl"
        lines: list[dict[str, Any]] = self.lines(dict, name, stage)
        if not all(isinstance(line.get("step"), int) for line in lines):
            raise MedarError(f"{self.path / name}: each line must have a step")
        return Metrics(lines)

    def task(self, cls: type[T], folder: str, stage: str) -> T:
        """Load a dataclass from the description of a training's task in its config.yaml.

        Raises:
            MedarError: the file is missing or damaged.
        """
        path = self.path / folder / "config.yaml"
        values = parse_yaml(self.text(f"{folder}/config.yaml", stage), str(path))
        return from_dict(cls, values.get("task") if isinstance(values, dict) else None, str(path))

    def plan(self) -> Plan:
        """The plan that the cases were prepared by."""
        return Plan.load(self.require(f"{PREPARED}/{PLAN_FILE}", "prepare"))

    def manifest(self) -> Manifest:
        """The data set as it was read."""
        return Manifest.load(self.require(f"{PREPARED}/{MANIFEST_FILE}", "prepare"))

    def fingerprint(self) -> Fingerprint:
        """Shapes and spacings of the original files."""
        return Fingerprint.load(self.require(f"{PREPARED}/{FINGERPRINT_FILE}", "prepare"))

    def cases(self) -> list[PreparedCase]:
        """The prepared cases."""
        name = f"{PREPARED}/{CASES_FILE}"
        path = self.path / name
        lines: list[dict[str, Any]] = self.lines(dict, name, "prepare")
        return [from_dict(PreparedCase, line, str(path)) for line in lines[1:]]  # after the header

    def failed_cases(self) -> list[FailedCase]:
        """The cases that could not be prepared."""
        name = f"{PREPARED}/{FAILED_FILE}"
        return self.lines(FailedCase, name, "prepare") if self.has(name) else []

    def samples(self) -> list[Path]:
        """The records of synthetic volumes."""
        return sorted((self.path / SAMPLES).glob("sample_*.json"))

    def generation_report(self) -> GenerationReport:
        """The evaluation of synthetic volumes."""
        return self.object(GenerationReport, REPORT_FILE, "evaluate")

    def segmentation_report(self) -> SegmentationReport:
        """The evaluation of label maps."""
        return self.object(SegmentationReport, REPORT_FILE, "evaluate")

    def reconstruction_report(self) -> ReconstructionReport:
        """The evaluation of the tokenizer."""
        return self.object(ReconstructionReport, f"{TOKENIZER_EVALUATION}/report.json", "tokenizer")

    def detail_report(self) -> ReconstructionReport | None:
        """The evaluation of the tokenizer with its detail decoder; None without one."""
        path = f"{DETAIL_EVALUATION}/report.json"
        return self.object(ReconstructionReport, path, "detail") if self.has(path) else None
