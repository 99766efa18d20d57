"""Maps as conditions: what is where, given voxel by voxel, at every scale.

A convolutional encoder, the tokenizer's own kind, takes the map to the latent grid: it folds
patches of voxels into channels first, so that a structure of one voxel is not averaged away. The
features of the latent grid are averaged to the grid of each scale, and a linear layer of each scale
adds them to its tokens. These layers start at zero (ControlNet, arXiv 2302.05543): a model without
maps can be trained on with them, and nothing is lost at the start. A voxel of which nothing is
known is 0 in all channels, and a missing map is unknown everywhere.

B batch, M channels of the map, X Y Z voxels, D features of the latent grid, T tokens of one scale,
L of all, E width.
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
"""Class of voxels of which nothing is known."""


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

    def forward(self, given: Tensor | None) -> Tensor:
        """What a map adds to each token: (B, L, E), or (1, L, E) for None, no map.

        Raises:
            MedarError: a map of other channels or another size than the model's.
        """
        if given is None:
            weight = next(self.encoder.parameters())
            given = weight.new_zeros(1, self.channels, *self.size)
        if given.shape[1:] != (self.channels, *self.size):
            raise MedarError(
                f"map of shape {list(given.shape)}: (batch, {self.channels}, "
                f"{', '.join(map(str, self.size))}) is needed"
            )
        latent: Tensor = self.encoder(given)
        scales = (adaptive_avg_pool3d(latent, grid) for grid in self.schedule.grids)
        tokens = (scale.flatten(2).transpose(1, 2) for scale in scales)
        return torch.cat([f(x) for f, x in zip(self.levels, tokens, strict=True)], dim=1)


def label_classes(labels: Tensor, values: Sequence[int]) -> Tensor:
    """Label values as classes: 0 stays, `values[i]` becomes i + 1, -1 (unknown) stays.

    Args:
        labels: whole numbers of any shape, on the CPU.
        values: the model's label values, in its order, from 1.

    Returns:
        int16, of the same shape.

    Raises:
        MedarError: a value that is not the model's.
    """
    known = torch.tensor([UNKNOWN, 0, *values])
    # A place for each value from -1 up, and one at either end for all that lie beyond.
    beyond = int(known.max()) + 3
    classes = torch.full((beyond + 1,), UNKNOWN - 1, dtype=torch.int16)
    classes[known + 2] = torch.arange(UNKNOWN, len(values) + 1, dtype=torch.int16)
    found = classes[(labels.long() + 2).clamp(0, beyond)]
    if bool((found < UNKNOWN).any()):
        odd = torch.unique(labels[found < UNKNOWN]).tolist()
        raise MedarError(
            f"label map holds the value {odd[0]}; the model knows 0 (background)"
            f"{''.join(f', {value}' for value in values)}"
        )
    return found


def one_hot(classes: Tensor, channels: int) -> Tensor:
    """(B, X, Y, Z) classes from 0 to M - 1 as (B, M, X, Y, Z) float32; -1 is 0 in all channels."""
    places = torch.arange(channels, device=classes.device)
    return (classes[:, None] == places.view(1, -1, 1, 1, 1)).float()
