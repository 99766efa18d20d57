"""SIGINT and SIGTERM ask a run to end after the step at hand, rather than in its middle."""

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType


class Interruption:
    """Whether the process was asked to end."""

    def __init__(self) -> None:
        self.asked = False


@contextlib.contextmanager
def interruptible() -> Iterator[Interruption]:
    """Inside the block a signal sets `asked`; a second SIGINT interrupts at once.

    The handlers there were before are put back at the end. Outside the main thread, where Python
    allows no handlers, nothing changes.
    """
    interruption = Interruption()

    def ask(number: int, frame: FrameType | None) -> None:
        if interruption.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        interruption.asked = True
        print("ending after this step and saving a checkpoint", file=sys.stderr, flush=True)

    if threading.current_thread() is not threading.main_thread():
        yield interruption
        return
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interruption
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
