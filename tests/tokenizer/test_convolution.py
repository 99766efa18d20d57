"""Convolutions on the smallest grids."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from medar.tokenizer.convolution import SMALL, Convolution, with_reliable_convolutions
from medar.tokenizer.network import Decoder, Encoder, NetworkConfig


def autoencoder() -> nn.Module:
    config = NetworkConfig(width=16, width_multipliers=(1, 2, 4), downsampling=(4, 4, 2))
    decoder = Decoder(config)

    class Autoencoder(nn.Sequential):
        def forward(self, volumes: Tensor) -> Tensor:
            volume: Tensor = super().forward(volumes).volume
            return volume

    return Autoencoder(Encoder(config), decoder)


def from_elsewhere() -> nn.Module:
    halving = nn.Conv3d(1, 16, kernel_size=4, stride=4)
    layers = (
        nn.Conv3d(16, 16, kernel_size=3, padding=1),
        nn.SiLU(),
        nn.Conv3d(16, 8, 3, padding=1),
    )
    return with_reliable_convolutions(nn.Sequential(halving, *layers))


@pytest.mark.parametrize("make", [autoencoder, from_elsewhere])
def test_gradients_in_bf16_on_small_grids_are_those_in_float32(
    make: Callable[[], nn.Module],
) -> None:
    """Memory that was never written would show as NaN: it is filled with it before each pass."""
    torch.manual_seed(0)
    network = make()
    volumes = torch.rand(4, 1, 8, 8, 8) * 2 - 1  # the coarsest grid has two sites along x
    weights = [p for p in network.parameters() if p.ndim == 5]
    expected = torch.autograd.grad(network(volumes).square().mean(), weights)
    for _ in range(5):
        junk = [torch.full((5000 * k,), torch.nan) for k in range(1, 40)]
        del junk
        with torch.autocast("cpu", torch.bfloat16):
            loss = network(volumes).float().square().mean()
        found = torch.autograd.grad(loss, weights)
        for one, other in zip(found, expected, strict=True):
            assert (one - other).norm() < 0.1 * other.norm()


@pytest.mark.parametrize("side", [SMALL - 1, SMALL])
def test_only_gradients_on_small_grids_cost_more(side: int) -> None:
    convolution, x = Convolution(2, 3), torch.randn(1, 2, side, 5, 4)
    plain = nn.Conv3d(2, 3, 3, padding=1)
    plain.load_state_dict(convolution.state_dict())
    with torch.autocast("cpu", torch.bfloat16):
        assert convolution(x).dtype == (torch.float32 if side < SMALL else torch.bfloat16)
        with torch.no_grad():
            assert torch.equal(convolution(x), plain(x))
    assert torch.equal(convolution(x), plain(x))
