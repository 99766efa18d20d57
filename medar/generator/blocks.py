"""A block of the generator, pre-norm with AdaLN (arXiv 2212.09748):

    x = x + gate * attention within the scale (shift + (1 + scale) * norm(x))
    x = x + gate * mixer between scales       (shift + (1 + scale) * norm(x))
    x = x + gate * MLP                        (shift + (1 + scale) * norm(x))

Shift, scale and gate come from the condition through one layer that all blocks share, plus a table
of each block's own (arXiv 2310.00426): a layer a block would hold half of all parameters. A layer
that the mixer makes needless is left out: no mixer, or attention of its own beside one that covers
the scale itself.

B batch, L tokens over all scales, T tokens of one scale, E width, S layers of a block.
"""

from collections.abc import Callable

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import gelu

from medar.generator.attention import ScaleAttention
from medar.generator.config import GeneratorConfig
from medar.generator.mixers import make_mixer
from medar.generator.mixers.base import State
from medar.generator.mixers.none import NoMixer
from medar.generator.positions import Rotary
from medar.tokenizer.schedule import ScaleSchedule


class Block(nn.Module):
    """Attention within the scale, mixer between scales, MLP.

    Args:
        config: sizes.
        schedule: the grids.
        rotary: positions of all tokens.
        layer: the block's number, from 0.
    """

    def __init__(
        self, config: GeneratorConfig, schedule: ScaleSchedule, rotary: Rotary, layer: int
    ) -> None:
        super().__init__()
        width, heads = config.width, config.depth
        self.mixer = make_mixer(config.mixer, width, heads, schedule, layer)
        self.attention = (
            None
            if self.mixer.covers_own_scale
            else ScaleAttention(
                width,
                heads,
                schedule,
                rotary,
                window=config.window,
                window_from=config.window_from,
                shifted=bool(layer % 2),
            )
        )
        self.mlp = MLP(width, round(config.mlp * width))
        self.dropout = nn.Dropout(config.dropout)
        layers = modulated_layers(config)
        self.norms = nn.ModuleList(
            nn.RMSNorm(width, eps=1e-6, elementwise_affine=False) for _ in range(layers)
        )
        self.table = nn.Parameter(torch.zeros(3 * layers, width))
        with torch.no_grad():
            self.table[2::3] = 1.0  # gates
            # All layers together start with the variance of one.
            for part in (self.attention, self.mixer, self.mlp):
                last = getattr(part, "out", None)
                if isinstance(last, nn.Linear):
                    last.weight /= (layers * config.depth) ** 0.5

    def forward(self, x: Tensor, shared: Tensor) -> Tensor:
        """All scales, (B, L, E) to the same; `shared` (B, 3 S, E) from the condition."""
        calls: list[Callable[[Tensor], Tensor]] = []
        if self.attention is not None:
            calls.append(self.attention)
        if not isinstance(self.mixer, NoMixer):
            calls.append(self.mixer)
        return self._through([*calls, self.mlp], x, shared)

    def step(self, k: int, x: Tensor, shared: Tensor, state: State) -> tuple[Tensor, State]:
        """Scale k, (B, T, E), after those that `state` has taken in; see `Mixer.step`."""
        carried = state

        def mix(mixed: Tensor) -> Tensor:
            nonlocal carried
            mixed, carried = self.mixer.step(k, mixed, state)
            return mixed

        calls: list[Callable[[Tensor], Tensor]] = []
        if self.attention is not None:
            attention = self.attention
            calls.append(lambda x: attention.step(k, x))
        if not isinstance(self.mixer, NoMixer):
            calls.append(mix)
        return self._through([*calls, self.mlp], x, shared), carried

    def _through(
        self, calls: list[Callable[[Tensor], Tensor]], x: Tensor, shared: Tensor
    ) -> Tensor:
        modulation = rearrange(
            shared + self.table, "b (layer three) e -> layer three b 1 e", three=3
        )
        for norm, call, (shift, scale, gate) in zip(self.norms, calls, modulation, strict=True):
            x = x + gate * self.dropout(call(norm(x) * (1 + scale) + shift))
        return x


class MLP(nn.Module):
    """Widen, GELU, narrow."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.into = nn.Linear(width, hidden)
        self.out = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, E) to the same."""
        narrowed: Tensor = self.out(gelu(self.into(x), approximate="tanh"))
        return narrowed


def modulated_layers(config: GeneratorConfig) -> int:
    """S, layers of a block: three with a state-space mixer, else two."""
    return 2 if config.mixer.kind in ("none", "attention") else 3
