"""Co-occurrence features: what they count, along which axis, and what flat volumes give."""

import pytest
import torch
from small_volumes import smooth

from medar.evaluation.texture import FLOOR, LEVELS, feature_names, texture

NAMES = feature_names()


def of(volume: torch.Tensor) -> dict[str, float]:
    return dict(zip(NAMES, texture(volume)[0].tolist(), strict=True))


def test_each_volume_and_channel_by_itself() -> None:
    volumes = smooth(4, 8, 9, 10).reshape(2, 2, 8, 9, 10)
    found = texture(volumes)
    assert found.shape == (2, 2 * len(NAMES))
    assert found.dtype == torch.float64
    assert torch.equal(found[1, : len(NAMES)], texture(volumes[1:, :1])[0])
    assert len(set(NAMES)) == len(NAMES)


def test_flat_volumes_have_features_too() -> None:
    found = of(torch.full((1, 1, 8, 8, 8), 1.0))
    assert found["homogeneity_1_x"] == 1
    assert found["contrast_4_z"] == pytest.approx(torch.tensor(FLOOR).log().item())


def test_stripes_show_along_their_axis_alone() -> None:
    volume = torch.full((1, 1, 8, 8, 8), -1.0)
    volume[..., ::2, :] = 1  # changes with every step along y, and is back after two
    found = of(volume)
    assert found["homogeneity_1_x"] == found["homogeneity_1_z"] == found["homogeneity_2_y"] == 1
    assert found["contrast_1_y"] == pytest.approx(
        torch.tensor((LEVELS - 1) ** 2 + FLOOR).log().item()
    )
    assert found["correlation_1_y"] == pytest.approx(-1, abs=1e-6)


def test_blur_makes_texture_smoother() -> None:
    volume = smooth(1, 16, 16, 16)
    blurred = torch.nn.functional.avg_pool3d(volume, 3, stride=1, padding=1)
    for name, sign in (("contrast_1_x", -1), ("homogeneity_1_z", 1), ("correlation_2_y", 1)):
        assert sign * (of(blurred)[name] - of(volume)[name]) > 0, name
