"""Preparation that was killed, interrupted or out of space resumes where it stopped."""

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from medar.data import cache
from medar.data.manifest import Manifest
from medar.data.plan import Plan
from medar.data.prepare import prepare
from medar.errors import MedarError

MakeDataset = Callable[..., Manifest]
MakePlan = Callable[..., Plan]
ROOT = Path(__file__).parents[2]


class Deadly(str):
    """A string that kills the worker process that receives it."""

    __slots__ = ()

    def __reduce__(self) -> Any:
        return os._exit, (9,)


def entries(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (out / "arrays").iterdir()}


def start_slowly(tmp_path: Path, manifest: Manifest, plan: Plan) -> subprocess.Popen[str]:
    """Start `medar data prepare` with two slow workers; return once some entries exist."""
    manifest.save(tmp_path / "in" / "manifest.jsonl")
    plan.save(tmp_path / "given.yaml")
    source, given, out = tmp_path / "in" / "manifest.jsonl", tmp_path / "given.yaml", tmp_path / "a"
    script = Path(__file__).with_name("killable.py")
    process = subprocess.Popen(
        [sys.executable, script, "data", "prepare", source, "--plan", given, "--out", out,
         "--workers", "2"],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if len(list((tmp_path / "a" / "arrays").glob("*.b2nd"))) >= 6:
            return process
        time.sleep(0.01)
    process.kill()
    raise AssertionError(process.communicate())


def go_on(tmp_path: Path, manifest: Manifest, plan: Plan) -> None:
    """Check that a second run completes the first and equals an uninterrupted one byte for byte."""
    before = entries(tmp_path / "a")
    assert 6 <= len(before) < 2 * len(manifest)
    (tmp_path / "a" / "arrays" / ".tmp-x-image-1.b2nd").write_bytes(b"half")
    done = prepare(manifest, plan, tmp_path / "a", workers=1)
    assert done.made >= len(manifest) - len(before) / 2
    assert done.kept >= 2
    prepare(manifest, plan, tmp_path / "b", workers=1)
    assert entries(tmp_path / "a") == entries(tmp_path / "b")
    assert not list((tmp_path / "a").rglob(".tmp-*"))
    for name in ("cases.jsonl", "plan.yaml", "failed.jsonl"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_killed(tmp_path: Path, dataset: MakeDataset, plan: MakePlan) -> None:
    manifest = dataset(12)
    process = start_slowly(tmp_path, manifest, plan())
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    go_on(tmp_path, manifest, plan())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(
    tmp_path: Path, dataset: MakeDataset, plan: MakePlan, number: signal.Signals
) -> None:
    manifest = dataset(12)
    process = start_slowly(tmp_path, manifest, plan(mode="patch"))
    os.killpg(process.pid, number)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert out == ""
    *progress, last = err.splitlines()
    assert last == "medar: interrupted: run the same command again to continue"
    assert all(line.startswith("prepare: ") for line in progress)  # on a busy machine
    go_on(tmp_path, manifest, plan(mode="patch"))


def test_a_dead_worker_fails_only_its_case(
    tmp_path: Path, dataset: MakeDataset, plan: MakePlan
) -> None:
    manifest = dataset(3)
    deadly = replace(manifest.cases[1], attributes={"site": Deadly("x")})
    manifest = manifest.with_cases((manifest.cases[0], deadly, manifest.cases[2]))
    done = prepare(manifest, plan(), tmp_path / "out", workers=2)
    assert done.made == 2
    assert set(done.failed) == {"c1"}
    assert "the worker process died" in done.failed["c1"]


def test_no_space(
    tmp_path: Path, dataset: MakeDataset, plan: MakePlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest, write = dataset(4), cache.write_bytes
    written: list[Path] = []

    def limited(path: Path, data: bytes, **options: Any) -> None:
        if len(written) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        write(path, data, **options)
        written.append(path)

    monkeypatch.setattr(cache, "write_bytes", limited)
    with pytest.raises(MedarError, match=r"b2nd: No space left on device; free some space"):
        prepare(manifest, plan(), tmp_path / "out", workers=1)
    before = entries(tmp_path / "out")
    assert set(before) == {path.name for path in written}
    monkeypatch.undo()
    done = prepare(manifest, plan(), tmp_path / "out", workers=1)
    assert (done.made, done.kept) == (3, 1)
    assert before.items() <= entries(tmp_path / "out").items()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this system does not let root mount a tmpfs")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_actually_full(
    small_disk: Path, dataset: MakeDataset, plan: MakePlan
) -> None:
    manifest, chosen = dataset(6, shape=(16, 16, 16)), plan(size=(16, 16, 16))
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(170_000))
    out = small_disk / "out"
    with pytest.raises(MedarError, match="No space left on device; free some space"):
        prepare(manifest, chosen, out, workers=1)
    before = entries(out)
    assert before
    assert all(name.endswith(".b2nd") for name in before)
    assert cache.ArrayCache(out / "arrays").keys() == {name[:-5] for name in before}
    ballast.unlink()
    assert prepare(manifest, chosen, out, workers=1).failed == {}
    assert before.items() <= entries(out).items()
    assert len(entries(out)) == 12
    with pytest.raises(MedarError, match=r"cannot be written \(No space left on device\)"):
        fill_up(small_disk, manifest, chosen, out)


def fill_up(disk: Path, manifest: Manifest, plan: Plan, out: Path) -> None:
    """Fill the disk completely, then prepare."""
    with (disk / "ballast").open("wb", buffering=0) as file:
        while True:
            try:
                file.write(bytes(4096))
            except OSError:
                break
    prepare(manifest, plan, out, workers=1)
