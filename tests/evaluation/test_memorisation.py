"""The audit: copies of training volumes are found, new draws are not flagged."""

import numpy as np
import pytest
import torch
from small_volumes import smooth

from medar.evaluation.extractors.handcrafted import radiomics
from medar.evaluation.frechet import Reference
from medar.evaluation.generation.memorisation import Audit, audit_features, audit_voxels, thumbnails

TRAIN, HELD_OUT, FRESH = (smooth(30, 12, 12, 12, seed=seed) for seed in range(3))
CASES = [f"case_{k}" for k in range(30)]


def noisy(volumes: torch.Tensor, deviation: float) -> torch.Tensor:
    noise = torch.randn(volumes.shape, generator=torch.Generator().manual_seed(0))
    return volumes + deviation * noise


def by_voxels(made: torch.Tensor) -> Audit:
    return audit_voxels(
        *(thumbnails(volumes).numpy() for volumes in (made, HELD_OUT, TRAIN)), CASES
    )


def by_features(made: torch.Tensor) -> Audit:
    against = Reference(radiomics(TRAIN).numpy())
    rows = (against.standardise(radiomics(volumes).numpy()) for volumes in (made, HELD_OUT, TRAIN))
    return audit_features(*rows, CASES)


@pytest.mark.parametrize(("audit", "deviation"), [(by_voxels, 0.1), (by_features, 0.005)])
def test_copies_are_flagged_and_new_draws_are_not(audit, deviation: float) -> None:
    mixed = FRESH.clone()
    mixed[[4, 9]] = noisy(TRAIN[[20, 7]], deviation)
    found = audit(mixed)
    assert {(suspect.index, suspect.case) for suspect in found.suspects} == {
        (4, "case_20"),
        (9, "case_7"),
    }
    assert [suspect.distance for suspect in found.suspects] == sorted(
        suspect.distance for suspect in found.suspects
    )
    fresh = audit(FRESH)
    assert fresh.suspects == []
    assert fresh.fraction_nearer < 0.15
    assert fresh.ratio == pytest.approx(1, abs=0.2)
    copies = audit(noisy(TRAIN, deviation))
    assert copies.fraction_nearer == 1
    assert len(copies.suspects) == 30
    assert copies.ratio < 0.5


def test_brightness_and_contrast_do_not_hide_a_copy() -> None:
    mean = TRAIN.mean(dim=0)
    assert len(by_voxels(mean + 0.5 * (TRAIN[:3] - mean) + 0.2).suspects) == 3


def test_constant_volumes_resemble_no_other() -> None:
    rows = np.random.default_rng(0).normal(size=(5, 6))
    flat = np.tile(rows.mean(axis=0), (3, 1))  # nothing but the mean training volume
    found = audit_voxels(flat, rows[:2], rows, CASES[:5])
    assert found.median == 1
    assert found.suspects == []


def test_held_out_volumes_equal_to_training_volumes_give_no_ratio() -> None:
    rows = np.random.default_rng(0).normal(size=(5, 6))
    found = audit_features(rows[:2] + 0.1, rows, rows, CASES[:5])
    assert found.median_held_out == 0
    assert found.ratio is None


def test_thumbnails_are_small() -> None:
    assert thumbnails(torch.zeros(2, 1, 40, 8, 17)).shape == (2, 16 * 8 * 16)
