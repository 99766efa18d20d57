"""Maps as conditions: the label map, or a source volume, voxel by voxel, at every scale.

A convolutional encoder of the tokenizer's kind takes the map to the latent grid; it first folds
patches of voxels into channels, so that structures of one voxel are not averaged away. The features
of the latent grid are averaged to the grid of each scale, and one linear layer per scale adds them
to its tokens. These layers start at zero (ControlNet, arXiv 2302.05543), so that a model trained
without maps can be trained further with them. An unknown voxel is 0 in all channels, and a missing
map is unknown everywhere. A source volume (after ControlAR, arXiv 2410.02705: another image as a
condition of every token) has two channels: its intensity, and 1 where it is known.

B batch, M channels of the map, X Y Z voxels, D features of the latent grid, T tokens of one scale,
L tokens over all scales, E width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool3d

from medar.errors import MedarError
from medar.tokenizer.network import Encoder, NetworkConfig
from medar.tokenizer.schedule import ScaleSchedule
from medar.volume import Shape3

GROWTH = (1, 2, 4)
"""Features of the encoder's levels, in multiples of the first."""
UNKNOWN = -1
"""Class of unknown voxels."""
SOURCE_CHANNELS = 2
"""M of a source volume."""


class MapEncoder(nn.Module):
    """(B, M, X, Y, Z) to (B, L, E).

    Args:
        channels: M.
        width: features of the encoder's first level.
        features: E.
        schedule: the grids.
        downsampling: voxels per site of the latent grid along each axis, powers of two.
    """

    def __init__(
        self,
        channels: int,
        width: int,
        features: int,
        schedule: ScaleSchedule,
        downsampling: Shape3,
    ) -> None:
        super().__init__()
        self.channels, self.schedule = channels, schedule
        x, y, z = (n * f for n, f in zip(schedule.latent, downsampling, strict=True))
        self.size: Shape3 = (x, y, z)
        config = NetworkConfig(
            channels=channels,
            patch_size=min(4, max(downsampling)),
            width=width,
            width_multipliers=GROWTH,
            code_width=width * GROWTH[-1],
            downsampling=downsampling,
        )
        self.encoder = Encoder(config)
        self.levels = nn.ModuleList(nn.Linear(config.code_width, features) for _ in schedule.grids)
        for level in self.levels:
            nn.init.zeros_(level.weight)  # type: ignore[arg-type]
            nn.init.zeros_(level.bias)  # type: ignore[arg-type]

    def forward(self, map_: Tensor | None) -> Tensor:
        """Contribution of a map to each token: (B, L, E), or (1, L, E) for None, no map.

        Raises:
            MedarError: the map's channels or size are not the model's.
        """
        if map_ is None:
            weight = next(self.encoder.parameters())
            map_ = weight.new_zeros(1, self.channels, *self.size)
        if map_.shape[1:] != (self.channels, *self.size):
            raise MedarError(
                f"map of shape {list(map_.shape)} must be (batch, {self.channels}, "
                f"{', '.join(map(str, self.size))})"
            )
        latent: Tensor = self.encoder(map_)
        scales = (adaptive_avg_pool3d(latent, grid) for grid in self.schedule.grids)
        tokens = (scale.flatten(2).transpose(1, 2) for scale in scales)
        return torch.cat([f(x) for f, x in zip(self.levels, tokens, strict=True)], dim=1)


def label_classes(labels: Tensor, values: Sequence[int]) -> Tensor:
    """Label values as classes: 0 stays, `values[i]` becomes i + 1, -1 (unknown) stays.

    Args:
        labels: integers of any shape, on the CPU.
        values: the model's label values, in its order, at least 1.

    Returns:
        int16, of the same shape.

    Raises:
        MedarError: a value is not the model's.
    """
    known = torch.tensor([UNKNOWN, 0, *values])
    # One entry per value from -1 up, and one at either end for all values beyond.
    beyond = int(known.max()) + 3
    classes = torch.full((beyond + 1,), UNKNOWN - 1, dtype=torch.int16)
    classes[known + 2] = torch.arange(UNKNOWN, len(values) + 1, dtype=torch.int16)
    result = classes[(labels.long() + 2).clamp(0, beyond)]
    if bool((result < UNKNOWN).any()):
        unknown = torch.unique(labels[result < UNKNOWN]).tolist()
        raise MedarError(
            f"label map holds the value {unknown[0]}; the model knows 0 (background)"
            f"{''.join(f', {value}' for value in values)}"
        )
    return result


def one_hot(classes: Tensor, channels: int) -> Tensor:
    """(B, X, Y, Z) classes from 0 to M - 1 as (B, M, X, Y, Z) float32; -1 is 0 in all channels."""
    indices = torch.arange(channels, device=classes.device)
    return (classes[:, None] == indices.view(1, -1, 1, 1, 1)).float()


def source_channels(source: Tensor) -> Tensor:
    """(B, X, Y, Z) intensities in [-1, 1], NaN where unknown, as (B, 2, X, Y, Z) float32."""
    known = ~source.isnan()
    return torch.stack([source.nan_to_num(), known], dim=1).float()
