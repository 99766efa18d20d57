"""Inserted structures: their volumes, contrasts, places and settings."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from medar.errors import MedarError
from medar.evaluation.reconstruction.structures import (
    EXTENT,
    Structure,
    StructureSettings,
    insert_structures,
)

ISOTROPIC = (1.0, 1.0, 1.0)
SIDES = (40, 44, 42)


def structures(
    image: Any = None, spacing: Any = ISOTROPIC, amplitude: float = 0.5, seed: int = 0, **sizes: Any
) -> list[Structure]:
    """Inserted into a grey volume of 40 x 44 x 42, unless another one is given."""
    if image is None:
        image = np.zeros((1, *SIDES), np.float32)
    return insert_structures(image, spacing, [amplitude], StructureSettings(**sizes), [seed])


def volume_of(shape: str, size: float, extent: float) -> float:
    """Of an ideal structure, in voxels."""
    if shape == "sphere":
        return math.pi * size**3 / 6
    if shape == "plate":
        return math.pi * extent**2 / 4 * size
    return math.pi * size**2 / 4 * extent + math.pi * size**3 / 6


@pytest.mark.parametrize("spacing", [ISOTROPIC, (0.5, 0.5, 4.0), (2.0, 1.0, 1.5)])
def test_structures_have_the_volume_of_their_shape(spacing: Any) -> None:
    found = structures(spacing=spacing, diameters=(3, 6), widths=(2, 4))
    assert {(one.shape, one.size) for one in found} >= {("sphere", 3), ("sphere", 6)}
    if spacing == ISOTROPIC:
        assert len(found) == 6
    voxel = math.prod(spacing) ** (1 / 3)
    extent = min(EXTENT, min(n * s for n, s in zip(SIDES, spacing, strict=True)) / voxel / 3)
    for one in found:
        expected = volume_of(one.shape, one.size, extent)
        assert float(one.fraction.sum()) == pytest.approx(expected, rel=0.03)
        assert not (one.shell & (one.fraction > 0)).any()


def test_the_contrast_is_that_of_structure_and_shell() -> None:
    for one in structures():
        volume = torch.full((1, *SIDES), -0.2)
        added = one.added_to(volume, torch.tensor([0.4]))
        assert float(one.contrast(volume[None])) == pytest.approx(0, abs=1e-6)
        found = float(one.contrast(added[None]))
        assert found == pytest.approx(0.4 * one.own_contrast, rel=1e-5)
        assert float(added.max()) <= 0.2 + 1e-6
        darker = one.added_to(volume, torch.tensor([-0.4]))
        assert float(one.contrast(darker[None])) == pytest.approx(-found, rel=1e-5)
    largest = next(one for one in structures() if (one.shape, one.size) == ("sphere", 8))
    assert largest.own_contrast > 0.85


def test_values_stay_in_the_window() -> None:
    one = structures()[0]
    added = one.added_to(torch.full((1, *SIDES), 0.9), torch.tensor([0.5]))
    assert float(added.max()) == 1.0


def test_all_sizes_of_a_shape_share_a_place_that_the_seed_decides() -> None:
    def centres(seed: int) -> set[tuple[str, tuple[float, float, float]]]:
        return {(one.shape, one.centre) for one in structures(seed=seed)}

    assert len(centres(0)) == 3
    assert centres(0) == centres(0)
    assert not centres(0) & centres(1)
    for one in structures(seed=2):
        for position, side in zip(one.centre, SIDES, strict=True):
            assert 1 <= position <= side - 2


def test_structures_lie_where_their_contrast_fits() -> None:
    image = np.full((1, *SIDES), -1.0, np.float32)
    image[:, 22:] = 0.0  # the body; the rest is air
    for seed in range(5):
        for one in structures(image, seed=seed, diameters=(2, 4), widths=(1, 2)):
            inside = torch.from_numpy(image[0, *one.box][one.fraction.numpy() > 0])
            assert (inside == 0).float().mean() > 0.9, (seed, one.shape)


def test_sizes_that_do_not_fit_are_left_out() -> None:
    small = np.zeros((1, 8, 8, 8), np.float32)
    found = structures(small)
    assert {one.size for one in found if one.shape == "sphere"} == {2, 3, 4}
    assert structures(np.zeros((1, 3, 3, 3), np.float32)) == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"diameters": (3, 2)}, "diameters must increase"),
        ({"widths": (1, 1)}, "widths must increase"),
        ({"contrasts": (0.1, 0)}, "contrasts must be different and not 0"),
        ({"contrasts": (0.1, 0.1)}, "contrasts must be different and not 0"),
        ({"contrasts": ()}, "contrasts must be different and not 0"),
        ({"cases": 0}, "cases"),
        ({"diameters": ()}, "diameters"),
    ],
)
def test_impossible_settings_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(MedarError, match=message):
        StructureSettings(**values)
