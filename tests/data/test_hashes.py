"""The hash index: it detects every change and hashes nothing twice."""

import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from medar.data import hashes as module
from medar.data.hashes import HashIndex
from medar.errors import MedarError
from medar.files import file_digest


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that were hashed; new files are trusted at once."""
    names: list[str] = []

    def spy(path: Path) -> str:
        names.append(path.name)
        return file_digest(path)

    monkeypatch.setattr(module, "file_digest", spy)
    monkeypatch.setattr(module, "SETTLED", -1.0)
    return names


def test_a_file_is_hashed_once(tmp_path: Path, hashed: list[str]) -> None:
    (tmp_path / "a").write_bytes(b"x")
    index = HashIndex(tmp_path / "index.json")
    assert index[tmp_path / "a"] == index[tmp_path / "a"] == file_digest(tmp_path / "a")
    index.save()
    assert HashIndex(tmp_path / "index.json")[tmp_path / "a"] == index[tmp_path / "a"]
    assert hashed == ["a"]


def test_relative_and_absolute_paths_are_one_entry(
    tmp_path: Path, hashed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    index = HashIndex()
    assert index[Path("a")] == index[tmp_path / "a"]
    assert hashed == ["a"]


def test_a_touched_file_has_the_same_hash(tmp_path: Path, hashed: list[str]) -> None:
    (tmp_path / "a").write_bytes(b"x")
    index = HashIndex()
    before = index[tmp_path / "a"]
    os.utime(tmp_path / "a", ns=(1, 1))
    assert index[tmp_path / "a"] == before
    assert hashed == ["a", "a"]


@pytest.mark.usefixtures("hashed")
def test_a_change_with_equal_size_and_time_is_detected(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"x")
    index = HashIndex()
    before, stat = index[file], file.stat()
    deadline = time.monotonic() + 5
    while file.stat().st_ctime_ns == stat.st_ctime_ns and time.monotonic() < deadline:
        file.write_bytes(b"y")
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)
    assert index[file] != before


def test_a_recently_written_file_is_hashed_again(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    index = HashIndex(tmp_path / "index.json")
    _ = index[tmp_path / "a"]
    index.save()
    assert not (tmp_path / "index.json").exists()


@pytest.mark.usefixtures("hashed")
def test_every_file_of_a_volume_is_hashed(tmp_path: Path) -> None:
    series = tmp_path / "series"
    series.mkdir()
    for name in ("1.dcm", "2.dcm"):
        (series / name).write_bytes(name.encode())
    (tmp_path / "v.mhd").write_text("NDims = 3\nDimSize = 2 2 2\nElementDataFile = v.raw\n")
    (tmp_path / "v.raw").write_bytes(bytes(8))
    index = HashIndex()
    before = index[series], index[tmp_path / "v.mhd"]
    (series / "2.dcm").write_bytes(b"other")
    (tmp_path / "v.raw").write_bytes(bytes(9))
    after = index[series], index[tmp_path / "v.mhd"]
    assert before[0] != after[0]
    assert before[1] != after[1]


NRRD_HEADER = "NRRD0004\ntype: uchar\ndimension: 3\nsizes: 2 2 2\nencoding: raw\ndata file: "
META_HEADER = "NDims = 3\nDimSize = 2 2 2\nElementType = MET_UCHAR\nElementDataFile = "


@pytest.mark.usefixtures("hashed")
@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("a.mhd", META_HEADER + "LIST\ns1.raw\ns2.raw\n"),
        ("a.mhd", META_HEADER + "s%d.raw 1 2 1\n"),
        ("a.mhd", META_HEADER + "s%d.raw\n"),
        ("a.mha", META_HEADER + "LIST\ns1.raw\ns2.raw\n"),
        ("a.nhdr", NRRD_HEADER + "LIST\ns1.raw\ns2.raw\n"),
        ("a.nhdr", NRRD_HEADER + "s%d.raw 1 2 1\n"),
        ("a.nrrd", NRRD_HEADER + "LIST 2\ns1.raw\ns2.raw\n"),
    ],
)
def test_every_slice_is_hashed(tmp_path: Path, name: str, header: str) -> None:
    (tmp_path / name).write_text(header)
    for slice_ in ("s1.raw", "s2.raw"):
        (tmp_path / slice_).write_bytes(bytes(4))
    before = HashIndex()[tmp_path / name]
    for slice_ in ("s1.raw", "s2.raw"):
        (tmp_path / slice_).write_bytes(b"\0\1\0\0")
        assert HashIndex()[tmp_path / name] != before
        (tmp_path / slice_).write_bytes(bytes(4))
    assert HashIndex()[tmp_path / name] == before


def test_many_files_in_parallel(tmp_path: Path, hashed: list[str]) -> None:
    files = [tmp_path / str(k) for k in range(6)]
    for file in files:
        np.arange(5).tofile(file)
    index = HashIndex()
    index.prime([*files, tmp_path / "absent"], workers=2)
    assert sorted(hashed) == [file.name for file in files]
    assert len({index[file] for file in files}) == 1
    assert len(hashed) == len(files)


@pytest.mark.parametrize("content", ["{", "[1]", "[" * 100_000, '{"a": 3}', '{"a": [1, 2]}'])
def test_a_damaged_index_is_discarded(tmp_path: Path, content: str) -> None:
    (tmp_path / "index.json").write_text(content)
    (tmp_path / "a").write_bytes(b"x")
    assert HashIndex(tmp_path / "index.json")[tmp_path / "a"] == file_digest(tmp_path / "a")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    shutil.move(tmp_path / "a", tmp_path / "b")
    with pytest.raises(MedarError, match=r"a: cannot be read \(No such file"):
        _ = HashIndex()[tmp_path / "a"]


def test_devices_have_no_hash() -> None:
    with pytest.raises(MedarError, match=r"^/dev/zero: cannot be read \(it is not a file\)"):
        _ = HashIndex()[Path("/dev/zero")]
