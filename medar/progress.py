"""Progress that a person sees: a bar on a terminal, a plain line every few seconds elsewhere."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

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
