"""`DiceMeter`: mean Dice of each label over the cases that were annotated for it.

B batch, K labels (without the background), X Y Z voxels.
"""

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from medar.data.loading import UNKNOWN


class DiceMeter:
    """Accumulates Dice per case and label; voxels of unknown class are ignored.

    Args:
        names: of the K labels, in the order of the logits after the background.
    """

    def __init__(self, names: list[str]) -> None:
        self.names = names
        self._rows: list[Tensor] = []

    def update(self, logits: Tensor, classes: Tensor, annotated: Tensor) -> None:
        """Add a batch.

        Args:
            logits: (B, K + 1, X, Y, Z), background first.
            classes: (B, 1, X, Y, Z), 0 the background, -1 unknown.
            annotated: (B, K) bool.
        """
        self.compare(logits.argmax(dim=1, keepdim=True), classes, annotated)

    @torch.no_grad()
    def compare(self, predicted: Tensor, classes: Tensor, annotated: Tensor) -> None:
        """Add a batch of predicted classes, (B, 1, X, Y, Z); see `update`."""
        from monai.metrics import DiceMetric

        known, count = classes != UNKNOWN, len(self.names) + 1
        metric = DiceMetric(include_background=False, reduction="none")
        values: Tensor = metric(
            (_one_hot(predicted, count) & known).float(),
            (_one_hot(classes.clamp(min=0), count) & known).float(),
        )
        self._rows.append(values.cpu().masked_fill(~annotated.cpu(), float("nan")))

    def result(self) -> dict[str, float | None]:
        """Mean Dice by label over annotated cases that contain it; None where there is no case."""
        if not self._rows:
            return dict.fromkeys(self.names)
        means = torch.cat(self._rows).double().nanmean(dim=0).tolist()
        return {
            name: None if mean != mean else mean
            for name, mean in zip(self.names, means, strict=True)
        }


def _one_hot(classes: Tensor, count: int) -> Tensor:
    """(B, 1, X, Y, Z) integers to (B, count, X, Y, Z) bool."""
    return one_hot(classes[:, 0].long(), count).movedim(-1, 1).bool()
