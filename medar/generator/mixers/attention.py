"""Block-causal attention: each token attends to its own scale and to all coarser ones.

This is how VAR (arXiv 2404.02905) connects scales: attention is bidirectional within a scale, and
goes from fine to coarse between scales. Here each scale is one call of torch's fused attention with
the keys of all scales up to it; this needs no L x L mask and computes nothing that the mask would
discard. Queries and keys are normalised (RMSNorm over each head, as in arXiv 2302.05442 with
LayerNorm) and rotated by their 3D coordinates. Sampling keeps the keys and values of all scales so
far: a cache that grows with their tokens.

B batch, L tokens over all scales, T tokens of one scale, S tokens of the scales so far, E width, H
heads, W width of a head.
"""

from typing import ClassVar

import torch
from einops import rearrange
from torch import Tensor, nn

from medar.generator.attention import attend
from medar.generator.mixers.base import Mixer, MixerSettings, State
from medar.generator.positions import Rotary, schedule_coordinates
from medar.tokenizer.norms import Norm
from medar.tokenizer.schedule import ScaleSchedule


class BlockCausalAttention(Mixer):
    """Attention over all scales up to a token's own.

    Args:
        settings, width, heads, schedule, layer: see `Mixer`; sizes in `settings` are not used.
    """

    covers_own_scale: ClassVar[bool] = True

    def __init__(
        self, settings: MixerSettings, width: int, heads: int, schedule: ScaleSchedule, layer: int
    ) -> None:
        super().__init__()
        self.schedule = schedule
        self.width = width
        self.heads = heads
        self.into = nn.Linear(width, 3 * width)
        self.query_norm = Norm(width // heads, eps=1e-6)
        self.key_norm = Norm(width // heads, eps=1e-6)
        self.rotary = Rotary(schedule_coordinates(schedule), width // heads, max(schedule.latent))
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, E) to the same, one call of attention for each scale."""
        queries, keys, values = self._project(x)
        mixed, end = [], 0
        for part in self.schedule.split(queries):
            end += part.shape[1]
            mixed.append(_attend(part, keys[:, :end], values[:, :end]))
        joined: Tensor = self.out(torch.cat(mixed, dim=1))
        return joined

    def start(self, like: Tensor) -> State:
        """Keys and values of no token, (B, 0, H, W) each."""
        empty = like.new_empty(len(like), 0, self.heads, self.width // self.heads)
        return {"keys": empty, "values": empty}

    def step(self, k: int, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Scale k, (B, T, E); its keys and values join the state, unless it is the last scale."""
        queries, keys, values = self._project(x, self.schedule.offsets[k])
        keys = torch.cat([state["keys"].to(keys.dtype), keys], dim=1)
        values = torch.cat([state["values"].to(values.dtype), values], dim=1)
        if k < len(self.schedule) - 1:
            state = {"keys": keys, "values": values}
        return self.out(_attend(queries, keys, values)), state

    @property
    def state_size(self) -> int:
        """2 E numbers for each token of all scales but the last."""
        return 2 * self.width * sum(self.schedule.tokens[:-1])

    def _project(self, x: Tensor, start: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of the tokens from `start` on, (B, T, H, W) each."""
        queries, keys, values = rearrange(
            self.into(x), "B T (three H W) -> three B H T W", three=3, H=self.heads
        )
        queries = self.rotary(self.query_norm(queries.float()), start).to(values.dtype)
        keys = self.rotary(self.key_norm(keys.float()), start).to(values.dtype)
        return queries.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2)


def _attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """(B, T, H, W) over (B, S, H, W), heads joined: (B, T, E)."""
    attended = attend(queries.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2))
    return rearrange(attended, "B H T W -> B T (H W)")
