"""Norms keep the dtype of their input, and float32 results do not change."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from medar.tokenizer.network import ChannelNorm
from medar.tokenizer.norms import Norm


@pytest.mark.parametrize("affine", [True, False])
def test_float32_equals_torch(affine: bool) -> None:
    torch.manual_seed(0)
    norm = Norm(6, eps=1e-6, elementwise_affine=affine)
    plain = nn.RMSNorm(6, eps=1e-6, elementwise_affine=affine)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    plain.load_state_dict(norm.state_dict())
    x = torch.randn(3, 5, 6)
    assert torch.equal(norm(x), plain(x))
    if affine:
        channels = ChannelNorm(6)
        channels.load_state_dict(norm.state_dict())
        assert torch.equal(channels(x.mT[..., None, None])[..., 0, 0].mT, plain(x))


@pytest.mark.parametrize("norm", [Norm(6), Norm(6, elementwise_affine=False), ChannelNorm(6)])
def test_autocast_does_not_reach_the_kernel(
    norm: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    states: list[bool] = []
    kernel = functional.rms_norm

    def watched(*args: object) -> object:
        states.append(torch.is_autocast_enabled("cpu"))
        return kernel(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(functional, "rms_norm", watched)
    x = torch.randn(2, 6, 6, 6, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert norm(x.bfloat16()).dtype == torch.bfloat16
        assert norm(x).dtype == torch.float32
    assert states == [False, False]
