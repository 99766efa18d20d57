"""What the tokenizer is trained against, beside L1 and the codebook's own loss.

- `frequency_loss` compares spectra.
- `Discriminator` (patches at several scales) with `discriminator_loss`, `adversarial_loss` and
  `feature_matching` sharpens what L1 leaves blurred; `adaptive_weight` balances it against L1.

All are means, of float32 whatever the precision of the network, so that their weights hold across
sizes of volume and batch.

B batch, C channels, X Y Z voxels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from medar.errors import MedarError
from medar.settings import STRICT


def frequency_loss(reconstruction: Tensor, volume: Tensor, *, floor: float = 0.01) -> Tensor:
    """Mean absolute difference of the log amplitudes of all spatial frequencies.

    In logarithms a high frequency with a thousandth of the power weighs as much as a low one, which
    is what L1 lacks: power that is missing costs, wherever its phase.

    Args:
        reconstruction: (B, C, X, Y, Z) in [-1, 1].
        volume: the same shape.
        floor: amplitude below which differences fade out; white noise of that standard deviation
            has it at each frequency.
    """
    ours, real = _log_amplitude(reconstruction, floor), _log_amplitude(volume, floor)
    return functional.l1_loss(ours, real)


def _log_amplitude(volume: Tensor, floor: float) -> Tensor:
    spectrum = torch.fft.rfftn(volume.float(), dim=(2, 3, 4), norm="ortho")
    power: Tensor = spectrum.real**2 + spectrum.imag**2
    return 0.5 * torch.log(power + floor**2)


@dataclass(frozen=True, kw_only=True)
class DiscriminatorConfig:
    """Sizes of the patch discriminators.

    Raises:
        MedarError: a size below 1, or a width that is no multiple of 4.
    """

    __pydantic_config__: ClassVar[Any] = STRICT

    channels: int = 1
    """C, channels of the volume."""
    width: int = 16
    """Features of the first layer, doubled by each layer."""
    layers: int = 3
    """Layers of the first discriminator; the second has twice as many, and so on."""
    scales: int = 1
    """Discriminators, each with a larger patch than the one before."""

    def __post_init__(self) -> None:
        for name in ("channels", "width", "layers", "scales"):
            if getattr(self, name) < 1:
                raise MedarError(f"discriminator {name} {getattr(self, name)}: allowed from 1")
        if self.width % 4:
            raise MedarError(f"discriminator width {self.width}: allowed multiples of 4")

    @property
    def smallest(self) -> int:
        """Voxels along a side that the deepest discriminator needs."""
        return int(2 ** (self.layers * self.scales + 1))


class Judged(NamedTuple):
    """What the discriminators make of a batch."""

    scores: list[Tensor]
    """A discriminator each: (B, 1, x, y, z), high where a patch looks real."""
    features: list[Tensor]
    """Of all layers of all discriminators, for `feature_matching`."""


class Discriminator(nn.Module):
    """MONAI's multi-scale patch discriminator (pix2pixHD, arXiv 1711.11585), with GroupNorm.

    Its own default, BatchNorm, would tell a batch of real volumes from one of reconstructions by
    the batch's statistics, and fails on batches of one.
    """

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        from monai.networks.nets import MultiScalePatchDiscriminator

        self.config = config
        self.network = MultiScalePatchDiscriminator(
            num_d=config.scales,
            num_layers_d=config.layers,
            spatial_dims=3,
            channels=config.width,
            in_channels=config.channels,
            norm=("GROUP", {"num_groups": 4}),
            minimum_size_im=config.smallest,
        )

    def forward(self, volume: Tensor) -> Judged:
        """Judge (B, C, X, Y, Z).

        Raises:
            MedarError: a side is too small for the deepest discriminator.
        """
        self.check(volume.shape[2:])
        scores, features = self.network(volume)
        return Judged(scores, [layer for one in features for layer in one])

    def check(self, sides: Sequence[int]) -> None:
        """Refuse volumes, by their voxels along each axis, that are too small.

        Raises:
            MedarError: a side is too small for the deepest discriminator.
        """
        if min(sides) < self.config.smallest:
            raise MedarError(
                f"discriminator on a volume of {' x '.join(map(str, sides))} voxels: layers "
                f"{self.config.layers} and scales {self.config.scales} need sides of "
                f"{self.config.smallest}; take fewer"
            )


def discriminator_loss(real: Sequence[Tensor], fake: Sequence[Tensor]) -> Tensor:
    """Hinge loss (arXiv 1705.02894): real scores above 1, fake scores below -1 cost nothing.

    MONAI's `PatchAdversarialLoss` is not used: it squashes scores by tanh first, so that no score
    ever reaches the hinge.

    Args:
        real: scores of real volumes, a tensor for each discriminator.
        fake: scores of detached reconstructions, likewise.
    """
    of_real = _mean([functional.relu(1 - score.float()).mean() for score in real])
    of_fake = _mean([functional.relu(1 + score.float()).mean() for score in fake])
    return (of_real + of_fake) / 2


def adversarial_loss(fake: Sequence[Tensor]) -> Tensor:
    """The generator's side of the hinge loss: the mean score of reconstructions, negated."""
    return -_mean([score.float().mean() for score in fake])


def feature_matching(real: Sequence[Tensor], fake: Sequence[Tensor]) -> Tensor:
    """Mean absolute difference of the discriminators' features, layer by layer (1711.11585).

    No gradient flows to the real side.
    """
    pairs = zip(real, fake, strict=True)
    return _mean([functional.l1_loss(f.float(), r.detach().float()) for r, f in pairs])


def adaptive_weight(
    reconstruction: Tensor, adversarial: Tensor, last_layer: Tensor, *, limit: float = 1e4
) -> Tensor:
    """The weight that makes both losses pull equally hard (VQGAN, arXiv 2012.09841).

    The ratio of the norms of their gradients at the decoder's last layer, at most `limit`, without
    gradient. Both losses must come from a graph that holds `last_layer`; it is kept.

    Args:
        reconstruction: scalar.
        adversarial: scalar.
        last_layer: a weight, `Decoder.last_layer`.
    """
    norms = [
        torch.autograd.grad(loss, last_layer, retain_graph=True)[0].float().norm()
        for loss in (reconstruction, adversarial)
    ]
    ratio: Tensor = norms[0] / (norms[1] + 1e-4)
    return ratio.clamp(max=limit).detach()


def _mean(losses: list[Tensor]) -> Tensor:
    return torch.stack(losses).mean()
