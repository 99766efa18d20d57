"""The errors that a user meets: one line each, naming the thing, the value and the next step."""


class MedarError(Exception):
    """The call or its input was wrong. The command line prints it as one line, exit code 2.

    The message names the file or key, the value found, what is allowed and what to do next. Where
    a loading process of torch met the error, torch raises it anew with the traceback before the
    message: the message alone is kept.
    """

    def __init__(self, message: str = "") -> None:
        if message.startswith("Caught ") and _RAISED in message:
            message = message.rpartition(_RAISED)[2].strip()
        super().__init__(message)


_RAISED = f"\n{MedarError.__module__}.{MedarError.__qualname__}: "
"""What stands before a message where a traceback ends."""


class GeometryWarning(UserWarning):
    """Something about a file's geometry deserves a look; the volume was read all the same."""


class RangeWarning(UserWarning):
    """A volume is unlike those that a network was trained on; it was segmented all the same."""


def one_line(error: BaseException, limit: int = 200) -> str:
    """The first telling line of a library's error, for quoting inside a one-line message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith("(Background on this error")]
    # SQLAlchemy ends with a link; ITK puts its C++ source location first and the reason last.
    text = next((line for line in reversed(lines) if "rror" in line), lines[0] if lines else "")
    text = " ".join(text.split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."
