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

    The time that is left is that of the items after the first, before which workers start.

    Args:
        items: the items.
        total: their number.
        label: of the progress bar, a word or two.
        unit: name of an item.
        every: seconds between plain lines.
    """
    if sys.stderr.isatty():
        yield from _with_bar(items, total, label, unit)
        return
    printed = time.monotonic()
    first = 0.0
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if done == 1:
            first = now
        if now - printed >= every:
            left = ""
            if done > 1:
                left = f", {(now - first) / (done - 1) * (total - done):.0f} s left"
            print(f"{label}: {done}/{total}{left}", file=sys.stderr, flush=True)
            printed = now


def _with_bar(items: Iterable[T], total: int, label: str, unit: str) -> Iterator[T]:
    """Yield `items` under a bar."""
    from tqdm import tqdm

    with tqdm(total=total, desc=label, unit=unit, leave=False) as bar:
        for item in items:
            yield item
            bar.update()
            if bar.n == 1:
                bar.unpause()  # the clock starts here
                bar.initial = 1


class Gauge:
    """Progress of one long piece of work, as a fraction.

    The time that is left counts from the first call of `show`, before which workers start.

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
        self._start: tuple[float, float] | None = None  # time and fraction of the first call
        self._printed = time.monotonic()
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
            if self._start is None:
                self._start = time.monotonic(), fraction
                self._bar.unpause()  # the clock starts here
                self._bar.initial = fraction
            return
        now = time.monotonic()
        if self._start is None:
            self._start = now, fraction
        if self._quiet or now - self._printed < self._every:
            return
        began, first = self._start
        left = ""
        if fraction > first:
            left = f", {(now - began) / (fraction - first) * (1 - fraction):.0f} s left"
        print(f"{self._label}: {fraction:.0%}, {text}{left}", file=sys.stderr, flush=True)
        self._printed = now

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()
