"""The folder of a prepared data set: what lies where, and whether a folder may become one.

plan.yaml          the plan in force; plan.previous.yaml, the one before it
cases.jsonl        one line a case: entries in the cache, label values, attributes, split
failed.jsonl       the cases that were set aside, with reasons
manifest.jsonl     the data set as it was found, with its splits
fingerprint.json   what was measured of the data set
hashes.json        content hashes of its files
arrays/            the cache, see `medar.data.cache`
"""

from pathlib import Path

from medar.errors import MedarError
from medar.files import TEMPORARY, TRACKED

PLAN_FILE = "plan.yaml"
PREVIOUS_PLAN_FILE = "plan.previous.yaml"
CASES_FILE = "cases.jsonl"
FAILED_FILE = "failed.jsonl"
MANIFEST_FILE = "manifest.jsonl"
FINGERPRINT_FILE = "fingerprint.json"
HASHES_FILE = "hashes.json"
ARRAYS = "arrays"


def check_folder(out: Path) -> None:
    """Refuse to mix a prepared data set with other files.

    Raises:
        MedarError: `out` is a file, or a folder that holds something else.
    """
    if out.exists() and not out.is_dir():
        raise MedarError(f"{out}: is a file; --out names a folder")
    known = {PLAN_FILE, CASES_FILE, MANIFEST_FILE, ARRAYS, HASHES_FILE, FINGERPRINT_FILE}
    found = {p.name for p in out.iterdir()} if out.exists() else set()
    inside = {name for name in found if not name.startswith(TEMPORARY) and name != TRACKED}
    if inside and not inside & known:
        raise MedarError(
            f"{out}: holds other files ({sorted(inside)[0]} ...); --out needs a new or empty "
            "folder, or one that was prepared before"
        )
