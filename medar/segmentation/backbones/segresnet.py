"""SegResNet (arXiv 1810.11654) without its autoencoder branch, as MONAI builds it.

    stem -> [residual blocks, halve] x levels -> [double by interpolation, add, residual block]

Pre-norm residual blocks with GroupNorm; every level halves all three axes, whatever the spacing.

B batch, C channels, X Y Z voxels, W features a voxel.
"""

from typing import Any

from torch import Tensor, nn

from medar.data.plan import Plan
from medar.segmentation.backbones.base import Backbone
from medar.segmentation.backbones.settings import BackboneSettings

BLOCKS = (1, 2, 2, 4)
"""Residual blocks of each level of the encoder, as published."""
SMALLEST = 4
"""Sites that the shortest side keeps."""


class SegResNetBackbone(Backbone):
    """MONAI's SegResNet without its last convolution.

    Args:
        settings: `width` and `levels` are used.
        plan: channels and size.
    """

    def __init__(self, settings: BackboneSettings, plan: Plan) -> None:
        super().__init__()
        from monai.networks.nets.segresnet import SegResNet

        levels = min(settings.levels or len(BLOCKS), len(BLOCKS), _most(min(plan.size)))
        network: Any = SegResNet(
            spatial_dims=3,
            init_filters=settings.width,
            in_channels=len(plan.channels) or 1,
            out_channels=1,
            blocks_down=BLOCKS[:levels],
            blocks_up=(1,) * (levels - 1),
        )
        network.conv_final[2] = nn.Identity()  # norm and activation stay
        self.network = network
        self.channels = tuple(settings.width * 2**level for level in range(levels))
        self.strides = ((1, 1, 1), *((2, 2, 2),) * (levels - 1))
        self.encoder_stages = (
            ("network.convInit", "network.down_layers.0"),
            *((f"network.down_layers.{level}",) for level in range(1, levels)),
        )
        ups = [
            (f"network.up_samples.{level}", f"network.up_layers.{level}")
            for level in range(levels - 1)
        ]
        self.decoder_stages = (*ups, ("network.conv_final",))

    def features(self, volume: Tensor) -> list[Tensor]:
        """See `Backbone`."""
        levels: list[Tensor] = self.network.encode(volume)[1]
        return levels

    def decode_levels(self, features: list[Tensor]) -> list[Tensor]:
        """See `Backbone`."""
        *skips, x = features
        found, network = [], self.network
        ups = zip(network.up_samples, network.up_layers, reversed(skips), strict=True)
        for up, block, skip in ups:
            x = block(up(x) + skip)
            found.append(x)
        found[-1] = network.conv_final(x)
        return found[::-1]


def _most(side: int) -> int:
    """Levels of a volume with this shortest side, at least 2."""
    return max(2, (side // SMALLEST).bit_length())
