"""Volumes as a file would hold them: within the window, in whole units; invisible errors in air."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small_volumes import smooth

from medar.data.loading import PreparedDataset
from medar.data.plan import IntensityRule
from medar.evaluation.extractors.features import feature_set
from medar.evaluation.extractors.handcrafted import radiomics
from medar.evaluation.frechet import Reference
from medar.evaluation.written import as_written, file_step


def test_ct_is_written_in_whole_hounsfield_units(prepared: Path) -> None:
    step = file_step(PreparedDataset(prepared, split="test"))
    written = as_written(1.5 * smooth(2, 8, 8, 8), step)
    units = (written + 1) * 1000  # the window is 2000 HU wide
    torch.testing.assert_close(units, units.round(), rtol=0, atol=1e-3)
    assert (written.min(), written.max()) == (-1, 1)
    torch.testing.assert_close(as_written(written, step), written, rtol=0, atol=1e-6)
    assert (written - (1.5 * smooth(2, 8, 8, 8)).clamp(-1, 1)).abs().max() <= 0.5e-3 + 1e-6


def test_other_windows_have_a_thousand_steps(prepare_with: Callable[..., Path]) -> None:
    rule = IntensityRule(kind="percentiles", low=0.0, high=100.0)
    step = file_step(PreparedDataset(prepare_with(intensity={"CT": rule}), split="test"))
    assert step.tolist() == pytest.approx([2e-3])


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def masked(seed: int) -> torch.Tensor:
    """Volumes whose background fills half of them, and is not quite the same in all of them."""
    volumes = smooth(20, 16, 16, 16, seed=seed)
    volumes[..., :8] = -1.0 + 1e-5 * torch.rand(20, 1, 1, 1, 1)
    return volumes


def test_errors_that_no_file_holds_and_nobody_sees_are_not_counted() -> None:
    """The cause of distances in the thousands: the background of an unclamped decoder."""
    reference, real = masked(0), masked(1)
    decoded = real.clone()
    decoded[..., :8] -= 0.004 + 0.002 * torch.randn(decoded[..., :8].shape)
    step = torch.tensor([2e-3])
    features = [radiomics(one).numpy() for one in (reference, real, decoded)]
    raw = Reference(features[0])
    assert raw.distance(features[2]) > 1e4 * raw.distance(features[1])
    judged = Reference(features[0], feature_set("radiomics-v2", features[0]).noticeable)
    written = radiomics(as_written(decoded, step)).numpy()
    assert judged.distance(written) < 1.2 * judged.distance(features[1])
