"""The cache of prepared arrays: Blosc2 files named by a hash of everything they depend on.

An entry is one file, written atomically and never changed. Its name is the hash of the source's
content, the settings and the code version, so that a stale entry is never read: its name differs.
Metadata of an array, such as its `Trace`, is stored in the same file, with checksums of both, which
are compared whenever voxels or metadata are read. (Entries of earlier snapshots have none.)
"""

from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medar.data.entries import Entry, write_about
from medar.errors import MedarError, one_line
from medar.files import remove_temporaries, write_bytes
from medar.volume import Shape3

ENDING = ".b2nd"
SLAB = 1 << 15
"""Bytes of a block in arrays that are read whole: slabs of complete (Y, Z) planes that fit the L1
cache."""
MIN_COMPRESSION = 2.0
"""Arrays that compress by less (noisy MR) are stored uncompressed, as reading is then several times
faster."""
SAMPLE = 1 << 20
"""Approximate size, in bytes, of the sample that decides whether an array is compressed."""
LARGEST = 1 << 30
"""Bytes up to which an array is one chunk; Blosc2's limit is 2 GiB."""
BLOCK = 32
"""Side, in voxels, of the blocks in arrays that are read in patches."""
CHUNK = 128
"""Side, in voxels, of the chunks that hold those blocks."""
HANDLES = 4096
"""Entries whose headers a process keeps in memory, about 5 KB each: reading one takes as long as
200 KB of voxels. They hold no file descriptor."""


class ArrayCache:
    """Arrays by key in one folder.

    Args:
        folder: created with the first entry.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._handles: OrderedDict[str, Entry] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        # Another process opens its own handles.
        return {"folder": self.folder, "_handles": OrderedDict()}

    def path(self, key: str) -> Path:
        """The file of an entry, which need not exist."""
        return self.folder / (key + ENDING)

    def __contains__(self, key: str) -> bool:
        return _is_complete(self.path(key))

    def keys(self) -> set[str]:
        """The keys of all complete entries."""
        files = self.folder.glob("[!.]*" + ENDING)
        return {path.name.removesuffix(ENDING) for path in files if _is_complete(path)}

    def put(self, key: str, array: npt.NDArray[Any], meta: dict[str, Any], *, whole: bool) -> None:
        """Store a (C, X, Y, Z) array, atomically.

        Args:
            key: the entry's name.
            array: any numeric type.
            meta: JSON-serialisable values, stored with the array.
            whole: whether it will be read whole rather than in patches.

        Raises:
            OSError: the disk is full; nothing is left behind.
        """
        import blosc2  # slow to import, and not needed by those who load models

        single = whole and array.nbytes <= LARGEST
        chunks, blocks = _whole(array) if single else _patches(array)
        stored = blosc2.asarray(
            np.ascontiguousarray(array),
            chunks=chunks,
            blocks=blocks,
            cparams=blosc2.CParams(
                codec=blosc2.Codec.LZ4HC,
                clevel=3 if _compresses(array) else 0,
                filters=_filters(array),
                nthreads=1,
            ),
        )
        write_about(stored, key, array, meta, (1, *array.shape[1:]) if single else blocks)
        # Compressed in memory first, so that a full disk is an ordinary OSError of one write.
        # Entries need not be durable: one that a power cut truncated is detected and made again.
        write_bytes(self.path(key), stored.to_cframe(), durable=False)

    def open(self, key: str) -> Entry:
        """An entry, of which nothing has been decompressed.

        Raises:
            MedarError: the entry does not exist or is damaged.
        """
        if key in self._handles:
            self._handles.move_to_end(key)
            return self._handles[key]
        path = self.path(key)
        import blosc2

        try:
            stored = blosc2.open(str(path), mode="r", dparams=blosc2.DParams(nthreads=1))
            entry = Entry(stored, key)
        except Exception as error:
            raise _unreadable(path, error) from error
        self._handles[key] = entry
        if len(self._handles) > HANDLES:
            self._handles.popitem(last=False)
        return entry

    def read(self, key: str) -> npt.NDArray[Any]:
        """The whole entry, (C, X, Y, Z).

        Raises:
            MedarError: the entry does not exist or is damaged.
        """
        entry = self.open(key)
        try:
            return entry.read()
        except Exception as error:
            raise _unreadable(self.path(key), error) from error

    def box(
        self, key: str, start: Shape3, stop: Shape3, channel: int | None = None
    ) -> npt.NDArray[Any]:
        """The voxels from `start` to `stop` of an entry, of all channels or of one, with its axis.

        Raises:
            MedarError: the entry does not exist or is damaged.
        """
        entry = self.open(key)
        try:
            first, last = (0, entry.shape[0]) if channel is None else (channel, channel + 1)
            return entry.box((first, *start), (last, *stop))
        except Exception as error:
            raise _unreadable(self.path(key), error) from error

    def meta(self, key: str) -> dict[str, Any]:
        """The metadata stored with an entry.

        Raises:
            MedarError: see `open`.
        """
        return dict(self.open(key).meta)

    def prune(self, keep: set[str]) -> None:
        """Delete all other entries and the temporary files of interrupted runs."""
        for path in self.folder.glob("[!.]*" + ENDING):
            if path.name.removesuffix(ENDING) not in keep:
                path.unlink(missing_ok=True)
        remove_temporaries(self.folder)


def _compresses(array: npt.NDArray[Any]) -> bool:
    """Whether compression is worthwhile, measured on planes from all over the array."""
    import blosc2

    planes = array.reshape(-1, *array.shape[2:])
    sample = np.ascontiguousarray(planes[:: max(1, array.nbytes // SAMPLE)])
    packed = blosc2.compress2(
        sample,
        codec=blosc2.Codec.LZ4,
        clevel=5,
        filters=_filters(array),
        typesize=array.itemsize,
        nthreads=1,
    )
    return bool(sample.nbytes >= MIN_COMPRESSION * len(packed))


def _filters(array: npt.NDArray[Any]) -> list[Any]:
    import blosc2

    # Shuffling groups bytes by significance, which is of no use for single bytes.
    return [blosc2.Filter.SHUFFLE if array.itemsize > 1 else blosc2.Filter.NOFILTER]


def _whole(array: npt.NDArray[Any]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Chunks and blocks for reading an array whole: equal slabs, without padding."""
    _, x, y, z = array.shape
    most = max(1, SLAB // (array.itemsize * y * z))
    slab = next(n for n in range(min(x, most), 0, -1) if x % n == 0)
    return array.shape, (1, slab, y, z)


def _patches(array: npt.NDArray[Any]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Chunks and blocks for reading boxes out of an array."""
    sides = array.shape[1:]
    return (1, *(min(CHUNK, n) for n in sides)), (1, *(min(BLOCK, n) for n in sides))


def _is_complete(path: Path) -> bool:
    """Whether a frame has the length in its header (bytes 16 to 24, big-endian)."""
    try:
        with path.open("rb") as file:
            header = file.read(24)
        return len(header) == 24 and int.from_bytes(header[16:], "big") == path.stat().st_size
    except OSError:
        return False


def _unreadable(path: Path, error: Exception) -> MedarError:
    state = "is damaged" if path.exists() else "does not exist"
    return MedarError(
        f"{path}: this cache entry {state} ({one_line(error)}); "
        "delete it if it exists, and run `medar data prepare` again"
    )
