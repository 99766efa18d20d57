"""Files that are either complete or absent, locks on folders, and hashes of content."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from medar.errors import MedarError, one_line

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

TEMPORARY = ".tmp-"
"""Prefix of unfinished files; checks of a folder's content ignore them."""

LOCK = f"{TEMPORARY}lock"
"""The file that is locked while a process works in a folder."""

LARGEST_TEXT = 1 << 30
"""Bytes of the largest settings, tables and lists of cases."""

_SWEPT: set[Path] = set()
"""Folders that this process has searched for files of killed ones."""

TRACKED = "mlflow.json"
"""Names the MLflow run that belongs to a folder; any folder may hold it."""


@contextlib.contextmanager
def atomic_path(path: str | Path, *, durable: bool = True) -> Iterator[Path]:
    """A temporary path beside `path`, renamed to `path` when the block ends without an error.

    Readers see the old file or the new one, never a part; a failed block leaves nothing behind, and
    what a killed process left is removed by the next one that writes to the folder. The temporary
    name keeps the suffix of `path`, since some libraries choose the format by it.

    Args:
        path: where the file will be.
        durable: wait until the bytes are on the disk, so that even a power cut leaves the old file
            or the new one.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=TEMPORARY, suffix=f"-{path.name}")
    except OSError as error:
        error.filename = str(path)  # the name that the caller knows
        raise
    temporary = Path(name)
    try:
        # Held until the end: a file that is not locked is one that a killed process left.
        _try_lock(handle)
        _sweep(path.parent)
        yield temporary
        if durable:
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except BaseException as error:
        if isinstance(error, OSError) and error.filename in (None, name):
            error.filename = str(path)
        temporary.unlink(missing_ok=True)
        raise
    finally:
        os.close(handle)


def _try_lock(handle: int) -> bool:
    """Lock an open file against `_sweep` of other processes; False if another has locked it."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # also where the file system has no locks
        return False
    return True


def _sweep(folder: Path) -> None:
    """Delete the unfinished files of killed processes in a folder, once per process."""
    if fcntl is None or folder in _SWEPT:
        return
    _SWEPT.add(folder)
    for left in folder.glob(f"{TEMPORARY}????????-*"):
        with contextlib.suppress(OSError):
            handle = os.open(left, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                if stat.S_ISREG(os.fstat(handle).st_mode) and _try_lock(handle):
                    left.unlink()
            finally:
                os.close(handle)


@contextlib.contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """A temporary folder beside `path`, renamed to `path` when the block ends without an error.

    A failed block leaves nothing behind. A folder that is at `path` already is replaced; the caller
    has checked that it may be.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=TEMPORARY, suffix=f"-{path.name}"))
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        if path.is_dir():
            shutil.rmtree(path)
        temporary.replace(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def check_writable(folder: str | Path) -> None:
    """Check that files can be written to a folder, which need not exist yet.

    Raises:
        MedarError: they cannot.
    """
    folder = Path(folder).absolute()
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=nearest) as file:
            file.write(b"x")
    except OSError as error:
        raise MedarError(f"{folder}: cannot be written to ({error.strerror})") from error


def write_bytes(path: str | Path, data: bytes, *, durable: bool = True) -> None:
    """Write `data` to `path` atomically (see `atomic_path`)."""
    with atomic_path(path, durable=durable) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | Path, text: str) -> None:
    """Write `text` to `path` atomically, as UTF-8.

    Raises:
        MedarError: the disk is full, or the folder may not be written to.
    """
    try:
        write_bytes(path, text.encode())
    except OSError as error:
        raise MedarError(f"{path}: cannot be written ({error.strerror})") from error


def read_text(path: str | Path) -> str:
    """The text of a file in UTF-8, without a byte order mark.

    Raises:
        MedarError: there is no such file, it is no ordinary one, or it is not text in UTF-8.
    """
    path = Path(path)
    try:
        # Reading a device such as /dev/zero, or a pipe, would never end.
        if path.exists() and not path.is_file():
            raise MedarError(f"{path}: cannot be read (it is not a file)")
        if path.exists() and path.stat().st_size > LARGEST_TEXT:
            raise MedarError(f"{path}: cannot be read (it has more than {LARGEST_TEXT} bytes)")
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise MedarError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:  # not UTF-8, or a NUL in the name
        raise MedarError(f"{path}: cannot be read ({one_line(error)})") from error


def remove_temporaries(folder: str | Path) -> None:
    """Delete the temporary files that a killed process left in a folder."""
    for left in Path(folder).glob(TEMPORARY + "*"):
        if left.name != LOCK:
            left.unlink(missing_ok=True)


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
        MedarError: the file is absent or is not JSON.
    """
    text = read_text(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise MedarError(f"{path}: not valid JSON ({one_line(error)})") from error


def read_json_object(path: str | Path) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        MedarError: the file is absent, is not JSON, or holds something else.
    """
    values = read_json(path)
    if not isinstance(values, dict):
        raise MedarError(f"{path}: must hold a JSON object, got a {type(values).__name__}")
    return values


@contextlib.contextmanager
def exclusive(folder: str | Path) -> Iterator[None]:
    """Lock a folder, which is created if absent, against other processes that call this.

    The lock ends with the process, however that ends. Where the file system has no locks, nothing
    is locked. Folders that were created here and are empty at the end are removed.

    Raises:
        MedarError: another process is working in the folder.
    """
    folder = Path(folder)
    created = [one for one in (folder, *folder.parents) if not one.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with _locked(folder):
            yield
    finally:
        with contextlib.suppress(OSError):  # ends at the first that is not empty
            for one in created:
                one.rmdir()


def in_use(folder: str | Path) -> bool:
    """Whether a process holds the lock of `exclusive`; False where there are no locks."""
    path = Path(folder) / LOCK
    if not path.exists():
        return False
    lock = FileLock(path, mode=0o666, blocking=False, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        return True
    except OSError:
        return False
    with contextlib.suppress(OSError):
        path.unlink()  # a killed process left it
    lock.release()
    return False


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """`exclusive` for a folder that exists."""
    # Other users of a shared folder must be able to open the file too.
    lock = FileLock(folder / LOCK, mode=0o666, blocking=False, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise MedarError(
            f"{folder}: another medar is at work in this folder; wait for it to end, or choose "
            "another one"
        ) from error
    except OSError as error:  # no locks here, or nothing may be written
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            with contextlib.suppress(OSError):
                (folder / LOCK).unlink()
        yield
        return
    try:
        yield
    finally:
        # Removed while it is held: afterwards it may be the lock of another process.
        with contextlib.suppress(OSError):
            (folder / LOCK).unlink()
        lock.release()


def digest(value: Any) -> str:
    """A short hash of a JSON-able value, the same on every machine (key order is ignored)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def file_digest(path: str | Path) -> str:
    """The hash of a file's bytes."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
