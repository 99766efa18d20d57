"""Digests of what stages leave, by content: how it was made, where and when are left out.

A stage that is run anew and leaves the same is no reason to redo those that need it.
"""

import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medar.files import digest, file_digest
from medar.progress import track

if TYPE_CHECKING:
    import numpy.typing as npt

    from medar.data.prepared import PreparedCase

WAYS = ("image", "label", "trace")
"""Of a case: names of arrays, which are hashes of how they were made, and where it came from."""


def prepared_content(folder: Path) -> str:
    """The digest of a prepared data set: its plan, its cases, and the values of their arrays."""
    from medar.data.prepared import Prepared

    data = Prepared(folder)
    cases = []
    for number in track(range(len(data)), total=len(data), label="read back"):
        case = data[number]
        label = data.label(case)
        values = [_values(data.image(case)), None if label is None else _values(label)]
        cases.append([_said(case), values])
    return digest([data.plan.digest, cases])


def tokens_content(folder: Path) -> str:
    """The digest of a data set in tokens: its tokenizer, its cases, their tokens and maps."""
    from medar.data.cache import ArrayCache
    from medar.tokenizer.tokens import MAPS, TokenIndex

    about, maps = TokenIndex.load(folder), ArrayCache(folder / MAPS)
    cases = [
        [
            _said(case),
            file_digest(folder / case.file),
            _values(maps.read(case.id)) if about.maps is not None else None,
        ]
        for case in about.cases
    ]
    labels = sorted((about.maps or {}).items())
    return digest([about.tokenizer, about.plan, about.variants, labels, cases])


def files_content(folder: Path, pattern: str) -> str:
    """The digest of the files that a pattern finds: their names and bytes."""
    files = sorted(path for path in folder.glob(pattern) if path.is_file())
    return digest([[file.relative_to(folder).as_posix(), file_digest(file)] for file in files])


def _said(case: "PreparedCase") -> dict[str, Any]:
    return {name: value for name, value in asdict(case).items() if name not in WAYS}


def _values(array: "npt.NDArray[Any]") -> str:
    head = f"{array.dtype.str} {array.shape} ".encode()
    return hashlib.blake2b(head + array.tobytes(), digest_size=16).hexdigest()
