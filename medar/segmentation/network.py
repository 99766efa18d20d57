"""`Segmenter`: a backbone and a head, from volumes to logits.

    volume -> backbone -> W features a voxel -> 1x1x1 convolution -> logits

B batch, C channels, X Y Z voxels, W features a voxel, K labels (the background not counted).
"""

from collections.abc import Sequence

from torch import Tensor, nn

from medar.data.plan import Plan
from medar.errors import MedarError
from medar.segmentation.backbones import BackboneSettings, make_backbone
from medar.segmentation.ranges import Ranges


class Segmenter(nn.Module):
    """A segmentation network for the volumes of a plan.

    Args:
        settings: of the backbone.
        plan: its labels, and all that leads from a file to the network and back.
        mirrors: axes along which anatomy may be mirrored: it was so in training, and prediction may
            take the mean over mirrored volumes.
        ranges: spacings and intensities that it was trained on, where they are known.

    Raises:
        MedarError: a plan without labels, or one that the backbone does not take.
    """

    def __init__(
        self,
        settings: BackboneSettings,
        plan: Plan,
        mirrors: Sequence[str] = (),
        ranges: Ranges | None = None,
    ) -> None:
        super().__init__()
        if not plan.labels:
            raise MedarError("the plan names no labels; segmentation needs labelled cases")
        self.settings, self.plan, self.mirrors = settings, plan, tuple(mirrors)
        self.ranges = ranges
        self.backbone = make_backbone(settings, plan)
        self.head = nn.Conv3d(self.backbone.width, len(plan.labels) + 1, kernel_size=1)

    def forward(self, volumes: Tensor) -> Tensor:
        """(B, C, X, Y, Z) in [-1, 1] to logits (B, K + 1, X, Y, Z), background first."""
        logits: Tensor = self.head(self.backbone(volumes))
        return logits
