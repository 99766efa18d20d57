"""Content hashes of files, cached while the files are unchanged.

As in git's index, a file is hashed again only if its size, times or inode have changed. Hashes of
files that changed within the last seconds are not cached, as the clock's resolution could hide
another change.
"""

import json
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from medar.errors import MedarError
from medar.files import digest, file_digest, read_json_object, write_text
from medar.parallel import is_elsewhere, run_parallel
from medar.progress import track
from medar.volume import files_of

SETTLED = 2.0
"""Seconds after its last change before a file's times are trusted."""


class HashIndex:
    """Hashes by path, kept in a JSON file.

    Args:
        path: the index file; if it is absent or damaged, the index starts empty.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = Path(path) if path else None
        self._entries: dict[str, tuple[list[int], str]] = {}
        self._changed = False
        if self.path and self.path.exists():
            try:
                stored = read_json_object(self.path)
                self._entries = {p: (list(stamp), str(h)) for p, (stamp, h) in stored.items()}
            except (MedarError, ValueError, TypeError):
                self._entries = {}

    def __getitem__(self, path: Path) -> str:
        """The hash of a volume's content: of its file, the files of a pair, or a DICOM folder.

        Raises:
            MedarError: it cannot be read.
        """
        key = str(path.absolute())
        try:
            files = files_of(path)
            strange = next((f for f in files if f.exists() and not f.is_file()), None)
            if strange is not None:  # such as /dev/zero, which has no end
                raise MedarError(f"{strange}: cannot be read (it is not a file)")
            stamp = _stamp(files)
            cached = self._entries.get(key)
            if cached and cached[0] == stamp:
                return cached[1]
            hashes = [[file.name, file_digest(file)] for file in files]
            value = hashes[0][1] if len(files) == 1 else digest(hashes)
            newest = max(stamp[1], stamp[2]) / 1e9
            if _stamp(files) == stamp and time.time() - newest > SETTLED:
                self._entries[key] = (stamp, value)
                self._changed = True
        except OSError as error:
            raise MedarError(f"{path}: cannot be read ({error.strerror})") from error
        return value

    def prime(self, paths: Iterable[Path], *, workers: int) -> None:
        """Hash many files in parallel, with a progress bar; unreadable files are skipped."""
        todo = [p for p in paths if p.exists() and str(p.absolute()) not in self._entries]
        if is_elsewhere():
            outcomes = run_parallel(_entries_of, todo, workers=workers)
            for outcome in track(outcomes, total=len(todo), label="hashing", unit="file"):
                if outcome.value:
                    self._entries.update(outcome.value)
                    self._changed = True
            return
        with ThreadPoolExecutor(workers) as pool:
            for _ in track(
                pool.map(self._try, todo), total=len(todo), label="hashing", unit="file"
            ):
                pass

    def _try(self, path: Path) -> None:
        try:
            self[path]
        except MedarError:
            return  # reported with the case that needs the file

    def save(self) -> None:
        """Write the index, if it has a path and has changed."""
        if self.path and self._changed:
            write_text(self.path, json.dumps(dict(sorted(self._entries.items()))))
            self._changed = False


def _entries_of(path: Path) -> dict[str, tuple[list[int], str]]:
    """The entry of one file, made in another process."""
    index = HashIndex()
    index._try(path)
    return index._entries


def _stamp(files: tuple[Path, ...]) -> list[int]:
    """Size, modification and change time in ns, inode: sums and latest times over the files."""
    stats = [file.stat() for file in files]
    return [
        sum(s.st_size for s in stats),
        max((s.st_mtime_ns for s in stats), default=0),
        max((s.st_ctime_ns for s in stats), default=0),
        sum(s.st_ino for s in stats),
    ]
