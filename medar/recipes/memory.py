"""The most memory that this process holds, by stage."""

import contextlib
from pathlib import Path

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def forget_peak() -> None:
    """Begin to measure anew, where the system can (Linux)."""
    with contextlib.suppress(OSError):
        CLEAR.write_text("5")


def peak_mib() -> float | None:
    """MiB of the largest resident set since `forget_peak`; None where the system does not say.

    Worker processes are not counted.
    """
    with contextlib.suppress(OSError, ValueError, KeyError):
        lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
        return round(int(lines["VmHWM"].split()[0]) / 1024, 1)
    return None
