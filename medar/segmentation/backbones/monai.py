"""Backbones that wrap MONAI's networks, without their last layer.

B batch, C channels, X Y Z voxels, W features per voxel.
"""

from typing import Any

from torch import Tensor, nn

from medar.data.plan import Plan
from medar.errors import MedarError
from medar.segmentation.backbones.base import Backbone, halvings, kernels
from medar.segmentation.backbones.settings import BackboneSettings
from medar.volume import Shape3

MAX_FEATURES = 320
"""Limit on the features of coarse levels of DynUNet, as in nnU-Net."""
MIN_LEVELS = 3
"""Fewest levels that DynUNet supports; of a small volume, the last ones have stride 1."""
SEGRESNET_BLOCKS = (1, 2, 2, 4)
"""Residual blocks per level of SegResNet's encoder, as published."""
SEGRESNET_MIN_SIDE = 4
"""Sites that SegResNet keeps along the shortest side."""
SWIN_STRIDE = 32
"""Voxels per site of SwinUNETR's coarsest level."""


class DynUNetBackbone(Backbone):
    """nnU-Net's U-Net (arXiv 1809.10486), with residual or plain blocks: MONAI's DynUNet.

        input -> [block, stride] x levels -> bottleneck
        bottleneck -> [transposed convolution, concatenate the level's features, block] x levels

    Kernels and strides follow from the plan's spacing and size: along thick slices, axes are
    neither halved nor convolved across until the other axes are as coarse.

    Args:
        settings: uses `width`, `max_levels` and `block_type`.
        plan: channels, spacing and size.
    """

    def __init__(self, settings: BackboneSettings, plan: Plan) -> None:
        super().__init__()
        from monai.networks.nets.dynunet import DynUNet

        self.residual = settings.block_type == "residual"
        strides = _dynunet_strides(settings, plan)
        widths = tuple(
            min(settings.width * 2**level, MAX_FEATURES) for level in range(len(strides))
        )
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
        # skip_layers holds the same blocks a second time; the head is ours.
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
        levels = [self.network.input_block(volume)]
        for block in (*self.network.downsamples, self.network.bottleneck):
            levels.append(block(levels[-1]))
        return levels

    def decode_levels(self, features: list[Tensor]) -> list[Tensor]:
        """See `Backbone`."""
        return _decode(self.network.upsamples, features)


class SegResNetBackbone(Backbone):
    """SegResNet (arXiv 1810.11654) without its autoencoder branch.

        stem -> [residual blocks, halve] x levels -> [interpolate, add, residual block] x levels

    Every level halves all three axes, whatever the spacing.

    Args:
        settings: uses `width` and `max_levels`.
        plan: channels and size.
    """

    def __init__(self, settings: BackboneSettings, plan: Plan) -> None:
        super().__init__()
        from monai.networks.nets.segresnet import SegResNet

        possible = max(2, (min(plan.size) // SEGRESNET_MIN_SIDE).bit_length())
        most = len(SEGRESNET_BLOCKS)
        levels = min(settings.max_levels or most, most, possible)
        network: Any = SegResNet(
            spatial_dims=3,
            init_filters=settings.width,
            in_channels=len(plan.channels) or 1,
            out_channels=1,
            blocks_down=SEGRESNET_BLOCKS[:levels],
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
        levels, network = [], self.network
        ups = zip(network.up_samples, network.up_layers, reversed(skips), strict=True)
        for up, block, skip in ups:
            x = block(up(x) + skip)
            levels.append(x)
        levels[-1] = network.conv_final(x)
        return levels[::-1]


class SwinUNETRBackbone(Backbone):
    """SwinUNETR (arXiv 2201.01266), for large patches and a GPU.

        volume -> patches of 2 -> [shifted-window attention, merge] x 4 -> a residual block each
        coarsest -> [transposed convolution, concatenate the level's features, block] x 5

    Windows halve all three axes five times, so that sides are padded to multiples of 32.

    Args:
        settings: uses `width`.
        plan: channels and size.

    Raises:
        MedarError: the coarsest level would have a single site, which cannot be normalised.
    """

    def __init__(self, settings: BackboneSettings, plan: Plan) -> None:
        super().__init__()
        from monai.networks.nets.swin_unetr import SwinUNETR

        if max(plan.size) <= SWIN_STRIDE:
            raise MedarError(
                f"backbone swinunetr needs volumes with a side above {SWIN_STRIDE} voxels, got "
                f"{list(plan.size)}; choose another backbone or a larger plan.size"
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
        network = self.network
        blocks = [getattr(network, f"decoder{level}") for level in (5, 4, 3, 2, 1)]
        return _decode(blocks, features)


def _decode(blocks: Any, features: list[Tensor]) -> list[Tensor]:
    """Decoder levels, finest first, of blocks that upsample and join a level's features."""
    *skips, x = features
    levels = []
    for block, skip in zip(blocks, reversed(skips), strict=True):
        x = block(x, skip)
        levels.append(x)
    return levels[::-1]


def _dynunet_strides(settings: BackboneSettings, plan: Plan) -> list[Shape3]:
    """Strides of each level; those of the first are 1."""
    strides: list[Shape3] = [(1, 1, 1), *halvings(plan.spacing, plan.size)]
    strides = strides[: settings.max_levels]
    return strides + [(1, 1, 1)] * (MIN_LEVELS - len(strides))
