"""Parallel work: every item has an outcome, whatever happens to the others.

The work is `eval` and the items are expressions: spawned workers cannot import this file.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from medar.errors import MedarError
from medar.parallel import Outcome, default_workers, run_parallel

ROOT = Path(__file__).parents[1]
DIE = "__import__('os')._exit(3)"
KILLED = f"__import__('os').kill(__import__('os').getpid(), {int(signal.SIGKILL)})"
FULL = "(_ for _ in ()).throw(OSError(28, 'No space left on device', 'some/file'))"
WRONG = "(_ for _ in ()).throw(__import__('medar.errors').errors.MedarError('a.nii: bad'))"


def outcomes(items: list[str], workers: int) -> dict[str, Outcome[str, object]]:
    found = list(run_parallel(eval, items, workers=workers))
    assert len(found) == len(items)
    return {outcome.item: outcome for outcome in found}


@pytest.mark.parametrize("workers", [1, 2])
def test_every_item_gives_an_outcome(workers: int) -> None:
    found = outcomes(["1 + 1", "2 * 3", "1 / 0", WRONG, "open('/no/such/file')"], workers)
    assert [found["1 + 1"].value, found["2 * 3"].value] == [2, 6]
    defect, expected, system = found["1 / 0"], found[WRONG], found["open('/no/such/file')"]
    assert defect.error == "unexpected ZeroDivisionError: division by zero"
    assert "Traceback" in str(defect.trace)
    assert (expected.error, expected.trace) == ("a.nii: bad", None)
    assert "No such file" in str(system.error)


def test_one_worker_means_this_process() -> None:
    here = str(os.getpid())
    expression = "__import__('os').getpid()"
    assert str(outcomes([expression, "1"], 1)[expression].value) == here
    assert str(outcomes([expression, "1"], 2)[expression].value) != here


def test_a_dead_worker_fails_only_its_own_item() -> None:
    found = outcomes(["1", DIE, "2", "3", KILLED, "4"], 2)
    assert [found[n].value for n in "1234"] == [1, 2, 3, 4]
    for item in (DIE, KILLED):
        assert "the worker process died" in str(found[item].error)
        assert found[item].value is None


def test_a_script_without_a_main_guard_gets_a_hint(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from medar.parallel import run_parallel\n"
        "print(list(run_parallel(eval, ['1', '2', '3'], workers=2)))\n"
    )
    done = subprocess.run(
        [sys.executable, script],
        capture_output=True, text=True, timeout=60, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    # Python's resource tracker may have a last word of its own.
    assert "MedarError: worker processes cannot start" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_stops_everything(workers: int) -> None:
    with pytest.raises(MedarError, match=r"^some/file: No space left on device; free some space"):
        list(run_parallel(eval, [FULL, "1", "2"], workers=workers))


def test_memory_that_is_not_there_is_an_error_of_its_item() -> None:
    found = outcomes(["(_ for _ in ()).throw(MemoryError('Unable to allocate 9 TiB'))", "2"], 1)
    first, second = found.values()
    assert first.error == (
        "not enough memory (Unable to allocate 9 TiB); try fewer workers, or fewer voxels"
    )
    assert second.value == 2


def test_no_items_give_no_outcomes() -> None:
    assert list(run_parallel(eval, [], workers=4)) == []


@pytest.mark.parametrize("workers", [0, -1])
def test_at_least_one_worker(workers: int) -> None:
    with pytest.raises(MedarError, match=f"workers must be at least 1, got {workers}"):
        list(run_parallel(eval, ["1"], workers=workers))
    assert default_workers() >= 1


def test_no_more_workers_than_items_are_started() -> None:
    found = outcomes(["1", "2"], 10**30)
    assert {item: one.value for item, one in found.items()} == {"1": 1, "2": 2}
