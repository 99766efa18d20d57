"""The kernel distance: its definition, no bias, and what it tells apart."""

import numpy as np
import pytest
from numpy.typing import NDArray

from medar.errors import MedarError
from medar.evaluation import kernel
from medar.evaluation.kernel import KernelReference


def sample(count: int, seed: int, shift: float = 0.0) -> NDArray[np.float64]:
    return np.random.default_rng(seed).normal(loc=shift, size=(count, 5))


def test_it_is_the_unbiased_estimate() -> None:
    first, second = sample(4, 0), sample(6, 1)

    def k(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
        return float((x @ y / 5 + 1) ** 3)

    def within(rows: NDArray[np.float64]) -> float:
        pairs = [k(x, y) for i, x in enumerate(rows) for j, y in enumerate(rows) if i != j]
        return float(np.mean(pairs))

    across = np.mean([k(x, y) for x in first for y in second])
    expected = within(first) + within(second) - 2 * across
    assert KernelReference(second).distance(first) == pytest.approx(expected)


def test_rows_in_parts_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = KernelReference(sample(7, 1)).distance(sample(4, 0))
    monkeypatch.setattr(kernel, "ROWS", 3)
    assert KernelReference(sample(7, 1)).distance(sample(4, 0)) == pytest.approx(whole)


def test_equal_populations_are_at_zero_at_any_number_of_volumes() -> None:
    reference = KernelReference(sample(200, 0))
    far = reference.distance(sample(50, 1, shift=1.0))
    for count in (5, 50):
        values = [reference.distance(sample(count, seed)) for seed in range(1, 60)]
        assert abs(np.mean(values)) < 0.1 * far
        assert min(values) < 0


def test_repeated_draws_are_not_paired_with_themselves() -> None:
    reference, rows = KernelReference(sample(6, 0)), sample(4, 1)
    counts = np.array([[1.0, 1, 1, 1], [2, 2, 2, 2], [2, 0, 1, 1]])
    once, twice, other = reference.resampled(rows, counts)
    assert once == twice == pytest.approx(reference.distance(rows))
    assert other != pytest.approx(once)


@pytest.mark.parametrize("count", [0, 1])
def test_it_needs_two_volumes_a_set(count: int) -> None:
    with pytest.raises(MedarError, match=f"{count} volumes: a kernel distance needs 2"):
        KernelReference(sample(count, 0))
    with pytest.raises(MedarError, match=f"{count} volumes: a kernel distance needs 2"):
        KernelReference(sample(3, 0)).distance(sample(count, 0))
