"""`make demo` calls what there is, also on data in a folder whose name has a space."""

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_the_demo_takes_data_from_anywhere() -> None:
    call = ["make", "-n", "demo", "DATA=a b", "PYTHON=true"]
    said = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    lines = [shlex.split(line) for line in said.splitlines() if "a b" in line]
    check, recipe = lines
    assert check[1:4] == ["data", "check", "a b"]
    assert recipe[recipe.index("--data") + 1] == "a b"
    for word in (recipe[1], recipe[recipe.index("--config") + 1]):
        assert (ROOT / word).is_file()
