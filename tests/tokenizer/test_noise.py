"""Noise of a detail decoder: its correlation, and how it is measured."""

import pytest
import torch

from medar.errors import MedarError
from medar.tokenizer.detail import DetailConfig
from medar.tokenizer.noise import LARGEST, correlated, draw_noise, measure_correlation

CORRELATION = (0.6, 0.0, 0.3)


def lagged(noise: torch.Tensor, axis: int, lag: int) -> float:
    size = noise.shape[axis] - lag
    return float((noise.narrow(axis, 0, size) * noise.narrow(axis, lag, size)).mean())


def test_noise_has_the_correlation_asked_for_and_variance_one_everywhere() -> None:
    noise = torch.stack([draw_noise(seed, (1, 12, 16, 20), CORRELATION)[0] for seed in range(300)])
    assert float(noise.mean()) == pytest.approx(0, abs=0.01)
    for axis, r in zip((1, 2, 3), CORRELATION, strict=True):
        for lag in (1, 2):
            assert lagged(noise, axis, lag) == pytest.approx(r**lag, abs=0.02)
    # At the border as inside: noise must not begin with another variance.
    assert noise[:, 0].var().item() == pytest.approx(1, abs=0.05)
    assert noise[:, -1].var().item() == pytest.approx(1, abs=0.05)


def test_without_correlation_noise_is_as_drawn() -> None:
    white = torch.randn(2, 1, 4, 5, 6)
    assert torch.equal(correlated(white, (0.0, 0.0, 0.0)), white)
    assert torch.equal(draw_noise(7, (1, 4, 5, 6)), draw_noise(7, (1, 4, 5, 6), (0.0, 0.0, 0.0)))


def test_autocast_does_not_round_the_noise() -> None:
    white = torch.randn(1, 8, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        noise = correlated(white, CORRELATION)
    assert noise.dtype == torch.float32
    assert torch.equal(noise, correlated(white, CORRELATION))


def test_the_correlation_of_noise_is_measured() -> None:
    volumes = [draw_noise(seed, (1, 24, 24, 24), CORRELATION) for seed in range(8)]
    assert measure_correlation(volumes) == pytest.approx(CORRELATION, abs=0.03)


@pytest.mark.parametrize(
    ("volume", "expected"),
    [
        (torch.zeros(1, 4, 4, 4), (0.0, 0.0, 0.0)),
        (torch.ones(1, 4, 4, 4), (LARGEST, LARGEST, LARGEST)),
        (torch.ones(1, 4, 4, 1), (LARGEST, LARGEST, 0.0)),
        (torch.tensor([1.0, -1.0]).repeat(8).view(1, 4, 2, 2), (LARGEST, LARGEST, 0.0)),
    ],
    ids=["nothing", "constant", "one slice", "alternating"],
)  # fmt: skip
def test_extreme_volumes_have_a_correlation_in_range(
    volume: torch.Tensor, expected: tuple[float, float, float]
) -> None:
    assert measure_correlation([volume]) == expected


@pytest.mark.parametrize("wrong", [1.0, -0.1])
def test_a_correlation_out_of_range_is_refused(wrong: float) -> None:
    with pytest.raises(MedarError, match="correlation must be at least 0 and less than 1"):
        DetailConfig(correlation=(0.5, wrong, 0.5))
