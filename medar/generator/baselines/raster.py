"""The token-wise family: a causal transformer that predicts one token after the other.

The tokens of a pyramid stand in one row, coarse to fine and z fastest; with a schedule of a single
scale that is the classical transformer in raster order over VQ tokens (VQGAN, arXiv 2012.09841; the
token-wise family of the survey arXiv 2411.08666). Token i is predicted from the code of token
i - 1, from where it lies itself and, through attention, from all tokens before it; the condition
reaches every block by AdaLN (arXiv 2212.09748) and stands before the first token. Queries are
turned by the place of the token to be predicted, keys by that of the token that they hold. Sampling
keeps keys and values, so that a step computes one token alone.

B batch, L tokens over all scales, T tokens of a call (L, or 1 while sampling), V codes, D code
width, E width, H heads, W width of a head.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from medar.errors import MedarError
from medar.generator.attend import attend
from medar.generator.conditions import AttributeEmbedding, Condition
from medar.generator.config import GeneratorConfig
from medar.generator.model import Known, TokenModel
from medar.generator.positions import Rotary, frequencies, schedule_coordinates
from medar.tokenizer.quantiser import MultiScaleQuantiser
from medar.tokenizer.schedule import ScaleSchedule

FREQUENCIES = 8
"""Of the Fourier features along each axis."""

INITIAL = 0.02
"""Standard deviation of linear layers at first."""


@dataclass(kw_only=True, eq=False)
class RasterMemory:
    """A batch while it is sampled, `place` tokens having been taken."""

    place: int
    tokens: Tensor
    """(B, L), right up to `place`."""
    start: Tensor
    """(B, E), what stands before the first token."""
    places: Tensor
    """(L, E), what each token's place adds."""
    modulation: Tensor
    """(depth, B, 6, 1, E)."""
    keys: Tensor
    """(depth, B, H, L, W), right up to `place`."""
    values: Tensor
    known: Known | None
    given: Tensor
    """(B, L), known tokens of the scale at hand and of those before it."""


class RasterModel(TokenModel):
    """Next-token prediction over a pyramid.

    Windows do not apply: attention reaches all earlier tokens.

    Args:
        config: its size and what it can be asked for, which is attributes alone.
        quantiser: the tokenizer's, whose codes the model sees; frozen here.

    Raises:
        MedarError: a map or a mixer is asked for.
    """

    sees_known: ClassVar[bool] = False

    def __init__(self, config: GeneratorConfig, quantiser: MultiScaleQuantiser) -> None:
        super().__init__()
        if config.condition.map != "none":
            raise MedarError(
                f"condition map {config.condition.map!r}: the raster model takes 'none' alone; "
                "leave the map out, or use the next-scale generator"
            )
        if config.mixer.kind != "none":
            raise MedarError(
                f"mixer {config.mixer.kind!r}: the raster model attends to all earlier tokens and "
                "takes 'none' alone"
            )
        self.config, self.schedule = config, quantiser.schedule
        self.codes = quantiser.codebook.size
        self.quantiser = quantiser.requires_grad_(False)
        width = config.width
        self.attributes = AttributeEmbedding(config.condition.attributes, width)
        self.start = nn.Linear(width, width)
        self.embed = nn.Linear(quantiser.codebook.width, width)
        self.position = Position(self.schedule, width)
        self.modulation = nn.Linear(width, 6 * width)
        self.blocks = nn.ModuleList(Block(config, self.schedule) for _ in range(config.depth))
        self.norm = nn.RMSNorm(width)
        self.head = nn.Linear(width, self.codes)
        self._initialise()

    def _initialise(self) -> None:
        own = (m for name, m in self.named_modules() if not name.startswith("quantiser"))
        for module in own:
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=INITIAL)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.embed.weight, std=self.embed.in_features**-0.5)
        nn.init.zeros_(self.modulation.weight)

    @property
    def parts(self) -> tuple[int, ...]:
        """One token a step."""
        return (1,) * self.schedule.length

    @property
    def state_size(self) -> int:
        """Keys and values of all tokens in all blocks."""
        return 2 * self.config.depth * self.schedule.length * self.config.width

    def forward(self, tokens: Tensor, condition: Condition, known: Tensor | None = None) -> Tensor:
        """Logits of every token given those before it, (B, L, V).

        Args:
            tokens: (B, L) int64.
            condition: what the volumes are.
            known: without effect, as a known token is seen by those after it alone.
        """
        about = self.attributes(condition.attributes)
        before = self.embed(self.quantiser.codebook.lookup(tokens[:, :-1]))
        x = torch.cat([self.start(about)[:, None], before], dim=1) + self.position()
        for block, modulation in zip(self._blocks(), self._modulation(about), strict=True):
            x = block(x, modulation)
        return self._logits(x)

    @torch.no_grad()
    def begin(self, condition: Condition, known: Known | None = None) -> RasterMemory:
        """An empty cache for a batch."""
        about = self.attributes(condition.attributes)
        batch, device = len(about), about.device
        length, heads, width = self.schedule.length, self.config.depth, self.config.head_width
        autocast = torch.is_autocast_enabled(device.type)
        kind = torch.get_autocast_dtype(device.type) if autocast else self.head.weight.dtype
        shape = (self.config.depth, batch, heads, length, width)
        return RasterMemory(
            place=0,
            tokens=torch.zeros(batch, length, dtype=torch.int64, device=device),
            start=self.start(about),
            places=self.position(),
            modulation=self._modulation(about),
            keys=torch.empty(shape, dtype=kind, device=device),
            values=torch.empty(shape, dtype=kind, device=device),
            known=known,
            given=torch.zeros(batch, length, dtype=torch.int64, device=device),
        )

    @torch.no_grad()
    def step(self, memory: RasterMemory) -> Tensor:
        """Logits of the next token, (B, 1, V)."""
        place = memory.place
        if place == 0:
            before = memory.start
        else:
            before = self.embed(self.quantiser.codebook.lookup(memory.tokens[:, place - 1]))
        x = (before + memory.places[place])[:, None]
        caches = zip(memory.modulation, memory.keys, memory.values, strict=True)
        for block, (modulation, keys, values) in zip(self._blocks(), caches, strict=True):
            x = block.step(x, modulation, keys, values, place)
        return self._logits(x)

    @torch.no_grad()
    def take(self, memory: RasterMemory, tokens: Tensor) -> Tensor:
        """Go on with the chosen token, (B, 1), or the known one where there is one."""
        place = memory.place
        here = slice(place, place + 1)
        if memory.known is not None:
            if place in self.schedule.offsets:
                self._read_known(memory, memory.known.latent)
            tokens = torch.where(memory.known.mask[:, here], memory.given[:, here], tokens)
        memory.tokens[:, here] = tokens
        memory.place += 1
        return tokens

    def _read_known(self, memory: RasterMemory, latent: Tensor) -> None:
        """The known tokens of the scale that begins, given how the coarser ones turned out."""
        scale = self.schedule.offsets.index(memory.place)
        rest = latent
        if scale:
            rest = latent - self.quantiser.decode(self.schedule.split(memory.tokens)[:scale])
        indices = self.quantiser.encode_scale(scale, rest)
        memory.given[:, memory.place : memory.place + indices.shape[1]] = indices

    def _modulation(self, about: Tensor) -> Tensor:
        """(B, E) to what all blocks share and each has of its own, (depth, B, 6, 1, E)."""
        shared = self.modulation(nn.functional.silu(about)).unflatten(1, (6, -1))
        tables = torch.stack([block.table for block in self._blocks()])
        modulation: Tensor = shared + tables[:, None]
        return modulation.unsqueeze(-2)

    def _blocks(self) -> Iterator["Block"]:
        for block in self.blocks:
            assert isinstance(block, Block)
            yield block

    def _logits(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.norm(x))
        return logits


class Position(nn.Module):
    """Where each token of a schedule lies, (L, E): Fourier features of its place, and its scale."""

    features: Tensor
    scales: Tensor

    def __init__(self, schedule: ScaleSchedule, width: int) -> None:
        super().__init__()
        turns = frequencies(FREQUENCIES, max(schedule.latent))
        angles = (schedule_coordinates(schedule)[:, :, None] * turns).flatten(1)
        scales = torch.arange(len(schedule)).repeat_interleave(torch.tensor(schedule.tokens))
        features = torch.cat([angles.sin(), angles.cos()], dim=1)
        self.register_buffer("features", features, persistent=False)
        self.register_buffer("scales", scales, persistent=False)
        self.site = nn.Linear(features.shape[1], width)
        self.level = nn.Embedding(len(schedule), width)
        nn.init.normal_(self.level.weight, std=INITIAL)

    def forward(self) -> Tensor:
        """(L, E)."""
        place: Tensor = self.site(self.features) + self.level(self.scales)
        return place


class Block(nn.Module):
    """Attention to all earlier tokens, then an MLP, each modulated by the condition."""

    def __init__(self, config: GeneratorConfig, schedule: ScaleSchedule) -> None:
        super().__init__()
        width = config.width
        self.table = nn.Parameter(torch.zeros(6, width))
        nn.init.ones_(self.table[2::3])  # the gates: open from the start, as runs are short
        self.norms = nn.ModuleList(nn.RMSNorm(width, elementwise_affine=False) for _ in range(2))
        self.attention = CausalAttention(config, schedule)
        hidden = round(config.mlp * width)
        self.rise, self.fall = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        """(B, L, E) and (B, 6, 1, E) to (B, L, E)."""
        shift, scale, gate, *rest = modulation.unbind(1)
        mixed = self.attention(self.norms[0](x) * (1 + scale) + shift)
        return self._mlp(x + gate * self.dropout(mixed), *rest)

    def step(
        self, x: Tensor, modulation: Tensor, keys: Tensor, values: Tensor, place: int
    ) -> Tensor:
        """One token, (B, 1, E), the caches of this block being (B, H, L, W)."""
        shift, scale, gate, *rest = modulation.unbind(1)
        mixed = self.attention.step(self.norms[0](x) * (1 + scale) + shift, keys, values, place)
        return self._mlp(x + gate * mixed, *rest)

    def _mlp(self, x: Tensor, shift: Tensor, scale: Tensor, gate: Tensor) -> Tensor:
        hidden = gelu(self.rise(self.norms[1](x) * (1 + scale) + shift))
        out: Tensor = x + gate * self.dropout(self.fall(hidden))
        return out


class CausalAttention(nn.Module):
    """Token i attends to what tokens 0 to i are predicted from."""

    def __init__(self, config: GeneratorConfig, schedule: ScaleSchedule) -> None:
        super().__init__()
        width, self.heads = config.width, config.depth
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width)
        self.norm_q, self.norm_k = (nn.RMSNorm(config.head_width) for _ in range(2))
        predicted = schedule_coordinates(schedule)
        held = torch.cat([predicted.new_full((1, 3), 0.5), predicted[:-1]])
        finest = max(schedule.latent)
        self.turn_q = Rotary(predicted, config.head_width, finest)
        self.turn_k = Rotary(held, config.head_width, finest)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, E) to the same."""
        q, k, v = self._heads(x, 0)
        return self._merge(attend(q, k, v, causal=True))

    def step(self, x: Tensor, keys: Tensor, values: Tensor, place: int) -> Tensor:
        """(B, 1, E) to the same; its key and value join those of the tokens before."""
        q, k, v = self._heads(x, place)
        seen = place + 1
        keys[:, :, place:seen], values[:, :, place:seen] = k, v
        mixed = attend(q, keys[:, :, :seen], values[:, :, :seen])
        return self._merge(mixed)

    def _heads(self, x: Tensor, start: int) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, (B, H, T, W) each, of tokens from `start` on."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q = self.turn_q(self.norm_q(q.float()).to(v.dtype), start)
        k = self.turn_k(self.norm_k(k.float()).to(v.dtype), start)
        return q, k, v

    def _merge(self, mixed: Tensor) -> Tensor:
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out
