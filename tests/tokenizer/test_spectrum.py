"""Spectral power: Parseval, known waves, and what blur and noise do to it."""

import math

import pytest
import torch
from torch.nn.functional import avg_pool3d

from medar.tokenizer.spectrum import (
    band_power,
    high_frequency_error,
    high_power,
    power_ratio,
    power_spectrum,
    radii,
    weights,
)

SIDES = [(12, 8, 10), (9, 8, 11)]


@pytest.fixture
def noise() -> torch.Tensor:
    return torch.randn(3, 2, 12, 8, 10, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("sides", SIDES)
def test_the_spectrum_contains_the_power_of_the_windowed_volume(
    sides: tuple[int, int, int],
) -> None:
    volume = torch.randn(1, *sides)
    windows = [torch.hann_window(n + 2, periodic=False)[1:-1] for n in sides]
    windowed = (volume - volume.mean()) * torch.einsum("i,j,k->ijk", *windows)
    power = (power_spectrum(volume) * weights(sides)).sum()
    torch.testing.assert_close(power, windowed.square().sum())


@pytest.mark.parametrize("axis", [2, 3, 4])
def test_a_wave_has_its_power_at_its_own_fraction_of_nyquist(axis: int) -> None:
    for wavelength, fraction in ((2, 1.0), (4, 0.5), (8, 0.25)):
        position = torch.arange(16.0)
        wave = torch.cos(2 * math.pi * position / wavelength)
        volume = wave.view(-1, *[1] * (4 - axis)).expand(1, 1, 16, 16, 16)
        power = power_spectrum(volume)[0, 0]
        strongest = radii((16, 16, 16)).flatten()[power.flatten().argmax()]
        assert strongest == pytest.approx(fraction)


def test_radii_reach_the_corners_and_do_not_depend_on_the_number_of_voxels() -> None:
    assert radii((8, 8, 8)).max() == pytest.approx(math.sqrt(3))
    assert radii((8, 16, 32)).max() == pytest.approx(math.sqrt(3))


def test_bands_are_means_and_empty_ones_are_zero(noise: torch.Tensor) -> None:
    whole = band_power(noise, (0.0,))
    split = band_power(noise, (0.0, 2 / 3))
    assert split.shape == (3, 2, 2)
    assert ((split.amin(-1) <= whole[..., 0]) & (whole[..., 0] <= split.amax(-1))).all()
    assert (band_power(torch.randn(1, 1, 8, 8, 8), (0.0, 0.1, 0.2))[..., 1] == 0).all()


def test_the_ratio_of_power_falls_with_blur(noise: torch.Tensor) -> None:
    assert power_ratio(noise, noise) == pytest.approx(1)
    assert power_ratio(noise * 3 + 5, noise) == pytest.approx(9, rel=1e-4)
    assert power_ratio(avg_pool3d(noise, 3, stride=1, padding=1), noise) < 0.1
    assert power_ratio(noise, torch.zeros_like(noise)) < math.inf


def test_the_error_is_one_for_missing_and_more_for_misplaced_detail(noise: torch.Tensor) -> None:
    other = torch.randn(noise.shape, generator=torch.Generator().manual_seed(1))
    assert (high_frequency_error(noise, noise) == 0).all()
    assert torch.allclose(high_frequency_error(torch.zeros_like(noise), noise), torch.ones(3))
    assert torch.allclose(high_frequency_error(other, noise), torch.full((3,), 2**0.5), atol=0.2)
    assert high_power(noise).shape == (3,)
