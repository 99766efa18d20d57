"""PSNR, SSIM, errors and Dice against reference values; MS-SSIM of pairs."""

import math

import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio
from small_volumes import smooth

from medar.evaluation import similarity
from medar.evaluation.similarity import FidelityMeter, MsSsim, pairwise_ms_ssim, ssim
from medar.segmentation.dice import DiceMeter
from medar.tokenizer.validation import psnr


def test_psnr_is_computed_per_volume_with_peak_two() -> None:
    real, made = smooth(3, 8, 8, 8), smooth(3, 8, 8, 8, seed=1)
    expected = [
        peak_signal_noise_ratio(r.numpy(), m.numpy(), data_range=2)
        for r, m in zip(real, made, strict=True)
    ]
    torch.testing.assert_close(psnr(made, real), torch.tensor(expected, dtype=torch.float32))
    assert psnr(real, real).isfinite().all()


@pytest.mark.parametrize("sides", [(8, 9, 10), (4, 16, 5)])
def test_ssim_is_one_for_equal_volumes_and_lower_otherwise(sides: tuple[int, int, int]) -> None:
    real = smooth(2, *sides)
    assert torch.allclose(ssim(real, real), torch.ones(2))
    assert (ssim(real, smooth(2, *sides, seed=1)) < 0.5).all()


def test_scores_do_not_depend_on_the_batch_size() -> None:
    real, made = smooth(5, 8, 8, 8), smooth(5, 8, 8, 8, seed=1)
    whole, parts = FidelityMeter(), FidelityMeter()
    whole.update(real, made)
    for some in (slice(0, 4), slice(4, 5)):
        parts.update(real[some], made[some])
    together, apart = whole.result(), parts.result()
    for name in ("psnr", "ssim", "mae", "high_frequency_error", "power_ratio"):
        assert getattr(together, name) == pytest.approx(getattr(apart, name), rel=1e-5), name
    assert together.mae == pytest.approx(float((real - made).abs().mean()), rel=1e-5)


def test_errors_have_the_requested_unit() -> None:
    real = torch.zeros(2, 2, 8, 8, 8)
    made = real.clone()
    made[:, 1] = 0.5
    meter = FidelityMeter()
    meter.update(real, made, torch.tensor([[1.0, 100.0], [1.0, 200.0]]))
    assert meter.result().mae == pytest.approx((25 + 50) / 2)


def test_dice_counts_annotated_labels_over_annotated_voxels() -> None:
    classes = torch.tensor([[0, 1, 1, 2, -1], [0, 1, 2, 2, 2], [0, 0, 0, 2, 2]])
    chosen = torch.tensor([[0, 1, 0, 1, 1], [0, 1, 1, 2, 2], [0, 0, 0, 2, 2]])
    logits = torch.nn.functional.one_hot(chosen, 4).float().movedim(-1, 1)[..., None, None]
    annotated = torch.tensor([[True, True, True], [True, True, True], [True, False, True]])
    meter = DiceMeter(["first", "second", "third"])
    meter.update(logits, classes[:, None, :, None, None], annotated)
    found = meter.result()
    assert found["first"] == pytest.approx((2 * 1 / 4 + 2 * 1 / 3) / 2)
    assert found["second"] == pytest.approx((0 + 2 * 2 / 5) / 2)
    assert found["third"] is None


def test_the_power_ratio_uses_totals() -> None:
    real = torch.cat([smooth(1, 8, 8, 8), 2 * smooth(1, 8, 8, 8)])
    made = torch.cat([smooth(1, 8, 8, 8), torch.zeros(1, 1, 8, 8, 8)])
    meter = FidelityMeter()
    meter.update(real, made)
    assert meter.result().power_ratio == pytest.approx(1 / 5, rel=1e-4)
    assert meter.result().power_ratio_thirds == pytest.approx([1 / 5] * 3, rel=1e-4)
    assert not math.isnan(meter.result().high_frequency_error)


@pytest.mark.parametrize("side", [8, 16, 31])
def test_settings_fit_the_shortest_side(side: int) -> None:
    settings = MsSsim.of((32, side, 34))
    assert settings.window % 2 == 1
    assert sum(settings.weights) == pytest.approx(1)
    volumes = smooth(2, 32, side, 34)
    assert -1 <= pairwise_ms_ssim(list(volumes), seed=0) <= 1


def test_larger_volumes_have_more_scales() -> None:
    scales = [len(MsSsim.of((side,) * 3).weights) for side in (8, 16, 32, 64, 128, 256)]
    assert scales == [1, 2, 3, 4, 5, 5]


def test_copies_are_similar_and_others_are_not() -> None:
    volumes = list(smooth(4, 12, 12, 12))
    assert pairwise_ms_ssim(volumes[:1] * 4, seed=0) == pytest.approx(1, abs=1e-5)
    noise = 0.1 * torch.randn(4, 1, 12, 12, 12, generator=torch.Generator().manual_seed(0))
    near = [volumes[0] + sample for sample in noise]
    assert pairwise_ms_ssim(volumes, seed=0) < pairwise_ms_ssim(near, seed=0) < 1


def test_pairs_are_determined_by_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(similarity, "PAIRS", 2)
    volumes = list(smooth(5, 8, 8, 8))
    assert pairwise_ms_ssim(volumes, seed=0) == pairwise_ms_ssim(volumes, seed=0)
    assert pairwise_ms_ssim(volumes, seed=0) != pairwise_ms_ssim(volumes, seed=1)
