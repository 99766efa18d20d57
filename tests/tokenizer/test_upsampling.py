"""Trilinear interpolation by matrix products equals torch's."""

import pytest
import torch
from torch.nn.functional import interpolate

from medar.tokenizer import upsampling
from medar.tokenizer.upsampling import resize, resize_by_products
from medar.volume import Shape3

PAIRS: tuple[tuple[Shape3, Shape3], ...] = (
    ((1, 1, 1), (5, 7, 5)),
    ((2, 3, 2), (5, 7, 5)),
    ((4, 6, 4), (5, 7, 4)),
    ((3, 3, 3), (12, 6, 9)),
    ((8, 5, 6), (3, 5, 2)),
    ((7, 7, 7), (1, 1, 1)),
    ((6, 2, 5), (5, 9, 5)),
)


@pytest.mark.parametrize(("before", "after"), PAIRS)
def test_values_and_gradients_equal_those_of_torch(before: Shape3, after: Shape3) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, *before, 3, requires_grad=True)
    expected = interpolate(x.movedim(-1, 1), after, mode="trilinear", align_corners=False)
    expected = expected.movedim(1, -1)
    results = [resize_by_products(x, after), resize(x, after)]
    weights = torch.randn_like(expected)
    (gradient,) = torch.autograd.grad((expected * weights).sum(), x)
    for result in results:
        torch.testing.assert_close(result, expected, rtol=1e-6, atol=3e-6)
        (own,) = torch.autograd.grad((result * weights).sum(), x)
        torch.testing.assert_close(own, gradient, rtol=1e-5, atol=1e-5)


def test_an_equal_grid_changes_nothing() -> None:
    x = torch.randn(1, 2, 3, 4, 5)
    assert resize(x, (2, 3, 4)) is x
    assert torch.equal(resize_by_products(x, (2, 3, 4)), x)


def test_a_constant_stays_constant_under_autocast() -> None:
    x = torch.full((1, 3, 3, 3, 2), 1 + 2**-12)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = resize_by_products(x, (5, 6, 7))
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, torch.full_like(result, 1 + 2**-12), rtol=1e-6, atol=0)


def test_only_a_cpu_uses_the_kernel_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upsampling, "interpolate", None)
    assert resize(torch.empty(2, 3, 3, 3, 4, device="meta"), (4, 5, 6)).shape == (2, 4, 5, 6, 4)
    with pytest.raises(TypeError):
        resize(torch.empty(2, 3, 3, 3, 4), (4, 5, 6))
