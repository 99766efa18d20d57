"""The energy score: smallest for draws with the distribution of real volumes."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from medar.tokenizer.energy_score import energy_score


def noise(seed: int) -> Tensor:
    return torch.randn(2, 1, 24, 24, 24, generator=torch.Generator().manual_seed(seed))


def smooth(seed: int) -> Tensor:
    """Noise whose neighbouring voxels are alike, of variance 1."""
    blurred = functional.avg_pool3d(noise(seed), 3, 1, 1)
    return blurred / blurred.std()


def test_draws_need_the_right_size() -> None:
    right = energy_score(noise(0), noise(1), noise(2))
    for factor in (0.0, 0.5, 2.0):
        assert energy_score(noise(0), factor * noise(1), factor * noise(2)) > right


def test_draws_need_the_right_texture() -> None:
    """Each voxel by itself has the right distribution in all of these."""
    assert energy_score(smooth(0), smooth(1), smooth(2)) < energy_score(
        smooth(0), noise(1), noise(2)
    )
    assert energy_score(noise(0), noise(1), noise(2)) < energy_score(noise(0), smooth(1), smooth(2))


def test_windows_can_be_shifted() -> None:
    volume, first, second = noise(0), noise(1), noise(2)
    here, there = (energy_score(volume, first, second, offset) for offset in ((0, 0, 0), (3, 7, 1)))
    assert here != there
    assert float(here) == pytest.approx(float(there), rel=0.1)


def test_equal_draws_have_finite_gradients_and_small_volumes_a_score() -> None:
    volume = noise(0)[:, :, :3, :4, :5]
    drawn = torch.zeros_like(volume).requires_grad_()
    energy_score(volume, drawn, drawn).backward()
    assert drawn.grad is not None
    assert bool(drawn.grad.isfinite().all())
    assert bool(drawn.grad.any())
