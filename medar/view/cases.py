"""The cases of a folder, one page each, read when their page is asked for."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from threading import Lock

from medar.errors import MedarError
from medar.view.page import CurrentCase, Resource, case_name, resources
from medar.view.panels import Panel

KEPT = 3
"""Cases in memory: the latest."""


class CasePages(Mapping[str, Resource]):
    """All parts of the pages of many cases by relative URL; "" is the page of the first.

    A case that cannot be read gets a page that says why.

    Args:
        titles: of the cases, at least one.
        read: reads the volumes of a case, given its index from 0.
    """

    def __init__(self, titles: Sequence[str], read: Callable[[int], list[Panel]]) -> None:
        self._titles, self._read = titles, read
        self._kept: dict[int, dict[str, Resource]] = {}
        self._lock = Lock()
        self._shared = resources([])

    def __getitem__(self, name: str) -> Resource:
        if name and name in self._shared:
            return self._shared[name]
        index = self._index(name)
        return self._parts(index)[name or case_name(0)]

    def __iter__(self) -> Iterator[str]:
        """The pages, and what they share."""
        yield from self._shared
        yield from (case_name(index) for index in range(len(self._titles)))

    def __len__(self) -> int:
        return len(self._shared) + len(self._titles)

    def _index(self, name: str) -> int:
        """The case that a part belongs to."""
        if not name:
            return 0
        word, _, rest = name.partition("-")
        number = rest.partition("-")[0]
        if word != "case" or not (number.isascii() and number.isdecimal() and len(number) < 10):
            raise KeyError(name)
        index = int(number) - 1
        if not 0 <= index < len(self._titles):
            raise KeyError(name)
        return index

    def _parts(self, index: int) -> dict[str, Resource]:
        with self._lock:
            parts = self._kept.pop(index, None)
            if parts is None:
                current = CurrentCase(titles=self._titles, index=index)
                try:
                    parts = resources(self._read(index), current)
                except MedarError as error:
                    parts = resources([], current, str(error))
            self._kept[index] = parts
            while len(self._kept) > KEPT:
                del self._kept[next(iter(self._kept))]
            return parts
