"""Errors and warnings for users: one line each, with the value, what is allowed, and what to do."""


class MedarError(Exception):
    """The call or its input is wrong. The command line prints one line and exits with code 2.

    The message names the file or key, its value, what is allowed and what to do next. Torch raises
    errors of its loader processes again with the traceback in front; only the message is kept.
    """

    def __init__(self, message: str = "") -> None:
        if message.startswith("Caught ") and _RAISED in message:
            message = message.rpartition(_RAISED)[2].strip()
        super().__init__(message)


_RAISED = f"\n{MedarError.__module__}.{MedarError.__qualname__}: "
"""Precedes the message at the end of a traceback."""


class OffGridError(MedarError):
    """A label map does not lie on the voxels of its image."""


class GeometryWarning(UserWarning):
    """The geometry of a file should be checked; the volume was read nevertheless."""


class RangeWarning(UserWarning):
    """A volume differs from those that a network was trained on; it was segmented nevertheless."""


def check_positive(**values: int | None) -> None:
    """Check that numbers, given by name, are at least 1; None is allowed.

    Raises:
        MedarError: one is not.
    """
    for name, value in values.items():
        if value is not None and value < 1:
            raise MedarError(f"{name} must be at least 1, got {value}")


def one_line(error: BaseException, limit: int = 200) -> str:
    """The most informative line of a library's error, for quoting in a one-line message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith("(Background on this error")]
    # SQLAlchemy ends with a link; ITK starts with a source location and ends with the reason.
    text = next((line for line in reversed(lines) if "rror" in line), lines[0] if lines else "")
    text = " ".join(text.split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."
