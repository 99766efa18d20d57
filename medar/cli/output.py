"""Output of commands: tables and pairs for people, one JSON object for programs."""

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medar.errors import MedarError

if TYPE_CHECKING:
    from medar.evaluation.frechet import Contribution
    from medar.evaluation.grid import GridArtifact


class UnknownOptionError(MedarError):
    """An option that is neither one of the command nor an override.

    Args:
        option: as it was typed.
    """

    def __init__(self, option: str) -> None:
        super().__init__(
            f"unknown option {option}; overrides have a dot, such as --training.steps 100"
        )
        self.option = option


def printable(text: str) -> str:
    """A text whose control characters are written as escapes: names may hold commands for a
    terminal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def print_json(value: Any) -> None:
    """Print one JSON object on standard output."""
    print(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False, default=str))


def note(*notes: str) -> None:
    """Print sentences on standard error, one per line."""
    for one in notes:
        print(f"medar: {printable(one)}", file=sys.stderr)


def print_pairs(heading: str, values: dict[str, Any]) -> None:
    """Print a heading and aligned names and values under it."""
    width = max((len(name) for name in values), default=0)
    print(printable(heading))
    for name, value in values.items():
        shown = {True: "yes", False: "no", None: "-"}.get(value, value) if _flag(value) else value
        print(printable(f"  {name:<{width}}  {shown}"))


def print_table(headings: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print a plain table; the last column takes the remaining width and wraps."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for heading in headings[:-1]:
        table.add_column(heading, no_wrap=True)
    table.add_column(headings[-1], overflow="fold")
    for row in rows:
        table.add_row(*[printable(str(cell)) for cell in row])
    terminal = Console().is_terminal
    # Lines in a file or a pipe are not wrapped, so that they can be searched.
    console = Console(
        markup=False, highlight=False, emoji=False, width=None if terminal else 10_000
    )
    with console.capture() as drawn:
        console.print(table)
    print("\n".join(line.rstrip() for line in drawn.get().splitlines() if line.strip()))


def decimal(value: float | None, form: str = ".3g") -> str:
    """A number in a format such as ".3g"; "-" for None."""
    return "-" if value is None else f"{value:{form}}"


def largest(contributions: "Sequence[Contribution]") -> str:
    """The features behind a Frechet distance: name, fraction, and shift in deviations."""
    parts = (f"{one.feature} {one.fraction:.0%} (shift {one.shift:+.1f})" for one in contributions)
    return ", ".join(parts) or "-"


def thirds(values: Sequence[float]) -> str:
    """Power ratios in the lowest, middle and highest third of the frequencies."""
    names = ("low", "middle", "high")
    parts = (f"{value:.3f} {name}" for value, name in zip(values, names, strict=True))
    return ", ".join(parts) + " third of frequencies"


def periods(artifacts: "dict[str, GridArtifact]") -> str:
    """Grid artifacts with their intervals, by period."""
    parts = (
        f"{one.value:.3f} ({interval(one.interval)}) at period {period}"
        for period, one in artifacts.items()
    )
    return ", ".join(parts) or "-"


def interval(ends: tuple[float, float] | None, form: str = ".3g") -> str:
    """Both ends of an interval; "-" for None."""
    return "-" if ends is None else f"{ends[0]:{form}} to {ends[1]:{form}}"


def check_folder(out: Path | None) -> None:
    """Check that --out does not name a file.

    Raises:
        MedarError: it does.
    """
    if out is not None and out.exists() and not out.is_dir():
        raise MedarError(f"{out}: is a file; --out names a folder")


def _flag(value: Any) -> bool:
    return value is None or isinstance(value, bool)
