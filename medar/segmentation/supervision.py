"""Deep supervision: the decoder's coarser levels are held against the labels too.

    decoder -> levels, finest first -> a head each -> logits   against the label map at its voxels

As in nnU-Net (arXiv 1809.10486): each level counts half as much as the finer one, all together 1.
The coarser levels' heads are left behind after training: the model has none of them.

B batch, C channels, X Y Z voxels, K labels (the background not counted).
"""

from typing import NamedTuple

from torch import Tensor, nn
from torch.nn.functional import pad

from medar.data.loading import UNKNOWN
from medar.errors import MedarError
from medar.segmentation.network import Segmenter


class Level(NamedTuple):
    """What a level of the decoder is held against."""

    weight: float
    logits: Tensor
    """(B, K + 1, X, Y, Z), background first."""
    classes: Tensor
    """(B, 1, X, Y, Z), 0 the background, -1 unknown."""


class DeepSupervision(nn.Module):
    """Heads for the coarser levels of a network's decoder.

    Args:
        model: its backbone and labels.
        levels: how many levels beside the finest.

    Raises:
        MedarError: the decoder has fewer.
    """

    def __init__(self, model: Segmenter, levels: int) -> None:
        super().__init__()
        backbone = model.backbone
        most = len(backbone.channels) - 2
        if levels > most:
            raise MedarError(
                f"loss deep_supervision {levels}: the decoder of this {model.settings.kind} has "
                f"{most} levels beside the finest; allowed 0 to {most}"
            )
        self.steps = backbone.steps[: levels + 1]
        self.heads = nn.ModuleList(
            nn.Conv3d(width, len(model.plan.labels) + 1, kernel_size=1)
            for width in backbone.channels[1 : levels + 1]
        )
        shares = [0.5**level for level in range(levels + 1)]
        self.weights = [share / sum(shares) for share in shares]

    def forward(self, model: Segmenter, volumes: Tensor, classes: Tensor) -> list[Level]:
        """Volumes (B, C, X, Y, Z) and classes (B, 1, X, Y, Z) to levels, the finest first.

        Where the backbone needs larger volumes, both are padded, with classes unknown. A site of a
        coarser level has the class of the voxel in its middle.
        """
        backbone = model.backbone
        levels = backbone.decode_levels(backbone.features(backbone.padded(volumes)))
        sides = zip(reversed(classes.shape[2:]), reversed(backbone.multiple), strict=True)
        whole = pad(classes, [end for n, m in sides for end in (0, -n % m)], value=UNKNOWN)
        return [
            Level(weight, head(level), whole[:, :, x // 2 :: x, y // 2 :: y, z // 2 :: z])
            for weight, head, level, (x, y, z) in zip(
                self.weights,
                (model.head, *self.heads),
                levels[: len(self.steps)],
                self.steps,
                strict=True,
            )
        ]
