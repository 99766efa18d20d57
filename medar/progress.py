"""Progress that a person sees: a bar on a terminal, a plain line every few seconds elsewhere."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")


def track(
    items: Iterable[T], *, total: int, label: str, unit: str = "case", every: float = 5.0
) -> Iterator[T]:
    """Yield `items`, showing how far they have come on standard error.

    Args:
        items: what to go through.
        total: how many there are.
        label: what is being done, in a word or two.
        unit: what one item is called.
        every: seconds between the plain lines.
    """
    if sys.stderr.isatty():
        from tqdm import tqdm

        yield from tqdm(items, total=total, desc=label, unit=unit, leave=False)
        return
    start = said = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - said >= every:
            left = (now - start) / done * (total - done)
            print(f"{label}: {done}/{total}, {left:.0f} s left", file=sys.stderr, flush=True)
            said = now


class Gauge:
    """How far one long piece of work has come, where its length is a share and not a count.

    Args:
        label: what is being done, in a word or two.
        share: how much was done before, from 0 to 1.
        every: seconds between the plain lines.
        quiet: show nothing.
    """

    def __init__(
        self, label: str, *, share: float = 0.0, every: float = 5.0, quiet: bool = False
    ) -> None:
        self._label, self._every, self._quiet = label, every, quiet
        self._first = share
        self._start = self._said = time.monotonic()
        self._bar: Any = None
        if sys.stderr.isatty() and not quiet:
            from tqdm import tqdm

            form = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
            self._bar = tqdm(total=1.0, initial=share, desc=label, leave=False, bar_format=form)

    def show(self, share: float, text: str) -> None:
        """Say that `share` is done; `text` is a word on how it goes."""
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(share - self._bar.n)
            return
        now = time.monotonic()
        if self._quiet or now - self._said < self._every or share <= self._first:
            return
        left = (now - self._start) / (share - self._first) * (1 - share)
        line = f"{self._label}: {share:.0%}, {text}, {left:.0f} s left"
        print(line, file=sys.stderr, flush=True)
        self._said = now

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()
