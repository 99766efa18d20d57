"""The Frechet distance: a metric's properties, its closed form, and what it tells of blur."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from small_volumes import make_plan, smooth

from medar.data.cases import read_image
from medar.data.intensity import IntensityRule
from medar.data.preparation import prepare_image
from medar.data.sources import read_manifest
from medar.errors import MedarError
from medar.evaluation.features import radiomics
from medar.evaluation.frechet import FrechetProtocol, Gaussian, Reference


def sample(count: int, width: int, seed: int) -> NDArray[np.float64]:
    return np.random.default_rng(seed).normal(size=(count, width))


def test_equal_sets_have_no_distance_and_order_does_not_matter() -> None:
    first, second = sample(30, 6, 0), 2 * sample(20, 6, 1) + 1
    one, other = Gaussian.fit(first), Gaussian.fit(second)
    assert one.distance(one) == pytest.approx(0, abs=1e-9)
    assert one.distance(other) == pytest.approx(other.distance(one))
    assert Reference(first).distance(first[::-1]) == pytest.approx(0, abs=1e-9)


def test_diagonal_covariances_have_the_closed_form() -> None:
    means, deviations = sample(2, 5, 0), np.abs(sample(2, 5, 1))
    one, other = (
        Gaussian(mean=m, covariance=np.diag(d**2)) for m, d in zip(means, deviations, strict=True)
    )
    expected = np.square(means[0] - means[1]).sum() + np.square(np.subtract(*deviations)).sum()
    assert one.distance(other) == pytest.approx(expected)


def test_covariances_are_shrunk_less_the_more_volumes_there_are() -> None:
    scales = np.array([1.0, 2.0, 5.0])
    many = Gaussian.fit(sample(20_000, 3, 0) * scales).covariance
    np.testing.assert_allclose(many, np.diag(scales**2), atol=0.5)
    few = Gaussian.fit(sample(5, 40, 0)).covariance
    assert np.linalg.eigvalsh(few).min() > 0.1  # of rank 4 before it is shrunk


def test_more_volumes_bring_equal_populations_nearer() -> None:
    reference = Reference(sample(400, 20, 0))
    few, many = (
        np.mean([reference.distance(sample(n, 20, k)) for k in range(1, 6)]) for n in (10, 100)
    )
    assert few > 2 * many


def test_units_of_features_do_not_matter_and_constant_ones_do_no_harm() -> None:
    first, second = sample(30, 4, 0), sample(30, 4, 1)
    scales = np.array([1.0, 1e3, 1e-3, 1.0])
    plain = Reference(first).distance(second)
    assert Reference(first * scales + 7).distance(second * scales + 7) == pytest.approx(plain)
    first[:, 3] = second[:, 3] = 4.0
    assert np.isfinite(Reference(first).distance(second))


@pytest.mark.parametrize("count", [0, 1])
def test_a_distance_needs_two_volumes_a_set(count: int) -> None:
    with pytest.raises(MedarError, match=f"{count} volumes"):
        Reference(sample(count, 3, 0))
    with pytest.raises(MedarError, match=f"{count} volumes"):
        Reference(sample(5, 3, 0)).distance(sample(count, 3, 0))


def test_blur_noise_and_sharpening_lie_beyond_the_floor() -> None:
    reference = Reference(radiomics(smooth(20, 12, 12, 12, seed=0)).numpy())
    real = smooth(20, 12, 12, 12, seed=1).numpy()

    def distance(volumes: NDArray[np.float32]) -> float:
        return reference.distance(radiomics(torch.from_numpy(volumes)).numpy())

    floor = distance(real)
    mild, strong = (gaussian_filter(real, (0, 0, s, s, s)) for s in (0.6, 1.2))
    assert 3 * floor < distance(mild) < distance(strong)
    assert distance(2 * real - strong) > 3 * floor
    noise = np.random.default_rng(2).normal(scale=0.2, size=real.shape).astype(np.float32)
    assert distance(real + noise) > 3 * floor


def test_real_volumes_lie_near_each_other_and_far_from_blurred_ones(shared_data: Path) -> None:
    manifest = read_manifest(shared_data / "hippocampus_mr")
    rule = IntensityRule(kind="percentiles", low=0.5, high=99.5)
    plan = make_plan(size=(40, 56, 40), intensity={"other": rule})
    images = (read_image(case, plan.reading) for case in manifest.cases[:24])
    volumes = torch.from_numpy(np.stack([prepare_image(image, plan)[0] for image in images]))
    reference = Reference(radiomics(volumes[::2]).numpy())
    real = volumes[1::2].numpy()
    floor = reference.distance(radiomics(volumes[1::2]).numpy())
    for deviation, times in ((0.5, 3), (1.0, 30)):
        blurred = gaussian_filter(real, (0, 0, *[deviation] * 3))
        distance = reference.distance(radiomics(torch.from_numpy(blurred)).numpy())
        assert distance > times * floor, deviation


def test_the_protocol_prints_itself() -> None:
    protocol = FrechetProtocol(
        extractor="radiomics-v1", features=54, samples=7, reference="train split",
        reference_samples=9,
    )  # fmt: skip
    said = str(protocol)
    for part in ("radiomics-v1", "54", "7 volumes", "9 real", "train split", "floor", "deviation"):
        assert part in said
