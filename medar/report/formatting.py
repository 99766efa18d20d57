"""Numbers, units and lists as text for readers."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from medar.words import format_count as format_count

MISSING = "–"
"""Shown in place of a missing value."""

SPLIT_NAMES = {"train": "training", "val": "validation", "test": "test", "held-out": "held-out"}


def format_number(value: float | None, digits: int = 3) -> str:
    """Round to significant digits, with a thousands separator; integers from 1000 are kept."""
    if value is None:
        return MISSING
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 10 ** (digits - 1):
        text = f"{value:,.0f}" if size < 1e7 else f"{value:.{digits - 1}e}"
    elif size < 1e-3:
        text = f"{value:.{digits - 1}e}"
    else:
        text = f"{value:.{digits}g}"
    return text.replace("-", "−")


def format_measured(value: float | None) -> str:
    """Round to three significant digits and keep zeros at the end: 6.80 is measured, 6.8 is set."""
    if value is None or not 1e-3 <= abs(value) < 100:
        return format_number(value)
    return f"{value:#.3g}".removesuffix(".").replace("-", "−")


def format_fixed(value: float | None, decimals: int) -> str:
    """Round to a number of decimals."""
    return MISSING if value is None else f"{value:.{decimals}f}".replace("-", "−")


def format_percent(fraction: float | None) -> str:
    """A fraction of 1 in percent."""
    return MISSING if fraction is None else f"{100 * fraction:.3g} %"


def format_difference(value: float, unit: str) -> tuple[str, str]:
    """A difference of intensities and its reference.

    Args:
        value: in `unit`.
        unit: "HU", "units of the volume" or "fraction of the intensity window".

    Returns:
        The value, and its unit if that is a phrase rather than a symbol.
    """
    if unit.startswith("fraction "):
        return format_percent(value), unit.removeprefix("fraction ")
    number = format_number(value)
    return (f"{number} {unit}", "") if unit == "HU" else (number, unit)


def format_range(pair: Sequence[float] | None) -> str:
    """Both ends of an interval."""
    return MISSING if pair is None else f"{format_measured(pair[0])} to {format_measured(pair[1])}"


def format_duration(seconds: float | None) -> str:
    """Seconds as hours, minutes and seconds: the two largest of them."""
    if seconds is None:
        return MISSING
    if seconds < 59.5:
        return f"{seconds:#.2g}".removesuffix(".") + " s"
    whole = round(seconds)
    if whole < 3600:
        large, small = divmod(whole, 60)
        return f"{large} min" + (f" {small} s" if small else "")
    large, small = divmod(round(seconds / 60), 60)
    return f"{large} h" + (f" {small} min" if small else "")


def format_memory(mib: float | None) -> str:
    """MiB, or GiB from 1000 MiB."""
    if mib is None:
        return MISSING
    return f"{mib:.0f} MiB" if mib < 999.5 else f"{mib / 1024:.1f} GiB"


def format_sides(values: Sequence[Any]) -> str:
    """Sides of a grid, in voxels or mm, without a line break between them."""
    return "\u00a0×\u00a0".join(format_number(value) for value in values)


def format_time(time: datetime | None, *, short: bool = False) -> str:
    """A date and time in UTC without seconds; without the year if `short`."""
    if time is None:
        return MISSING
    form = "%d %b, %H:%M" if short else "%d %B %Y, %H:%M"
    return time.astimezone(UTC).strftime(form).lstrip("0")


def join_words(words: Sequence[str]) -> str:
    """ "one", "one and two", "one, two and three"; empty for no words."""
    *first, last = words or [""]
    return f"{', '.join(first)} and {last}" if first else last


def shorten(name: str, length: int) -> str:
    """A name of at most `length` characters, at least 3: the middle of longer ones becomes "…"."""
    if len(name) <= length:
        return name
    end = (length - 1) // 2
    return f"{name[: length - 1 - end]}…{name[-end:]}"
