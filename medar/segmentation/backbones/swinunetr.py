"""SwinUNETR (arXiv 2201.01266), as MONAI builds it.

    volume -> patches of 2 -> [shifted-window attention, merge] x 4 -> a residual block each
    coarsest -> [transposed convolution, join with the level's features, block] x 5

Its windows halve all three axes five times, so that sides are padded to multiples of 32: the
backbone for large patches and a GPU.

B batch, C channels, X Y Z voxels, W features a voxel.
"""

from typing import Any

from torch import Tensor

from medar.data.plan import Plan
from medar.errors import MedarError
from medar.segmentation.backbones.base import Backbone
from medar.segmentation.backbones.settings import BackboneSettings

COARSEST = 32
"""Voxels of a site of the coarsest level."""


class SwinUNETRBackbone(Backbone):
    """MONAI's SwinUNETR without its last layer.

    Args:
        settings: `width` is used.
        plan: channels and size.

    Raises:
        MedarError: a volume of a single site at the coarsest level, which has no statistics.
    """

    def __init__(self, settings: BackboneSettings, plan: Plan) -> None:
        super().__init__()
        from monai.networks.nets.swin_unetr import SwinUNETR

        if max(plan.size) <= COARSEST:
            raise MedarError(
                f"backbone swinunetr for volumes of {list(plan.size)} voxels: a side above "
                f"{COARSEST} is needed; take another backbone or a larger size"
            )
        width = settings.width
        network: Any = SwinUNETR(
            in_channels=len(plan.channels) or 1, out_channels=1, feature_size=width
        )
        del network.out
        self.network = network
        self.channels = (width, width, 2 * width, 4 * width, 8 * width, 16 * width)
        self.strides = ((1, 1, 1), *((2, 2, 2),) * 5)
        self.encoder_stages = (
            ("network.swinViT.patch_embed", "network.encoder1", "network.encoder2"),
            ("network.swinViT.layers1", "network.encoder3"),
            ("network.swinViT.layers2", "network.encoder4"),
            ("network.swinViT.layers3",),
            ("network.swinViT.layers4", "network.encoder10"),
        )
        self.decoder_stages = tuple((f"network.decoder{level}",) for level in (5, 4, 3, 2, 1))

    def features(self, volume: Tensor) -> list[Tensor]:
        """See `Backbone`."""
        network = self.network
        patches, first, second, third, fourth = network.swinViT(volume, network.normalize)
        return [
            network.encoder1(volume),
            network.encoder2(patches),
            network.encoder3(first),
            network.encoder4(second),
            third,
            network.encoder10(fourth),
        ]

    def decode_levels(self, features: list[Tensor]) -> list[Tensor]:
        """See `Backbone`."""
        *skips, x = features
        found = []
        network = self.network
        blocks = (
            network.decoder5, network.decoder4, network.decoder3, network.decoder2,
            network.decoder1,
        )  # fmt: skip
        for block, skip in zip(blocks, reversed(skips), strict=True):
            x = block(x, skip)
            found.append(x)
        return found[::-1]
