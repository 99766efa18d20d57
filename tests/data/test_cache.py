"""The array cache: atomic entries, exact round trips, damage reported in one line."""

import contextlib
import pickle
from pathlib import Path

import numpy as np
import pytest

from medar.data import cache as module
from medar.data.cache import ArrayCache
from medar.errors import MedarError

RNG = np.random.default_rng(0)
ARRAYS = {
    "noise": RNG.normal(size=(2, 11, 13, 16)).astype(np.float32),
    "smooth": np.linspace(-1, 1, 12 * 9 * 40, dtype=np.float32).reshape(1, 12, 9, 40),
    "constant": np.full((1, 8, 8, 8), -1.0, np.float32),
    "labels": RNG.integers(-1, 3, (1, 7, 35, 5)).astype(np.int8),
    "wide labels": RNG.integers(-1, 300, (1, 5, 4, 3)).astype(np.int16),
    "planes beyond a block": RNG.normal(size=(1, 4, 100, 100)).astype(np.float32),
    "several blocks": np.arange(36 * 64 * 64, dtype=np.float32).reshape(1, 36, 64, 64)[:, :32],
    "one voxel": np.zeros((1, 1, 1, 1), np.float32),
}


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_round_trip(tmp_path: Path, name: str, whole: bool) -> None:
    array = ARRAYS[name]
    cache = ArrayCache(tmp_path / "a")
    cache.put("k", array, {"trace": {"low": 0.1, "list": [1, 2]}, "bytes": b"\0x"}, whole=whole)
    for reader in (cache, ArrayCache(tmp_path / "a")):
        back = reader.read("k")
        assert (back.dtype, back.shape) == (array.dtype, array.shape)
        assert np.array_equal(back, array)
        assert reader.meta("k") == {"trace": {"low": 0.1, "list": [1, 2]}, "bytes": b"\0x"}
        x, y, z = array.shape[1:]
        for start, stop in (((0, 0, 0), (x, y, z)), ((x // 2, y // 2, z // 3), (x, y, z))):
            box = tuple(map(slice, start, stop))
            assert np.array_equal(reader.box("k", start, stop), array[:, *box])
            last = len(array) - 1
            assert np.array_equal(reader.box("k", start, stop, last), array[last:, *box])
        back[:] = 0  # what was read belongs to the reader
        assert np.array_equal(reader.read("k"), array)


def test_the_same_array_gives_the_same_bytes(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        ArrayCache(tmp_path / folder).put("k", ARRAYS["noise"], {"x": 1}, whole=True)
    assert (tmp_path / "a" / "k.b2nd").read_bytes() == (tmp_path / "b" / "k.b2nd").read_bytes()


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_truncated_entry_is_missing(tmp_path: Path, share: float) -> None:
    cache = ArrayCache(tmp_path)
    cache.put("k", ARRAYS["noise"], {}, whole=True)
    file = cache.path("k")
    whole = file.read_bytes()
    assert "k" in cache
    assert cache.keys() == {"k"}
    file.write_bytes(whole[: int(len(whole) * share)])
    assert "k" not in cache
    assert cache.keys() == set()
    with pytest.raises(MedarError, match=r"k\.b2nd: this cache entry is damaged .* prepare"):
        cache.read("k")
    cache.put("k", ARRAYS["noise"], {}, whole=True)
    assert file.read_bytes() == whole


def test_a_damaged_entry_gives_one_line(tmp_path: Path) -> None:
    cache = ArrayCache(tmp_path)
    cache.put("k", ARRAYS["smooth"], {}, whole=True)
    content = cache.path("k").read_bytes()
    cache.path("k").write_bytes(content[:40] + b"\xff" * (len(content) - 40))
    with pytest.raises(MedarError, match="is damaged") as caught:
        cache.read("k")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("name", ["noise", "smooth", "labels", "several blocks"])
def test_a_flipped_bit_is_noticed_wherever_it_is(tmp_path: Path, name: str, whole: bool) -> None:
    """In voxels, metadata and the frame: what is read is what was written, or nothing."""
    array, meta = ARRAYS[name], {"trace": {"low": 0.1, "list": [1, 2]}, "bytes": b"\0x"}
    ArrayCache(tmp_path).put("k", array, meta, whole=whole)
    file, generator = ArrayCache(tmp_path).path("k"), np.random.default_rng(1)
    good = file.read_bytes()
    x, y, z = array.shape[1:]
    places = generator.choice(8 * len(good), 150, replace=False)
    noticed = len(places)
    for place in map(int, places):
        damaged = bytearray(good)
        damaged[place // 8] ^= 1 << place % 8
        file.write_bytes(damaged)
        with contextlib.suppress(MedarError):
            assert ArrayCache(tmp_path).meta("k") == meta
            back = ArrayCache(tmp_path).read("k")
            assert (back.dtype, back.shape) == (array.dtype, array.shape)
            assert np.array_equal(back, array)
            assert np.array_equal(ArrayCache(tmp_path).box("k", (0, 0, 0), (x, y, z)), array)
            noticed -= 1
    assert noticed > 50  # the others changed nothing that is read


def test_an_entry_under_another_name_is_noticed(tmp_path: Path) -> None:
    cache = ArrayCache(tmp_path)
    for key, value in (("a", 1), ("b", 2)):
        cache.put(key, np.full((1, 4, 4, 4), value, np.float32), {}, whole=True)
    cache.path("a").write_bytes(cache.path("b").read_bytes())
    with pytest.raises(MedarError, match=r"is damaged \(it was stored as b\)"):
        ArrayCache(tmp_path).read("a")


def test_a_patch_is_checked_alone(tmp_path: Path) -> None:
    array = RNG.normal(size=(1, 64, 64, 64)).astype(np.float32)
    cache = ArrayCache(tmp_path)
    cache.put("k", array, {}, whole=False)
    content = bytearray(cache.path("k").read_bytes())
    where = content.index(array[0, 40, 40].tobytes()[:16]) if array.nbytes < len(content) else None
    assert where is not None
    content[where] ^= 1
    cache.path("k").write_bytes(content)
    assert np.array_equal(cache.box("k", (1, 2, 3), (30, 31, 32)), array[:, 1:30, 2:31, 3:32])
    with pytest.raises(MedarError, match=r"is damaged .its voxels have another checksum"):
        cache.box("k", (20, 20, 20), (50, 50, 50))
    with pytest.raises(MedarError, match=r"is damaged .its voxels have another checksum"):
        cache.read("k")


def test_entries_without_checksums_are_read(tmp_path: Path) -> None:
    import blosc2

    stored = blosc2.asarray(ARRAYS["smooth"])
    stored.schunk.vlmeta["medar"] = {"trace": {}}
    ArrayCache(tmp_path).path("k").write_bytes(stored.to_cframe())
    assert np.array_equal(ArrayCache(tmp_path).read("k"), ARRAYS["smooth"])
    box = ArrayCache(tmp_path).box("k", (1, 2, 3), (4, 5, 6))
    assert np.array_equal(box, ARRAYS["smooth"][:, 1:4, 2:5, 3:6])
    assert ArrayCache(tmp_path).meta("k") == {"trace": {}}


def test_a_missing_entry_gives_one_line(tmp_path: Path) -> None:
    with pytest.raises(MedarError, match=r"none\.b2nd: this cache entry does not exist"):
        ArrayCache(tmp_path).open("none")


def test_open_entries_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HANDLES", 2)
    cache = ArrayCache(tmp_path)
    for key in "abc":
        cache.put(key, ARRAYS["constant"], {}, whole=True)
    first = cache.open("a")
    cache.open("b")
    assert cache.open("a") is first
    cache.open("c")
    assert list(cache._handles) == ["a", "c"]
    assert np.array_equal(cache.read("b"), ARRAYS["constant"])


def test_pickles_without_its_open_entries(tmp_path: Path) -> None:
    cache = ArrayCache(tmp_path)
    cache.put("k", ARRAYS["labels"], {}, whole=False)
    cache.read("k")
    other = pickle.loads(pickle.dumps(cache))
    assert not other._handles
    assert np.array_equal(other.read("k"), ARRAYS["labels"])


def test_pruning_keeps_the_listed_entries(tmp_path: Path) -> None:
    cache = ArrayCache(tmp_path)
    for key in "abc":
        cache.put(key, ARRAYS["one voxel"], {}, whole=True)
    cache.path("b").write_bytes(b"short")
    (tmp_path / ".tmp-1-d.b2nd").write_bytes(b"left by a killed run")
    (tmp_path / "notes.txt").write_text("mine")
    cache.prune({"a"})
    assert {path.name for path in tmp_path.iterdir()} == {"a.b2nd", "notes.txt"}
    ArrayCache(tmp_path / "absent").prune(set())
