"""A block of the generator: pre-norm layers modulated by the condition (AdaLN, arXiv 2212.09748).

    x = x + gate * attention within the scale (norm(x) * (1 + scale) + shift)
    x = x + gate * mixer between scales       (norm(x) * (1 + scale) + shift)
    x = x + gate * MLP                        (norm(x) * (1 + scale) + shift)

Shift, scale and gate come from the condition through one linear layer that all blocks share, plus a
table per block (PixArt, arXiv 2310.00426): a linear layer per block would hold half of all
parameters. A layer that the mixer makes unnecessary is left out: the mixer itself for "none", the
attention for a mixer that attends within the scale too.

B batch, L tokens over all scales, T tokens of one scale, E width, S layers of a block with a mixer.
"""

from dataclasses import replace
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import gelu
from torch.utils.checkpoint import checkpoint

from medar.generator.attention import ScaleAttention
from medar.generator.mixers import MIXERS, MixerSettings, NoMixer, State, make_mixer
from medar.generator.positions import Rotary
from medar.generator.settings import ModelSettings
from medar.tokenizer.norms import Norm
from medar.tokenizer.schedule import ScaleSchedule


class Modulation(NamedTuple):
    """The norm before a layer with its modulation, (B, 1, E) each."""

    norm: nn.Module
    shift: Tensor
    scale: Tensor
    gate: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """The layer's input, (B, T, E) to the same."""
        normed: Tensor = self.norm(x)
        return normed * (1 + self.scale) + self.shift


class Block(nn.Module):
    """Attention within the scale, mixer between scales, MLP.

    Args:
        settings: sizes.
        schedule: the grids.
        rotary: positions of all tokens.
        layer: index of the block, from 0.
    """

    def __init__(
        self, settings: ModelSettings, schedule: ScaleSchedule, rotary: Rotary, layer: int
    ) -> None:
        super().__init__()
        width, heads = settings.width, settings.depth
        self.mixer = make_mixer(
            mixer_of(settings, layer), width, heads, schedule, layer // settings.mixer.every
        )
        self.attention = (
            None
            if self.mixer.covers_own_scale
            else ScaleAttention(
                width,
                heads,
                schedule,
                rotary,
                window_size=settings.window_size,
                window_min_side=settings.window_min_side,
                shifted=bool(layer % 2),
                crop_side=settings.crop_side,
            )
        )
        self.mlp = MLP(width, round(settings.mlp_ratio * width))
        self.dropout = nn.Dropout(settings.dropout)
        self.activation_checkpointing = settings.activation_checkpointing
        layers = block_layers(settings, layer)
        self.norms = nn.ModuleList(
            Norm(width, eps=1e-6, elementwise_affine=False) for _ in range(layers)
        )
        self.table = nn.Parameter(torch.zeros(3 * layers, width))
        with torch.no_grad():
            self.table[2::3] = 1.0  # gates
            # All layers together start with the variance of one.
            for part in (self.attention, self.mixer, self.mlp):
                last = getattr(part, "out", None)
                if isinstance(last, nn.Linear):
                    last.weight /= (layers * settings.depth) ** 0.5

    def forward(self, x: Tensor, shared: Tensor, indices: Tensor | None = None) -> Tensor:
        """All scales, (B, L, E) to the same.

        Args:
            x: the tokens.
            shared: (B, 3 S, E), from the condition.
            indices: of a crop, see `ScaleAttention.forward`.
        """
        if self.activation_checkpointing and self.training and torch.is_grad_enabled():
            recomputed: Tensor = checkpoint(self._layers, x, shared, indices, use_reentrant=False)
            return recomputed
        return self._layers(x, shared, indices)

    def _layers(self, x: Tensor, shared: Tensor, indices: Tensor | None) -> Tensor:
        attention, mixer, mlp = self._modulations(shared)
        if self.attention is not None:
            x = x + attention.gate * self.dropout(self.attention(attention(x), indices))
        if self._mixes:
            x = x + mixer.gate * self.dropout(self.mixer(mixer(x)))
        out: Tensor = x + mlp.gate * self.dropout(self.mlp(mlp(x)))
        return out

    def step(self, k: int, x: Tensor, shared: Tensor, state: State) -> tuple[Tensor, State]:
        """Scale k, (B, T, E), after those that `state` summarises; see `Mixer.step`."""
        attention, mixer, mlp = self._modulations(shared)
        if self.attention is not None:
            x = x + attention.gate * self.dropout(self.attention.step(k, attention(x)))
        if self._mixes:
            mixed, state = self.mixer.step(k, mixer(x), state)
            x = x + mixer.gate * self.dropout(mixed)
        return x + mlp.gate * self.dropout(self.mlp(mlp(x))), state

    @property
    def _mixes(self) -> bool:
        return not isinstance(self.mixer, NoMixer)

    def _modulations(self, shared: Tensor) -> tuple[Modulation, Modulation, Modulation]:
        """Of attention, mixer and MLP; that of an absent layer is not used."""
        if shared.shape[1] > len(self.table):  # other blocks have a mixer as well, in the middle
            shared = torch.cat([shared[:, :3], shared[:, -3:]], dim=1)
        rows = rearrange(shared + self.table, "b (layer three) e -> layer three b 1 e", three=3)
        *before, mlp = (Modulation(norm, *row) for norm, row in zip(self.norms, rows, strict=True))
        return before[0], before[-1], mlp


class MLP(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.into = nn.Linear(width, hidden)
        self.out = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, E) to the same."""
        narrowed: Tensor = self.out(gelu(self.into(x), approximate="tanh"))
        return narrowed


def mixer_of(settings: ModelSettings, layer: int) -> MixerSettings:
    """The mixer of a block: that of the settings, or none."""
    mixer = settings.mixer
    return replace(mixer, kind="none") if layer % mixer.every else mixer


def modulated_layers(settings: ModelSettings) -> int:
    """S: attention, mixer and MLP, less those that no block has."""
    return block_layers(settings, 0)


def block_layers(settings: ModelSettings, layer: int) -> int:
    """Layers of a block."""
    mixer = MIXERS[mixer_of(settings, layer).kind]
    return 1 + (not mixer.covers_own_scale) + (not issubclass(mixer, NoMixer))
