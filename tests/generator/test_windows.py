"""Attention in windows, against one attention over the whole grid under a mask."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from medar.generator.attention import Windows, attend
from medar.volume import Shape3

CASES: tuple[tuple[Shape3, int, int], ...] = (
    ((4, 4, 4), 2, 0),
    ((4, 4, 4), 2, 1),
    ((5, 3, 4), 3, 1),
    ((1, 7, 2), 4, 2),
    ((3, 3, 3), 8, 4),
    ((6, 6, 6), 1, 0),
)


def same_window(grid: Shape3, side: int, shift: int) -> Tensor:
    """(T, T) bool."""
    sites = torch.cartesian_prod(*(torch.arange(n) for n in grid))
    windows = (sites + shift) // side
    return (windows[:, None] == windows[None]).all(-1)


@pytest.mark.parametrize(("grid", "side", "shift"), CASES)
def test_windows_equal_a_mask(grid: Shape3, side: int, shift: int) -> None:
    torch.manual_seed(0)
    tokens = grid[0] * grid[1] * grid[2]
    inputs = [torch.randn(2, 3, tokens, 4, requires_grad=True) for _ in range(3)]
    expected = scaled_dot_product_attention(*inputs, attn_mask=same_window(grid, side, shift))
    windows = Windows(grid, side, shift)
    parts = zip(*(windows.cut(one) for one in inputs), strict=True)
    result = windows.join([attend(*part) for part in parts], 2)
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)
    weights = torch.randn_like(result)
    own = torch.autograd.grad((result * weights).sum(), inputs)
    torch.testing.assert_close(
        own, torch.autograd.grad((expected * weights).sum(), inputs), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(("grid", "side", "shift"), CASES)
def test_every_site_is_in_one_window(grid: Shape3, side: int, shift: int) -> None:
    windows = Windows(grid, side, shift)
    tokens = grid[0] * grid[1] * grid[2]
    assert sum(n * sites for n, sites in windows.groups) == tokens
    assert sorted(windows.order.tolist()) == list(range(tokens))
    assert not windows.state_dict()
    x = torch.randn(2, 1, tokens, 3)
    assert torch.equal(windows.join(windows.cut(x), 2), x)


def test_windows_of_one_size_are_one_call() -> None:
    assert Windows((16, 16, 16), 8, 0).groups == ((8, 512),)
    assert Windows((16, 16, 16), 8, 4).groups == ((8, 64), (12, 128), (6, 256), (1, 512))
