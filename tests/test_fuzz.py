"""Damaged and hostile inputs, a few hundred of those that `fuzz.py` makes."""

import subprocess
import sys
from pathlib import Path

FUZZ = Path(__file__).with_name("fuzz.py")


def test_mutated_files_are_read_or_refused() -> None:
    command = [sys.executable, str(FUZZ), "--n", "300", "--seed", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    ending = "0 crashes, 0 tracebacks, 0 hangs, 0 blow-ups, 0 silent; "
    refused = done.stdout.partition(ending)[2]
    assert int(refused.split()[0]) > 100  # the mutations reach what is checked
