"""Schedules: grids from a latent grid, explicit grids, splitting."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medar.errors import MedarError
from medar.tokenizer.schedule import ScaleSchedule
from medar.volume import Shape3

LATENT = st.tuples(*[st.integers(1, 40)] * 3)


def test_grid_sizes_grow_linearly() -> None:
    schedule = ScaleSchedule.from_latent((5, 7, 5), 5)
    assert schedule.grids == ((1, 1, 1), (2, 2, 2), (3, 4, 3), (4, 5, 4), (5, 7, 5))
    assert schedule.tokens == (1, 8, 36, 80, 175)
    assert schedule.offsets == (0, 1, 9, 45, 125)
    assert str(schedule) == "1x1x1 > 2x2x2 > 3x4x3 > 4x5x4 > 5x7x5 (300 tokens)"


@given(LATENT, st.data())
def test_every_possible_number_of_scales(latent: Shape3, data: st.DataObject) -> None:
    scales = data.draw(st.integers(1, max(latent)))
    schedule = ScaleSchedule.from_latent(latent, scales)
    assert len(schedule) == scales
    assert schedule.latent == latent
    assert scales == 1 or schedule.grids[0] == (1, 1, 1)
    for coarse, fine in pairwise(schedule.grids):
        assert coarse != fine
        assert all(a <= b for a, b in zip(coarse, fine, strict=True))
    assert ScaleSchedule.from_dict(schedule.to_dict()) == schedule


@given(LATENT)
def test_too_many_scales_are_refused_with_the_allowed_range(latent: Shape3) -> None:
    with pytest.raises(MedarError, match=f"^scales must be from 1 to {max(latent)} "):
        ScaleSchedule.from_latent(latent, max(latent) + 1)


@pytest.mark.parametrize(
    ("grids", "reason"),
    [
        ((), "at least one grid"),
        (((2, 2, 2), (3, 1, 3)), "3x1x3 after 2x2x2: no side may shrink"),
        (((0, 1, 1),), "must be at least 1"),
    ],
)
def test_bad_grids_are_refused(grids: tuple[Shape3, ...], reason: str) -> None:
    with pytest.raises(MedarError, match=reason):
        ScaleSchedule(grids=grids)


def test_the_last_grid_is_the_latent_grid() -> None:
    schedule = ScaleSchedule(grids=((1, 1, 1), (2, 3, 2)))
    schedule.check_latent((2, 3, 2))
    with pytest.raises(MedarError, match="latent grid 3x3x3: the schedule ends with 2x3x2"):
        schedule.check_latent((3, 3, 3))


@given(LATENT, st.data())
def test_split_undoes_concatenation(latent: Shape3, data: st.DataObject) -> None:
    schedule = ScaleSchedule.from_latent(latent, data.draw(st.integers(1, min(max(latent), 6))))
    flat = torch.arange(2 * schedule.length).view(2, -1)
    parts = schedule.split(flat)
    assert [part.shape[1] for part in parts] == list(schedule.tokens)
    assert [int(part[0, 0]) for part in parts] == list(schedule.offsets)
    assert torch.equal(torch.cat(parts, dim=1), flat)


def test_split_accepts_only_complete_scales() -> None:
    schedule = ScaleSchedule.from_latent((2, 2, 2), 2)
    assert [part.shape for part in schedule.split(torch.zeros(1, 1, 4))] == [(1, 1, 4)]
    with pytest.raises(MedarError, match="with 1 or 9 tokens"):
        schedule.split(torch.zeros(1, 5))


def test_a_misspelt_key_is_named() -> None:
    with pytest.raises(MedarError, match=r"config\.json: unknown key 'grid'; did you mean 'grids'"):
        ScaleSchedule.from_dict({"grid": [[1, 1, 1]]}, "config.json")
