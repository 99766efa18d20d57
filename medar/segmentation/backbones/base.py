"""`Backbone`: what segmentation and pretraining know of a network, whoever built it.

    volume -> features: a list of levels, the finest first -> decode -> W features a voxel

A backbone is an encoder and a decoder. Both are named in stages from the input to the output: by
them learning rates decay from the output down to the input, and the encoder's weights are told from
the decoder's.

B batch, C channels, X Y Z voxels, W features a voxel.
"""

from abc import ABC, abstractmethod
from math import prod

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from medar.errors import MedarError
from medar.volume import Shape3

Stages = tuple[tuple[str, ...], ...]
"""Names of submodules, stage by stage from the input to the output."""

LOWEST = -1.0
"""Intensity that volumes are padded with, the lowest of prepared ones."""


class Backbone(nn.Module, ABC):
    """An encoder with features of several resolutions, and a decoder back to the finest.

    Subclasses set the four values; submodules that neither `encoder_stages` nor `decoder_stages`
    names must hold no weights.
    """

    channels: tuple[int, ...]
    """Features of each level of `features`, the finest first."""
    strides: tuple[Shape3, ...]
    """Of each level relative to the one before; of the first, relative to the volume."""
    encoder_stages: Stages
    decoder_stages: Stages

    @abstractmethod
    def features(self, volume: Tensor) -> list[Tensor]:
        """The encoder: (B, C, X, Y, Z), sides multiples of `multiple`, to levels, finest first."""

    @abstractmethod
    def decode_levels(self, features: list[Tensor]) -> list[Tensor]:
        """The decoder: what `features` gave to its own levels, finest first.

        Each has the channels and sites of the same level of `features`, whose coarsest has no
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
        """Voxels along each axis that a site of each level stands for."""
        found = []
        for level in range(1, len(self.strides) + 1):
            x, y, z = (prod(stride[axis] for stride in self.strides[:level]) for axis in range(3))
            found.append((x, y, z))
        return tuple(found)

    @property
    def multiple(self) -> Shape3:
        """What the sides of a volume must be multiples of."""
        return self.steps[-1]

    def forward(self, volume: Tensor) -> Tensor:
        """(B, C, X, Y, Z) of any sides to (B, W, X, Y, Z)."""
        x, y, z = volume.shape[2:]
        return self.decode(self.features(self.padded(volume)))[..., :x, :y, :z]

    def padded(self, volume: Tensor) -> Tensor:
        """(B, C, X, Y, Z) padded at the far ends, so that its sides are multiples of `multiple`."""
        short = [-n % m for n, m in zip(volume.shape[2:], self.multiple, strict=True)]
        if not any(short):
            return volume
        return pad(volume, [end for n in reversed(short) for end in (0, n)], value=LOWEST)

    def depths(self) -> list[list[nn.Parameter]]:
        """Parameters stage by stage, from the input to the output: each of them once."""
        return [
            [p for name in stage for p in self.get_submodule(name).parameters()]
            for stage in (*self.encoder_stages, *self.decoder_stages)
        ]

    def encoder_parameters(self) -> list[nn.Parameter]:
        """Parameters of the encoder."""
        return [p for stage in self.depths()[: len(self.encoder_stages)] for p in stage]

    def encoder_weights(self) -> dict[str, Tensor]:
        """The encoder's part of the state."""
        begins = tuple(f"{name}." for stage in self.encoder_stages for name in stage)
        return {name: value for name, value in self.state_dict().items() if name.startswith(begins)}

    def load_encoder(self, weights: dict[str, Tensor]) -> None:
        """Take over the encoder's weights; what else is there is left out.

        Args:
            weights: of a backbone of the same settings, or of its encoder alone.

        Raises:
            MedarError: weights are missing or of another shape.
        """
        own = self.encoder_weights()
        for name, value in own.items():
            there = weights.get(name)
            if there is None or there.shape != value.shape:
                found = "none" if there is None else list(there.shape)
                raise MedarError(
                    f"encoder weights {name!r}: {found} given, {list(value.shape)} needed; take "
                    "those of a backbone of the same settings"
                )
        with torch.no_grad():
            for name, value in own.items():
                value.copy_(weights[name])


def halvings(spacing: tuple[float, ...], size: Shape3, *, smallest: int = 4) -> list[Shape3]:
    """Strides that take a volume down as nnU-Net does (arXiv 1809.10486).

    An axis is halved while it keeps `smallest` sites, and only once its sites are less than twice
    as long as those of the finest axis: thick slices wait until the others have caught up.

    Args:
        spacing: mm.
        size: voxels.
        smallest: sites that a halved axis keeps at least.
    """
    lengths, sides = list(spacing), list(size)
    found: list[Shape3] = []
    while True:
        long_enough = [axis for axis in range(3) if sides[axis] >= 2 * smallest]
        if not long_enough:
            return found
        finest = min(lengths[axis] for axis in long_enough)
        chosen = [axis for axis in long_enough if lengths[axis] < 2 * finest]
        x, y, z = (2 if axis in chosen else 1 for axis in range(3))
        found.append((x, y, z))
        lengths = [n * f for n, f in zip(lengths, found[-1], strict=True)]
        sides = [-(-n // f) for n, f in zip(sides, found[-1], strict=True)]


def kernels(spacing: tuple[float, ...], strides: list[Shape3]) -> list[Shape3]:
    """Kernels of each level as nnU-Net has them: 1 along axes still twice as coarse as the finest.

    Args:
        spacing: mm.
        strides: of each level, the first relative to the volume.
    """
    lengths, found = list(spacing), []
    wide = [1, 1, 1]
    for stride in strides:
        lengths = [n * f for n, f in zip(lengths, stride, strict=True)]
        finest = min(lengths)
        # Once wide, always wide.
        wide = [3 if w == 3 or n < 2 * finest else 1 for w, n in zip(wide, lengths, strict=True)]
        found.append((wide[0], wide[1], wide[2]))
    return found
