"""Known tokens: cells, boxes and prefixes of scales."""

from itertools import product

import pytest
import torch
from torch import Tensor

from medar.errors import MedarError
from medar.generator.known import INSIDE, MISSING, draw_known, known_outside, known_scales
from medar.tokenizer.schedule import ScaleSchedule

SCHEDULE = ScaleSchedule(grids=((1, 1, 1), (2, 2, 2), (3, 2, 3), (6, 4, 6)))
SEED = 3


def draw(batch: int, boxes: float, scales: float, schedule: ScaleSchedule = SCHEDULE) -> Tensor:
    return draw_known(schedule, batch, boxes, scales, torch.Generator().manual_seed(SEED))


def is_box(taken: Tensor) -> bool:
    """Whether the true sites of a mask (x, y, z) fill a box."""
    indices = taken.nonzero()
    low, high = indices.amin(0), indices.amax(0) + 1
    return bool((high - low).prod() == len(indices))


def test_fractions_of_known_items() -> None:
    known = draw(2000, 0.3, 0.2)
    assert known.shape == (2000, SCHEDULE.length)
    assert known.dtype == torch.bool
    prefixes = torch.cat([known_scales(SCHEDULE, count) for count in (1, 2, 3)])
    scales = (known[:, None] == prefixes).all(dim=2)
    assert scales.any(dim=1).float().mean() == pytest.approx(0.2, abs=0.03)
    assert scales.float().mean(dim=0).min() > 0.04
    nothing = ~known.any(dim=1)
    # A box around next to everything leaves nothing known.
    assert nothing.float().mean() == pytest.approx(0.5, abs=0.1)
    assert torch.equal(known, draw(2000, 0.3, 0.2))
    assert not draw(50, 0.0, 0.0).any()
    assert not draw(50, 0.0, 1.0, ScaleSchedule(grids=((2, 2, 2),))).any()


def test_boxes_are_the_known_region_or_its_complement() -> None:
    known = draw(400, 1.0, 0.0)
    assert not known.all(dim=1).any()
    inward = 0
    for item in known:
        finest = SCHEDULE.split(item[None])[-1].view(SCHEDULE.latent)
        inside = bool(finest.any()) and is_box(finest)
        assert not finest.any() or inside or is_box(~finest)
        inward += inside and not is_box(~finest)
    assert 0.3 * INSIDE < inward / 400 < 1.2 * INSIDE


def test_coarse_tokens_are_known_where_most_finer_sites_are() -> None:
    whole = 0
    for item in draw(60, 1.0, 0.0)[:, None]:
        first, second, _, sites = SCHEDULE.split(item)
        missing = (~sites.view(SCHEDULE.latent)).float()
        halves = missing.view(2, 3, 2, 2, 2, 3).mean((1, 3, 5)).flatten()
        assert bool(first[0, 0]) == bool(missing.mean() <= MISSING)
        assert torch.equal(second[0], halves <= MISSING)
        whole += bool(first[0, 0])
    assert 0 < whole < 60


def test_fractions_beyond_one_are_refused() -> None:
    for fractions in ((-0.1, 0.5), (0.6, 0.5), (0.5, -0.1)):
        with pytest.raises(MedarError, match="sum to at most 1"):
            draw(1, *fractions)


def test_known_scales_are_a_prefix() -> None:
    assert known_scales(SCHEDULE, 2, batch=3).tolist() == 3 * [9 * [True] + 162 * [False]]
    assert not known_scales(SCHEDULE, 0).any()
    assert known_scales(SCHEDULE, 4).all()
    for count in (-1, 5):
        with pytest.raises(MedarError, match=f"known scales must be from 0 to 4 .* got {count}"):
            known_scales(SCHEDULE, count)


def test_barely_touched_tokens_stay_known() -> None:
    """Compare with a plain implementation in loops, with 2 x 2 x 2 voxels per site."""
    schedule = ScaleSchedule(grids=((1, 1, 1), (2, 2, 2), (3, 2, 3), (6, 4, 6)))
    region = torch.zeros(2, 12, 8, 12, dtype=torch.bool)
    region[0, 3:6, 2, 7] = True
    region[0, 8, :2, 4:6] = True
    region[1, 4:, :5, 1:9] = True
    found = known_outside(region, schedule)
    sites = region.view(2, 6, 2, 4, 2, 6, 2).any(dim=6).any(dim=4).any(dim=2)
    for b in range(2):
        expected = []
        for grid in schedule.grids:
            sides = [n // g for n, g in zip(schedule.latent, grid, strict=True)]
            for index in product(*map(range, grid)):
                cell = tuple(slice(i * n, (i + 1) * n) for i, n in zip(index, sides, strict=True))
                expected.append(bool(sites[b][cell].float().mean() <= MISSING))
        assert found[b].tolist() == expected
        assert torch.equal(schedule.split(found[b : b + 1])[-1][0], ~sites[b].flatten())
    assert found[0][0]
    assert not found[1][0]
    assert known_outside(torch.zeros(1, 12, 8, 12, dtype=torch.bool), schedule).all()
    assert not known_outside(torch.ones(1, 12, 8, 12, dtype=torch.bool), schedule).any()


def test_regions_that_do_not_fit_are_refused() -> None:
    with pytest.raises(MedarError, match=r"shape \[1, 12, 8, 5\] must .* at least \[6, 4, 6\]"):
        known_outside(torch.zeros(1, 12, 8, 5, dtype=torch.bool), SCHEDULE)
    with pytest.raises(MedarError, match=r"shape \[12, 8, 12\]"):
        known_outside(torch.zeros(12, 8, 12, dtype=torch.bool), SCHEDULE)
