"""SIGTERM, which schedulers send, ends work as Ctrl-C does."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Inside the block SIGTERM raises `KeyboardInterrupt`.

    The previous handler is restored at the end. Outside the main thread, where Python allows no
    handlers, nothing changes.
    """

    def end(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
