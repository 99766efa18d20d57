"""The folder of a prepared data set: its files, its plan, its cases and their arrays.

plan.yaml          the plan; plan.previous.yaml, the one before it
cases.jsonl        one line per case: keys of its arrays, label values, attributes, split
failed.jsonl       the cases that could not be prepared, with reasons
manifest.jsonl     the data set as it was read, with its splits
fingerprint.json   measurements of the data set
hashes.json        content hashes of its files
arrays/            the cache, see `medar.data.cache`
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter, ValidationError

from medar.data.cache import ArrayCache
from medar.data.manifest import Manifest, Split
from medar.data.plan import Plan
from medar.data.preparation import Trace
from medar.errors import MedarError, one_line
from medar.files import TEMPORARY, TRACKED
from medar.settings import from_dict

PLAN_FILE = "plan.yaml"
PREVIOUS_PLAN_FILE = "plan.previous.yaml"
CASES_FILE = "cases.jsonl"
FAILED_FILE = "failed.jsonl"
MANIFEST_FILE = "manifest.jsonl"
FINGERPRINT_FILE = "fingerprint.json"
HASHES_FILE = "hashes.json"
ARRAYS = "arrays"


def check_folder(out: Path) -> None:
    """Check that a folder is empty or holds a prepared data set.

    Raises:
        MedarError: `out` is a file, or a folder that holds other files.
    """
    if out.exists() and not out.is_dir():
        raise MedarError(f"{out}: is a file; --out names a folder")
    ours = {PLAN_FILE, CASES_FILE, MANIFEST_FILE, ARRAYS, HASHES_FILE, FINGERPRINT_FILE}
    names = {p.name for p in out.iterdir()} if out.exists() else set()
    names = {name for name in names if not name.startswith(TEMPORARY) and name != TRACKED}
    if names and not names & ours:
        raise MedarError(
            f"{out}: holds other files ({sorted(names)[0]} ...); --out must be a new or empty "
            "folder, or one that was prepared before"
        )


@dataclass(frozen=True, kw_only=True)
class PreparedCase:
    """One case of a prepared data set."""

    id: str
    subject: str
    split: Split | None
    modality: str | None
    attributes: dict[str, Any]
    annotated: tuple[int, ...]
    """Label values that were annotated in this case."""
    image: str
    """Key of the image in the cache."""
    label: str | None
    """Key of the label map in the cache; None without a label."""


_CASES = TypeAdapter(tuple[PreparedCase, ...])
KEY = re.compile(r"[\w-]{1,100}", re.ASCII)
"""Keys of the cache, which are file names."""


class Prepared:
    """The cases of a folder that `prepare` filled.

    The cases are kept as one block of bytes rather than as objects, so that worker processes share
    the memory; counting references would copy it.

    Args:
        folder: holds plan.yaml, cases.jsonl and arrays/.
        split: the split to keep; None for all cases.
        splits: split by subject, in place of the folder's own; other subjects have no split.

    Raises:
        MedarError: the folder is not a finished prepared data set, or has no case of the split.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        split: Split | None = None,
        splits: Mapping[str, Split] | None = None,
    ) -> None:
        self.folder = Path(folder)
        listing = self.folder / CASES_FILE
        if not listing.exists():
            raise MedarError(
                f"{self.folder}: not a prepared data set (no {CASES_FILE}); "
                "run `medar data prepare PATH --out` with this folder"
            )
        self.plan = Plan.load(self.folder / PLAN_FILE)
        try:
            header, *lines = listing.read_bytes().splitlines()
            prepared_by = json.loads(header)["plan"]
            cases = [json.loads(line) for line in lines]
            _check_cases(cases)
            split_of = [case["split"] for case in cases]
            if splits is not None:
                split_of = [splits.get(case["subject"]) for case in cases]
        except (OSError, ValueError, KeyError, TypeError, RecursionError, MedarError) as error:
            raise MedarError(
                f"{listing}: damaged ({one_line(error)}); run `medar data prepare` again"
            ) from error
        if prepared_by != self.plan.digest:
            raise MedarError(
                f"{self.folder}: {PLAN_FILE} has changed since the cases were prepared; "
                "run `medar data prepare` again"
            )
        if split is not None and split not in split_of:
            listed = ", ".join(sorted({str(s) for s in split_of}))
            raise MedarError(f"{self.folder}: no case in the split {split!r}; splits: {listed}")
        if split is not None:
            lines = [line for line, s in zip(lines, split_of, strict=True) if s == split]
        self.cache = ArrayCache(self.folder / ARRAYS)
        self._lines = np.frombuffer(b"".join(lines), dtype=np.uint8)
        self._ends = np.cumsum([len(line) for line in lines])

    @property
    def digest(self) -> str:
        """A hash of the cases: their order, names and arrays."""
        return hashlib.blake2b(self._lines.tobytes(), digest_size=8).hexdigest()

    def manifest(self) -> Manifest:
        """The files, splits and labels that the cases were prepared from.

        Raises:
            MedarError: the folder's manifest is absent or damaged.
        """
        manifest = Manifest.load(self.folder / MANIFEST_FILE)
        ids = {self[index].id for index in range(len(self))}
        return manifest.with_cases(tuple(case for case in manifest if case.id in ids))

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> PreparedCase:
        if not 0 <= index < len(self):
            raise IndexError(index)
        start = self._ends[index - 1] if index else 0
        line = json.loads(self._lines[start : self._ends[index]].tobytes())
        return PreparedCase(**{**line, "annotated": tuple(line["annotated"])})

    def find(self, case_id: str) -> PreparedCase:
        """The case with an id.

        Raises:
            MedarError: there is no such case.
        """
        for index in range(len(self)):
            if self[index].id == case_id:
                return self[index]
        raise MedarError(f"{self.folder}: no case {case_id!r}; the first is {self[0].id!r}")

    def image(self, case: PreparedCase) -> npt.NDArray[np.float32]:
        """(C, X, Y, Z) in [-1, 1]."""
        return self.cache.read(case.image)

    def label(self, case: PreparedCase) -> npt.NDArray[Any] | None:
        """(1, X, Y, Z) integers; None where the case has no label."""
        return self.cache.read(case.label) if case.label else None

    def trace(self, case: PreparedCase) -> Trace:
        """How to restore the case's own grid and intensities (see `restore_image`)."""
        return Trace.from_dict(self.cache.meta(case.image)["trace"])


def _check_cases(cases: list[Any]) -> None:
    """Check that each line of a listing holds a case.

    Raises:
        MedarError: one does not.
    """
    keys = {one.name for one in fields(PreparedCase)}
    try:
        _CASES.validate_python(cases)
        wrong = next((n for n, case in enumerate(cases, 2) if set(case) != keys), None)
    except ValidationError:
        for number, case in enumerate(cases, 2):
            from_dict(PreparedCase, case, f"line {number}")
        raise
    if wrong is not None:
        raise MedarError(f"line {wrong}: its keys must be {', '.join(sorted(keys))}")
    for number, case in enumerate(cases, 2):
        for name in ("image", "label"):
            if case[name] is not None and not KEY.fullmatch(case[name]):
                raise MedarError(f"line {number}: {name} names no cache entry: {case[name][:50]!r}")
