"""The cache of prepared arrays: Blosc2 files named by a hash of all that went into them.

An entry is one file, written whole or not at all, never changed. Its name is the hash of the
source's content, the settings and the code version, so a stale entry cannot be met: it has another
name. What an array needs to be understood (a `Trace`, say) travels inside the file.
"""

from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import numpy.typing as npt

from medar.errors import MedarError, one_line
from medar.files import write_bytes

ENDING = ".b2nd"
SLAB = 1 << 20
"""Bytes of a block in arrays that are read whole: slabs of complete (Y, Z) planes."""
BLOCK = 32
"""Side, in voxels, of the blocks in arrays that are read in patches."""
CHUNK = 128
"""Side, in voxels, of the chunks that hold those blocks."""


class ArrayCache:
    """Arrays by key in one folder.

    Args:
        folder: created when the first entry is written.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def path(self, key: str) -> Path:
        """The file of an entry, whether it exists or not."""
        return self.folder / (key + ENDING)

    def __contains__(self, key: str) -> bool:
        return self.path(key).is_file()

    def keys(self) -> set[str]:
        """The keys of all entries."""
        return {path.name.removesuffix(ENDING) for path in self.folder.glob("[!.]*" + ENDING)}

    def put(self, key: str, array: npt.NDArray[Any], meta: dict[str, Any], *, whole: bool) -> None:
        """Store a (C, X, Y, Z) array, atomically.

        Args:
            key: the entry's name.
            array: any numeric type.
            meta: JSON-able values, stored with it.
            whole: whether it will be read whole, rather than in patches.

        Raises:
            OSError: the disk is full; nothing is left behind.
        """
        shape = array.shape
        if whole:
            plane = array.itemsize * shape[2] * shape[3]
            chunks, blocks = shape, (1, min(shape[1], max(1, SLAB // plane)), *shape[2:])
        else:
            chunks = (1, *(min(CHUNK, n) for n in shape[1:]))
            blocks = (1, *(min(BLOCK, n) for n in shape[1:]))
        stored = blosc2.asarray(
            np.ascontiguousarray(array),
            chunks=chunks,
            blocks=blocks,
            cparams=blosc2.CParams(
                codec=blosc2.Codec.LZ4HC,
                clevel=5,
                filters=[blosc2.Filter.SHUFFLE],
                nthreads=1,
            ),
        )
        stored.schunk.vlmeta["medar"] = meta
        # Compressed in memory first: a full disk is then an ordinary OSError of one write.
        write_bytes(self.path(key), stored.to_cframe())

    def open(self, key: str) -> Any:
        """The entry as a lazily read array: `array[...]` decompresses what is asked for.

        Raises:
            MedarError: there is no such entry, or its file is damaged.
        """
        path = self.path(key)
        try:
            return blosc2.open(
                str(path), mode="r", mmap_mode="r", dparams=blosc2.DParams(nthreads=1)
            )
        except Exception as error:
            found = "is damaged" if path.exists() else "does not exist"
            raise MedarError(
                f"{path}: this cache entry {found} ({one_line(error)}); "
                "run `medar data prepare` again"
            ) from error

    def meta(self, key: str) -> dict[str, Any]:
        """What was stored with an entry.

        Raises:
            MedarError: see `open`.
        """
        return dict(self.open(key).schunk.vlmeta["medar"])

    def remove(self, keys: set[str]) -> None:
        """Delete entries, and temporary files that a killed run left behind."""
        for key in keys:
            self.path(key).unlink(missing_ok=True)
        for left in self.folder.glob(".tmp-*"):
            left.unlink(missing_ok=True)
