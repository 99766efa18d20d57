"""The pixel-wise family on small grids: tokens are the intensity levels of voxels.

Image transformers that predict one pixel after the other (Image GPT, PixelCNN, arXiv 1606.05328;
the pixel-wise family of the survey arXiv 2411.08666) need no learned tokenizer, but one token per
voxel. Therefore the volume is averaged to a small grid, each voxel is rounded to one of V levels
from -1 to 1, and samples are interpolated to the volume's size (trilinear). `VoxelTokenizer` is a
`Tokenizer` with one scale and nothing to learn, so that everything that works on tokens (encoding,
training, sampling) works on voxels; `RasterModel` over it is the baseline.

B batch, X Y Z voxels of the volume, x y z of the small grid, V levels.
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool3d, interpolate

from medar.data.plan import Plan
from medar.devices import InferencePrecision
from medar.errors import MedarError
from medar.files import read_json_object
from medar.model_folder import CONFIG
from medar.tokenizer.bounded import DecodedMap
from medar.tokenizer.codebooks import CodebookSettings, EMACodebook
from medar.tokenizer.network import Decoded, Decoder, Encoder, NetworkConfig
from medar.tokenizer.pyramid import TokenPyramid
from medar.tokenizer.quantiser import QuantiserSettings
from medar.tokenizer.schedule import ScaleSchedule
from medar.tokenizer.tokenizer import Tokenizer, TokenizerConfig
from medar.volume import Shape3


class Averages(Encoder):
    """(B, 1, X, Y, Z) to the means of the small grid's cells, (B, 1, x, y, z)."""

    def __init__(self, config: NetworkConfig) -> None:
        nn.Module.__init__(self)
        self.config = config

    def forward(self, volume: Tensor) -> Tensor:
        """Average; the volume's sides are multiples of the downsampling.

        Raises:
            MedarError: a side is not a multiple of its downsampling factor.
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


class VoxelTokenizer(Tokenizer):
    """Volumes in [-1, 1] with one channel to levels on a small grid, and back.

    Args:
        config: from `voxel_config`.
        plan: preprocessing of the volumes, if known.

    Raises:
        MedarError: more than one scale, channel or value per code, or a label head.
    """

    def __init__(self, config: TokenizerConfig, plan: Plan | None = None) -> None:
        network = config.network
        for name, value, allowed in (
            ("scales", len(config.schedule), 1),
            ("channels", network.channels, 1),
            ("code width", network.code_width, 1),
            ("labels", network.labels, 0),
        ):
            if value != allowed:
                raise MedarError(f"voxel tokenizer: {name} must be {allowed}, got {value}")
        super().__init__(config, plan)
        self.encoder, self.decoder = Averages(network), Trilinear(network)
        codebook = self.quantiser.codebook
        assert isinstance(codebook, EMACodebook)
        codebook.set_codes(torch.linspace(-1, 1, codebook.size)[:, None])
        self.requires_grad_(False)

    def decode_map(
        self,
        pyramid: TokenPyramid,
        upto: int | None = None,
        budget: int | None = None,
        precision: InferencePrecision = "auto",
    ) -> DecodedMap:
        """Decode in one piece, in fp32: there are no layers to go slab by slab."""
        return DecodedMap(self.decode(pyramid, upto).volume, None)


def voxel_config(size: Shape3, grid: Shape3, levels: int = 64) -> TokenizerConfig:
    """The configuration of a `VoxelTokenizer`.

    Args:
        size: voxels of the volume.
        grid: sites per axis; each divides the volume's by a power of two.
        levels: V, at least 2.

    Raises:
        MedarError: a grid that does not fit the volume, or too few levels.
    """
    if any(sites < 1 or side % sites for side, sites in zip(size, grid, strict=True)):
        raise MedarError(
            f"voxel grid {list(grid)}: each side must be that of the volume, {list(size)}, divided "
            "by a power of two"
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
        MedarError: see `voxel_config`; or the plan has several channels.
    """
    if len(plan.channels) > 1:
        raise MedarError(f"the voxel tokenizer takes a single channel, got {list(plan.channels)}")
    return VoxelTokenizer(voxel_config(plan.size, grid, levels), plan).eval()


def read_tokenizer(folder: str | Path) -> Tokenizer:
    """Load a `Tokenizer` or a `VoxelTokenizer`, depending on the folder's config.

    Raises:
        MedarError: a file is absent or damaged, or the folder holds another model.
    """
    values = read_json_object(Path(folder) / CONFIG)
    voxels = values.get("class") == VoxelTokenizer.__name__
    return (VoxelTokenizer if voxels else Tokenizer).from_pretrained(folder)
