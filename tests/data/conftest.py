"""Tiny volumes for the tests of data sets."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medar.volume import Volume, write_nifti

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a small volume below `tmp_path`: noise, or the given array on the given spacing."""

    def write_one(
        name: str,
        array: Any = None,
        *,
        spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
        origin: float = 0.0,
        dtype: Any = None,
    ) -> Path:
        if array is None:
            seed = sum(ord(c) * i for i, c in enumerate(name, 1))
            array = np.random.default_rng(seed).normal(size=(6, 5, 4)).astype(np.float32)
        affine = np.diag([*spacing, 1.0])
        affine[:3, 3] = origin
        write_nifti(tmp_path / name, Volume.from_array(np.asarray(array), affine), dtype=dtype)
        return tmp_path / name

    return write_one
