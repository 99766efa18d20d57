"""The convolutional encoder and decoder around the quantiser.

    volume -> fold, stem -> [blocks, halve] x levels -> blocks -> norm, SiLU, head -> latent
    latent -> stem -> blocks -> [double, blocks] x levels -> norm, SiLU, heads, unfold -> volume

Folding takes each patch of voxels as the channels of one site (sub-pixel convolution, arXiv
1609.05158, and its inverse): full resolution, where convolutions cost most and hold least, is left
out.

The layout is that of VQGAN (arXiv 2012.09841) in three dimensions, without its attention and with
a norm of each site by itself (RMSNorm over channels, arXiv 1910.07467, as in the video autoencoder
of arXiv 2503.20314) in place of GroupNorm. GroupNorm's statistics run over the whole volume, so
that a tile would be decoded otherwise than the whole; here each output depends on a known
neighbourhood alone, and `medar.tokenizer.tiles` is exact.

Memory format, precision and compilation are the caller's: `.to(memory_format=channels_last_3d)`
and autocast are the fast path on CPU and GPU alike.

Shapes: B batch, C channels, X Y Z voxels, x y z sites of the latent, D code width.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from medar.errors import MedarError
from medar.settings import STRICT
from medar.volume import Shape3


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """Sizes of the encoder and the decoder.

    Raises:
        MedarError: a size below 1, or a downsampling factor that is no power of two.
    """

    __pydantic_config__: ClassVar[Any] = STRICT

    channels: int = 1
    """C, channels of the volume."""
    patch: int = 1
    """Voxels along a side that enter as channels of one site, a power of two. An axis with little
    downsampling is folded less."""
    width: int = 16
    """Features at the first level, the dial for size: the other levels are multiples of it."""
    growth: tuple[int, ...] = (1, 2, 4, 4)
    """Those multiples, from the first level down; the last holds for all further levels."""
    code_width: int = 32
    """D, features of a site of the latent."""
    downsampling: Shape3 = (8, 8, 8)
    """Voxels per site along each axis, powers of two. An axis with fewer halvings (the one of thick
    slices) is halved at the coarsest levels only."""
    blocks: int = 1
    """Residual blocks per level, in the encoder and in the decoder."""
    labels: int = 0
    """Labels that the decoder tells apart beside the background; 0: it has no label head."""
    checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""

    def __post_init__(self) -> None:
        for name in ("channels", "width", "code_width", "blocks"):
            if getattr(self, name) < 1:
                raise MedarError(f"network {name} {getattr(self, name)}: allowed from 1")
        if min(self.growth, default=0) < 1:
            raise MedarError(f"network growth {list(self.growth)}: one or more numbers from 1")
        if self.labels < 0:
            raise MedarError(f"network labels {self.labels}: allowed from 0 (no label head)")
        if any(factor < 1 or factor & (factor - 1) for factor in self.downsampling):
            raise MedarError(
                f"network downsampling {list(self.downsampling)}: allowed powers of two, 1 included"
            )
        if self.patch < 1 or self.patch & (self.patch - 1) or self.patch > max(self.downsampling):
            raise MedarError(
                f"network patch {self.patch}: allowed powers of two up to the downsampling, "
                f"{max(self.downsampling)}"
            )

    @property
    def fold(self) -> Shape3:
        """Voxels along each axis that enter as channels of one site."""
        folded = self._halvings[: self.patch.bit_length() - 1]
        x, y, z = (prod(step[axis] for step in folded) for axis in range(3))
        return x, y, z

    @property
    def strides(self) -> tuple[Shape3, ...]:
        """Stride of each step from the first level to the latent; times `fold` it is the whole."""
        return self._halvings[self.patch.bit_length() - 1 :]

    @property
    def _halvings(self) -> tuple[Shape3, ...]:
        halvings = [factor.bit_length() - 1 for factor in self.downsampling]
        steps = max(halvings)
        x, y, z = ([1 + (step >= steps - count) for step in range(steps)] for count in halvings)
        return tuple(zip(x, y, z, strict=True))

    @property
    def widths(self) -> tuple[int, ...]:
        """Features of each level, one more than there are strides, the finest first."""
        levels, last = len(self.strides) + 1, len(self.growth) - 1
        return tuple(self.width * self.growth[min(level, last)] for level in range(levels))

    def latent(self, shape: Shape3) -> Shape3:
        """The latent grid of a volume of `shape`.

        Raises:
            MedarError: an axis is no multiple of its downsampling factor.
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
        layers: list[nn.Module] = [
            Fold(config.fold),
            _conv(config.channels * prod(config.fold), widths[0]),
        ]
        layers += _blocks(config, widths[0])
        for stride, before, after in zip(config.strides, widths[:-1], widths[1:], strict=True):
            layers.append(nn.Conv3d(before, after, kernel_size=stride, stride=stride))
            layers += _blocks(config, after)
        self.trunk = nn.Sequential(*layers, ChannelNorm(widths[-1]), nn.SiLU())
        self.head = _conv(widths[-1], config.code_width)

    def forward(self, volume: Tensor) -> Tensor:
        """Encode (B, C, X, Y, Z) in [-1, 1] as (B, D, x, y, z).

        Raises:
            MedarError: a side is no multiple of its downsampling factor.
        """
        x, y, z = volume.shape[2:]
        self.config.latent((x, y, z))
        return _tensor(self.head(self.trunk(volume)))


class Decoded(NamedTuple):
    """What a latent decodes to."""

    volume: Tensor
    """(B, C, X, Y, Z)."""
    logits: Tensor | None
    """(B, labels + 1, X, Y, Z), background first; None without a label head."""


class Decoder(nn.Module):
    """(B, D, x, y, z) to (B, C, X, Y, Z), and to label logits where the network has labels."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.widths[::-1]
        layers: list[nn.Module] = [_conv(config.code_width, widths[0])]
        layers += _blocks(config, widths[0])
        strides = config.strides[::-1]
        for stride, before, after in zip(strides, widths[:-1], widths[1:], strict=True):
            layers += [Repeat(stride), _conv(before, after)]
            layers += _blocks(config, after)
        self.trunk = nn.Sequential(*layers, ChannelNorm(widths[-1]), nn.SiLU())
        patch = prod(config.fold)
        self.head = _head(widths[-1], config.channels, patch)
        self.label_head = _head(widths[-1], config.labels + 1, patch) if config.labels else None
        self.unfold = Unfold(config.fold)

    def forward(self, latent: Tensor) -> Decoded:
        """Decode (B, D, x, y, z)."""
        features = self.trunk(latent)
        logits = None
        if self.label_head is not None:
            logits = self.unfold(self.label_head(features))
        return Decoded(self.unfold(self.head(features)), logits)

    @property
    def last_layer(self) -> nn.Parameter:
        """The weight that the volume comes from: where losses are balanced against each other."""
        weight = self.head.weight
        assert isinstance(weight, nn.Parameter)
        return weight

    @property
    def reach(self) -> Shape3:
        """Sites on either side of its own that a decoded voxel depends on, along each axis."""
        modules = [*self.trunk.modules(), self.head, self.unfold]
        x, y, z = (_reach(modules, axis, self.config.downsampling[axis]) for axis in range(3))
        return x, y, z


class ResidualBlock(nn.Module):
    """Twice norm, SiLU, convolution, added to what came in."""

    def __init__(self, width: int, *, checkpointing: bool) -> None:
        super().__init__()
        self.checkpointing = checkpointing
        self.body = nn.Sequential(
            ChannelNorm(width), nn.SiLU(), _conv(width, width),
            ChannelNorm(width), nn.SiLU(), _conv(width, width),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, X, Y, Z) to the same."""
        if self.checkpointing and torch.is_grad_enabled():
            return x + _tensor(checkpoint(self.body, x, use_reentrant=False))
        return x + _tensor(self.body(x))


class ChannelNorm(nn.RMSNorm):
    """RMSNorm of each site over its channels, (B, C, X, Y, Z) to the same."""

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        # Under autocast the features are bf16 and the weight is not: the fused kernel wants one.
        weight = self.weight.to(x.dtype)
        last = functional.rms_norm(x.movedim(1, -1), self.normalized_shape, weight, self.eps)
        return last.movedim(-1, 1)


class Repeat(nn.Module):
    """Each site repeated along each axis: nearest-neighbour upsampling by whole factors."""

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
        return _tensor(rearrange(x, pattern, i=i, j=j, k=k)).movedim(-1, 1)


class Unfold(nn.Module):
    """The inverse of `Fold`: (B, C fx fy fz, x, y, z) to (B, C, fx x, fy y, fz z)."""

    def __init__(self, factors: Shape3) -> None:
        super().__init__()
        self.factors = factors

    def forward(self, x: Tensor) -> Tensor:
        """Unfold."""
        if self.factors == (1, 1, 1):
            return x
        i, j, k = self.factors
        pattern = "b (c i j k) x y z -> b (x i) (y j) (z k) c"
        return _tensor(rearrange(x, pattern, i=i, j=j, k=k)).movedim(-1, 1)


class Cost(NamedTuple):
    """What a network takes."""

    parameters: int
    flops: int
    """Operations (two for a multiplication with addition) of encoding and decoding one volume; a
    training step takes three times as many for each volume of the batch."""


def cost(config: NetworkConfig, shape: Shape3) -> Cost:
    """Parameters and operations of encoder and decoder for a volume of `shape`, without running.

    Raises:
        MedarError: a side of `shape` is no multiple of its downsampling factor.
    """
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"), torch.no_grad():
        network = nn.Sequential(Encoder(config), Decoder(config))
        with FlopCounterMode(display=False) as counter:
            network(torch.empty(1, config.channels, *shape))
    return Cost(sum(p.numel() for p in network.parameters()), counter.get_total_flops())


def _conv(before: int, after: int) -> nn.Conv3d:
    return nn.Conv3d(before, after, kernel_size=3, padding=1)


def _head(before: int, after: int, patch: int) -> nn.Conv3d:
    """Before `Unfold`: the voxels of a patch start out equal, so that none of its grid is left in
    the volume (arXiv 1707.02937)."""
    head = _conv(before, after * patch)
    with torch.no_grad():
        head.weight.copy_(head.weight[::patch].repeat_interleave(patch, 0))
        assert head.bias is not None
        head.bias.copy_(head.bias[::patch].repeat_interleave(patch, 0))
    return head


def _blocks(config: NetworkConfig, width: int) -> list[nn.Module]:
    block = ResidualBlock
    return [block(width, checkpointing=config.checkpointing) for _ in range(config.blocks)]


def _reach(modules: Iterable[nn.Module], axis: int, factor: int) -> int:
    """How far the voxels of site 0 look back through `modules`, which stand in order of use."""
    low, high = 0, factor - 1
    for module in reversed(list(modules)):
        if isinstance(module, nn.Conv3d):
            spread = module.kernel_size[axis] // 2
            low, high = low - spread, high + spread
        elif isinstance(module, Repeat | Unfold):
            low, high = low // module.factors[axis], high // module.factors[axis]
    return max(-low, high)


def _tensor(value: Any) -> Tensor:
    """`value`, for the type checker: modules of torch return Any."""
    assert isinstance(value, Tensor)
    return value
