"""Problems of a data set: their codes and severity, and the report of a check."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from medar.notebook import html_table
from medar.words import format_count

Severity = Literal["error", "warning", "info"]

CODES: dict[str, Severity] = {
    "missing-file": "error",
    "unreadable": "error",
    "shape-mismatch": "error",
    "affine-mismatch": "error",
    "channel-mismatch": "error",
    "nonfinite": "error",
    "non-integer-label": "error",
    "unexpected-label": "error",
    "split-leak": "error",
    "missing-label-file": "warning",
    "geometry": "warning",
    "modality-mismatch": "warning",
    "spacing-outlier": "warning",
    "duplicate": "warning",
    "constant": "warning",
    "empty-label": "warning",
    "label-outlier": "warning",
    "label-never-present": "warning",
    "not-annotated-present": "warning",
    "few-values": "warning",
    "intensity-range": "warning",
    "intensity-scale": "warning",
    "surprising": "warning",
    "empty-split": "warning",
    "unlabelled-split": "warning",
    "missing-label": "info",
    "unnamed-labels": "info",
    "orientation-mix": "info",
    "dtype-mix": "info",
    "note": "info",
}
"""Every code and its severity (explained in docs/reference/datasets.md)."""


ORDER: tuple[Severity, ...] = ("error", "warning", "info")

MAX_SHOWN = 10
"""Problems shown in a notebook."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One problem of a data set."""

    severity: Severity
    code: str
    """One of `CODES`."""
    case: str = ""
    """The case's id; empty for the data set as a whole."""
    path: str = ""
    """The file, relative to the data set's folder if it is inside."""
    message: str

    def __str__(self) -> str:
        where = f" {self.case}" if self.case else ""
        return f"{self.severity} {self.code}{where}: {self.message}"


def problem(code: str, message: str, *, case: str = "", path: str = "") -> Problem:
    """A problem with the severity of its code."""
    return Problem(severity=CODES[code], code=code, case=case, path=path, message=message)


def in_order(problems: Iterable[Problem]) -> tuple[Problem, ...]:
    """Errors first, then warnings, then information."""
    return tuple(sorted(problems, key=lambda one: ORDER.index(one.severity)))


@dataclass(frozen=True, kw_only=True)
class Report:
    """The result of a check."""

    data: str
    """The data set's folder."""
    source: str
    """The layout it was read as (see `Manifest.source`)."""
    deep: bool
    """Whether voxels were read."""
    cases: int
    labelled: int
    subjects: int
    splits: dict[str, int]
    """Cases in each split."""
    problems: tuple[Problem, ...]
    """Errors first, then warnings, then information."""
    summary: dict[str, Any] = field(default_factory=dict)
    """Shapes and spacings (min, median and max along R, A and S); counts of orientations, voxel
    types and modalities; in a deep check also intensities, and the number of cases per label."""

    @property
    def errors(self) -> int:
        """Number of errors: the cases cannot be used as they are."""
        return self._count("error")

    @property
    def warnings(self) -> int:
        """Number of warnings: the cases deserve a look."""
        return self._count("warning")

    def with_problems(self, more: Iterable[Problem]) -> "Report":
        """The same report with more problems."""
        return replace(self, problems=in_order((*self.problems, *more)))

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-serialisable values."""
        return {
            "data": self.data,
            "source": self.source,
            "deep": self.deep,
            "cases": self.cases,
            "labelled": self.labelled,
            "subjects": self.subjects,
            "splits": self.splits,
            "errors": self.errors,
            "warnings": self.warnings,
            "codes": dict(Counter(one.code for one in self.problems)),
            "problems": [asdict(one) for one in self.problems],
            "summary": self.summary,
        }

    def _repr_html_(self) -> str:
        """For notebooks: numbers of cases, and the first problems."""
        rows = [(one.severity, one.code, one.case, one.message) for one in self.problems]
        counts = ((self.cases, "case"), (self.errors, "error"), (self.warnings, "warning"))
        title = ", ".join(format_count(count, noun) for count, noun in counts)
        more = len(rows) - MAX_SHOWN
        return html_table(
            title,
            rows[:MAX_SHOWN],
            ("severity", "problem", "case", "what") if rows else (),
            f"and {more} more" if more > 0 else "",
        )

    def _count(self, severity: Severity) -> int:
        return sum(one.severity == severity for one in self.problems)
