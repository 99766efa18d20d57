"""Frechet and kernel distances: definitions, metric properties, floors and intervals."""

from pathlib import Path

import numpy as np
import pytest
import scipy
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from small_volumes import make_plan, smooth

from medar.data.plan import IntensityRule
from medar.data.preparation import prepare_image
from medar.data.reading import read_image
from medar.data.sources import read_manifest
from medar.errors import MedarError
from medar.evaluation import distances, frechet
from medar.evaluation.distances import KernelReference, set_distance
from medar.evaluation.extractors.handcrafted import radiomics
from medar.evaluation.frechet import Gaussian, Reference

NAMES = ["a", "b", "c", "d"]


def sample(count: int, width: int, seed: int, shift: float = 0.0) -> NDArray[np.float64]:
    return np.random.default_rng(seed).normal(loc=shift, size=(count, width))


def test_equal_sets_have_zero_distance_and_order_does_not_matter() -> None:
    first, second = sample(30, 6, 0), 2 * sample(20, 6, 1) + 1
    fitted, other_fit = Gaussian.fit(first), Gaussian.fit(second)
    assert fitted.distance(fitted) == pytest.approx(0, abs=1e-9)
    assert fitted.distance(other_fit) == pytest.approx(other_fit.distance(fitted))
    assert Reference(first).distance(first[::-1]) == pytest.approx(0, abs=1e-9)


def test_diagonal_covariances_have_the_closed_form() -> None:
    means, deviations = sample(2, 5, 0), np.abs(sample(2, 5, 1))
    first, second = (
        Gaussian(mean=m, covariance=np.diag(d**2)) for m, d in zip(means, deviations, strict=True)
    )
    expected = np.square(means[0] - means[1]).sum() + np.square(np.subtract(*deviations)).sum()
    assert first.distance(second) == pytest.approx(expected)


def test_covariances_are_shrunk_less_the_more_volumes_there_are() -> None:
    scales = np.array([1.0, 2.0, 5.0])
    many = Gaussian.fit(sample(20_000, 3, 0) * scales).covariance
    np.testing.assert_allclose(many, np.diag(scales**2), atol=0.5)
    few = Gaussian.fit(sample(5, 40, 0)).covariance
    assert np.linalg.eigvalsh(few).min() > 0.1  # of rank 4 before it is shrunk


def test_more_volumes_bring_equal_populations_closer() -> None:
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


@pytest.mark.parametrize("count", [30, 5])
def test_contributions_sum_to_the_distance_in_either_direction(count: int) -> None:
    first = Gaussian.fit(sample(40, 6, 0) @ sample(6, 6, 3))
    second = Gaussian.fit(2 * sample(count, 6, 1) + 1)
    parts = first.contributions(second)
    assert (parts >= 0).all()
    assert parts.sum() == pytest.approx(first.distance(second), rel=1e-6)
    np.testing.assert_allclose(parts, second.contributions(first), rtol=1e-6)


def test_uncorrelated_features_contribute_the_closed_form() -> None:
    means, deviations = sample(2, 5, 0), np.abs(sample(2, 5, 1))
    first, second = (
        Gaussian(mean=m, covariance=np.diag(d**2)) for m, d in zip(means, deviations, strict=True)
    )
    expected = np.square(means[0] - means[1]) + np.square(np.subtract(*deviations))
    np.testing.assert_allclose(first.contributions(second), expected)
    flat = Gaussian(mean=means[0], covariance=np.zeros((5, 5)))
    assert flat.contributions(second).sum() == pytest.approx(flat.distance(second))


def test_the_features_that_differ_are_named_with_their_shift() -> None:
    changed = sample(30, 4, 1) * [1, 1, 1, 5] + [0, -9, 0, 0]
    found = set_distance(changed, sample(30, 4, 2), sample(80, 4, 0), seed=0, names=NAMES)
    assert [one.feature for one in found.contributions[:2]] == ["b", "d"]
    assert len(found.contributions) == 3
    assert found.contributions[0].shift == pytest.approx(-9, rel=0.3)
    assert abs(found.contributions[1].shift) < 3  # it is its deviation that differs
    assert 0.99 < sum(one.fraction for one in found.contributions) <= 1


def test_a_feature_that_hardly_varies_does_not_outweigh_the_others() -> None:
    reference, held_out, changed = (sample(40, 4, seed) for seed in range(3))
    for rows in (reference, held_out, changed):
        rows[:, 2] *= 1e-6
    changed[:, 2] += 1e-3  # a thousand deviations, and nothing that anybody sees
    noticeable = np.array([0.0, 0.0, 0.02, 0.0])
    raw, mended = (
        set_distance(changed, held_out, reference, seed=0, names=NAMES, noticeable=least)
        for least in (0.0, noticeable)
    )
    assert raw.frechet > 1e5
    assert mended.frechet < 3 * mended.frechet_floor
    changed[:, 2] += 0.2  # ten times what is noticed
    seen = set_distance(changed, held_out, reference, seed=0, names=NAMES, noticeable=noticeable)
    assert seen.contributions[0].feature == "c"
    assert 90 < seen.frechet < 120


def test_fewer_volumes_can_be_requested_for_a_comparison_at_equal_numbers() -> None:
    sets = sample(40, 4, 1), sample(30, 4, 2), sample(80, 4, 0)
    found = set_distance(*sets, seed=0, names=NAMES, samples=8)
    assert found.frechet_samples == 8
    assert found.frechet > set_distance(*sets, seed=0, names=NAMES).frechet
    assert set_distance(*sets, seed=0, names=NAMES, samples=99).frechet_samples == 30
    with pytest.raises(MedarError, match="at least 2 volumes per set, got 1"):
        set_distance(*sets, seed=0, names=NAMES, samples=1)


SCIPY = tuple(int(part) for part in scipy.__version__.split(".")[:2])


@pytest.mark.skipif(SCIPY >= (1, 18), reason="MONAI's Frechet distance needs SciPy below 1.18")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MONAI's call of scipy.linalg.sqrtm
def test_the_frechet_distance_equals_monai() -> None:
    from monai.metrics.fid import get_fid_score

    first, second = sample(60, 6, 0), 1.5 * sample(40, 6, 1) + 0.5
    gaussian, other_gaussian = (
        Gaussian(mean=rows.mean(axis=0), covariance=np.cov(rows, rowvar=False))
        for rows in (first, second)
    )
    expected = get_fid_score(torch.from_numpy(first), torch.from_numpy(second))
    assert gaussian.distance(other_gaussian) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize(("count", "width"), [(50, 4), (8, 30)])
def test_the_shrunk_covariance_equals_scikit_learn(count: int, width: int) -> None:
    covariance = pytest.importorskip("sklearn.covariance")
    rows = sample(count, width, 0) * np.linspace(1, 3, width)
    expected, _ = covariance.ledoit_wolf(rows)
    np.testing.assert_allclose(Gaussian.fit(rows).covariance, expected, rtol=1e-6, atol=1e-9)


def test_the_kernel_distance_equals_monai() -> None:
    """MONAI's kernel is linear: the cubic one is linear in all products of three features."""
    from monai.metrics import MMDMetric

    def products(rows: torch.Tensor) -> torch.Tensor:
        extended = torch.cat([rows / rows.shape[1] ** 0.5, torch.ones(len(rows), 1)], dim=1)
        return torch.einsum("ni,nj,nk->nijk", extended, extended, extended).flatten(1)

    first, second = sample(9, 5, 0), sample(9, 5, 1, shift=0.5)
    pair = (torch.from_numpy(rows) for rows in (first, second))
    expected = MMDMetric(y_mapping=products)(*pair)
    assert KernelReference(first).distance(second) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("count", [0, 1])
def test_a_frechet_distance_needs_two_volumes_per_set(count: int) -> None:
    with pytest.raises(MedarError, match=f"at least 2 volumes per set, got {count}"):
        Reference(sample(count, 3, 0))
    with pytest.raises(MedarError, match=f"at least 2 volumes per set, got {count}"):
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


def test_the_kernel_distance_is_the_unbiased_estimate() -> None:
    first, second = sample(4, 5, 0), sample(6, 5, 1)

    def k(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
        return float((x @ y / 5 + 1) ** 3)

    def within(rows: NDArray[np.float64]) -> float:
        pairs = [k(x, y) for i, x in enumerate(rows) for j, y in enumerate(rows) if i != j]
        return float(np.mean(pairs))

    across = np.mean([k(x, y) for x in first for y in second])
    expected = within(first) + within(second) - 2 * across
    assert KernelReference(second).distance(first) == pytest.approx(expected)


def test_the_chunked_kernel_equals_the_full_one(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = KernelReference(sample(7, 5, 1)).distance(sample(4, 5, 0))
    monkeypatch.setattr(distances, "ROWS", 3)
    assert KernelReference(sample(7, 5, 1)).distance(sample(4, 5, 0)) == pytest.approx(whole)


def test_the_kernel_distance_of_equal_populations_is_zero_at_any_number_of_volumes() -> None:
    reference = KernelReference(sample(200, 5, 0))
    far = reference.distance(sample(50, 5, 1, shift=1.0))
    for count in (5, 50):
        values = [reference.distance(sample(count, 5, seed)) for seed in range(1, 60)]
        assert abs(np.mean(values)) < 0.1 * far
        assert min(values) < 0


def test_repeated_draws_are_not_paired_with_themselves() -> None:
    reference, rows = KernelReference(sample(6, 5, 0)), sample(4, 5, 1)
    counts = np.array([[1.0, 1, 1, 1], [2, 2, 2, 2], [2, 0, 1, 1]])
    once, twice, other = reference.resampled(rows, counts)
    assert once == twice == pytest.approx(reference.distance(rows))
    assert other != pytest.approx(once)


@pytest.mark.parametrize("count", [0, 1])
def test_a_kernel_distance_needs_two_volumes_per_set(count: int) -> None:
    with pytest.raises(MedarError, match=f"at least 2 volumes per set, got {count}"):
        KernelReference(sample(count, 5, 0))
    with pytest.raises(MedarError, match=f"at least 2 volumes per set, got {count}"):
        KernelReference(sample(3, 5, 0)).distance(sample(count, 5, 0))


def test_new_draws_reach_the_floor_and_others_do_not() -> None:
    reference, held_out = sample(80, 4, 0), sample(30, 4, 1)
    fresh = set_distance(sample(30, 4, 2), held_out, reference, seed=0, names=NAMES)
    far = set_distance(sample(30, 4, 2, shift=2.0), held_out, reference, seed=0, names=NAMES)
    assert fresh.frechet_floor == far.frechet_floor == Reference(reference).distance(held_out)
    assert fresh.frechet < 3 * fresh.frechet_floor < far.frechet
    assert fresh.kernel_interval[0] < 0 < fresh.kernel_interval[1]
    assert far.kernel > 10 * abs(far.kernel_floor)


def test_sets_of_different_sizes_are_compared_at_equal_numbers() -> None:
    """Larger sets do not get smaller distances."""
    reference = sample(200, 4, 0)
    many = set_distance(sample(120, 4, 1), sample(10, 4, 2), reference, seed=0, names=NAMES)
    assert many.frechet_samples == 10
    assert many.frechet > 2 * Reference(reference).distance(sample(120, 4, 1))
    few = set_distance(sample(10, 4, 2), sample(120, 4, 1), reference, seed=0, names=NAMES)
    assert few.frechet_samples == 10
    assert few.frechet_floor == pytest.approx(many.frechet, rel=0.3)


def test_intervals_contain_the_estimate_and_narrow_with_more_volumes() -> None:
    reference, held_out = sample(80, 4, 0), sample(200, 4, 1)
    results = [
        set_distance(sample(n, 4, 2, 1.0), held_out, reference, seed=0, names=NAMES)
        for n in (10, 100)
    ]
    for result in results:
        assert result.frechet_interval[0] < result.frechet < result.frechet_interval[1]
        assert result.kernel_interval[0] < result.kernel < result.kernel_interval[1]
    few, many = (
        np.diff([result.frechet_interval, result.kernel_interval], axis=1) for result in results
    )
    assert (many < few).all()


def test_the_same_seed_gives_the_same_values() -> None:
    sets = sample(12, 4, 0), sample(6, 4, 1), sample(20, 4, 2)
    assert set_distance(*sets, seed=3, names=NAMES) == set_distance(*sets, seed=3, names=NAMES)
    assert set_distance(*sets, seed=3, names=NAMES) != set_distance(*sets, seed=4, names=NAMES)


def test_statistics_of_too_few_volumes_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    lone = set_distance(sample(5, 4, 0), sample(1, 4, 1), sample(9, 4, 2), seed=0, names=NAMES)
    assert (lone.frechet_floor, lone.kernel_floor, lone.frechet_samples) == (None, None, 5)
    two = set_distance(sample(2, 4, 0), sample(5, 4, 1), sample(9, 4, 2), seed=0, names=NAMES)
    assert (two.frechet_interval, two.kernel_interval) == (None, None)
    with pytest.raises(MedarError, match="at least 2 volumes per set, got 1"):
        set_distance(sample(1, 4, 0), sample(5, 4, 1), sample(9, 4, 2), seed=0, names=NAMES)
    assert two.contributions
    for module in (distances, frechet):
        monkeypatch.setattr(module, "MAX_FEATURES", 3)
    wide = set_distance(sample(5, 4, 0), sample(5, 4, 1), sample(9, 4, 2), seed=0, names=NAMES)
    assert wide.frechet_interval is None
    assert wide.contributions == []
    assert wide.kernel_interval is not None
