"""`Generator`: next-scale prediction (VAR, arXiv 2404.02905) of volumes, with linear blocks between
scales (after M-VAR, arXiv 2411.10433).

    tokens of scales < k -> quantiser -> their sum, on the grid of scale k
      + position + scale + map + known tokens -> blocks, under the condition -> logits of scale k

All tokens of a scale are predicted at once, and drawn in one or several passes
(`medar.generator.refinement`). The first scale sees only the condition. Training runs all scales
through the blocks together (`forward`). Sampling takes one scale after the other, each mixer
carrying its state (`start`, `next_logits`, `append`); a test holds the two to be equal. The
quantiser is the tokenizer's own, frozen.

Left out: VAR's start token and per-scale projections.

B batch, L tokens over all scales, T tokens of one scale, K scales, D code width, V codes, E width,
S modulated layers of a block.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from medar.devices import DeviceName, device_of, to_device
from medar.errors import MedarError
from medar.generator.blocks import Block, modulated_layers
from medar.generator.conditions import AttributeEmbedding, Condition
from medar.generator.convolutions import GridConvolutions
from medar.generator.folder import read_folder, write_folder
from medar.generator.known import KnownTokens
from medar.generator.maps import MapEncoder
from medar.generator.mixers import State
from medar.generator.positions import (
    PositionFeatures,
    Rotary,
    schedule_coordinates,
    token_scales,
)
from medar.generator.settings import GeneratorConfig, SamplingSettings
from medar.model_folder import digest_of, load_weights, weight_bytes
from medar.tokenizer.norms import Norm
from medar.tokenizer.quantiser import MultiScaleQuantiser
from medar.tokenizer.tokenizer import Tokenizer
from medar.volume import Shape3

QUANTISER = "quantiser."
"""Prefix of the weights that are the tokenizer's."""


@dataclass(kw_only=True, eq=False)
class SamplingState:
    """A batch while it is sampled; see `Generator.start`."""

    latent: Tensor
    """(B, D, x, y, z): the reconstruction so far, the sum over the scales in `scales`."""
    context: Tensor
    """(B, L, E): what each token is added to, from positions and conditions."""
    modulation: Tensor
    """(B, 3 S, E), from the attributes."""
    mixers: list[State]
    """Per block."""
    known: KnownTokens | None
    scales: list[Tensor] = field(default_factory=list)
    """(B, T) tokens per scale, so far."""
    forced: Tensor | None = None
    """(B, T): the known tokens of the next scale, given the scales so far."""

    @property
    def tokens(self) -> Tensor:
        """(B, L) once all scales are sampled."""
        return torch.cat(self.scales, dim=1)

    def joined(self, other: "SamplingState") -> "SamplingState":
        """One batch of these items and then those of another state, before a scale is drawn."""
        known = None
        if self.known is not None and other.known is not None:
            known = self.known.joined(other.known)
        return SamplingState(
            latent=torch.cat([self.latent, other.latent]),
            context=torch.cat([self.context, other.context]),
            modulation=torch.cat([self.modulation, other.modulation]),
            mixers=[
                {name: torch.cat([value, theirs[name]]) for name, value in own.items()}
                for own, theirs in zip(self.mixers, other.mixers, strict=True)
            ],
            known=known,
            scales=[torch.cat(pair) for pair in zip(self.scales, other.scales, strict=True)],
        )

    def first(self, batch: int) -> "SamplingState":
        """The first items alone."""
        if len(self.latent) == batch:
            return self
        return SamplingState(
            latent=self.latent[:batch],
            context=self.context[:batch],
            modulation=self.modulation[:batch],
            mixers=[{name: value[:batch] for name, value in own.items()} for own in self.mixers],
            known=None if self.known is None else self.known[:batch],
            scales=[scale[:batch] for scale in self.scales],
            forced=None if self.forced is None else self.forced[:batch],
        )


class Generator(nn.Module):
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
        self.config, sizes = config, config.model
        self.quantiser = quantiser.requires_grad_(False).eval()
        self.schedule, self.codebook_size = quantiser.schedule, quantiser.codebook.size
        width, code_width = sizes.width, quantiser.codebook.width
        positions, finest = schedule_coordinates(self.schedule), max(self.schedule.latent)
        rotary = Rotary(positions, sizes.head_width, finest)
        self.embed = nn.Linear(code_width, width)
        self.position = PositionFeatures(positions, width, finest)
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
        self.augmented = nn.Parameter(torch.zeros(width)) if config.condition.augmentation else None
        self.convolutions = (
            GridConvolutions(
                sizes.convolutions,
                width,
                self.schedule,
                sizes.dropout,
                activation_checkpointing=sizes.activation_checkpointing,
            )
            if sizes.convolutions
            else None
        )
        self.modulate = nn.Linear(width, 3 * modulated_layers(sizes) * width)
        self.blocks = nn.ModuleList(
            Block(sizes, self.schedule, rotary, layer) for layer in range(sizes.depth)
        )
        self.norm = Norm(width, eps=1e-6)
        self.head = nn.Linear(width, self.codebook_size)
        self.register_buffer("levels", token_scales(self.schedule), persistent=False)
        self._initialise()

    @classmethod
    def for_tokenizer(cls, config: GeneratorConfig, tokenizer: Tokenizer) -> "Generator":
        """An untrained generator of a tokenizer's tokens."""
        return cls(config, tokenizer.quantiser, tokenizer.config.network.downsampling)

    @classmethod
    def from_pretrained(cls, path: str | Path, device: DeviceName = "auto") -> "Generator":
        """The generator of a model folder, in evaluation mode.

        Args:
            path: the model folder, or that of its training run; or a name (`find_model`).
            device: "auto" is CUDA where available.

        Raises:
            MedarError: see `load`.
        """
        return cls.load(path, device)[0]

    @classmethod
    def load(
        cls, path: str | Path, device: DeviceName = "auto"
    ) -> tuple["Generator", Tokenizer, SamplingSettings]:
        """A generator with its tokenizer, both in evaluation mode, and default sampling settings.

        Args:
            path: the model folder, or that of its training run; or a name (`find_model`).
            device: "auto" is CUDA where available.

        Raises:
            MedarError: a file is absent, damaged or of another class or format; a tokenizer that
                the generator was not trained with; or no such device.
        """
        folder, config, tokenizer, sampling = read_folder(path)
        generator = cls.for_tokenizer(config, tokenizer)
        load_weights(generator, folder, elsewhere=QUANTISER)
        to_device(tokenizer, device)
        return generator.to(device_of(tokenizer)).eval(), tokenizer, sampling

    def save_pretrained(
        self,
        folder: str | Path,
        tokenizer: Tokenizer | str | Path,
        sampling: SamplingSettings | None = None,
    ) -> None:
        """Write a model folder that `from_pretrained` reads.

        Args:
            folder: to be written.
            tokenizer: whose tokens it predicts, or the tokenizer's folder.
            sampling: the folder's default sampling settings.

        Raises:
            MedarError: the tokenizer's folder holds none, or the sampling settings do not fit.
        """
        if not isinstance(tokenizer, Tokenizer):
            tokenizer = Tokenizer.from_pretrained(tokenizer, "cpu")
        named = self.named_parameters()
        parameters = sum(p.numel() for name, p in named if not name.startswith(QUANTISER))
        write_folder(
            folder,
            self.config,
            self._weights(),
            parameters,
            tokenizer,
            sampling or SamplingSettings(),
        )

    @property
    def digest(self) -> str:
        """A hash of config and weights, without the quantiser's."""
        return digest_of(self._weights())

    def forward(
        self,
        tokens: Tensor,
        condition: Condition,
        known: Tensor | None = None,
        indices: Tensor | None = None,
    ) -> Tensor:
        """Logits of every token given the tokens of coarser scales, (B, L, V).

        Args:
            tokens: (B, L) int64, the input.
            condition: of B volumes.
            known: (B, L) bool, known tokens, which are seen at all scales; default none.
            indices: (C,), the tokens of a crop (`medar.generator.crops`), whose logits are
                returned, (B, C, V); default all.
        """
        attributes = self._embed_attributes(condition)
        seen = self._reconstructions(tokens)
        # Convolutions see whole grids, beyond the crop as well.
        crop = indices if self.convolutions is None else None
        if crop is not None:
            seen, tokens = seen.index_select(1, crop), tokens.index_select(1, crop)
            known = None if known is None else known.index_select(1, crop)
        x = self.embed(seen) + self._context(condition, attributes, crop)
        if known is not None:
            x = x + self._embed_known(tokens, known)
        if self.convolutions is not None:
            x = self.convolutions(x)
            x = x if indices is None else x.index_select(1, indices)
        modulation = self._modulation(attributes)
        for block in self._blocks():
            x = block(x, modulation, indices)
        return self._logits(x)

    def start(self, condition: Condition, known: KnownTokens | None = None) -> SamplingState:
        """The state before the first scale.

        Args:
            condition: of B volumes.
            known: tokens of those volumes that are given instead of sampled.
        """
        attributes = self._embed_attributes(condition)
        context = self._context(condition, attributes)
        shape = (len(condition), self.quantiser.codebook.width, *self.schedule.latent)
        return SamplingState(
            latent=torch.zeros(shape, device=context.device),
            context=context,
            modulation=self._modulation(attributes),
            mixers=[block.mixer.start(context) for block in self._blocks()],
            known=known,
        )

    def next_logits(
        self,
        state: SamplingState,
        tokens: Tensor | None = None,
        revealed: Tensor | None = None,
        *,
        advance: bool = True,
    ) -> Tensor:
        """Logits of the next scale, (B, T, V).

        Args:
            state: after the scales before it.
            tokens: (B, T) tokens of this scale; only the revealed ones matter.
            revealed: (B, T) bool, which of them were drawn already; default none.
            advance: move the states of the mixers on. This must happen once per scale: in its last
                pass.
        """
        k = len(state.scales)
        part = self._part(k)
        x = self.embed(self._scaled(self.quantiser.seen(k, state.latent))) + state.context[:, part]
        if state.known is not None:
            state.forced = self.quantiser.encode_scale(k, state.known.latent - state.latent)
            known = state.known.mask[:, part]
            tokens = state.forced if tokens is None else torch.where(known, state.forced, tokens)
            revealed = known if revealed is None else known | revealed
        if tokens is not None and revealed is not None:
            x = x + self._embed_known(tokens, revealed)
        if self.convolutions is not None:
            x = self.convolutions.step(k, x)
        for index, block in enumerate(self._blocks()):
            x, mixer = block.step(k, x, state.modulation, state.mixers[index])
            if advance:
                state.mixers[index] = mixer
        return self._logits(x)

    def append(self, state: SamplingState, tokens: Tensor) -> Tensor:
        """Add the chosen tokens of the next scale, (B, T), to the state.

        Returns:
            The tokens as added: known ones replace those that were chosen.
        """
        k = len(state.scales)
        if state.known is not None and state.forced is not None:
            known = state.known.mask[:, self._part(k)]
            tokens = torch.where(known, state.forced, tokens)
        state.scales.append(tokens)
        # One by one: in a batch, convolutions round otherwise, and samples depend on it.
        added = [self.quantiser.contribution(k, one[None]) for one in tokens]
        state.latent = state.latent + torch.cat(added)
        state.forced = None
        return tokens

    @property
    def state_size(self) -> int:
        """Elements that sampling carries from scale to scale per volume, at most."""
        sites = self.schedule.tokens[-1]
        mixers = sum(block.mixer.state_size for block in self._blocks())
        return mixers + sites * self.quantiser.codebook.width

    def train(self, mode: bool = True) -> "Generator":
        """Set training mode; the quantiser stays in evaluation mode."""
        super().train(mode)
        self.quantiser.eval()
        return self

    @torch.no_grad()
    def _reconstructions(self, tokens: Tensor) -> Tensor:
        """(B, L, D): for each token, the sum of all coarser scales at its site."""
        first, *_ = scales = self.schedule.split(tokens)
        nothing = torch.zeros((*first.shape, self.quantiser.codebook.width), device=tokens.device)
        later = self.quantiser.inputs(scales[:-1]) if len(scales) > 1 else ()
        return torch.cat([nothing, *map(self._scaled, later)], dim=1)

    def _scaled(self, seen: Tensor) -> Tensor:
        """(B, D, x, y, z) as (B, T, D), in units of the quantiser's largest gain."""
        return seen.flatten(2).transpose(1, 2) / self.quantiser.gains.max()

    def _context(
        self, condition: Condition, attributes: Tensor, indices: Tensor | None = None
    ) -> Tensor:
        """(B, L, E), or of a crop: position, scale, attributes and map of each token."""
        levels = self.levels if indices is None else self.levels[indices]
        # The residual stream is float32, whatever the layers compute in.
        where = (self.position(indices) + self.level(levels)).float()
        context: Tensor = where + attributes[:, None]
        if self.map is not None:
            added: Tensor = self.map(condition.map)
            return context + (added if indices is None else added.index_select(1, indices))
        if condition.map is not None:
            raise MedarError("this generator was trained without maps; leave the map out")
        return context

    def _embed_attributes(self, condition: Condition) -> Tensor:
        """(B, E), with the vector of augmented items."""
        attributes: Tensor = self.attributes(condition.attributes)
        if self.augmented is None or condition.augmented is None:
            return attributes
        return attributes + condition.augmented[:, None] * self.augmented

    def _embed_known(self, tokens: Tensor, known: Tensor) -> Tensor:
        """(B, T, E): the codes of the known tokens, (B, T); zero elsewhere."""
        codes = self.quantiser.codebook.lookup(tokens)
        flagged = torch.cat([codes, torch.ones_like(codes[..., :1])], dim=-1)
        embedded: Tensor = self.known(flagged * known[..., None])
        return embedded

    def _part(self, k: int) -> slice:
        """Where the tokens of scale k lie among those of all scales."""
        start = self.schedule.offsets[k]
        return slice(start, start + self.schedule.tokens[k])

    def _modulation(self, attributes: Tensor) -> Tensor:
        """(B, 3 S, E), which all blocks share."""
        modulation: Tensor = self.modulate(silu(attributes))
        return modulation.view(len(attributes), -1, self.config.model.width)

    def _logits(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.norm(x))
        return logits

    def _weights(self) -> bytes:
        """The weights as a safetensors file, without the quantiser's."""
        state = self.state_dict()
        own = {name: value for name, value in state.items() if not name.startswith(QUANTISER)}
        return weight_bytes(own, f"{type(self).__name__} {self.config.function}")

    def _blocks(self) -> Iterator[Block]:
        for block in self.blocks:
            assert isinstance(block, Block)
            yield block

    def _initialise(self) -> None:
        """Residual stream and logits start small; the condition does not modulate at first."""
        nn.init.normal_(self.level.weight, std=(3 * self.config.model.width) ** -0.5)
        nn.init.zeros_(self.modulate.weight)
        nn.init.zeros_(self.modulate.bias)
        with torch.no_grad():
            self.head.weight *= 0.02
        nn.init.zeros_(self.head.bias)
