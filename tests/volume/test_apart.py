"""Reading in a process of its own: a crash costs one file, and nothing is left behind."""

import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import crashing
import numpy as np
import pytest
from dicom_files import compressed, enhanced, write_classic

from medar.data.case import Case
from medar.data.check import check
from medar.data.manifest import Manifest
from medar.errors import MedarError
from medar.volume import apart, read_volume
from medar.volume.apart import run_apart

STACK = np.random.default_rng(0).integers(-900, 900, (4, 20, 24)).astype(np.int16)
PATH = Path("scan.dcm")


@pytest.fixture
def crashes_on_bad(monkeypatch):
    """GDCM crashes on every file below a folder named bad."""
    for module in ("dicom", "dicom_enhanced"):
        monkeypatch.setattr(f"medar.volume.{module}.read_pixels", crashing.pixels_or_crash)


def test_one_process_serves_all_calls():
    first = run_apart(PATH, crashing.process_of)
    assert first != os.getpid()
    with ThreadPoolExecutor(4) as pool:
        assert {*pool.map(lambda _: run_apart(PATH, crashing.process_of), range(20))} == {first}


def test_relative_paths_start_where_this_process_is(tmp_path, monkeypatch):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        assert run_apart(PATH, os.getcwd) == str(tmp_path / name)
    write_classic(Path("series"), STACK)
    assert read_volume("series").shape == STACK.shape[::-1]


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (signal.SIGSEGV, "it crashed the library that decodes it (SIGSEGV); get the file again"),
        (signal.SIGKILL, "was killed, perhaps for lack of memory"),
    ],
)
def test_a_crash_is_an_error_of_its_file(number, reason):
    before = run_apart(PATH, crashing.process_of)
    with pytest.raises(MedarError) as caught:
        run_apart(PATH, crashing.end, number)
    assert str(caught.value).startswith("scan.dcm: ")
    assert reason in str(caught.value)
    assert run_apart(PATH, crashing.process_of) != before
    with pytest.raises(MedarError, match=r"scan\.dcm: .*ended with exit code 3"):
        run_apart(PATH, crashing.leave, 3)


def test_errors_warnings_and_noise():
    with pytest.raises(ZeroDivisionError, match="by nothing"):
        run_apart(PATH, crashing.refuse, ZeroDivisionError("by nothing"))
    with pytest.warns(UserWarning, match="a remark"):
        run_apart(PATH, warnings.warn, "a remark")
    assert run_apart(PATH, crashing.noisy) == "answer"


def test_a_script_needs_no_main_guard_and_leaves_no_process(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from crashing import process_of\nfrom medar.volume.apart import run_apart\n"
        "print(run_apart('a', process_of), flush=True)\n"
    )
    root = Path(__file__).resolve().parents[2]
    path = f"{root}{os.pathsep}{root / 'tests'}"
    done = subprocess.run(
        [sys.executable, script], env={**os.environ, "PYTHONPATH": path}, capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    assert done.stderr == ""
    for _ in range(100):
        if not Path(f"/proc/{done.stdout.strip()}").exists():
            return
        time.sleep(0.02)
    raise AssertionError("the process is still there")


def test_a_fork_has_a_process_of_its_own():
    mine = run_apart(PATH, crashing.process_of)
    reading, writing = os.pipe()
    if os.fork() == 0:
        os.write(writing, str(run_apart(PATH, crashing.process_of)).encode())
        apart._process.end()
        os._exit(0)
    os.wait()
    assert int(os.read(reading, 20)) != mine
    assert run_apart(PATH, crashing.process_of) == mine


def test_an_interrupted_call_leaves_no_answer_to_another(monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("medar.volume.apart.pickle.load", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run_apart(PATH, crashing.noisy)
    assert run_apart(PATH, crashing.process_of) != "answer"


def kinds(folder):
    """A classic series, and a compressed enhanced file."""
    write_classic(folder / "classic", STACK)
    (folder / "packed").mkdir()
    made = compressed(enhanced(STACK), "JPEG", folder)
    made.save_as(folder / "packed" / "a.dcm", enforce_file_format=True)
    return [folder / "classic", folder / "packed"]


def test_a_crash_names_its_series(tmp_path, crashes_on_bad):
    good, bad = kinds(tmp_path / "good"), kinds(tmp_path / "bad")
    assert np.array_equal(*(read_volume(path).array for path in good))
    for path in bad:
        with pytest.raises(MedarError, match=rf"{path}/.*\.dcm: .*SIGSEGV") as caught:
            read_volume(path)
        assert "\n" not in str(caught.value)


def test_a_crash_while_tags_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr("medar.volume.dicom_slice.read_tags", crashing.tags_or_crash)
    folder = write_classic(tmp_path / "s", STACK)
    (folder / "003.dcm").rename(folder / "bad.dcm")
    with pytest.raises(MedarError, match=r"bad\.dcm: damaged: .*SIGSEGV"):
        read_volume(folder)


def test_a_check_goes_on_after_a_crash(tmp_path, crashes_on_bad):
    """A few cases are examined in this process."""
    names = ("bad", "good")
    for k, name in enumerate(names):
        write_classic(tmp_path / name, STACK + k)
    cases = tuple(Case(id=name, images=(tmp_path / name,)) for name in names)
    report = check(Manifest(root=tmp_path, source="folder", cases=cases), deep=True)
    assert [(one.case, one.code) for one in report.problems] == [("bad", "unreadable")]
    assert "SIGSEGV" in report.problems[0].message


def test_threads_are_not_mixed_up():
    found = []

    def ask(k):
        found.append((k, run_apart(PATH, crashing.same, k)))

    threads = [threading.Thread(target=ask, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [(k, k) for k in range(8)]
