"""One entry of the array cache: voxels and metadata, compared with their checksums when read.

Each block of voxels has a checksum of its own, so that a patch is checked without reading the rest;
an array that is read whole has one per channel.
"""

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
from isal import isal_zlib

ABOUT, SUM = "medar", "medar-sum"
"""Keys of an entry's metadata, and of their checksum."""


class Entry:
    """An open entry.

    Args:
        stored: the Blosc2 array.
        key: its name in the cache.

    Raises:
        ValueError: its metadata do not have their checksum, or are not those of its voxels; or it
            was stored under another name.
    """

    def __init__(self, stored: Any, key: str) -> None:
        self._stored = stored
        self.shape: tuple[int, ...] = tuple(stored.shape)
        about = stored.schunk.vlmeta[ABOUT]
        self._units: tuple[int, ...] | None = None
        if SUM not in stored.schunk.vlmeta and "sums" not in about:
            self.meta: dict[str, Any] = about  # an earlier version of medar wrote it
            return
        if stored.schunk.vlmeta[SUM] != _sum_of(about):
            raise ValueError("its metadata have another checksum")
        if (list(self.shape), stored.dtype.str) != (about["shape"], about["dtype"]):
            raise ValueError("its shape or type has changed")
        if about.get("key", key) != key:
            raise ValueError(f"it was stored as {about['key']}")
        self.meta = about["meta"]
        self._units = tuple(about["units"])
        grid = [-(-n // unit) for n, unit in zip(self.shape, self._units, strict=True)]
        self._sums = np.frombuffer(about["sums"], "<u4").reshape(grid)

    def read(self) -> npt.NDArray[Any]:
        """All voxels, (C, X, Y, Z).

        Raises:
            ValueError: voxels do not have their checksum.
        """
        if self._in_order():
            array = np.empty(self.shape, self._stored.dtype)
            self._stored.schunk.decompress_chunk(0, dst=array)
        else:
            array = np.asarray(self._stored[...])
        self._check(array, (0,) * len(self.shape))
        return array

    def box(self, start: Sequence[int], stop: Sequence[int]) -> npt.NDArray[Any]:
        """The voxels of a box along all four axes.

        Raises:
            ValueError: voxels do not have their checksum.
        """
        units = self._units or (1,) * len(self.shape)
        low = [a // unit * unit for a, unit in zip(start, units, strict=True)]
        high = [
            min(-(-b // unit) * unit, n) for b, unit, n in zip(stop, units, self.shape, strict=True)
        ]
        around = np.asarray(self._stored[tuple(map(slice, low, high))])
        self._check(around, low)
        inner = tuple(
            slice(a - first, b - first) for a, b, first in zip(start, stop, low, strict=True)
        )
        return around[inner].copy()

    def _check(self, array: npt.NDArray[Any], origin: Sequence[int]) -> None:
        """Compare whole blocks, the first of which begins at `origin`, with their checksums."""
        if self._units is None:
            return
        first = [a // unit for a, unit in zip(origin, self._units, strict=True)]
        for index, box in _boxes(array.shape, self._units):
            expected = self._sums[tuple(i + f for i, f in zip(index, first, strict=True))]
            if _checksum(array[box]) != expected:
                raise ValueError("its voxels have another checksum")

    def _in_order(self) -> bool:
        """Whether it is one chunk of slabs, which decompresses directly into an array."""
        blocks, shape = self._stored.blocks, self.shape
        slabs = blocks[0] == 1 and shape[1] % blocks[1] == 0 and blocks[2:] == shape[2:]
        return bool(slabs and self._stored.chunks == shape)


def write_about(
    stored: Any, key: str, array: npt.NDArray[Any], meta: dict[str, Any], units: Sequence[int]
) -> None:
    """Store name, metadata and checksums in a Blosc2 array.

    Args:
        stored: the Blosc2 array.
        key: its name in the cache.
        array: its voxels.
        meta: see `ArrayCache.put`.
        units: sides of the blocks that have a checksum each.
    """
    sums = [_checksum(array[box]) for _, box in _boxes(array.shape, units)]
    stored.schunk.vlmeta[ABOUT] = {
        "key": key,
        "meta": meta,
        "shape": list(array.shape),
        "dtype": array.dtype.str,
        "units": list(units),
        "sums": np.array(sums, "<u4").tobytes(),
    }
    # Of what will be read: tuples become lists.
    stored.schunk.vlmeta[SUM] = _sum_of(stored.schunk.vlmeta[ABOUT])


def _sum_of(about: dict[str, Any]) -> int:
    return int(isal_zlib.crc32(repr(about).encode()))


def _checksum(block: npt.NDArray[Any]) -> int:
    """CRC-32, which every flipped bit changes; isal computes it at 3 GB/s."""
    return int(isal_zlib.crc32(np.ascontiguousarray(block)))


def _boxes(
    shape: Sequence[int], units: Sequence[int]
) -> Iterator[tuple[tuple[int, ...], tuple[slice, ...]]]:
    """Index and extent of each block of an array, in C order."""
    counts = [range(-(-n // unit)) for n, unit in zip(shape, units, strict=True)]
    for index in product(*counts):
        triples = zip(index, units, shape, strict=True)
        yield index, tuple(slice(i * u, min((i + 1) * u, n)) for i, u, n in triples)
