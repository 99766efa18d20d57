"""MS-SSIM of pairs: settings that fit, and what equal and unlike volumes give."""

import pytest
import torch
from small_volumes import smooth

from medar.evaluation import diversity
from medar.evaluation.diversity import MsSsim, similarity


@pytest.mark.parametrize("side", [8, 16, 31])
def test_settings_fit_the_shortest_side(side: int) -> None:
    settings = MsSsim.of((32, side, 34))
    assert settings.window % 2 == 1
    assert sum(settings.weights) == pytest.approx(1)
    volumes = smooth(2, 32, side, 34)
    assert -1 <= similarity(list(volumes), seed=0) <= 1


def test_larger_volumes_have_more_scales() -> None:
    scales = [len(MsSsim.of((side,) * 3).weights) for side in (8, 16, 32, 64, 128, 256)]
    assert scales == [1, 2, 3, 4, 5, 5]


def test_copies_are_alike_and_others_are_not() -> None:
    volumes = list(smooth(4, 12, 12, 12))
    assert similarity(volumes[:1] * 4, seed=0) == pytest.approx(1, abs=1e-5)
    noise = 0.1 * torch.randn(4, 1, 12, 12, 12, generator=torch.Generator().manual_seed(0))
    near = [volumes[0] + one for one in noise]
    assert similarity(volumes, seed=0) < similarity(near, seed=0) < 1


def test_pairs_follow_from_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diversity, "PAIRS", 2)
    volumes = list(smooth(5, 8, 8, 8))
    assert similarity(volumes, seed=0) == similarity(volumes, seed=0)
    assert similarity(volumes, seed=0) != similarity(volumes, seed=1)
