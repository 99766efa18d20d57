"""Convolutions over the grid of each scale."""

import torch
from torch import nn

from medar.generator.convolutions import GridConvolutions
from medar.tokenizer.schedule import ScaleSchedule

SCHEDULE = ScaleSchedule(grids=((1, 1, 1), (2, 2, 2), (2, 3, 2), (4, 5, 3)))


def test_they_start_as_the_identity() -> None:
    x = torch.randn(2, SCHEDULE.length, 6)
    torch.testing.assert_close(GridConvolutions(2, 6, SCHEDULE)(x), x)


@torch.no_grad()
def test_a_site_sees_its_neighbours_on_its_own_grid_alone() -> None:
    torch.manual_seed(0)
    layers = GridConvolutions(1, 6, SCHEDULE)
    nn.init.normal_(layers.blocks[0].out.weight)
    x = torch.randn(1, SCHEDULE.length, 6)
    other = x.clone()
    finest = slice(SCHEDULE.offsets[-1], None)
    other[:, finest][:, 0] += 1.0  # the first site of the last grid
    changed = (layers(x) != layers(other)).any(-1)[0]
    assert not changed[: SCHEDULE.offsets[-1]].any()
    on_grid = changed[finest].view(4, 5, 3)
    assert on_grid[:3, :3, :3].all()
    assert on_grid.sum() == 3 * 3 * 3  # two convolutions reach two sites


def test_gradients_in_bf16_are_those_in_float32() -> None:
    """Memory that was never written would show as NaN: it is filled with it before each pass."""
    torch.manual_seed(0)
    layers = GridConvolutions(1, 32, SCHEDULE)
    nn.init.normal_(layers.blocks[0].out.weight, std=0.1)
    x = torch.randn(2, SCHEDULE.length, 32)
    weights = list(layers.parameters())
    expected = torch.autograd.grad(layers(x).square().mean(), weights)
    for _ in range(10):
        junk = [torch.full((32 * 16 * 27,), torch.nan) for _ in range(4)]
        junk += [torch.full((5000 * k,), torch.nan) for k in range(1, 7)]
        del junk
        with torch.autocast("cpu", torch.bfloat16):
            loss = layers(x).float().square().mean()
        found = torch.autograd.grad(loss, weights)
        for one, other in zip(found, expected, strict=True):
            assert (one - other).norm() < 0.05 * other.norm()
