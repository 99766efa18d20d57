"""Progress on standard error: a bar on a terminal, elsewhere a plain line every few seconds."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")


def track(
    items: Iterable[T], *, total: int, label: str, unit: str = "case", every: float = 5.0
) -> Iterator[T]:
    """Yield `items` and show the progress.

    Args:
        items: the items.
        total: their number.
        label: of the progress bar, a word or two.
        unit: name of an item.
        every: seconds between plain lines.
    """
    if sys.stderr.isatty():
        from tqdm import tqdm

        yield from tqdm(items, total=total, desc=label, unit=unit, leave=False)
        return
    start = printed = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - printed >= every:
            left = (now - start) / done * (total - done)
            print(f"{label}: {done}/{total}, {left:.0f} s left", file=sys.stderr, flush=True)
            printed = now


class Gauge:
    """Progress of one long piece of work, as a fraction.

    Args:
        label: of the progress bar, a word or two.
        fraction: done before, from 0 to 1.
        every: seconds between plain lines.
        quiet: show nothing.
    """

    def __init__(
        self, label: str, *, fraction: float = 0.0, every: float = 5.0, quiet: bool = False
    ) -> None:
        self._label, self._every, self._quiet = label, every, quiet
        self._first = fraction
        self._start = self._printed = time.monotonic()
        self._bar: Any = None
        if sys.stderr.isatty() and not quiet:
            from tqdm import tqdm

            form = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
            self._bar = tqdm(total=1.0, initial=fraction, desc=label, leave=False, bar_format=form)

    def show(self, fraction: float, text: str) -> None:
        """Show the fraction that is done, and a short text."""
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(fraction - self._bar.n)
            return
        now = time.monotonic()
        if self._quiet or now - self._printed < self._every or fraction <= self._first:
            return
        left = (now - self._start) / (fraction - self._first) * (1 - fraction)
        line = f"{self._label}: {fraction:.0%}, {text}, {left:.0f} s left"
        print(line, file=sys.stderr, flush=True)
        self._printed = now

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()
