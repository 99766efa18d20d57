"""Known tokens: whole cells, boxes and prefixes of scales."""

from itertools import product

import pytest
import torch
from torch import Tensor

from medar.errors import MedarError
from medar.generator.known import OUTWARD, draw_known, known_outside, known_scales
from medar.generator.positions import coordinates
from medar.tokenizer.schedule import ScaleSchedule

SCHEDULE = ScaleSchedule(grids=((1, 1, 1), (2, 2, 2), (3, 2, 3), (6, 4, 6)))
SEED = 3


def draw(batch: int, boxes: float, scales: float, schedule: ScaleSchedule = SCHEDULE) -> Tensor:
    return draw_known(schedule, batch, boxes, scales, torch.Generator().manual_seed(SEED))


def is_box(taken: Tensor) -> bool:
    """Whether the sites that are taken, (x, y, z) bool, fill a box."""
    places = taken.nonzero()
    low, high = places.amin(0), places.amax(0) + 1
    return bool((high - low).prod() == len(places))


def test_shares_of_what_is_known() -> None:
    known = draw(2000, 0.3, 0.2)
    assert known.shape == (2000, SCHEDULE.length)
    assert known.dtype == torch.bool
    prefixes = torch.cat([known_scales(SCHEDULE, count) for count in (1, 2, 3)])
    scales = (known[:, None] == prefixes).all(dim=2)
    assert scales.any(dim=1).float().mean() == pytest.approx(0.2, abs=0.03)
    assert scales.float().mean(dim=0).min() > 0.04
    nothing = ~known.any(dim=1)
    # A box that knows no whole cell leaves nothing known.
    assert nothing.float().mean() == pytest.approx(0.5, abs=0.08)
    assert torch.equal(known, draw(2000, 0.3, 0.2))
    assert not draw(50, 0.0, 0.0).any()
    assert not draw(50, 0.0, 1.0, ScaleSchedule(grids=((2, 2, 2),))).any()


def test_boxes_are_what_is_known_or_what_is_not() -> None:
    known = draw(400, 1.0, 0.0)
    assert not known.all(dim=1).any()
    outward = 0
    for item in known:
        finest = SCHEDULE.split(item[None])[-1].view(SCHEDULE.latent)
        inside = bool(finest.any()) and is_box(finest)
        assert not finest.any() or inside or is_box(~finest)
        outward += inside and not is_box(~finest)
    assert 0.3 * OUTWARD < outward / 400 < 1.2 * OUTWARD


def test_a_token_is_known_where_its_whole_cell_is() -> None:
    """A known cell of a coarse scale holds known sites alone on every finer grid."""
    for item in draw(20, 1.0, 0.0)[:, None]:
        for k, (coarse, known) in enumerate(zip(SCHEDULE.grids, SCHEDULE.split(item), strict=True)):
            for fine, below in list(zip(SCHEDULE.grids, SCHEDULE.split(item), strict=True))[k:]:
                places = (coordinates(fine) * torch.tensor(coarse)).long()
                nested = all(f % c == 0 for f, c in zip(fine, coarse, strict=True))
                for site, covered in zip(
                    product(*map(range, coarse)), known[0].tolist(), strict=True
                ):
                    inside = (places == torch.tensor(site)).all(dim=1)
                    assert not (covered and nested) or bool(below[0][inside].all())


def test_shares_beyond_one_are_refused() -> None:
    for shares in ((-0.1, 0.5), (0.6, 0.5), (0.5, -0.1)):
        with pytest.raises(MedarError, match="together at most 1"):
            draw(1, *shares)


def test_known_scales_are_a_prefix() -> None:
    assert known_scales(SCHEDULE, 2, batch=3).tolist() == 3 * [9 * [True] + 162 * [False]]
    assert not known_scales(SCHEDULE, 0).any()
    assert known_scales(SCHEDULE, 4).all()
    for count in (-1, 5):
        with pytest.raises(MedarError, match=f"{count} known scales: .* allows 0 to 4"):
            known_scales(SCHEDULE, count)


@pytest.mark.parametrize("margin", [0, 1, 2])
def test_outside_a_region_is_what_no_widened_cell_touches(margin: int) -> None:
    """Against a plain reading in loops, on a volume of 2 x 2 x 2 voxels a site."""
    torch.manual_seed(margin)
    region = torch.zeros(2, 12, 8, 12, dtype=torch.bool)
    region[0, 3, 2, 7] = True
    region[1, 9:, :3, 1:3] = True
    found = known_outside(region, SCHEDULE, margin)
    sites = region.view(2, 6, 2, 4, 2, 6, 2).any(dim=6).any(dim=4).any(dim=2)
    for b in range(2):
        wanted = []
        for grid in SCHEDULE.grids:
            for site in product(*map(range, grid)):
                box = []
                for place, cells, whole in zip(site, grid, SCHEDULE.latent, strict=True):
                    low, high = place * whole // cells, -(-(place + 1) * whole // cells)
                    box.append(slice(max(0, low - margin), high + margin))
                wanted.append(not sites[b][tuple(box)].any())
        assert found[b].tolist() == wanted
    assert known_outside(torch.zeros(1, 12, 8, 12, dtype=torch.bool), SCHEDULE).all()
    assert not known_outside(torch.ones(1, 12, 8, 12, dtype=torch.bool), SCHEDULE).any()


def test_regions_that_do_not_fit_are_refused() -> None:
    with pytest.raises(MedarError, match="margin -1"):
        known_outside(torch.zeros(1, 12, 8, 12, dtype=torch.bool), SCHEDULE, -1)
    with pytest.raises(MedarError, match=r"shape \[1, 12, 8, 5\]: .* at least \[6, 4, 6\]"):
        known_outside(torch.zeros(1, 12, 8, 5, dtype=torch.bool), SCHEDULE)
    with pytest.raises(MedarError, match=r"shape \[12, 8, 12\]"):
        known_outside(torch.zeros(12, 8, 12, dtype=torch.bool), SCHEDULE)
