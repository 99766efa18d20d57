"""`Journal`: the records of a stage, on disk as soon as they exist, and the time that is left."""

import gc
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

Values = dict[str, Any]


class Journal:
    """Appends records to a JSONL file.

    Args:
        path: the file; its folder is made.
        minutes: after which no further step starts.
    """

    def __init__(self, path: Path, minutes: float) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.failed = 0
        self._file = path.open("a", encoding="utf-8")
        self._start = time.monotonic()
        self._seconds = 60 * minutes

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    @property
    def left(self) -> float:
        """Seconds until no further step starts; not below 0."""
        return max(self._start + self._seconds - time.monotonic(), 0.0)

    def write(self, name: str, **values: Any) -> None:
        """Append a record; NaN and infinity become null."""
        at = round(time.monotonic() - self._start, 2)
        line = json.dumps(finite({"name": name, "at": at, **values}), allow_nan=False, default=str)
        self._file.write(line + "\n")
        self._file.flush()
        print(line, flush=True)

    def attempt(self, name: str, step: Callable[[], Values], **facts: Any) -> Values | None:
        """Run a step and record its values, or the text of its error.

        Args:
            name: of the record.
            step: returns the values to record.
            facts: recorded in any case.

        Returns:
            The values, or None if the step failed or there was no time left.
        """
        if self.left == 0:
            self.write(name, **facts, skipped="no time left")
            return None
        started, values, error = time.monotonic(), None, ""
        try:
            values = step()
        except Exception as problem:  # whatever it is, the other steps are still worth running
            error = f"{type(problem).__name__}: {problem}"[:2000]
        seconds = round(time.monotonic() - started, 3)
        if values is None:
            self.failed += 1
            self.write(name, **facts, seconds=seconds, error=error)
            release()
            return None
        self.write(name, **facts, seconds=seconds, **values)
        return values


def release() -> None:
    """Free what a failed step held on the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def finite(value: Any) -> Any:
    """The value with None in place of numbers that JSON does not have."""
    if isinstance(value, dict):
        return {key: finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [finite(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def read_records(path: Path) -> list[Values]:
    """The records of a stage; an unfinished last line is left out."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records
