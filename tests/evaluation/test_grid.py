"""The grid artifact: found where there is one, 1 for noise of any colour, not fooled by blur."""

from itertools import product

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch.nn.functional import avg_pool3d, interpolate

from medar.evaluation.grid import GridArtifact, GridSpectrum, grid_artifact, grid_spectra

SIDES = (32, 32, 32)


def noise(power: float, seed: int, count: int = 12) -> torch.Tensor:
    """Volumes whose power falls with frequency to the power of -2 `power`; 0 is white."""
    random = np.random.default_rng(seed)
    frequencies = np.meshgrid(*(np.fft.fftfreq(n) for n in SIDES), indexing="ij")
    radius = np.sqrt(sum(one**2 for one in frequencies))
    radius[0, 0, 0] = 1.0
    white = random.normal(size=(count, 1, *SIDES))
    volumes = np.fft.ifftn(np.fft.fftn(white, axes=(2, 3, 4)) * radius**-power, axes=(2, 3, 4)).real
    return torch.from_numpy((0.3 * volumes / volumes.std()).astype(np.float32))


def measure(volumes: torch.Tensor, real: torch.Tensor, period: int = 2) -> GridArtifact:
    made, truth = GridSpectrum(SIDES, period), GridSpectrum(SIDES, period)
    for some, one in ((made, volumes), (truth, real)):
        for batch in one.split(5):
            some.update(batch)
    return grid_artifact(made, truth)


def checkers(period: int) -> torch.Tensor:
    """Cubes of half the period that alternate between -1 and 1 along every axis."""
    places = np.indices(SIDES) // (period // 2)
    return torch.from_numpy(((-1.0) ** places.sum(axis=0)).astype(np.float32))


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0])
def test_other_real_volumes_have_about_one_and_so_do_blurred_ones(power: float) -> None:
    real, others = noise(power, 0), noise(power, 1)
    blurred = torch.from_numpy(gaussian_filter(others.numpy(), (0, 0, 1, 1, 1)))
    for volumes in (others, 3 * others + 0.1, blurred):
        found = measure(volumes, real)
        assert 0.8 < found.value < 1.25
        assert found.interval[0] < found.value < found.interval[1]
    assert measure(real, real).value == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_a_faint_checkerboard_is_found(power: float) -> None:
    real, others = noise(power, 0), noise(power, 1)
    found = measure(others + 0.02 * checkers(2), real)
    assert found.interval[0] > 1.5
    assert found.pattern > 3
    stronger = measure(others + 0.04 * checkers(2), real)
    assert stronger.value > 2 * found.value


def test_each_period_has_its_own_harmonics() -> None:
    real, others = noise(1.0, 0), noise(1.0, 1)
    marked = others + 0.06 * checkers(4)
    assert measure(marked, real, period=4).interval[0] > 1.5
    assert measure(marked, real, period=2).value < 1.25
    assert measure(others + 0.03 * checkers(2), real, period=4).value < 1.25


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0])
def test_blocks_are_found_although_nothing_is_added(power: float) -> None:
    """Nearest neighbours of a volume of half the resolution have no power at Nyquist itself."""
    real, others = noise(power, 0), noise(power, 1)
    upsampled = interpolate(avg_pool3d(others, 2), scale_factor=2)
    found = measure(upsampled, real)
    assert found.interval[0] > 3
    assert found.blocks > 5
    assert measure(0.8 * others + 0.2 * upsampled, real).blocks > 1.15


def test_a_pattern_along_one_axis_is_found() -> None:
    real, others = noise(1.0, 0), noise(1.0, 1)
    for axis in range(3):
        stripes = torch.from_numpy(((-1.0) ** np.indices(SIDES)[axis]).astype(np.float32))
        assert measure(others + 0.03 * stripes, real).interval[0] > 1.3


def test_volumes_count_the_same_whatever_their_contrast() -> None:
    real, others = noise(1.0, 0), noise(1.0, 1)
    others[:6] += 0.02 * checkers(2)
    scaled = others.clone()
    scaled[:6] *= 0.01
    assert measure(scaled, real).value == pytest.approx(measure(others, real).value, rel=1e-3)


def test_originals_are_drawn_with_their_reconstructions() -> None:
    real = noise(1.0, 0)
    made, truth = GridSpectrum(SIDES, 2), GridSpectrum(SIDES, 2)
    made.update(real + 1e-3 * noise(1.0, 1))
    truth.update(real)
    paired, unpaired = (grid_artifact(made, truth, paired=one) for one in (True, False))
    assert paired.value == unpaired.value
    assert np.diff(paired.interval) < 0.2 * np.diff(unpaired.interval)


def test_periods_that_do_not_fit_are_left_out() -> None:
    for size, periods in (
        ((8, 8, 8), []), ((16, 16, 16), [2]), ((40, 56, 40), [2, 4]), ((64, 64, 64), [2, 4, 8]),
        ((64, 64, 17), []), ((64, 64, 18), [2]),
    ):  # fmt: skip
        assert list(grid_spectra(size)) == periods


def test_frequencies_are_those_of_the_whole_transform() -> None:
    """Mirror images of the half that is kept lie where the full transform has them."""
    spectrum = GridSpectrum((16, 16, 16), 2)
    full = np.arange(16**3).reshape(16, 16, 16)
    mirror = full[np.ix_(*[(-np.arange(16)) % 16] * 3)]
    half = np.minimum(full, mirror)  # the same number for both of a pair
    kept = np.array([[half[p, q, r] for r in range(9)] for p, q in product(range(16), repeat=2)])
    places = np.array([[3, 5, 12], [8, 8, 8], [0, 15, 9], [1, 2, 3]])
    assert (kept.ravel()[spectrum._index(places)] == half[tuple(places.T)]).all()
