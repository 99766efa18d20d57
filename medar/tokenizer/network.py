"""The convolutional encoder and decoder around the quantiser.

    volume -> fold, stem -> [blocks, halve] x levels -> blocks -> norm, SiLU, head -> latent
    latent -> stem -> blocks -> [double, blocks] x levels -> norm, SiLU, heads, unfold -> volume

Folding takes each patch of voxels as the channels of one site (sub-pixel convolution, arXiv
1609.05158, and its inverse). Nothing is convolved at full resolution, where convolutions cost the
most and help the least.

The layout is that of VQGAN (arXiv 2012.09841) in three dimensions, without attention, and with a
norm of each site over its channels (RMSNorm, arXiv 1910.07467, as in the video autoencoder of arXiv
2503.20314) in place of GroupNorm. The statistics of GroupNorm run over the whole volume, so that a
part would be decoded differently from the whole; here each output depends on a bounded
neighbourhood, and `medar.tokenizer.slabs` is exact.

Memory format, precision and compilation are up to the caller; `.to(memory_format=channels_last_3d)`
with autocast is the fast path on CPU and GPU.

B batch, C channels, X Y Z voxels, x y z sites of the latent, D code width.
"""

from math import prod
from typing import Annotated, NamedTuple

import torch
from einops import rearrange
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from medar.errors import MedarError
from medar.settings import Depth, NonNegativeInt, PositiveInt, Width, settings
from medar.tokenizer.convolution import Convolution
from medar.tokenizer.norms import Norm
from medar.volume import Shape3

RENAMED = {
    "patch": "patch_size",
    "growth": "width_multipliers",
    "blocks": "blocks_per_level",
    "checkpointing": "activation_checkpointing",
}
"""Former names of keys that `NetworkConfig` and `ModelSettings` have in common."""

Multipliers = Annotated[tuple[Width, ...], Field(min_length=1)]


@settings(renamed=RENAMED)
class NetworkConfig:
    """Sizes of the encoder and the decoder.

    Raises:
        MedarError: a value out of range, or one that must be a power of two and is not.
    """

    channels: PositiveInt = 1
    """C, channels of the volume."""
    patch_size: PositiveInt = 1
    """Voxels per side that are folded into the channels of one site, a power of two. An axis with
    little downsampling is folded less."""
    width: Width = 16
    """Features at the first level; the other levels are multiples of it."""
    width_multipliers: Multipliers = (1, 2, 4, 4)
    """These multiples, from the first level on; the last one holds for all further levels."""
    code_width: Width = 32
    """D, features of a site of the latent."""
    downsampling: Shape3 = (8, 8, 8)
    """Voxels per site along each axis, powers of two. An axis with fewer halvings (that of thick
    slices) is halved at the coarsest levels only."""
    blocks_per_level: Depth = 1
    """Residual blocks per level, in the encoder and in the decoder."""
    labels: NonNegativeInt = 0
    """Number of labels of the decoder's label head, without the background; 0: no label head."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""

    def __post_init__(self) -> None:
        if any(factor < 1 or factor & (factor - 1) for factor in self.downsampling):
            raise MedarError(
                f"downsampling must be powers of two (1 included), got {list(self.downsampling)}"
            )
        if self.patch_size & (self.patch_size - 1) or self.patch_size > max(self.downsampling):
            raise MedarError(
                f"patch_size must be a power of two up to the downsampling, "
                f"{max(self.downsampling)}, got {self.patch_size}"
            )

    @property
    def fold(self) -> Shape3:
        """Voxels along each axis that are folded into the channels of one site."""
        folded = self._halvings[: self.patch_size.bit_length() - 1]
        x, y, z = (prod(step[axis] for step in folded) for axis in range(3))
        return x, y, z

    @property
    def strides(self) -> tuple[Shape3, ...]:
        """Strides from the first level to the latent; with `fold` they make up `downsampling`."""
        return self._halvings[self.patch_size.bit_length() - 1 :]

    @property
    def _halvings(self) -> tuple[Shape3, ...]:
        halvings = [factor.bit_length() - 1 for factor in self.downsampling]
        steps = max(halvings)
        x, y, z = ([1 + (step >= steps - count) for step in range(steps)] for count in halvings)
        return tuple(zip(x, y, z, strict=True))

    @property
    def widths(self) -> tuple[int, ...]:
        """Features of each level, finest first: one more than there are strides."""
        levels, last = len(self.strides) + 1, len(self.width_multipliers) - 1
        return tuple(
            self.width * self.width_multipliers[min(level, last)] for level in range(levels)
        )

    def latent(self, shape: Shape3) -> Shape3:
        """The latent grid of a volume of `shape`.

        Raises:
            MedarError: a side is not a multiple of its downsampling factor.
        """
        pairs = list(zip(shape, self.downsampling, strict=True))
        if any(size < factor or size % factor for size, factor in pairs):
            raise MedarError(
                f"volume of {' x '.join(map(str, shape))} voxels: each side must be a multiple of "
                f"the downsampling {list(self.downsampling)}; pad or crop it, or change the plan"
            )
        x, y, z = (size // factor for size, factor in pairs)
        return x, y, z


class Encoder(nn.Module):
    """(B, C, X, Y, Z) to (B, D, x, y, z)."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.widths
        self.fold = Fold(config.fold)
        self.stem = Convolution(config.channels * prod(config.fold), widths[0])
        self.levels = nn.ModuleList([nn.Sequential(*_blocks(config, widths[0]))])
        for stride, before, after in zip(config.strides, widths[:-1], widths[1:], strict=True):
            halve = nn.Conv3d(before, after, kernel_size=stride, stride=stride)
            self.levels.append(nn.Sequential(halve, *_blocks(config, after)))
        self.norm = ChannelNorm(widths[-1])
        self.head = Convolution(widths[-1], config.code_width)

    def forward(self, volume: Tensor) -> Tensor:
        """Encode (B, C, X, Y, Z) in [-1, 1] as (B, D, x, y, z).

        Raises:
            MedarError: a side is not a multiple of its downsampling factor.
        """
        x, y, z = volume.shape[2:]
        self.config.latent((x, y, z))
        features = self.stem(self.fold(volume))
        for level in self.levels:
            features = level(features)
        latent: Tensor = self.head(functional.silu(self.norm(features)))
        return latent


class Decoded(NamedTuple):
    """A decoded latent."""

    volume: Tensor
    """(B, C, X, Y, Z)."""
    logits: Tensor | None
    """(B, labels + 1, X, Y, Z), background first; None without a label head."""


class Decoder(nn.Module):
    """(B, D, x, y, z) to (B, C, X, Y, Z), and to label logits if the network has labels."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        widths, strides, patch = config.widths[::-1], config.strides[::-1], prod(config.fold)
        self.stem = Convolution(config.code_width, widths[0])
        self.levels = nn.ModuleList([nn.Sequential(*_blocks(config, widths[0]))])
        for stride, before, after in zip(strides, widths[:-1], widths[1:], strict=True):
            double = [Repeat(stride), Convolution(before, after)]
            self.levels.append(nn.Sequential(*double, *_blocks(config, after)))
        self.norm = ChannelNorm(widths[-1])
        self.head = _head(widths[-1], config.channels, patch)
        self.label_head = _head(widths[-1], config.labels + 1, patch) if config.labels else None
        self.unfold = Unfold(config.fold)

    def forward(self, latent: Tensor) -> Decoded:
        """Decode (B, D, x, y, z)."""
        features = self.stem(latent)
        for level in self.levels:
            features = level(features)
        features = functional.silu(self.norm(features))
        volume = self.unfold(self.head(features))
        if self.label_head is None:
            return Decoded(volume, None)
        return Decoded(volume, self.unfold(self.label_head(features)))

    @property
    def last_layer(self) -> nn.Parameter:
        """The last weight before the volume, at which losses are balanced against each other."""
        weight = self.head.weight
        assert isinstance(weight, nn.Parameter)
        return weight


class ResidualBlock(nn.Module):
    """x + f(x), with f: norm, SiLU, convolution, twice."""

    def __init__(self, width: int, *, activation_checkpointing: bool = False) -> None:
        super().__init__()
        self.activation_checkpointing = activation_checkpointing
        self.body = nn.Sequential(
            ChannelNorm(width), nn.SiLU(), Convolution(width, width),
            ChannelNorm(width), nn.SiLU(), Convolution(width, width),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, X, Y, Z) to the same shape."""
        change: Tensor
        if self.activation_checkpointing and torch.is_grad_enabled():
            change = checkpoint(self.body, x, use_reentrant=False)
        else:
            change = self.body(x)
        return x + change


class ChannelNorm(Norm):
    """RMSNorm of each site over its channels, (B, C, X, Y, Z) to the same shape."""

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class Repeat(nn.Module):
    """Nearest-neighbour upsampling by integer factors."""

    def __init__(self, factors: Shape3) -> None:
        super().__init__()
        self.factors = factors

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, x, y, z) to (B, C, fx x, fy y, fz z)."""
        size = [n * factor for n, factor in zip(x.shape[2:], self.factors, strict=True)]
        return functional.interpolate(x, size=size, mode="nearest")


class Fold(nn.Module):
    """Patches of voxels as channels: (B, C, fx x, fy y, fz z) to (B, C fx fy fz, x, y, z)."""

    def __init__(self, factors: Shape3) -> None:
        super().__init__()
        self.factors = factors

    def forward(self, x: Tensor) -> Tensor:
        """Fold, in the memory format of `x`."""
        if self.factors == (1, 1, 1):
            return x
        i, j, k = self.factors
        pattern = "b c (x i) (y j) (z k) -> b x y z (c i j k)"
        folded: Tensor = rearrange(x, pattern, i=i, j=j, k=k)
        return folded.movedim(-1, 1)


class Unfold(nn.Module):
    """The inverse of `Fold`: (B, C fx fy fz, x, y, z) to (B, C, fx x, fy y, fz z)."""

    def __init__(self, factors: Shape3) -> None:
        super().__init__()
        self.factors = factors

    def forward(self, x: Tensor) -> Tensor:
        """Unfold, in the memory format of `x`."""
        if self.factors == (1, 1, 1):
            return x
        i, j, k = self.factors
        pattern = "b (c i j k) x y z -> b (x i) (y j) (z k) c"
        unfolded: Tensor = rearrange(x, pattern, i=i, j=j, k=k)
        return unfolded.movedim(-1, 1)


class Cost(NamedTuple):
    """The cost of a network."""

    parameters: int
    flops: int
    """Operations to encode and decode one volume, two per multiply-add; a training step takes three
    times as many per volume of the batch."""


def cost(config: NetworkConfig, shape: Shape3) -> Cost:
    """Parameters and operations of encoder and decoder for a volume of `shape`, without running.

    Raises:
        MedarError: a side of `shape` is not a multiple of its downsampling factor.
    """
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"), torch.no_grad():
        network = nn.Sequential(Encoder(config), Decoder(config))
        with FlopCounterMode(display=False) as counter:
            network(torch.empty(1, config.channels, *shape))
    return Cost(sum(p.numel() for p in network.parameters()), counter.get_total_flops())


def _head(before: int, after: int, patch: int) -> Convolution:
    """A convolution before `Unfold`, initialised equal for the voxels of a patch, so that the patch
    grid does not show in the volume (arXiv 1707.02937)."""
    head = Convolution(before, after * patch)
    with torch.no_grad():
        head.weight.copy_(head.weight[::patch].repeat_interleave(patch, 0))
        assert head.bias is not None
        head.bias.copy_(head.bias[::patch].repeat_interleave(patch, 0))
    return head


def _blocks(config: NetworkConfig, width: int) -> list[nn.Module]:
    checkpointing = config.activation_checkpointing
    return [
        ResidualBlock(width, activation_checkpointing=checkpointing)
        for _ in range(config.blocks_per_level)
    ]
