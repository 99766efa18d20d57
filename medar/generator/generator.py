"""`Generator`: next-scale prediction (VAR, arXiv 2404.02905) of volumes, with linear blocks between
scales (after M-VAR, arXiv 2411.10433).

    tokens of scales < k -> quantiser -> what they add up to, on the grid of scale k
      + position + level + map + known tokens -> blocks, under the condition -> logits of scale k

All tokens of a scale are predicted at once. The first scale sees the condition alone. In training
all scales go through the blocks together; in sampling one after the other, each mixer carrying its
state. The quantiser is the tokenizer's own, frozen.

B batch, L tokens over all scales, T tokens of one scale, K scales, D code width, V codes, E width.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from medar.errors import MedarError
from medar.generator.blocks import Block, modulated_layers
from medar.generator.conditions import AttributeEmbedding, Condition
from medar.generator.config import GeneratorConfig
from medar.generator.maps import MapEncoder
from medar.generator.mixers.base import State
from medar.generator.model import Known, TokenModel
from medar.generator.positions import PositionFeatures, Rotary, schedule_coordinates
from medar.tokenizer.quantiser import MultiScaleQuantiser
from medar.volume import Shape3


@dataclass(kw_only=True, eq=False)
class Memory:
    """A batch that is being sampled."""

    k: int
    """The scale to come."""
    total: Tensor
    """(B, D, x, y, z): what the tokens so far add up to."""
    where: Tensor
    """(B, L, E): what is known of each token before anything is sampled."""
    shared: Tensor
    """(B, 3 S, E): modulation from the condition."""
    states: list[State]
    """A mixer state a block."""
    known: Known | None
    forced: Tensor | None = None
    """(B, T): codes that the known sites of the scale to come take, given the tokens so far."""


class Generator(TokenModel):
    """The next-scale transformer.

    Args:
        config: sizes and conditions.
        quantiser: of the tokenizer whose tokens are predicted; frozen here.
        downsampling: voxels per latent site along each axis, for maps.
    """

    levels: Tensor

    def __init__(
        self,
        config: GeneratorConfig,
        quantiser: MultiScaleQuantiser,
        downsampling: Shape3 = (1, 1, 1),
    ) -> None:
        super().__init__()
        self.config = config
        self.quantiser = quantiser.requires_grad_(False).eval()
        self.schedule, self.codes = quantiser.schedule, quantiser.codebook.size
        width, code_width = config.width, quantiser.codebook.width
        finest = max(self.schedule.latent)
        places = schedule_coordinates(self.schedule)
        rotary = Rotary(places, config.head_width, finest)
        self.embed = nn.Linear(code_width, width)
        self.position = PositionFeatures(places, width, finest)
        self.level = nn.Embedding(len(self.schedule), width)
        self.known = nn.Linear(code_width + 1, width, bias=False)
        self.map = (
            MapEncoder(
                config.condition.map_channels,
                config.condition.map_width,
                width,
                self.schedule,
                downsampling,
            )
            if config.condition.map_channels
            else None
        )
        self.attributes = AttributeEmbedding(config.condition.attributes, width)
        self.modulate = nn.Linear(width, 3 * modulated_layers(config) * width)
        self.blocks = nn.ModuleList(
            Block(config, self.schedule, rotary, layer) for layer in range(config.depth)
        )
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.head = nn.Linear(width, self.codes)
        levels = torch.arange(len(self.schedule)).repeat_interleave(
            torch.tensor(self.schedule.tokens)
        )
        self.register_buffer("levels", levels, persistent=False)
        self._initialise()

    def forward(self, tokens: Tensor, condition: Condition, known: Tensor | None = None) -> Tensor:
        """Logits of all scales given the tokens of coarser ones, (B, L, V)."""
        about = self.attributes(condition.attributes)
        x = self.embed(self._inputs(tokens)) + self._where(condition, about)
        if known is not None:
            x = x + self._given(known, tokens)
        shared = self._shared(about)
        for block in self._blocks():
            x = block(x, shared)
        return self._logits(x)

    @property
    def parts(self) -> tuple[int, ...]:
        """The tokens of each scale."""
        return self.schedule.tokens

    def begin(self, condition: Condition, known: Known | None = None) -> Memory:
        """Before the first scale."""
        about = self.attributes(condition.attributes)
        where = self._where(condition, about)
        total = torch.zeros(
            (len(condition), self.quantiser.codebook.width, *self.schedule.latent),
            device=where.device,
        )
        return Memory(
            k=0,
            total=total,
            where=where,
            shared=self._shared(about),
            states=[block.mixer.start(where) for block in self._blocks()],
            known=known,
        )

    def step(self, memory: Memory) -> Tensor:
        """Logits of the next scale, (B, T, V)."""
        k = memory.k
        part = self._part(k)
        x = memory.where[:, part] + self.embed(self._scaled(self.quantiser.seen(k, memory.total)))
        if memory.known is not None:
            rest = memory.known.latent - memory.total
            memory.forced = self.quantiser.encode_scale(k, rest)
            x = x + self._given(memory.known.mask[:, part], memory.forced)
        for place, block in enumerate(self._blocks()):
            x, memory.states[place] = block.step(k, x, memory.shared, memory.states[place])
        return self._logits(x)

    def take(self, memory: Memory, tokens: Tensor) -> Tensor:
        """Go on with a scale's tokens, (B, T); known sites take their own."""
        k = memory.k
        if memory.known is not None and memory.forced is not None:
            tokens = torch.where(memory.known.mask[:, self._part(k)], memory.forced, tokens)
        memory.total = memory.total + self.quantiser.contribution(k, tokens)
        memory.k, memory.forced = k + 1, None
        return tokens

    @property
    def state_size(self) -> int:
        """Of all mixers, and the reconstruction so far."""
        sites = self.schedule.tokens[-1]
        mixers = sum(block.mixer.state_size for block in self._blocks())
        return mixers + sites * self.quantiser.codebook.width

    def train(self, mode: bool = True) -> "Generator":
        """The quantiser stays as it is."""
        super().train(mode)
        self.quantiser.eval()
        return self

    @torch.no_grad()
    def _inputs(self, tokens: Tensor) -> Tensor:
        """(B, L, D): for each token, what all coarser scales add up to at its site."""
        first, *_ = split = self.schedule.split(tokens)
        nothing = torch.zeros((*first.shape, self.quantiser.codebook.width), device=tokens.device)
        later = self.quantiser.inputs(split[:-1]) if len(split) > 1 else ()
        return torch.cat([nothing, *map(self._scaled, later)], dim=1)

    def _scaled(self, seen: Tensor) -> Tensor:
        """(B, D, x, y, z) as (B, T, D), in units of the quantiser's largest gain."""
        return seen.flatten(2).transpose(1, 2) / self.quantiser.gains.max()

    def _blocks(self) -> Iterator[Block]:
        for block in self.blocks:
            assert isinstance(block, Block)
            yield block

    def _shared(self, about: Tensor) -> Tensor:
        """(B, 3 S, E)."""
        modulation: Tensor = self.modulate(silu(about))
        return modulation.view(len(about), -1, self.config.width)

    def _logits(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.norm(x))
        return logits

    def _where(self, condition: Condition, about: Tensor) -> Tensor:
        """(B, L, E): position, level, attributes and map of each token."""
        # The residual stream is float32, whatever the layers compute in.
        where: Tensor = (self.position() + self.level(self.levels)).float() + about[:, None]
        if self.map is not None:
            added: Tensor = self.map(condition.map)
            return where + added
        if condition.map is not None:
            raise MedarError("this generator was trained without maps; leave the map out")
        return where

    def _given(self, known: Tensor, tokens: Tensor) -> Tensor:
        """(B, T, E) of the tokens that are known, (B, T); zero elsewhere."""
        codes = self.quantiser.codebook.lookup(tokens)
        flagged = torch.cat([codes, torch.ones_like(codes[..., :1])], dim=-1)
        given: Tensor = self.known(flagged * known[..., None])
        return given

    def _part(self, k: int) -> slice:
        start = self.schedule.offsets[k]
        return slice(start, start + self.schedule.tokens[k])

    def _initialise(self) -> None:
        """The residual stream and the logits start small; the condition modulates nothing yet."""
        nn.init.normal_(self.level.weight, std=(3 * self.config.width) ** -0.5)
        nn.init.zeros_(self.modulate.weight)
        nn.init.zeros_(self.modulate.bias)
        with torch.no_grad():
            self.head.weight *= 0.02
        nn.init.zeros_(self.head.bias)
