"""Stage `table`: the records of all stages as Markdown, and their place in a page."""

from pathlib import Path
from typing import Any

from gpu_stages.journal import Values, read_records

BEGIN, END = "<!-- gpu: begin -->", "<!-- gpu: end -->"
HIDDEN = ("name", "at", "seconds", "gaps", "lines", "notes", "budget_mib")
TITLES = {
    "check": "Check",
    "speed": "Speed",
    "train-mr": "Training, MR",
    "train-ct": "Training, CT",
}


def table(folder: Path) -> str:
    """Tables of the newest run of each stage, one per kind of step; a sentence if there is none."""
    parts = []
    for stage, title in TITLES.items():
        path = folder / f"{stage}.jsonl"
        if path.is_file() and (records := newest(read_records(path))):
            parts.append(f"### {title}\n\n" + "\n\n".join(stage_tables(records)))
    return "\n\n".join(parts) or "There are no figures: nothing has run on a GPU yet."


def newest(records: list[Values]) -> list[Values]:
    """The records since the last start."""
    starts = [k for k, one in enumerate(records) if one["name"] == "start"]
    return records[starts[-1] :] if starts else records


def stage_tables(records: list[Values]) -> list[str]:
    """One table per kind of step, in the order of their first records, and what did not run."""
    kinds: dict[str, list[Values]] = {}
    missing = []
    for one in records:
        if "error" in one or "skipped" in one:
            reason = one.get("error") or one["skipped"]
            lines = str(reason).splitlines() or [""]
            missing.append(f"- {label(one)}: {lines[0][:200]}")
        elif one["name"] not in ("start", "end"):
            kinds.setdefault(one["name"], []).append(flat(one))
    parts = [one_table(name, rows) for name, rows in kinds.items()]
    first = records[0]
    if first["name"] == "start":
        tiny = ", tiny sizes that say nothing about speed" if first.get("tiny") else ""
        parts.insert(0, f"Device: {first['device']}{tiny}.")
    if missing:
        parts.append("Did not run:\n\n" + "\n".join(missing))
    return parts


def one_table(name: str, rows: list[Values]) -> str:
    """The rows of one kind of step; a single row is turned upright."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    if len(rows) == 1:
        lines = [f"| {name} | |", "|---|---|"]
        return "\n".join([*lines, *(f"| {key} | {text(rows[0][key])} |" for key in columns)])
    lines = [f"| {' | '.join([name, *columns])} |", "|---" * (len(columns) + 1) + "|"]
    return "\n".join(
        [*lines, *(f"| | {' | '.join(text(row.get(key)) for key in columns)} |" for row in rows)]
    )


def flat(record: Values) -> Values:
    """A record without what tables hide, nested values by dotted names."""
    found: Values = {}
    for key, value in record.items():
        if key in HIDDEN:
            continue
        if isinstance(value, dict):
            found |= {f"{key}.{inner}": one for inner, one in flat(value).items()}
        else:
            found[key] = value
    return found


def label(record: Values) -> str:
    """A step by its name and its facts."""
    skip = (*HIDDEN, "error", "skipped")
    facts = [f"{key} {value}" for key, value in record.items() if key not in skip]
    return ", ".join([record["name"], *facts])


def text(value: Any) -> str:
    """A value in a cell: four digits of a number, a dash for none."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(map(text, value))
    return str(value).replace("|", "\\|")


def insert(content: str, page: Path) -> None:
    """Put the tables between the markers of a page.

    Raises:
        SystemExit: the page has no markers.
    """
    before = page.read_text(encoding="utf-8")
    if BEGIN not in before or END not in before:
        raise SystemExit(f"{page}: no markers {BEGIN} and {END}; add them where the table belongs")
    head, rest = before.split(BEGIN, 1)
    _, tail = rest.split(END, 1)
    page.write_text(f"{head}{BEGIN}\n\n{content}\n\n{END}{tail}", encoding="utf-8")
