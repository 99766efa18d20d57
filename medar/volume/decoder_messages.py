"""What the C libraries that decode compressed DICOM pixels print, as messages of medar.

They go on after damage and print it on standard error, without the name of the file.
"""

import contextlib
import os
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryFile

from medar.errors import MedarError

DAMAGE = re.compile(r"corrupt|premature|inconsistent|truncated|not a jpeg", re.IGNORECASE)
"""In messages of libjpeg and OpenJPEG after which some pixels are made up."""

STDERR = 2
"""The file descriptor that these libraries write to."""


@contextlib.contextmanager
def decoding(path: Path) -> Iterator[None]:
    """Inside the block, pixels of a file are decoded; not from several threads at once.

    Raises:
        MedarError: the decoder found damage, and made up what it lost.

    Warns:
        UserWarning: the decoder printed something else.
    """
    sys.stderr.flush()
    before = os.dup(STDERR)
    try:
        with TemporaryFile() as printed:
            os.dup2(printed.fileno(), STDERR)
            try:
                yield
            finally:
                os.dup2(before, STDERR)
            printed.seek(0)
            text = printed.read(1000).decode("utf-8", "replace").strip()
    finally:
        os.close(before)
    message = next(iter(text.splitlines()), "").strip()
    if DAMAGE.search(text):
        raise MedarError(
            f"{path}: its compressed pixels are damaged ({message}); get the file again"
        )
    if message:
        warnings.warn(f"{path}: while its pixels were decoded: {message}", stacklevel=3)
