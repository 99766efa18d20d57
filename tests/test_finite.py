"""NaN and infinite values are found wherever they are, in any precision."""

import pytest
import torch

from medar.errors import MedarError
from medar.finite import check_finite


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [0, 77, 999])
def test_a_value_that_is_not_finite_is_found(place: int, value: float, dtype: torch.dtype) -> None:
    values = torch.randn(1000).to(dtype)
    check_finite(values, "values")
    values[place] = value
    with pytest.raises(MedarError, match=r"^values are NaN or infinite"):
        check_finite(values.view(10, 100).T, "values")
