"""What MSD's and nnU-Net's `dataset.json` share: checked keys, labels, paths."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medar.errors import MedarError
from medar.files import read_json


@dataclass(frozen=True, kw_only=True)
class Labels:
    """The labels that a data set names."""

    names: dict[int, str]
    """Values and names, without background."""
    ignore: int | None = None
    notes: tuple[str, ...] = ()


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise MedarError(f"{path}: a JSON object is needed, not {_kind(value)}")
    return value


def channel_names(value: Any, where: str) -> tuple[str, ...]:
    """The names of {"0": "T1w", "1": "FLAIR"}, in the order of the numbers."""
    wanted = f'{where}: {_short(value)}; names by channel are needed, {{"0": "CT"}}'
    if not isinstance(value, dict) or not value:
        raise MedarError(wanted)
    if not all(
        re.fullmatch(r"\d{1,9}", str(key)) and isinstance(name, str) for key, name in value.items()
    ):
        raise MedarError(wanted)
    ordered = sorted(value.items(), key=lambda item: int(item[0]))
    if [int(key) for key, _ in ordered] != list(range(len(ordered))):
        raise MedarError(f"{where}: channels {', '.join(value)}; they count from 0 without a gap")
    return tuple(name for _, name in ordered)


def parse_labels(value: Any, where: str) -> Labels:
    """Labels in either direction: {"0": "background", "1": "liver"} or {"liver": 1}.

    A name with a list of values is nnU-Net's region, a union: its values are kept, named after
    the region only where it holds a single value. The name "ignore" gives the ignore label.
    """
    if not isinstance(value, dict):
        raise MedarError(f'{where}: {_short(value)}; an object is needed, {{"1": "liver"}}')
    names: dict[int, str] = {}
    regions: list[str] = []
    region_values: set[int] = set()
    ignore = None
    for key, entry in value.items():
        name, values = _label_entry(key, entry, where)
        if len(values) > 1:
            regions.append(name)
            region_values |= set(values)
        elif name.lower() == "ignore" and not _is_number(key):
            ignore = values[0]
        elif names.setdefault(values[0], name) != name:
            raise MedarError(
                f"{where}: value {values[0]} is named {names[values[0]]!r} and {name!r}; "
                "one value, one name"
            )
    for number in sorted(region_values - set(names)):
        names[number] = f"label_{number}"
    names.pop(0, None)
    notes = (
        f"labels {', '.join(regions)} are regions (unions of values); "
        f"the values {', '.join(map(str, sorted(names)))} are used"
    )
    return Labels(
        names=dict(sorted(names.items())), ignore=ignore, notes=(notes,) if regions else ()
    )


def named_path(value: Any, root: Path, where: str) -> Path:
    """A path that a JSON file names, relative to the data set's folder."""
    if not isinstance(value, str) or not value.strip():
        raise MedarError(f"{where}: {_short(value)}; the path of a file is needed")
    return root / value


def named_list(value: Any, where: str) -> list[Any]:
    """A list in a JSON file."""
    if not isinstance(value, list):
        raise MedarError(f"{where}: {_short(value)}; a list is needed")
    return value


def _label_entry(key: str, entry: Any, where: str) -> tuple[str, list[int]]:
    """Name and values of one label; a value may be written as number or as text."""
    if _is_number(key) and isinstance(entry, str) and not _is_number(entry):
        return entry, [int(key)]
    values = entry if isinstance(entry, list) else [entry]
    if not values or not all(_is_number(v) for v in values):
        raise MedarError(f"{where}: {key!r}: {_short(entry)}; a whole number or a name is needed")
    return key, [int(v) for v in values]


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | str):
        return False
    # Label maps have 32 bits at most.
    return re.fullmatch(r"-?\d{1,9}", str(value)) is not None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _kind(value: Any) -> str:
    return {list: "a list", str: "a text", type(None): "null"}.get(type(value), "a number")
