"""Joining a table (CSV or TSV) of attributes to the cases of a manifest."""

import csv
import io
import math
import re
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medar.data.case import modality_of
from medar.data.manifest import SPLITS, Case, Manifest, Split
from medar.data.near_ids import near_misses
from medar.data.segments import plain_name
from medar.errors import MedarError
from medar.files import read_text

TABLES = ("index.csv", "attributes.csv", "participants.tsv")
"""Names of tables in a data set's folder; the first that exists is used."""

OTHER_TABLES = (".csv", ".tsv", ".xlsx", ".xls", ".ods")
"""Endings of files that may be a table of the cases."""

SPREADSHEET = (b"PK\3\4", b"\xd0\xcf\x11\xe0")
"""What files of Excel and LibreOffice begin with."""

CASE_COLUMNS = ("id", "case", "case_id")
SUBJECT_COLUMNS = ("participant_id", "subject")
ANNOTATED_COLUMNS = ("annotated", "structures")
DECIDING = ("split", "subject", "modality", *ANNOTATED_COLUMNS)
"""Columns that decide how cases are used: without them, a test set may be trained on."""
MISSING = {"", "n/a", "na", "nan", "none", "null"}
NUMBER = re.compile(r"[+-]?(0|[1-9]\d*)?(\.\d*)?([eE][+-]?\d+)?")

SPLIT_NAMES: dict[str, Split] = {
    **dict.fromkeys(("train", "training", "tr"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "ts"), "test"),
}


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table whose cells are text."""

    path: Path
    columns: tuple[str, ...]
    rows: tuple[dict[str, str], ...]

    @property
    def key(self) -> str | None:
        """The column that names the cases or subjects."""
        return next((c for c in CASE_COLUMNS + SUBJECT_COLUMNS if c in self.columns), None)

    @property
    def deciding(self) -> str | None:
        """The first column with values that decide how cases are used, besides the key."""
        columns = (c for c in DECIDING if c in self.columns and c != self.key)
        return next(
            (c for c in columns if any(r[c].lower() not in MISSING for r in self.rows)), None
        )


def join_attributes(manifest: Manifest, table: str | Path | None = None) -> Manifest:
    """Add the columns of a table as attributes to the cases of a manifest.

    A row belongs to the case with its id (columns `id`, `case`, `case_id`), otherwise to the only
    case whose id ends with "_" and that id; or to all cases of its subject (`participant_id`,
    `subject`). The columns `split`, `subject` and `modality` set these fields of a case, and
    `annotated` or `structures` (label names) the labels that were annotated in it.

    Args:
        manifest: the data set.
        table: the file; default: index.csv, attributes.csv or participants.tsv in its folder.

    Raises:
        MedarError: a row matches several cases, a case has two rows, a split is unknown, or a table
            with splits or other columns that decide how cases are used does not match them, or
            has splits under another name.

    Warns:
        UserWarning: rows that match no case, in a table of mere attributes.
    """
    requested = table is not None
    path = Path(table) if table is not None else _find(manifest.root)
    if path is None:
        return manifest
    read = _read(path)
    _check_split_column(manifest, read)
    key = read.key
    if key is None or not read.rows:
        allowed = ", ".join(CASE_COLUMNS + SUBJECT_COLUMNS)
        message = f"no row, or no id column ({allowed})"
        if requested or read.deciding:
            lost = f", so that its column {read.deciding!r} would be lost" if read.deciding else ""
            raise MedarError(f"{path}: {message}{lost}; columns: {', '.join(read.columns)}")
        return replace(manifest, notes=(*manifest.notes, f"{path.name} is not used: {message}"))
    joined = _rows_by_case(manifest, read, key)
    _check_joined(manifest, read, key, joined, requested)
    values, notes = _values(manifest, read, key, list(joined.values()))
    cases = tuple(
        _with_values(case, values[joined[case.id]]) if case.id in joined else case
        for case in manifest
    )
    unused = len(read.rows) - len(set(joined.values()))
    summary = f"attributes from {path.name}: {len(joined)} of {len(cases)} cases joined"
    summary += f", {unused} rows without a case" if unused else ""
    try:
        return replace(manifest, cases=cases, notes=(*manifest.notes, summary, *notes))
    except MedarError as error:
        raise MedarError(f"{path}: {error}") from error


def _find(root: Path) -> Path | None:
    return next((root / name for name in TABLES if (root / name).is_file()), None)


def note_on_tables(root: Path) -> tuple[str, ...]:
    """A note on tables in a data set's folder that are not read; () if there are none."""
    read = _find(root)
    other = [
        path.name
        for path in sorted(root.iterdir() if root.is_dir() else ())
        if path.suffix.lower() in OTHER_TABLES and path != read and not path.name.startswith(".")
    ]
    if not other:
        return ()
    named = ", ".join(other[:3]) + (" ..." if len(other) > 3 else "")
    return (f"{named}: not read; --attributes names a table of the cases",)


def _check_split_column(manifest: Manifest, table: Table) -> None:
    """Check that no column of another name than split holds the splits, which would be lost.

    Raises:
        MedarError: one does, and neither the data set nor another column states splits.
    """
    if "split" in table.columns or all(case.split for case in manifest):
        return
    for column in table.columns:
        cells = {row[column].lower() for row in table.rows} - MISSING
        if len({SPLIT_NAMES.get(cell) for cell in cells}) > 1 and cells <= SPLIT_NAMES.keys():
            raise MedarError(
                f"{table.path}: the column {column!r} holds splits, which would be lost; name it "
                "split in the first line, or write other words"
            )


def _read(path: Path) -> Table:
    """Read a table, separated by what its first line has most of: commas, semicolons or tabs."""
    if path.is_file():
        with path.open("rb") as file:
            if file.read(4) in SPREADSHEET:
                raise MedarError(f"{path}: a spreadsheet; save its table as CSV in UTF-8")
    text = read_text(path)
    first = text.partition("\n")[0]
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=max(",;\t", key=first.count), strict=True
    )
    try:
        lines = [line for line in reader if any(cell.strip() for cell in line)]
    except csv.Error as error:
        raise MedarError(f"{path}:{reader.line_num}: not a readable table ({error})") from error
    columns = tuple(cell.strip() for cell in lines[0]) if lines else ()
    lower = [column.lower() for column in columns]
    if len(set(lower)) < len(lower):
        repeated = next(column for column in lower if lower.count(column) > 1)
        raise MedarError(f"{path}: two columns named {repeated!r}; rename one")
    reserved = {*CASE_COLUMNS, *SUBJECT_COLUMNS, *ANNOTATED_COLUMNS, "split", "modality"}
    names = tuple(low if low in reserved else c for c, low in zip(columns, lower, strict=True))
    wrong = next((line for line in lines if len(line) != len(columns)), None)
    if wrong is not None:
        raise MedarError(
            f"{path}: a row has {len(wrong)} cells for {len(columns)} columns ({wrong[0]!r})"
        )
    cells = ([cell.strip() for cell in line] for line in lines[1:])
    return Table(
        path=path,
        columns=names,
        rows=tuple(dict(zip(names, line, strict=True)) for line in cells),
    )


def _rows_by_case(manifest: Manifest, table: Table, key: str) -> dict[str, int]:
    """Row number by case id, for cases that have a row."""
    by_id = {case.id: case.id for case in manifest}
    by_subject: dict[str, list[str]] = {}
    for case in manifest:
        by_subject.setdefault(case.subject, []).append(case.id)
    tails: dict[str, list[str]] = {}
    for case_id in by_id:
        parts = case_id.split("_")
        for start in range(1, len(parts)):
            tails.setdefault("_".join(parts[start:]), []).append(case_id)
    joined: dict[str, int] = {}
    for number, row in enumerate(table.rows):
        name = row[key]
        matches: list[str] = []
        if key in SUBJECT_COLUMNS:
            matches = by_subject.get(name) or by_subject.get(f"sub-{name}") or []
        if not matches:
            matches = [name] if name in by_id else tails.get(name, [])
            if len(matches) > 1:
                raise MedarError(
                    f"{table.path}: {key} {name!r} matches the cases {matches[0]!r} and "
                    f"{matches[1]!r}; write the whole id"
                )
        for case_id in matches:
            if case_id in joined:
                raise MedarError(
                    f"{table.path}: two rows ({table.rows[joined[case_id]][key]!r} and {name!r}) "
                    f"for the case {case_id!r}; keep one"
                )
            joined[case_id] = number
    return joined


def _check_joined(
    manifest: Manifest, table: Table, key: str, joined: dict[str, int], requested: bool
) -> None:
    """Check that the rows of a table found their cases."""
    used = set(joined.values())
    left = [row[key] for number, row in enumerate(table.rows) if number not in used]
    alone = [case for case in manifest if case.id not in joined]
    names = {case.id: case.id for case in alone}
    if key in SUBJECT_COLUMNS:
        names |= {case.subject: case.id for case in alone}
    near = near_misses(left, names)
    if near:
        row, case = next(iter(near.items()))
        message = (
            f"{table.path}: {len(near)} rows match no case but differ from one only in spelling, "
            f"such as {key} {row!r} and the case {case!r}; correct the {key} column (spreadsheets "
            "drop leading zeros)"
        )
    elif not joined:
        message = (
            f"{table.path}: no row matches a case; its first {key} is {table.rows[0][key]!r}, the "
            f"first case {manifest.cases[0].id!r}; correct the {key} column, or rename a table "
            "that is not of these cases"
        )
    else:
        return
    if table.deciding:
        raise MedarError(f"{message}: its column {table.deciding!r} would be lost")
    if requested and not joined:
        raise MedarError(message)
    warnings.warn(message, stacklevel=4)


def _values(
    manifest: Manifest, table: Table, key: str, used: list[int]
) -> tuple[dict[int, dict[str, Any]], list[str]]:
    """Values by row number and column, for the rows in use, and notes about them."""
    values: dict[int, dict[str, Any]] = {number: {} for number in used}
    notes = []
    for column in table.columns:
        cells = {number: table.rows[number][column] for number in values}
        if column == key or not column:
            if column == "subject":
                _put(values, column, cells)
        elif column == "split":
            _put(values, column, {n: _split(cell, table.path) for n, cell in cells.items()})
        elif column in ANNOTATED_COLUMNS:
            annotated = _annotated(cells, manifest.labels)
            if isinstance(annotated, str):
                notes.append(
                    f"column {column}: {annotated!r} is not a label name; kept as an attribute"
                )
                _put(values, column, cells)
            else:
                _put(values, "annotated", annotated)
        else:
            _put(values, column, _numbers(cells))
    return values, notes


def _put(values: dict[int, dict[str, Any]], name: str, cells: dict[int, Any]) -> None:
    for number, cell in cells.items():
        if cell is not None and not (isinstance(cell, str) and cell.lower() in MISSING):
            values[number][name] = cell


def _with_values(case: Case, values: dict[str, Any]) -> Case:
    """The case with the values of its row."""
    values = dict(values)
    modality = modality_of(values.get("modality"))
    if modality is not None:
        del values["modality"]
    # Text that is not a list of labels stays an attribute.
    parsed = isinstance(values.get("annotated"), tuple)
    return replace(
        case,
        split=values.pop("split", case.split),
        subject=str(values.pop("subject", case.subject)),
        modality=modality or case.modality,
        annotated=values.pop("annotated") if parsed else case.annotated,
        attributes=case.attributes | values,
    )


def _split(cell: str, path: Path) -> Split | None:
    if cell.lower() in MISSING:
        return None
    if cell.lower() not in SPLIT_NAMES:
        raise MedarError(
            f"{path}: split must be one of {', '.join(SPLITS)} (also {', '.join(SPLIT_NAMES)}), "
            f"got {cell!r}"
        )
    return SPLIT_NAMES[cell.lower()]


def _annotated(
    cells: dict[int, str], labels: dict[int, str]
) -> dict[int, tuple[int, ...] | None] | str:
    """The label values that each cell names, or the first word that is not a label."""
    by_name = {plain_name(name): value for value, name in labels.items()}
    by_name |= {str(value): value for value in labels}
    separator = r"[;,]" if any(re.search("[;,]", cell) for cell in cells.values()) else r"\s"
    annotated: dict[int, tuple[int, ...] | None] = {}
    for number, cell in cells.items():
        if cell and cell.lower() in MISSING:
            annotated[number] = None
            continue
        words = [word for word in re.split(separator, cell) if word.strip()]
        unknown = next((word for word in words if plain_name(word) not in by_name), None)
        if unknown is not None:
            return unknown.strip()
        annotated[number] = tuple(sorted({by_name[plain_name(word)] for word in words}))
    return annotated


def _numbers(cells: dict[int, str]) -> dict[int, Any]:
    """The cells as numbers, if all that are not empty are numbers."""
    filled = [cell for cell in cells.values() if cell.lower() not in MISSING]
    # Digits with a leading zero are a code, not a number.
    if not all(NUMBER.fullmatch(cell) and re.search(r"\d", cell) for cell in filled):
        return cells
    # Numbers beyond the range of floats stay text.
    if not all(math.isfinite(float(cell)) for cell in filled):
        return cells
    whole = all(re.fullmatch(r"[+-]?\d+", cell) for cell in filled)
    return {
        number: None if cell.lower() in MISSING else int(cell) if whole else float(cell)
        for number, cell in cells.items()
    }
