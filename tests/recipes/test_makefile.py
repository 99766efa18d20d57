"""`make demo` calls commands that exist, also on data in a folder whose name has a space."""

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_the_demo_accepts_any_data_folder() -> None:
    call = ["make", "-n", "demo", "DATA=a b", "PYTHON=true"]
    printed = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    check, recipe = [shlex.split(line) for line in printed.splitlines() if "a b" in line]
    assert check[1:4] == ["data", "check", "a b"]
    assert recipe[1:3] == ["run", "synthesis"]
    assert (ROOT / recipe[3]).is_file()
    assert recipe[recipe.index("--data") + 1] == "a b"
