"""Ids that differ only in spelling: leading zeros that a spreadsheet dropped, - for _, endings."""

import re
import unicodedata
from collections.abc import Iterable, Mapping

from medar.volume.header import VOLUME_ENDINGS


def near_misses(names: Iterable[str], cases: Mapping[str, str]) -> dict[str, str]:
    """Ids of a table that match no case exactly, and the one case that each is likely to mean.

    Args:
        names: ids in the table.
        cases: what each case may be named by: its id or subject, and the case's id.
    """
    by_plain: dict[str, set[str]] = {}
    for name, case in cases.items():
        parts = re.split("[-_/]", name)
        for start in range(len(parts)):
            by_plain.setdefault(_plain("_".join(parts[start:])), set()).add(case)
    found = {name: by_plain.get(_plain(name), set()) for name in names if _plain(name)}
    return {name: next(iter(meant)) for name, meant in found.items() if len(meant) == 1}


def _plain(name: str) -> str:
    """Letters and numbers alone: "Scan-007.nii.gz", "scan_7" and "scan 7.0" are the same."""
    # macOS writes the accents of file names as characters of their own.
    stem = unicodedata.normalize("NFKC", name).lower().replace("\\", "/").rpartition("/")[2]
    for ending in sorted(VOLUME_ENDINGS, key=len, reverse=True):
        stem = stem.removesuffix(ending)
    stem = re.sub(r"(?<=\d)\.0+$", "", stem)
    words: list[str] = re.findall(r"[^\W\d_]+|\d+", stem)
    return " ".join(str(int(word)) if word.isdecimal() else word for word in words)
