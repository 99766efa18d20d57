"""Translation by regression: MONAI's UNet learns the mean of the result, in one pass.

The network adds its output, times a factor that starts at 0 (ReZero, arXiv 2003.04887), to its
input, so that it starts as the identity; the loss is L1. It is a `Task`: loop, optimiser, schedule
and averaging are those of medar's generator.

B batch, X Y Z voxels.
"""

from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from monai.networks.nets import UNet
from torch import Tensor, nn

from medar.data.loading import Item, PreparedDataset, make_loader, set_epoch
from medar.data.source import Degradation, degraded
from medar.tokenizer.convolution import with_reliable_convolutions
from medar.training.task import Task


class ResidualUNet(nn.Module):
    """(B, 1, X, Y, Z) to (B, 1, X, Y, Z), whose sides are multiples of 8.

    Args:
        width: features of the first level; each of the three others has twice those of the one
            above it.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        network = UNet(
            spatial_dims=3,
            in_channels=1,
            out_channels=1,
            channels=tuple(width * 2**level for level in range(4)),
            strides=(2, 2, 2),
            num_res_units=2,
        )
        self.network = with_reliable_convolutions(network)
        self.factor = nn.Parameter(torch.zeros(()))

    def forward(self, source: Tensor) -> Tensor:
        """The translated volume."""
        translated: Tensor = source + self.factor * self.network(source)
        return translated


def unet_of(parameters: int) -> ResidualUNet:
    """The U-Net whose number of parameters is nearest to `parameters`."""
    widths = range(4, 65)
    with torch.device("meta"):
        sizes = [sum(p.numel() for p in ResidualUNet(width).parameters()) for width in widths]
    distances = [abs(size - parameters) for size in sizes]
    return ResidualUNet(widths[distances.index(min(distances))])


class RegressionTask(Task[Item]):
    """Trains a network to restore degraded volumes.

    Args:
        model: (B, 1, X, Y, Z) to the same shape.
        train: augmented volumes.
        validation: volumes as they are.
        degradation: makes their sources.
        batch_size: volumes per step.
    """

    unit, metric = "volumes", "l1"

    def __init__(
        self,
        model: nn.Module,
        train: PreparedDataset,
        validation: PreparedDataset,
        degradation: Degradation,
        batch_size: int,
    ) -> None:
        self.model, self.validation, self.degradation = model, validation, degradation
        self._loader = make_loader(train, batch_size=batch_size)

    def batches(self, epoch: int, start: int) -> Iterator[Item]:
        """An epoch's batches from number `start` on."""
        set_epoch(self._loader, epoch)
        return islice(iter(self._loader), start, None)

    def amount(self, batch: Item) -> int:
        """Volumes of a batch."""
        return len(batch["image"])

    def loss(self, batch: Item, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """L1."""
        seed = int(torch.randint(2**62, ()))
        loss = self._l1(batch["image"], [[seed, number] for number in range(len(batch["image"]))])
        return loss, {"loss": loss}

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Mean L1 over the validation volumes."""
        items = (self.validation[index]["image"][None] for index in range(len(self.validation)))
        losses = [float(self._l1(image, [[number]])) for number, image in enumerate(items)]
        return {"l1": sum(losses) / len(losses)}

    def describe(self) -> dict[str, Any]:
        """The degradation."""
        return {"degradation": str(self.degradation)}

    def _l1(self, images: Tensor, seeds: list[list[int]]) -> Tensor:
        spacing = self.validation.plan.spacing
        pairs = zip(images, seeds, strict=True)
        low = [degraded(image, self.degradation, spacing, seed) for image, seed in pairs]
        loss: Tensor = (self.model(torch.stack(low)) - images).abs().mean()
        return loss
