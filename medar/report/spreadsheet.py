"""Rows as CSV that is safe to open in a spreadsheet."""

import csv
import io
from collections.abc import Sequence
from typing import Any

FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
"""How texts begin that a spreadsheet may run as a formula."""


def to_csv(rows: Sequence[dict[str, Any]]) -> str:
    """Rows with all their keys as header; what a row lacks, and None, is left empty.

    Names of cases and values of attributes come from files. A text that a spreadsheet may run as a
    formula gets an apostrophe in front; numbers stay as they are.
    """
    table = io.StringIO(newline="")
    names = list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.DictWriter(table, fieldnames=names, lineterminator="\n")
    writer.writerow({name: _harmless(name) for name in names})
    writer.writerows({key: _harmless(value) for key, value in row.items()} for row in rows)
    return table.getvalue()


def _harmless(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    text = f"'{value}" if value.startswith(FORMULA) else value
    return text.replace("\r", "\n")  # which, unlike a carriage return, is quoted
