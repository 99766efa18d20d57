"""Layers of the detail decoder: the residual's expected size, and blocks that know the flow's time.

B batch, C channels, P voxels of a folded patch, x y z sites, W features, T features of the time.
"""

from functools import partial
from math import log

import torch
from torch import Tensor, nn
from torch.nn import functional

from medar.tokenizer.convolution import Convolution
from medar.tokenizer.network import ChannelNorm
from medar.tokenizer.slabs import Layer, Residual, chained, each, layer_of

SMALLEST_SCALE = 1e-3
"""Least expected size of a residual, where the intensity window has width 2: what a file's rounding
hides."""

TIME_FEATURES = 32
"""Sines and cosines of the time, half each."""


class ScaleNetwork(nn.Module):
    """Predicts the logarithm of the size of the residual from the folded D(z)."""

    def __init__(self, patch: int, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            Convolution(patch, width),
            nn.SiLU(),
            Convolution(width, width),
            nn.SiLU(),
            Convolution(width, patch),
        )

    def forward(self, folded: Tensor) -> Tensor:
        """(B, P C, x, y, z) to the same shape, at least log `SMALLEST_SCALE`."""
        return self.logarithm(self.layers(folded))

    def logarithm(self, size: Tensor) -> Tensor:
        """Of sizes as the layers give them, made positive; float32."""
        return (functional.softplus(size.float() - 3.0) + SMALLEST_SCALE).log()


class TimedBlock(nn.Module):
    """x + f(x, t), with f: norm, SiLU, convolution, scaled and shifted by t, SiLU, convolution."""

    def __init__(self, width: int, time_width: int) -> None:
        super().__init__()
        self.norm, self.conv = ChannelNorm(width), Convolution(width, width)
        self.norm2, self.conv2 = ChannelNorm(width), Convolution(width, width)
        self.modulate = nn.Linear(time_width, 2 * width)
        nn.init.zeros_(self.modulate.weight)
        nn.init.zeros_(self.modulate.bias)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """(B, W, x, y, z) and (B, T) to (B, W, x, y, z)."""
        h = self.conv(functional.silu(self.norm(x)))
        change: Tensor = self.conv2(functional.silu(self._modulated(h, self.modulate(time))))
        return x + change

    def over_slabs(self, time: Tensor, axis: int) -> Layer:
        """`forward` over slabs."""
        modulated = each(partial(self._modulated, modulation=self.modulate(time)))
        activation = nn.SiLU()
        before = [layer_of(module, axis) for module in (self.norm, activation, self.conv)]
        after = [layer_of(module, axis) for module in (activation, self.conv2)]
        return Residual(chained([*before, modulated, *after]), axis)

    def _modulated(self, h: Tensor, modulation: Tensor) -> Tensor:
        gain, shift = modulation[..., None, None, None].chunk(2, 1)
        modulated: Tensor = self.norm2(h) * (1 + gain) + shift
        return modulated


def time_features(time: Tensor) -> Tensor:
    """(B,) to (B, `TIME_FEATURES`)."""
    half = TIME_FEATURES // 2
    rates = torch.exp(torch.arange(half, device=time.device) * (log(100.0) / (half - 1)))
    angles = time[:, None].float() * rates
    return torch.cat([angles.sin(), angles.cos()], 1)
