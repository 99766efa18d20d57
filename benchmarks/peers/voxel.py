"""The pixel-wise family on tiny grids: the voxels themselves, in levels of intensity, as tokens.

Image transformers that predict one pixel after the other (Image GPT, PixelCNN, arXiv 1606.05328;
the pixel-wise family of the survey arXiv 2411.08666) need no learnt tokenizer, and pay with tokens:
one for each voxel. So the volume is averaged down to a tiny grid, each voxel is rounded to one of V
levels from -1 to 1, and what is sampled is brought back to the volume's size (trilinear).
`VoxelTokenizer` is a `Tokenizer` of one scale with nothing to learn, so that all that works on
tokens - encoding, training, sampling - works on voxels: `RasterModel` over it is the baseline.

B batch, X Y Z voxels of the volume, x y z of the tiny grid, V levels.
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool3d, interpolate

from medar.data.plan import Plan
from medar.errors import MedarError
from medar.files import read_json_object
from medar.model_folder import CONFIG
from medar.tokenizer.codebooks import CodebookSettings, EMACodebook
from medar.tokenizer.network import Decoded, Decoder, Encoder, NetworkConfig
from medar.tokenizer.quantiser import QuantiserSettings
from medar.tokenizer.schedule import ScaleSchedule
from medar.tokenizer.tokenizer import Tokenizer, TokenizerConfig
from medar.volume import Shape3


class Averages(Encoder):
    """(B, 1, X, Y, Z) to the means of the tiny grid's cells, (B, 1, x, y, z)."""

    def __init__(self, config: NetworkConfig) -> None:
        nn.Module.__init__(self)
        self.config = config

    def forward(self, volume: Tensor) -> Tensor:
        """Average; the volume's sides are multiples of the downsampling.

        Raises:
            MedarError: a side is no multiple of its downsampling factor.
        """
        x, y, z = volume.shape[2:]
        self.config.latent((x, y, z))
        return avg_pool3d(volume, self.config.downsampling)


class Trilinear(Decoder):
    """(B, 1, x, y, z) to (B, 1, X, Y, Z), interpolated."""

    def __init__(self, config: NetworkConfig) -> None:
        nn.Module.__init__(self)
        self.config = config

    def forward(self, latent: Tensor) -> Decoded:
        """Interpolate; there are no labels."""
        factors = [float(factor) for factor in self.config.downsampling]
        return Decoded(interpolate(latent, scale_factor=factors, mode="trilinear"), None)

    @property
    def reach(self) -> Shape3:
        """One site on either side."""
        return 1, 1, 1


class VoxelTokenizer(Tokenizer):
    """Volumes in [-1, 1] of one channel to levels on a tiny grid, and back.

    Args:
        config: see `voxel_config`, which makes it.
        plan: how files are brought to the volume's form, if known.

    Raises:
        MedarError: more than one scale, channel or number a code, or a label head.
    """

    def __init__(self, config: TokenizerConfig, plan: Plan | None = None) -> None:
        network = config.network
        for name, value, allowed in (
            ("scales", len(config.schedule), 1),
            ("channels", network.channels, 1),
            ("numbers a code", network.code_width, 1),
            ("labels", network.labels, 0),
        ):
            if value != allowed:
                raise MedarError(f"voxel tokenizer with {name} {value}: {allowed} is possible")
        super().__init__(config, plan)
        self.encoder, self.decoder = Averages(network), Trilinear(network)
        codebook = self.quantiser.codebook
        assert isinstance(codebook, EMACodebook)
        codebook.set_codes(torch.linspace(-1, 1, codebook.size)[:, None])
        self.requires_grad_(False)


def voxel_config(size: Shape3, grid: Shape3, levels: int = 64) -> TokenizerConfig:
    """What a `VoxelTokenizer` is made of.

    Args:
        size: voxels of the volume.
        grid: of the tiny one; each side is the volume's over a power of two.
        levels: V, from 2.

    Raises:
        MedarError: a grid that is not so, or too few levels.
    """
    if any(sites < 1 or side % sites for side, sites in zip(size, grid, strict=True)):
        raise MedarError(
            f"voxel grid {list(grid)} for volumes of {list(size)}: each side must be the volume's "
            "over 1, 2, 4, 8 ..."
        )
    x, y, z = (side // sites for side, sites in zip(size, grid, strict=True))
    return TokenizerConfig(
        schedule=ScaleSchedule(grids=(grid,)),
        network=NetworkConfig(
            width=1, width_multipliers=(1,), code_width=1, downsampling=(x, y, z)
        ),
        codebook=CodebookSettings(kind="ema", size=levels, width=1),
        quantiser=QuantiserSettings(
            phi_count=1, phi_ratio=0.0, scale_gains=False, scale_dropout=0.0
        ),
    )


def voxel_tokenizer(plan: Plan, grid: Shape3, levels: int = 64) -> VoxelTokenizer:
    """The voxel tokenizer for volumes of a plan.

    Raises:
        MedarError: see `voxel_config`, or a plan of several channels.
    """
    if len(plan.channels) > 1:
        raise MedarError(f"plan with channels {list(plan.channels)}: the voxel tokenizer takes one")
    return VoxelTokenizer(voxel_config(plan.size, grid, levels), plan).eval()


def read_tokenizer(folder: str | Path) -> Tokenizer:
    """A tokenizer of whichever kind its folder says.

    Raises:
        MedarError: a file is absent or damaged, or says that it is something else.
    """
    values = read_json_object(Path(folder) / CONFIG)
    voxels = values.get("class") == VoxelTokenizer.__name__
    return (VoxelTokenizer if voxels else Tokenizer).from_pretrained(folder)
