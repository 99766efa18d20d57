"""The command line from a user's view: arguments in; exit code, standard output and error out."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medar.cli.main import main
from medar.volume import Volume, write_nifti


@dataclass(frozen=True)
class CommandResult:
    """Exit code and output of a command."""

    code: int
    out: str
    err: str

    @property
    def refusal(self) -> str:
        """The single error line of an invalid call; nothing may be on standard output."""
        assert self.code == 2, (self.out, self.err)
        assert self.out == ""
        assert self.err.startswith("medar: ")
        assert self.err.count("\n") == 1
        return self.err


Medar = Callable[..., CommandResult]
Write = Callable[..., Path]


@pytest.fixture
def medar(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Medar:
    """Run `medar` with the given arguments, in this process unless they request workers."""
    monkeypatch.setattr("medar.parallel.default_workers", lambda: 1)

    def run(*arguments: object) -> CommandResult:
        with pytest.raises(SystemExit) as left:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return CommandResult(code=int(left.value.code or 0), out=captured.out, err=captured.err)

    return run


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a small image below `tmp_path`: seeded noise, or the given array."""

    def write_one(name: str, array: Any = None, *, seed: int = 0) -> Path:
        if array is None:
            array = np.random.default_rng(seed).normal(100.0, 20.0, (8, 10, 6)).astype(np.float32)
        affine = np.diag([-1.0, 1.0, 2.0, 1.0])
        write_nifti(tmp_path / name, Volume.from_array(np.asarray(array), affine))
        return tmp_path / name

    return write_one


@pytest.fixture
def data(tmp_path: Path, write: Write) -> Path:
    """A folder of four images, c0 to c3, with labels 1 and 2."""
    label = np.zeros((8, 10, 6), np.uint8)
    label[2:4, 3:6, 2:4], label[5:7, 3:6, 2:4] = 1, 2
    for number in range(4):
        write(f"data/images/c{number}.nii.gz", seed=number)
        write(f"data/labels/c{number}.nii.gz", label)
    return tmp_path / "data"
