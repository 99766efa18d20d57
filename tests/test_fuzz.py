"""Damaged and hostile inputs, the first of those that `fuzz.py` makes."""

from pathlib import Path

from forking import run_scripts

FUZZ = Path(__file__).with_name("fuzz.py")


def test_mutated_files_are_read_or_refused() -> None:
    (done,) = run_scripts((FUZZ, "--n", 150, "--seed", 0), timeout=600)
    assert done.returncode == 0, done.printed[-10_000:]
    ending = "0 crashes, 0 tracebacks, 0 hangs, 0 blow-ups, 0 silent; "
    refused = done.printed.partition(ending)[2]
    assert int(refused.split()[0]) > 50  # the mutations reach what is checked
