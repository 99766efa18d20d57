"""What the C libraries that decode compressed DICOM pixels print, as messages of medar.

They go on after damage and print it on standard error, without the name of the file.
"""

import contextlib
import os
import re
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryFile

from medar.errors import MedarError

DAMAGE = re.compile(r"bogus|corrupt|premature|inconsistent|truncated|not a jpeg", re.IGNORECASE)
"""In messages of libjpeg and OpenJPEG after which some pixels are made up."""

TRIAL = "Unsupported JPEG data precision"
"""In a message for each decoder of 8, 12 and 16 bits that GDCM tries until one fits."""

STDERR = 2
"""The file descriptor that these libraries write to."""


_ONE_AT_A_TIME = threading.Lock()
"""The file descriptor is the process's: of two threads, one would restore the other's file."""


@contextlib.contextmanager
def decoding(path: Path) -> Iterator[None]:
    """Inside the block, pixels of a file are decoded; other threads wait to decode theirs.

    Raises:
        MedarError: the decoder found damage, and made up what it lost.

    Warns:
        UserWarning: the decoder printed something else.
    """
    with _ONE_AT_A_TIME, TemporaryFile() as printed:
        sys.stderr.flush()
        before = os.dup(STDERR)
        os.dup2(printed.fileno(), STDERR)
        try:
            yield
        finally:
            os.dup2(before, STDERR)
            os.close(before)
        printed.seek(0)
        text = printed.read(1000).decode("utf-8", "replace").strip()
    lines = [line.strip() for line in text.splitlines() if TRIAL not in line]
    message = next(iter(lines), "")
    if DAMAGE.search(text):
        raise MedarError(
            f"{path}: its compressed pixels are damaged ({message}); get the file again"
        )
    if message:
        warnings.warn(f"{path}: while its pixels were decoded: {message}", stacklevel=3)
