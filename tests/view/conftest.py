"""Two small volumes with label maps, of different grids, one of them synthetic."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medar.files import write_json
from medar.volume import Volume, write_nifti

Write = Callable[..., Path]

SIDES = (16, 20, 12)
REAL = np.array([[1.5, 0, 0, -12.0], [0, 1, 0, -10.0], [0, 0, 2.0, -12.0], [0, 0, 0, 1]])
MADE = np.array([[1.2, 0, 0, -9.0], [0, 1.2, 0, -11.0], [0, 0, 2.2, -13.0], [0, 0, 0, 1]])


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write an array below `tmp_path`: a ramp of unique values by default."""

    def write_one(name: str, array: Any = None, affine: Any = REAL) -> Path:
        if array is None:
            array = np.arange(np.prod(SIDES), dtype=np.float32).reshape(SIDES)
        write_nifti(tmp_path / name, Volume.from_array(np.asarray(array), affine))
        return tmp_path / name

    return write_one


@pytest.fixture
def label() -> Any:
    """A label map with the values 2 and 300."""
    array = np.zeros(SIDES, np.int16)
    array[4:8, 6:12, 3:6], array[10:13, 6:12, 3:6] = 2, 300
    return array


@pytest.fixture
def pair(write: Write, label: Any) -> tuple[Path, Path]:
    """A real volume, and a sample as `medar synthesize` writes it, with its label map."""
    real = write("real.nii.gz")
    made = write("samples/sample_0000.nii.gz", affine=MADE)
    named = write("samples/sample_0000_label.nii.gz", label, MADE)
    record = {"synthetic": True, "image": made.name, "label": named.name, "attributes": {}}
    write_json(made.with_name("sample_0000.json"), record)
    return real, made
