"""Features: as many as named, each volume by itself, and each kind sees what it should."""

import pytest
import torch
from small_volumes import smooth

from medar.errors import MedarError
from medar.evaluation.features import feature_names, radiomics

NAMES = feature_names()


def of(volume: torch.Tensor) -> dict[str, float]:
    return dict(zip(NAMES, radiomics(volume)[0].tolist(), strict=True))


@pytest.mark.parametrize("sides", [(8, 8, 8), (9, 11, 16)])
@pytest.mark.parametrize("channels", [1, 2])
def test_any_size_and_channels_give_finite_features(
    sides: tuple[int, int, int], channels: int
) -> None:
    volumes = smooth(4, *sides).reshape(4 // channels, channels, *sides)
    features = radiomics(volumes)
    assert features.shape == (4 // channels, channels * len(NAMES))
    assert features.isfinite().all()
    assert len(set(NAMES)) == len(NAMES)
    alone = torch.cat([radiomics(volume[None]) for volume in volumes])
    torch.testing.assert_close(features, alone, rtol=1e-4, atol=1e-5)


def test_flat_volumes_have_features_too() -> None:
    assert radiomics(torch.full((1, 1, 8, 8, 8), -1.0)).isfinite().all()


def test_quantiles_and_moments_are_those_of_the_voxels() -> None:
    volume = torch.linspace(-1, 1, 512)[torch.randperm(512)].view(1, 1, 8, 8, 8)
    found = of(volume)
    assert found["intensity_quantile_0.5"] == pytest.approx(0, abs=0.01)
    assert found["intensity_quantile_0.95"] == pytest.approx(0.9, abs=0.01)
    assert found["intensity_mean"] == pytest.approx(0, abs=1e-6)
    assert found["intensity_kurtosis"] == pytest.approx(torch.tensor(1.8).log().item(), abs=0.01)


def test_a_place_is_told_from_another() -> None:
    volume = torch.full((1, 1, 8, 8, 8), -1.0)
    volume[..., 4:, :4, :4] = 1
    found = of(volume)
    assert found["octant_100"] == 1
    assert found["octant_000"] == -1


def test_sharpness_and_noise_move_the_features_of_detail() -> None:
    volume = smooth(1, 16, 16, 16)
    blurred = torch.nn.functional.avg_pool3d(volume, 3, stride=1, padding=1)
    noisy = volume + 0.2 * torch.randn(volume.shape, generator=torch.Generator().manual_seed(0))
    for name in ("power_from_0.67", "detail_0", "difference_1_x", "gradient_mean"):
        assert of(blurred)[name] < of(volume)[name] < of(noisy)[name], name


def test_rises_are_between_neighbouring_scales() -> None:
    found = of(smooth(1, 16, 16, 16))
    for rise, after, before in (
        ("power_rise_at_0.17", "power_from_0.17", "power_from_0.00"),
        ("detail_rise_1", "detail_1", "detail_0"),
        ("difference_rise_4_z", "difference_4_z", "difference_2_z"),
    ):
        assert found[rise] == pytest.approx(found[after] - found[before], abs=1e-5), rise


def test_too_small_a_volume_is_refused() -> None:
    with pytest.raises(MedarError, match="8 x 8 x 7 voxels: sides from 8"):
        radiomics(torch.zeros(1, 1, 8, 8, 7))
