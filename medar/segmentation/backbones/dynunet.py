"""nnU-Net's U-Net (arXiv 1809.10486), residual or plain, as MONAI's DynUNet builds it.

    input -> [block, stride] x levels -> bottleneck
    bottleneck -> [transposed convolution, join with the level's features, block] x levels

Kernels and strides follow from the plan's spacing and size: axes of thick slices are neither
halved nor convolved across until the others have caught up.

B batch, C channels, X Y Z voxels, W features a voxel.
"""

from typing import Any

from torch import Tensor

from medar.data.plan import Plan
from medar.segmentation.backbones.base import Backbone, halvings, kernels
from medar.segmentation.backbones.settings import BackboneSettings
from medar.volume import Shape3

WIDEST = 320
"""Features of the coarsest levels, as in nnU-Net."""
FEWEST = 3
"""Levels that DynUNet has at least; those that a small volume cannot have keep its resolution."""


class DynUNetBackbone(Backbone):
    """MONAI's DynUNet without its last layer.

    Args:
        settings: `width`, `levels` and `blocks` are used.
        plan: channels, spacing and size.
    """

    def __init__(self, settings: BackboneSettings, plan: Plan) -> None:
        super().__init__()
        from monai.networks.nets.dynunet import DynUNet

        self.residual = settings.blocks == "residual"
        strides = chosen_strides(settings, plan)
        widths = tuple(min(settings.width * 2**level, WIDEST) for level in range(len(strides)))
        network: Any = DynUNet(
            spatial_dims=3,
            in_channels=len(plan.channels) or 1,
            out_channels=1,
            kernel_size=kernels(plan.spacing, strides),
            strides=strides,
            upsample_kernel_size=strides[1:],
            filters=widths,
            res_block=self.residual,
            trans_bias=not self.residual,
        )
        # The same blocks once more, as a recursion, and a head that is not ours.
        del network.skip_layers, network.output_block
        self.network = network
        self.channels, self.strides = widths, tuple(strides)
        inner = range(len(strides) - 2)
        self.encoder_stages = (
            ("network.input_block",),
            *((f"network.downsamples.{level}",) for level in inner),
            ("network.bottleneck",),
        )
        self.decoder_stages = tuple(
            (f"network.upsamples.{level}",) for level in range(len(strides) - 1)
        )

    def features(self, volume: Tensor) -> list[Tensor]:
        """See `Backbone`."""
        found = [self.network.input_block(volume)]
        for block in (*self.network.downsamples, self.network.bottleneck):
            found.append(block(found[-1]))
        return found

    def decode_levels(self, features: list[Tensor]) -> list[Tensor]:
        """See `Backbone`."""
        *skips, x = features
        found = []
        for block, skip in zip(self.network.upsamples, reversed(skips), strict=True):
            x = block(x, skip)
            found.append(x)
        return found[::-1]


def chosen_strides(settings: BackboneSettings, plan: Plan) -> list[Shape3]:
    """Strides of each level, the first 1 along each axis."""
    strides: list[Shape3] = [(1, 1, 1), *halvings(plan.spacing, plan.size)]
    strides = strides[: settings.levels]
    return strides + [(1, 1, 1)] * (FEWEST - len(strides))
