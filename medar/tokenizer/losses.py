"""Losses of the tokenizer besides L1 and the codebook's own.

- `frequency_loss` compares spectra.
- `Discriminator` (patches at several scales) with `discriminator_loss`, `adversarial_loss` and
  `feature_matching` sharpens what L1 leaves blurred; `adaptive_weight` balances it against L1.

All losses are means in float32, whatever the precision of the network, so that their weights do not
depend on the sizes of volumes and batches.

B batch, C channels, X Y Z voxels.
"""

from collections.abc import Sequence
from typing import Annotated, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from medar.errors import MedarError
from medar.settings import PositiveInt, settings


def frequency_loss(reconstruction: Tensor, volume: Tensor, *, floor: float = 0.01) -> Tensor:
    """Mean absolute difference of the log amplitudes of all spatial frequencies.

    On a logarithmic scale, a high frequency with a thousandth of the power counts as much as a low
    one. Unlike L1, this penalises missing power whatever its phase.

    Args:
        reconstruction: (B, C, X, Y, Z) in [-1, 1].
        volume: the same shape.
        floor: amplitude below which differences fade out: that of white noise with this standard
            deviation.
    """
    ours, real = _log_amplitude(reconstruction, floor), _log_amplitude(volume, floor)
    return functional.l1_loss(ours, real)


def _log_amplitude(volume: Tensor, floor: float) -> Tensor:
    spectrum = torch.fft.rfftn(volume.float(), dim=(2, 3, 4), norm="ortho")
    power: Tensor = spectrum.real**2 + spectrum.imag**2
    return 0.5 * torch.log(power + floor**2)


@settings
class DiscriminatorConfig:
    """Sizes of the patch discriminators."""

    channels: PositiveInt = 1
    """C, channels of the volume."""
    width: Annotated[int, Field(ge=4, multiple_of=4)] = 16
    """Features of the first layer, doubled by each further layer; a multiple of 4."""
    layers: PositiveInt = 3
    """Layers of the first discriminator; the second has twice as many, and so on."""
    discriminators: PositiveInt = 1
    """Number of discriminators, each with a larger patch than the one before."""

    @property
    def smallest(self) -> int:
        """Voxels along a side that the deepest discriminator needs."""
        return int(2 ** (self.layers * self.discriminators + 1))


class Discriminated(NamedTuple):
    """The discriminators' output for a batch."""

    scores: list[Tensor]
    """Per discriminator (B, 1, x, y, z), high where a patch looks real."""
    features: list[Tensor]
    """The features of all layers of all discriminators, for `feature_matching`."""


class Discriminator(nn.Module):
    """MONAI's multi-scale patch discriminator (pix2pixHD, arXiv 1711.11585), with GroupNorm.

    MONAI's default, BatchNorm, would distinguish real volumes from reconstructions by the
    statistics of the batch, and fails on batches of one.
    """

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        from monai.networks.nets import MultiScalePatchDiscriminator

        self.config = config
        self.network = MultiScalePatchDiscriminator(
            num_d=config.discriminators,
            num_layers_d=config.layers,
            spatial_dims=3,
            channels=config.width,
            in_channels=config.channels,
            norm=("GROUP", {"num_groups": 4}),
            minimum_size_im=config.smallest,
        )

    def forward(self, volume: Tensor) -> Discriminated:
        """Score the patches of (B, C, X, Y, Z).

        Raises:
            MedarError: a side is too small for the deepest discriminator.
        """
        self.check(volume.shape[2:])
        scores, features = self.network(volume)
        return Discriminated(scores, [layer for one in features for layer in one])

    def check(self, sides: Sequence[int]) -> None:
        """Check that volumes with these numbers of voxels per axis are large enough.

        Raises:
            MedarError: a side is too small for the deepest discriminator.
        """
        if min(sides) < self.config.smallest:
            raise MedarError(
                f"discriminator on a volume of {' x '.join(map(str, sides))} voxels: layers "
                f"{self.config.layers} and discriminators {self.config.discriminators} need sides "
                f"of at least {self.config.smallest}; use fewer"
            )


def discriminator_loss(real: Sequence[Tensor], fake: Sequence[Tensor]) -> Tensor:
    """Hinge loss (arXiv 1705.02894): real scores above 1, fake scores below -1 cost nothing.

    MONAI's `PatchAdversarialLoss` is not used: it applies tanh to the scores first, so that none
    ever reaches the hinge.

    Args:
        real: scores of real volumes, one tensor per discriminator.
        fake: scores of detached reconstructions, as `real`.
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
    """The weight that balances both losses (VQGAN, arXiv 2012.09841).

    It is the ratio of their gradient norms at the decoder's last layer, at most `limit`, without
    gradient. Both losses must come from a graph that contains `last_layer`; the graph is kept.

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
