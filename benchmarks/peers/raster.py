"""The token-wise family: a causal transformer that predicts one token after the other.

The tokens of a pyramid form one sequence, coarse to fine and z fastest; with a schedule of a single
scale that is the classical transformer in raster order over VQ tokens (VQGAN, arXiv 2012.09841; the
token-wise family of the survey arXiv 2411.08666). Token i is predicted from the code of token i -
1, from its own position and, through attention, from all tokens before it; the condition reaches
every block by AdaLN (arXiv 2212.09748) and precedes the first token. Queries are rotated by the
position of the token to be predicted, keys by that of the token that they hold. Sampling keeps keys
and values, so that a step computes one token only.

B batch, L tokens over all scales, T tokens of a call (L, or 1 while sampling), V codebook size,
D code width, E width, H heads, W width of a head.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from medar.errors import MedarError
from medar.generator.attention import attend
from medar.generator.attributes import attributes_of
from medar.generator.conditions import AttributeEmbedding, Condition
from medar.generator.data import GeneratorDataset
from medar.generator.known import KnownTokens
from medar.generator.positions import Rotary, frequencies, schedule_coordinates, token_scales
from medar.generator.sampling import choose, draw_numbers
from medar.generator.settings import (
    ConditionConfig,
    GeneratorConfig,
    GeneratorSettings,
    ModelSettings,
    SamplingSettings,
)
from medar.generator.task import GeneratorTask
from medar.tokenizer.pyramid import TokenPyramid
from medar.tokenizer.quantiser import MultiScaleQuantiser
from medar.tokenizer.schedule import ScaleSchedule
from medar.tokenizer.tokenizer import Tokenizer
from medar.tokenizer.tokens import TokenDataset
from peers.voxel import read_tokenizer

FREQUENCIES = 8
"""Number of Fourier frequencies per axis."""

INITIAL = 0.02
"""Initial standard deviation of linear layers."""


@dataclass(kw_only=True, eq=False)
class RasterState:
    """State of sampling a batch, after the first `index` tokens."""

    index: int
    tokens: Tensor
    """(B, L), valid up to `index`."""
    start: Tensor
    """(B, E), the embedding before the first token."""
    positions: Tensor
    """(L, E), the embedding of each token's position."""
    modulation: Tensor
    """(depth, B, 6, 1, E)."""
    keys: Tensor
    """(depth, B, H, L, W), valid up to `index`."""
    values: Tensor
    known: KnownTokens | None
    given: Tensor
    """(B, L), known tokens of the current and earlier scales."""


class RasterModel(nn.Module):
    """Next-token prediction over a pyramid.

    Windows do not apply: attention reaches all earlier tokens.

    Args:
        config: sizes and attributes; maps are not supported.
        quantiser: of the tokenizer; frozen here.

    Raises:
        MedarError: the configuration has a map or a mixer.
    """

    def __init__(self, config: GeneratorConfig, quantiser: MultiScaleQuantiser) -> None:
        super().__init__()
        if config.condition.map != "none":
            raise MedarError(
                f"condition.map must be none for the raster model, got {config.condition.map!r}; "
                "leave the map out, or use the next-scale generator"
            )
        if config.model.mixer.kind != "none":
            raise MedarError(
                f"model.mixer.kind must be none for the raster model, which attends to all earlier "
                f"tokens, got {config.model.mixer.kind!r}"
            )
        self.config, self.schedule = config, quantiser.schedule
        self.codebook_size = quantiser.codebook.size
        self.quantiser = quantiser.requires_grad_(False)
        width = config.model.width
        self.attributes = AttributeEmbedding(config.condition.attributes, width)
        self.start = nn.Linear(width, width)
        self.embed = nn.Linear(quantiser.codebook.width, width)
        self.position = Position(self.schedule, width)
        self.modulation = nn.Linear(width, 6 * width)
        self.blocks = nn.ModuleList(Block(config, self.schedule) for _ in range(config.model.depth))
        self.norm = nn.RMSNorm(width)
        self.head = nn.Linear(width, self.codebook_size)
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
    def state_size(self) -> int:
        """Keys and values of all tokens in all blocks."""
        return 2 * self.config.model.depth * self.schedule.length * self.config.model.width

    def forward(self, tokens: Tensor, condition: Condition, known: Tensor | None = None) -> Tensor:
        """Logits of every token given those before it, (B, L, V).

        Args:
            tokens: (B, L) int64.
            condition: of the volumes.
            known: ignored; only later tokens see a known token.
        """
        about = self.attributes(condition.attributes)
        before = self.embed(self.quantiser.codebook.lookup(tokens[:, :-1]))
        x = torch.cat([self.start(about)[:, None], before], dim=1) + self.position()
        for block, modulation in zip(self._blocks(), self._modulation(about), strict=True):
            x = block(x, modulation)
        return self._logits(x)

    @torch.no_grad()
    def begin(self, condition: Condition, known: KnownTokens | None = None) -> RasterState:
        """An empty cache for a batch."""
        about = self.attributes(condition.attributes)
        batch, device = len(about), about.device
        length, sizes = self.schedule.length, self.config.model
        autocast = torch.is_autocast_enabled(device.type)
        kind = torch.get_autocast_dtype(device.type) if autocast else self.head.weight.dtype
        shape = (sizes.depth, batch, sizes.depth, length, sizes.head_width)
        return RasterState(
            index=0,
            tokens=torch.zeros(batch, length, dtype=torch.int64, device=device),
            start=self.start(about),
            positions=self.position(),
            modulation=self._modulation(about),
            keys=torch.empty(shape, dtype=kind, device=device),
            values=torch.empty(shape, dtype=kind, device=device),
            known=known,
            given=torch.zeros(batch, length, dtype=torch.int64, device=device),
        )

    @torch.no_grad()
    def next_logits(self, state: RasterState) -> Tensor:
        """Logits of the next token, (B, 1, V)."""
        index = state.index
        if index == 0:
            before = state.start
        else:
            before = self.embed(self.quantiser.codebook.lookup(state.tokens[:, index - 1]))
        x = (before + state.positions[index])[:, None]
        caches = zip(state.modulation, state.keys, state.values, strict=True)
        for block, (modulation, keys, values) in zip(self._blocks(), caches, strict=True):
            x = block.step(x, modulation, keys, values, index)
        return self._logits(x)

    @torch.no_grad()
    def append(self, state: RasterState, tokens: Tensor) -> Tensor:
        """Add the chosen token, (B, 1), or the known token if there is one."""
        index = state.index
        here = slice(index, index + 1)
        if state.known is not None:
            if index in self.schedule.offsets:
                self._read_known(state, state.known.latent)
            tokens = torch.where(state.known.mask[:, here], state.given[:, here], tokens)
        state.tokens[:, here] = tokens
        state.index += 1
        return tokens

    def _read_known(self, state: RasterState, latent: Tensor) -> None:
        """The known tokens of the next scale, given the coarser scales."""
        scale = self.schedule.offsets.index(state.index)
        rest = latent
        if scale:
            rest = latent - self.quantiser.decode(self.schedule.split(state.tokens)[:scale])
        indices = self.quantiser.encode_scale(scale, rest)
        state.given[:, state.index : state.index + indices.shape[1]] = indices

    def _modulation(self, about: Tensor) -> Tensor:
        """(B, E) to the modulation of each block, (depth, B, 6, 1, E)."""
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
    """(L, E): Fourier features of each token's coordinates, and its scale."""

    features: Tensor
    scales: Tensor

    def __init__(self, schedule: ScaleSchedule, width: int) -> None:
        super().__init__()
        turns = frequencies(FREQUENCIES, max(schedule.latent))
        angles = (schedule_coordinates(schedule)[:, :, None] * turns).flatten(1)
        features = torch.cat([angles.sin(), angles.cos()], dim=1)
        self.register_buffer("features", features, persistent=False)
        self.register_buffer("scales", token_scales(schedule), persistent=False)
        self.site = nn.Linear(features.shape[1], width)
        self.level = nn.Embedding(len(schedule), width)
        nn.init.normal_(self.level.weight, std=INITIAL)

    def forward(self) -> Tensor:
        """(L, E)."""
        position: Tensor = self.site(self.features) + self.level(self.scales)
        return position


class Block(nn.Module):
    """Attention to all earlier tokens, then an MLP, each modulated by the condition."""

    def __init__(self, config: GeneratorConfig, schedule: ScaleSchedule) -> None:
        super().__init__()
        width = config.model.width
        self.table = nn.Parameter(torch.zeros(6, width))
        nn.init.ones_(self.table[2::3])  # gates, open from the start because runs are short
        self.norms = nn.ModuleList(nn.RMSNorm(width, elementwise_affine=False) for _ in range(2))
        self.attention = CausalAttention(config, schedule)
        hidden = round(config.model.mlp_ratio * width)
        self.rise, self.fall = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.dropout = nn.Dropout(config.model.dropout)

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        """(B, L, E) and (B, 6, 1, E) to (B, L, E)."""
        shift, scale, gate, *rest = modulation.unbind(1)
        mixed = self.attention(self.norms[0](x) * (1 + scale) + shift)
        return self._mlp(x + gate * self.dropout(mixed), *rest)

    def step(
        self, x: Tensor, modulation: Tensor, keys: Tensor, values: Tensor, index: int
    ) -> Tensor:
        """One token, (B, 1, E); the caches of the block are (B, H, L, W)."""
        shift, scale, gate, *rest = modulation.unbind(1)
        mixed = self.attention.step(self.norms[0](x) * (1 + scale) + shift, keys, values, index)
        return self._mlp(x + gate * mixed, *rest)

    def _mlp(self, x: Tensor, shift: Tensor, scale: Tensor, gate: Tensor) -> Tensor:
        hidden = gelu(self.rise(self.norms[1](x) * (1 + scale) + shift))
        out: Tensor = x + gate * self.dropout(self.fall(hidden))
        return out


class CausalAttention(nn.Module):
    """Token i attends to the inputs of tokens 0 to i."""

    def __init__(self, config: GeneratorConfig, schedule: ScaleSchedule) -> None:
        super().__init__()
        width, self.heads = config.model.width, config.model.depth
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width)
        self.norm_q, self.norm_k = (nn.RMSNorm(config.model.head_width) for _ in range(2))
        predicted = schedule_coordinates(schedule)
        held = torch.cat([predicted.new_full((1, 3), 0.5), predicted[:-1]])
        finest = max(schedule.latent)
        self.turn_q = Rotary(predicted, config.model.head_width, finest)
        self.turn_k = Rotary(held, config.model.head_width, finest)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, E) to the same."""
        q, k, v = self._heads(x, 0)
        return self._merge(attend(q, k, v, causal=True))

    def step(self, x: Tensor, keys: Tensor, values: Tensor, index: int) -> Tensor:
        """(B, 1, E) to the same; appends its key and value to the caches."""
        q, k, v = self._heads(x, index)
        seen = index + 1
        keys[:, :, index:seen], values[:, :, index:seen] = k, v
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


class RasterTask(GeneratorTask):
    """Train a `RasterModel` on tokens, without known tokens, which it would not see."""

    def save_model(self, folder: Path) -> None:
        """Nothing: `benchmarks/tokenizer.py`'s `load_best` reads the checkpoint."""

    def _draw_known(self, batch: int, random: torch.Generator) -> Tensor:
        return torch.zeros(batch, self.model.schedule.length, dtype=torch.bool)


def make_raster_task(settings: GeneratorSettings, tokens: str | Path) -> RasterTask:
    """Like `medar.generator.training.make_task`, for any tokenizer that `read_tokenizer` reads."""
    seed = settings.training.seed
    train = TokenDataset(tokens, split="train", seed=seed)
    validation = TokenDataset(tokens, split="val", variant=0)
    attributes = attributes_of(train.cases, settings.condition.attributes)
    tokenizer = read_tokenizer(train.tokenizer_folder)
    config = GeneratorConfig(model=settings.model, condition=ConditionConfig(attributes=attributes))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = RasterModel(config, tokenizer.quantiser)
    items = (GeneratorDataset(one, attributes) for one in (train, validation))
    return RasterTask(model, tokenizer, *items, settings)


def built(sizes: ModelSettings, tokenizer: Tokenizer) -> RasterModel:
    """An untrained model without conditions."""
    return RasterModel(GeneratorConfig(model=sizes), tokenizer.quantiser)


@torch.no_grad()
def sample_tokens(
    model: RasterModel,
    condition: Condition,
    seeds: Sequence[int],
    settings: SamplingSettings | None = None,
) -> Tensor:
    """Sample (B, L) tokens one by one, each from its own random number."""
    settings = settings or SamplingSettings()
    numbers = draw_numbers(seeds, model.schedule.length).to(condition.attributes.device)
    state, scales = model.begin(condition), token_scales(model.schedule).tolist()
    for index, scale in enumerate(scales):
        logits = model.next_logits(state).float()
        number = numbers[:, index : index + 1]
        model.append(state, choose(logits, number, settings, scale, len(model.schedule)))
    return state.tokens


def drawn(model: RasterModel, tokenizer: Tokenizer, seeds: Sequence[int]) -> Tensor:
    """Volumes (B, C, X, Y, Z) without conditions."""
    device = next(model.parameters()).device
    unknown = torch.full((len(seeds), len(model.config.condition.attributes)), torch.nan)
    tokens = sample_tokens(model, Condition(attributes=unknown.to(device)), seeds)
    pyramid = TokenPyramid.from_flat(tokens, model.schedule, model.codebook_size)
    return tokenizer.decode(pyramid).volume
