"""medar's own trunk: the tokenizer's encoder, the generator's blocks, and a light decoder.

    volume -> encoder -> levels, the coarsest averaged to K grids -> blocks over all of their tokens
    tokens of the finest grid -> [repeat, add the level's features, residual block] x levels

Attention runs within a grid, the mixer (medar.generator.mixers) from the coarse grids to the fine
ones, as in next-scale prediction (VAR, arXiv 2404.02905; M-VAR, arXiv 2411.10433); here the coarse
grids are inputs. The grids are those of the plan's size; volumes of other sizes are refused.

B batch, C channels, X Y Z voxels, x y z sites of the coarsest level, W features per voxel, L
tokens of all grids, E features per token, K grids.
"""

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool3d, silu

from medar.data.plan import Plan
from medar.errors import MedarError
from medar.generator.blocks import Block, modulated_layers
from medar.generator.positions import PositionFeatures, Rotary, schedule_coordinates
from medar.generator.settings import ModelSettings
from medar.segmentation.backbones.base import Backbone
from medar.segmentation.backbones.settings import BackboneSettings, TrunkSettings
from medar.tokenizer.network import ChannelNorm, Encoder, NetworkConfig, Repeat, ResidualBlock
from medar.tokenizer.schedule import ScaleSchedule
from medar.volume import Shape3


class TrunkBackbone(Backbone):
    """Encoder, blocks over a pyramid of grids, decoder.

    Args:
        settings: uses `width` and `trunk`.
        plan: channels, size and downsampling.
    """

    def __init__(self, settings: BackboneSettings, plan: Plan) -> None:
        super().__init__()
        sizes = settings.trunk or TrunkSettings()
        network = NetworkConfig(
            channels=len(plan.channels) or 1,
            width=settings.width,
            width_multipliers=(1, 2, 4, 8),
            code_width=sizes.depth * sizes.head_width,
            downsampling=plan.downsampling,
        )
        self.size = plan.size
        self.encoder = Encoder(network)
        self.pyramid = PyramidBlocks(sizes, plan.latent)
        widths = (*network.widths[:-1], network.code_width)
        self.channels, self.strides = widths, ((1, 1, 1), *network.strides)
        self.up = nn.ModuleList(
            Up(fine, coarse, stride)
            for fine, coarse, stride in zip(
                widths[-2::-1], widths[:0:-1], network.strides[::-1], strict=True
            )
        )
        self.encoder_stages = (("encoder",), ("pyramid",))
        self.decoder_stages = tuple((f"up.{level}",) for level in range(len(self.up)))

    def features(self, volume: Tensor) -> list[Tensor]:
        """See `Backbone`.

        Raises:
            MedarError: the volume does not have the plan's size.
        """
        if volume.shape[2:] != self.size:
            raise MedarError(
                f"backbone trunk is built for volumes of {list(self.size)} voxels, got "
                f"{list(volume.shape[2:])}; crop or pad them, or use another backbone"
            )
        found, x = [], self.encoder.stem(self.encoder.fold(volume))
        for level in self.encoder.levels:
            x = level(x)
            found.append(x)
        coarsest = self.encoder.head(silu(self.encoder.norm(x)))
        return [*found[:-1], self.pyramid(coarsest)]

    def decode_levels(self, features: list[Tensor]) -> list[Tensor]:
        """See `Backbone`."""
        *skips, x = features
        levels = []
        for up, skip in zip(self.up, reversed(skips), strict=True):
            x = up(x, skip)
            levels.append(x)
        return levels[::-1]


class PyramidBlocks(nn.Module):
    """The generator's blocks over a pyramid of averages of one grid of features.

    Args:
        sizes: blocks, heads and mixer.
        latent: the finest grid.
    """

    def __init__(self, sizes: TrunkSettings, latent: Shape3) -> None:
        super().__init__()
        config = ModelSettings(depth=sizes.depth, head_width=sizes.head_width, mixer=sizes.mixer)
        schedule = ScaleSchedule.from_latent(latent, min(sizes.scales, max(latent)))
        self.schedule, self.layers = schedule, 3 * modulated_layers(config)
        positions, finest = schedule_coordinates(schedule), max(latent)
        rotary = Rotary(positions, config.head_width, finest)
        self.position = PositionFeatures(positions, config.width, finest)
        self.blocks = nn.ModuleList(
            Block(config, schedule, rotary, layer) for layer in range(config.depth)
        )
        self.norm = nn.RMSNorm(config.width, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """(B, E, x, y, z) to the same shape."""
        grids = [adaptive_avg_pool3d(x, grid) for grid in self.schedule.grids]
        tokens = torch.cat([rearrange(g, "b e x y z -> b (x y z) e") for g in grids], dim=1)
        tokens = tokens.float() + self.position()
        unconditioned = tokens.new_zeros(len(tokens), self.layers, tokens.shape[-1])
        for block in self.blocks:
            tokens = block(tokens, unconditioned)
        finest = self.norm(tokens[:, self.schedule.offsets[-1] :])
        i, j, k = self.schedule.latent
        made: Tensor = rearrange(finest, "b (x y z) e -> b e x y z", x=i, y=j, z=k)
        return made


class Up(nn.Module):
    """One level of the decoder: narrow and upsample, add the skip features, a residual block."""

    def __init__(self, fine: int, coarse: int, stride: Shape3) -> None:
        super().__init__()
        self.narrow = nn.Conv3d(coarse, fine, kernel_size=1)
        self.repeat = Repeat(stride)
        self.block = ResidualBlock(fine)
        self.norm = ChannelNorm(fine)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """(B, coarse, ...) and (B, fine, X, Y, Z) to (B, fine, X, Y, Z)."""
        made: Tensor = self.norm(self.block(self.repeat(self.narrow(x)) + skip))
        return made
