"""Stacks of slices: their geometry, and their size."""

import io
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from medar.errors import MedarError
from medar.report import stacks
from medar.report.blocks import Stack
from medar.report.stacks import make_stacks
from medar.volume import Volume

SHAPE = (11, 9, 7)


def volume(array: npt.NDArray[Any]) -> Volume:
    return Volume(array=array[None].astype(np.float32), affine=np.diag([2.0, 1.0, 3.0, 1.0]))


def noise(seed: int, side: int = 24) -> tuple[str, bool, Volume]:
    """A volume that no JPEG can make small."""
    array = np.random.default_rng(seed).uniform(size=(side, side, side))
    return f"n{seed}", False, volume(array)


def voxels(stack: Stack) -> npt.NDArray[Any]:
    """Grey values (X, Y, Z), as the page takes them from the JPEG."""
    sheet = np.asarray(Image.open(io.BytesIO(stack.jpeg)))
    x, y, z = stack.shape
    width, height = stack.tile
    found = np.zeros(stack.shape)
    for k in range(z):
        top, left = k // stack.columns * height, k % stack.columns * width
        found[:, :, k] = sheet[top : top + y, left : left + x][::-1, ::-1].T
    return found


def size(made: list[Stack]) -> int:
    return sum(4 * -(-len(one.jpeg) // 3) for one in made)


def test_every_voxel_is_at_its_place() -> None:
    array = np.random.default_rng(0).integers(0, 2, SHAPE) * 200.0
    array = np.kron(array, np.ones((4, 4, 1)))
    (made,), remark = make_stacks([("one", True, volume(array))])
    assert remark == ""
    assert (made.name, made.real) == ("one", True)
    assert made.shape == array.shape
    assert made.spacing == (2.0, 1.0, 3.0)
    assert all(side % 8 == 0 for side in made.tile)
    np.testing.assert_array_equal(voxels(made) > 127, array > 100)


def test_all_volumes_share_one_window() -> None:
    dim, bright = (np.linspace(0, top, 512).reshape(8, 8, 8) for top in (50, 100))
    made, _ = make_stacks([("dim", False, volume(dim)), ("bright", False, volume(bright))])
    assert voxels(made[0]).max() == pytest.approx(127, abs=6)
    assert voxels(made[1]).max() == pytest.approx(255, abs=6)


def test_a_budget_reduces_quality_then_voxels_then_volumes() -> None:
    some = [noise(seed) for seed in range(3)]
    whole, remark = make_stacks(some)
    assert (len(whole), remark) == (3, "")
    coarser, remark = make_stacks(some, budget=size(whole) - 1)
    assert (len(coarser), coarser[0].shape, remark) == (3, (24, 24, 24), "")
    smaller, remark = make_stacks(some, budget=size(whole) // 6)
    assert len(smaller) == 3
    assert smaller[0].shape == (12, 12, 12)
    assert smaller[0].spacing == (4.0, 2.0, 6.0)
    assert remark == "Voxels are averages of 2 × 2 × 2."
    smallest, _ = make_stacks(some, budget=1600)
    for budget in (size(whole) - 1, size(whole) // 6, 1600, size(smallest) - 1):
        assert size(make_stacks(some, budget=budget)[0]) <= budget
    fewer, remark = make_stacks(some, budget=size(smallest) - 1)
    assert 0 < len(fewer) < 3
    assert f"{3 - len(fewer)} more would make the page too large" in remark
    with pytest.raises(MedarError, match="not even one volume"):
        make_stacks(some, budget=10)


def test_large_volumes_are_averaged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stacks, "MAX_SIDE", 8)
    array = np.zeros((17, 8, 8))
    array[:, :, :3] = 240
    (made,), remark = make_stacks([("one", False, volume(array))])
    assert made.shape == (6, 3, 3)
    assert remark == "Voxels are averages of 3 × 3 × 3."
    np.testing.assert_allclose(voxels(made)[:, :, 0], 255, atol=4)


def test_there_must_be_a_volume() -> None:
    with pytest.raises(MedarError, match="no volume"):
        make_stacks([])
