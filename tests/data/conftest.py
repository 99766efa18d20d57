"""Tiny volumes for the tests of data sets."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medar.data.manifest import Case, Manifest, Split
from medar.data.plan import IntensityRule, Plan
from medar.volume import Volume, write_nifti

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a small volume below `tmp_path`: noise, or the given array with the given spacing."""

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


@pytest.fixture
def dataset(tmp_path: Path) -> Callable[..., Manifest]:
    """Write a data set of tiny CT volumes with two labels below `tmp_path`."""

    def make(n: int = 3, *, shape: tuple[int, int, int] = (8, 7, 6)) -> Manifest:
        cases = []
        for k in range(n):
            generator = np.random.default_rng(k)
            image, label = tmp_path / "in" / f"c{k}.nii.gz", tmp_path / "in" / f"c{k}_label.nii.gz"
            voxels = generator.integers(-1000, 1001, shape).astype(np.float32)
            write_nifti(image, Volume.from_array(voxels, np.eye(4)), dtype=np.int16)
            values = generator.integers(0, 3, shape).astype(np.uint8)
            write_nifti(label, Volume.from_array(values, np.eye(4)))
            split: Split = "val" if k % 3 == 2 else "train"
            cases.append(Case(id=f"c{k}", images=(image,), label=label, modality="CT", split=split))
        names = {1: "kidney left", 2: "kidney right"}
        return Manifest(root=tmp_path / "in", source="MSD", cases=tuple(cases), labels=names)

    return make


@pytest.fixture
def plan() -> Callable[..., Plan]:
    """A plan for the volumes of `dataset`, with some values changed."""

    def make(**changes: Any) -> Plan:
        values: dict[str, Any] = {
            "spacing": (1.0, 1.0, 1.0),
            "mode": "volume",
            "size": (8, 8, 8),
            "downsampling": (2, 2, 2),
            "intensity": {"CT": IntensityRule(kind="window", low=-1000.0, high=1000.0)},
            "labels": {1: "kidney left", 2: "kidney right"},
        }
        return Plan(**{**values, **changes})

    return make
