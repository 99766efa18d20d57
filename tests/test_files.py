"""Atomic files and content hashes."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from medar.errors import MedarError
from medar.files import (
    atomic_path,
    digest,
    exclusive,
    file_digest,
    read_json,
    read_json_object,
    remove_temporaries,
    write_bytes,
    write_json,
    write_text,
)


def no_space(*_: object, **__: object) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_failed_block_keeps_the_old_file_and_adds_nothing(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    write_text(file, "old")
    with pytest.raises(TypeError), atomic_path(file) as temporary:
        temporary.write_bytes("no bytes")  # opens the file, and then fails
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_the_old_file_is_visible_until_the_block_ends(tmp_path: Path) -> None:
    file = tmp_path / "new" / "a.nii.gz"
    with atomic_path(file) as temporary:
        temporary.write_bytes(b"new")
        assert not file.exists()
        assert temporary.parent == file.parent
        assert temporary.name.endswith(".nii.gz")
    assert file.read_bytes() == b"new"


@pytest.mark.parametrize("durable", [True, False])
def test_files_get_the_permissions_of_ordinary_files(tmp_path: Path, durable: bool) -> None:
    (tmp_path / "ordinary").write_text("")
    write_bytes(tmp_path / "ours", b"", durable=durable)
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "ordinary").stat().st_mode


def test_a_full_disk_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "write_bytes", no_space)
    with pytest.raises(OSError, match=r"a\.bin") as caught:
        write_bytes(tmp_path / "a.bin", b"x")
    assert caught.value.filename == str(tmp_path / "a.bin")
    with pytest.raises(MedarError, match=r"a\.txt: cannot be written \(No space left"):
        write_text(tmp_path / "a.txt", "x")
    assert list(tmp_path.iterdir()) == []


def test_json_round_trip(tmp_path: Path) -> None:
    value = {"b": [1, 2.5, None], "a": "Köln"}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe\xff"])
def test_bad_json_gives_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(MedarError, match=r"a\.json: (not valid JSON|cannot be read) \(.*\)$"):
        read_json(tmp_path / "a.json")
    with pytest.raises(MedarError, match=r"b\.json: cannot be read \(No such file"):
        read_json(tmp_path / "b.json")


def test_json_of_another_type_is_refused(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"a": 1})
    assert read_json_object(tmp_path / "a.json") == {"a": 1}
    write_json(tmp_path / "b.json", [1])
    with pytest.raises(MedarError, match=r"b\.json: must hold a JSON object, got a list"):
        read_json_object(tmp_path / "b.json")


def test_digests_ignore_key_order_and_nothing_else() -> None:
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": [1, 2], "a": 1})
    assert len({digest(v) for v in ({"a": 1}, {"a": 2}, {"b": 1}, [1], [2, 1], [1, 2])}) == 6


def test_file_digests_follow_the_content(tmp_path: Path) -> None:
    for name, content in (("a", b"x"), ("b", b"x"), ("c", b"y")):
        (tmp_path / name).write_bytes(content)
    a, b, c = (file_digest(tmp_path / name) for name in "abc")
    assert a == b != c


def test_a_lock_is_exclusive_and_leaves_no_file(tmp_path: Path) -> None:
    with exclusive(tmp_path):
        remove_temporaries(tmp_path)  # as the work inside may do
        with pytest.raises(MedarError, match="another medar is at work"), exclusive(tmp_path):
            pass
    assert list(tmp_path.iterdir()) == []
    code = "import sys, os, medar.files as f\nwith f.exclusive(sys.argv[1]): os._exit(9)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)  # dies with the lock
    with exclusive(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK])
def test_without_locks_nothing_is_locked_and_no_file_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def flock(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", flock)
    with exclusive(tmp_path), exclusive(tmp_path):
        assert list(tmp_path.iterdir()) == []


def test_every_user_of_a_shared_folder_can_open_the_lock(tmp_path: Path) -> None:
    mask = os.umask(0o077)
    try:
        with exclusive(tmp_path):
            (lock,) = tmp_path.iterdir()
            assert lock.stat().st_mode & 0o777 == 0o666
    finally:
        os.umask(mask)


def test_an_empty_created_folder_is_removed(tmp_path: Path) -> None:
    out = tmp_path / "a" / "b"
    with pytest.raises(MedarError, match="bad input"), exclusive(out):
        raise MedarError("bad input")
    assert not out.parent.exists()
    with exclusive(out):
        (out / "made").touch()
    assert (out / "made").exists()
    out = tmp_path / "empty"
    out.mkdir()
    with exclusive(out):
        pass
    assert out.exists()


HALF = """
import sys
from medar.files import atomic_path
with atomic_path(sys.argv[1]) as temporary:
    temporary.write_bytes(b"half")
    print("there", flush=True)
    sys.stdin.read()
"""


def test_the_next_process_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    """And nothing else: neither what a living one is writing, nor files of others."""
    (tmp_path / ".tmp-notes").write_text("of somebody")
    (tmp_path / ".tmp-abcdefgh-folder").mkdir()

    def start(name: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", HALF, tmp_path / name],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        )  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "there\n"
        return process

    killed, living = start("killed.nii.gz"), start("living.nii.gz")
    killed.kill()
    killed.communicate()
    assert len(list(tmp_path.glob(".tmp-*.nii.gz"))) == 2
    write_text(tmp_path / "x", "x")
    (left,) = tmp_path.glob(".tmp-*.nii.gz")
    assert left.name.endswith("living.nii.gz")
    living.communicate("")
    assert living.returncode == 0
    assert (tmp_path / "living.nii.gz").read_bytes() == b"half"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".tmp-abcdefgh-folder", ".tmp-notes", "living.nii.gz", "x",
    ]  # fmt: skip
