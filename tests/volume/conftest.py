"""Small volumes and grids for the tests of this folder."""

import sys
from collections.abc import Callable
from itertools import permutations, product
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest

from medar.volume import Affine, Volume

sys.path[:0] = [str(Path(__file__).parents[2] / "benchmarks"), str(Path(__file__).parent)]

ORIENTATIONS = [
    "".join(pair[way] for pair, way in zip(pairs, ways, strict=True))
    for pairs in permutations(("RL", "AP", "SI"))
    for ways in product((0, 1), repeat=3)
]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test with the argument `orientation` for all 48 orientations."""
    if "orientation" in metafunc.fixturenames:
        metafunc.parametrize("orientation", ORIENTATIONS)


@pytest.fixture
def voxels() -> npt.NDArray[Any]:
    """Distinct voxels (4, 3, 5), so that any wrong flip is detected."""
    return np.arange(60, dtype=np.float32).reshape(4, 3, 5)


@pytest.fixture
def oblique() -> Affine:
    """Axes near RAS, rotated by 20 and 10 degrees, with spacing 1, 2 and 3 mm."""
    turn = nib.eulerangles.euler2mat(z=np.radians(20), x=np.radians(10))
    return nib.affines.from_matvec(turn @ np.diag([1.0, 2.0, 3.0]), [-5.0, 6.0, 7.5])


@pytest.fixture
def affine_of() -> Callable[[str], Affine]:
    """The affine of an orientation code, with spacing 1, 2 and 3 mm."""

    def make(orientation: str) -> Affine:
        affine = np.eye(4)
        change = nib.orientations.axcodes2ornt(orientation)
        affine[:3, :3] = 0
        for axis, (towards, sign) in enumerate(change):
            affine[int(towards), axis] = sign * (axis + 1)
        affine[:3, 3] = [11.0, -12.0, 13.0]
        return affine

    return make


@pytest.fixture
def ramp() -> Volume:
    """A volume whose voxels are a linear function of position."""
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    x, y, z = np.meshgrid(*[np.arange(12.0)] * 3, indexing="ij")
    return Volume.from_array((x + 10 * y - 3 * z).astype(np.float32), affine)
