"""Distances with floors and intervals: equal numbers, seeds, and intervals that hold."""

import numpy as np
import pytest
from numpy.typing import NDArray

from medar.errors import MedarError
from medar.evaluation import distances
from medar.evaluation.distances import set_distance
from medar.evaluation.frechet import Reference


def sample(count: int, seed: int, shift: float = 0.0) -> NDArray[np.float64]:
    return np.random.default_rng(seed).normal(loc=shift, size=(count, 4))


def test_fresh_draws_are_at_the_floor_and_others_far() -> None:
    reference, held_out = sample(80, 0), sample(30, 1)
    fresh = set_distance(sample(30, 2), held_out, reference, seed=0)
    far = set_distance(sample(30, 2, shift=2.0), held_out, reference, seed=0)
    assert fresh.frechet_floor == far.frechet_floor == Reference(reference).distance(held_out)
    assert fresh.frechet < 3 * fresh.frechet_floor < far.frechet
    assert fresh.kernel_interval[0] < 0 < fresh.kernel_interval[1]
    assert far.kernel > 10 * abs(far.kernel_floor)


def test_sets_of_other_sizes_are_compared_at_equal_numbers() -> None:
    """Many volumes do not lie nearer than few for being many."""
    reference = sample(200, 0)
    many = set_distance(sample(120, 1), sample(10, 2), reference, seed=0)
    assert many.frechet_samples == 10
    assert many.frechet > 2 * Reference(reference).distance(sample(120, 1))
    few = set_distance(sample(10, 2), sample(120, 1), reference, seed=0)
    assert few.frechet_samples == 10
    assert few.frechet_floor == pytest.approx(many.frechet, rel=0.3)


def test_intervals_hold_the_estimate_and_narrow_with_more_volumes() -> None:
    reference, held_out = sample(80, 0), sample(200, 1)
    found = [set_distance(sample(n, 2, 1.0), held_out, reference, seed=0) for n in (10, 100)]
    for one in found:
        assert one.frechet_interval[0] < one.frechet < one.frechet_interval[1]
        assert one.kernel_interval[0] < one.kernel < one.kernel_interval[1]
    few, many = (np.diff([one.frechet_interval, one.kernel_interval], axis=1) for one in found)
    assert (many < few).all()


def test_the_same_seed_gives_the_same_figures() -> None:
    sets = sample(12, 0), sample(6, 1), sample(20, 2)
    assert set_distance(*sets, seed=3) == set_distance(*sets, seed=3)
    assert set_distance(*sets, seed=3) != set_distance(*sets, seed=4)


def test_what_too_few_volumes_leave_open_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    lone = set_distance(sample(5, 0), sample(1, 1), sample(9, 2), seed=0)
    assert (lone.frechet_floor, lone.kernel_floor, lone.frechet_samples) == (None, None, 5)
    two = set_distance(sample(2, 0), sample(5, 1), sample(9, 2), seed=0)
    assert (two.frechet_interval, two.kernel_interval) == (None, None)
    with pytest.raises(MedarError, match="1 volumes"):
        set_distance(sample(1, 0), sample(5, 1), sample(9, 2), seed=0)
    monkeypatch.setattr(distances, "WIDEST", 3)
    wide = set_distance(sample(5, 0), sample(5, 1), sample(9, 2), seed=0)
    assert wide.frechet_interval is None
    assert wide.kernel_interval is not None
