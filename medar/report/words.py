"""Numbers as a person reads them."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

NONE = "–"
"""For a value that there is none of."""

SPLITS = {"train": "training", "val": "validation", "test": "test"}


def number(value: float | None, digits: int = 3) -> str:
    """Rounded to significant digits, with separated thousands; whole numbers from 1000 are kept."""
    if value is None:
        return NONE
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


def fixed(value: float | None, places: int) -> str:
    """Rounded to decimal places."""
    return NONE if value is None else f"{value:.{places}f}".replace("-", "−")


def percent(share: float | None) -> str:
    """A share of 1 in percent."""
    return NONE if share is None else f"{100 * share:.3g} %"


def amount(value: float, unit: str) -> tuple[str, str]:
    """A difference of intensities as text, and its unit in words ("" for a unit with a symbol).

    Args:
        value: in `unit`.
        unit: "HU", "units of the volume" or "fraction of the intensity window".
    """
    if unit.startswith("fraction "):
        return percent(value), unit.removeprefix("fraction ")
    return (f"{number(value)} {unit}", "") if unit == "HU" else (number(value), unit)


def interval(pair: Sequence[float] | None) -> str:
    """Two ends."""
    return NONE if pair is None else f"{number(pair[0])} to {number(pair[1])}"


def duration(seconds: float | None) -> str:
    """Seconds as hours, minutes and seconds: the two largest of them."""
    if seconds is None:
        return NONE
    if seconds < 59.95:
        return f"{seconds:.3g} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min"


def memory(mib: float | None) -> str:
    """MiB, or GiB from 1024 of them."""
    if mib is None:
        return NONE
    return f"{mib:.0f} MiB" if mib < 1024 else f"{mib / 1024:.1f} GiB"


def sides(values: Sequence[Any]) -> str:
    """Three sides, of voxels or mm, which a line does not break."""
    return "\u00a0×\u00a0".join(number(value) for value in values)


def moment(time: datetime | None, *, short: bool = False) -> str:
    """A date and time in UTC without seconds, and without the year where it is to be short."""
    if time is None:
        return NONE
    form = "%d %b, %H:%M" if short else "%d %B %Y, %H:%M"
    return time.astimezone(UTC).strftime(form).lstrip("0")


def counted(count: int, noun: str) -> str:
    """ "1 case", "3 cases"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def listed(words: Sequence[str]) -> str:
    """ "one", "one and two", "one, two and three"; nothing of nothing."""
    *first, last = words or [""]
    return f"{', '.join(first)} and {last}" if first else last
