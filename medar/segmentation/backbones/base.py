"""`Backbone`: the interface of segmentation networks without their last layer.

    volume -> features: a list of levels, finest first -> decode -> W features per voxel

A backbone is an encoder and a decoder. Both name their stages from the input to the output:
stages determine layer-wise learning rates, and whether a weight belongs to the encoder.

B batch, C channels, X Y Z voxels, W features per voxel.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from medar.errors import MedarError
from medar.volume import Shape3

Stages = tuple[tuple[str, ...], ...]
"""Names of submodules, stage by stage from the input to the output."""

PADDING_VALUE = -1.0
"""The lowest intensity of prepared volumes."""


class Backbone(nn.Module, ABC):
    """An encoder with features at several resolutions, and a decoder back to the finest.

    Subclasses are built from `BackboneSettings` and a `Plan`, and set the four attributes below.
    Every submodule with weights must appear in `encoder_stages` or `decoder_stages`.
    """

    channels: tuple[int, ...]
    """Features of each level of `features`, finest first."""
    strides: tuple[Shape3, ...]
    """Stride of each level relative to the one before; of the first, relative to the volume."""
    encoder_stages: Stages
    decoder_stages: Stages

    @abstractmethod
    def features(self, volume: Tensor) -> list[Tensor]:
        """Encode (B, C, X, Y, Z), sides multiples of `multiple`, into levels, finest first."""

    @abstractmethod
    def decode_levels(self, features: list[Tensor]) -> list[Tensor]:
        """Decode the output of `features` into the decoder's levels, finest first.

        Each has the channels and shape of the same level of `features`, whose coarsest level has no
        counterpart. The first is (B, W, X, Y, Z).
        """

    def decode(self, features: list[Tensor]) -> Tensor:
        """The decoder's finest level, (B, W, X, Y, Z)."""
        return self.decode_levels(features)[0]

    @property
    def width(self) -> int:
        """W."""
        return self.channels[0]

    @property
    def steps(self) -> tuple[Shape3, ...]:
        """Stride of each level relative to the volume, in voxels per axis."""
        steps, x, y, z = [], 1, 1, 1
        for i, j, k in self.strides:
            x, y, z = x * i, y * j, z * k
            steps.append((x, y, z))
        return tuple(steps)

    @property
    def multiple(self) -> Shape3:
        """The sides of an encoded volume must be multiples of this."""
        return self.steps[-1]

    def forward(self, volume: Tensor) -> Tensor:
        """(B, C, X, Y, Z) of any size to (B, W, X, Y, Z)."""
        x, y, z = volume.shape[2:]
        return self.decode(self.features(self.padded(volume)))[..., :x, :y, :z]

    def padded(self, volume: Tensor) -> Tensor:
        """(B, C, X, Y, Z) padded at the far ends to sides that are multiples of `multiple`."""
        short = [-n % m for n, m in zip(volume.shape[2:], self.multiple, strict=True)]
        if not any(short):
            return volume
        return pad(volume, [end for n in reversed(short) for end in (0, n)], value=PADDING_VALUE)

    def stage_parameters(self) -> list[list[nn.Parameter]]:
        """Parameters of each stage, from the input to the output; each parameter once."""
        return [
            [p for name in stage for p in self.get_submodule(name).parameters()]
            for stage in (*self.encoder_stages, *self.decoder_stages)
        ]

    def encoder_parameters(self) -> list[nn.Parameter]:
        """Parameters of the encoder."""
        return [p for stage in self.stage_parameters()[: len(self.encoder_stages)] for p in stage]

    def encoder_weights(self) -> dict[str, Tensor]:
        """The encoder's part of the state dict."""
        prefixes = tuple(f"{name}." for stage in self.encoder_stages for name in stage)
        return {n: value for n, value in self.state_dict().items() if n.startswith(prefixes)}

    def load_encoder(self, weights: dict[str, Tensor]) -> None:
        """Load the encoder's weights; other weights are ignored.

        Args:
            weights: state dict of a backbone with the same settings, or of its encoder.

        Raises:
            MedarError: a weight is missing or has another shape.
        """
        own = self.encoder_weights()
        for name, value in own.items():
            loaded = weights.get(name)
            if loaded is None or loaded.shape != value.shape:
                shape = "none" if loaded is None else list(loaded.shape)
                raise MedarError(
                    f"encoder weights {name!r}: got {shape}, need {list(value.shape)}; load a "
                    "backbone with the same settings"
                )
        with torch.no_grad():
            for name, value in own.items():
                value.copy_(weights[name])


def halvings(spacing: tuple[float, ...], size: Shape3, *, smallest: int = 4) -> list[Shape3]:
    """Strides that downsample a volume as nnU-Net does (arXiv 1809.10486).

    An axis is halved while it keeps `smallest` sites, and only once its sites are less than twice
    as long as those of the finest axis: thick slices wait until the other axes are as coarse.

    Args:
        spacing: mm.
        size: voxels.
        smallest: fewest sites that a halved axis keeps.
    """
    lengths, sides = list(spacing), list(size)
    strides: list[Shape3] = []
    while True:
        long_enough = [axis for axis in range(3) if sides[axis] >= 2 * smallest]
        if not long_enough:
            return strides
        finest = min(lengths[axis] for axis in long_enough)
        halved = [axis for axis in long_enough if lengths[axis] < 2 * finest]
        x, y, z = (2 if axis in halved else 1 for axis in range(3))
        strides.append((x, y, z))
        lengths = [n * f for n, f in zip(lengths, strides[-1], strict=True)]
        sides = [-(-n // f) for n, f in zip(sides, strides[-1], strict=True)]


def kernels(spacing: tuple[float, ...], strides: list[Shape3]) -> list[Shape3]:
    """Kernel sizes of each level as in nnU-Net: 1 along axes twice as coarse as the finest, else 3.

    Args:
        spacing: mm.
        strides: of each level, the first relative to the volume.
    """
    lengths, sizes = list(spacing), []
    size = [1, 1, 1]
    for stride in strides:
        lengths = [n * f for n, f in zip(lengths, stride, strict=True)]
        finest = min(lengths)
        # An axis that has reached 3 stays at 3.
        size = [3 if k == 3 or n < 2 * finest else 1 for k, n in zip(size, lengths, strict=True)]
        sizes.append((size[0], size[1], size[2]))
    return sizes
