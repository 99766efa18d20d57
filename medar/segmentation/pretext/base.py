"""`Pretext`: the view of a volume that a backbone sees, the prediction, and the loss.

    volumes -> view -> backbone -> features -> compute_loss: loss per item, metrics

A pretext task holds the backbone and a head of its own, which is discarded after training. All
randomness comes from one generator per item, so that a view depends neither on the batch nor on the
process.

B batch, C channels, X Y Z voxels, W features per voxel.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from medar.data.plan import Plan
from medar.errors import MedarError
from medar.segmentation.backbones import Backbone
from medar.segmentation.pretext.frozen import FrozenTokenizer
from medar.segmentation.pretext.settings import PRETEXTS, PretextSettings

Generators = Sequence[np.random.Generator]
"""One per item of the batch."""

SumAndCount = tuple[Tensor, int]
"""A sum and the number of its terms, so that metrics of several batches can be combined."""


@dataclass(frozen=True, kw_only=True, eq=False)
class View:
    """The visible part of a batch and, in subclasses, the targets."""

    seen: Tensor
    """(B, C, X, Y, Z)."""
    masked: Tensor | None = None
    """(B, 1, X, Y, Z) bool: mask of voxels replaced by the mask token, or None."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PretextLoss:
    """The losses of a batch, and metrics to log."""

    losses: Tensor
    """(B,)."""
    metrics: dict[str, SumAndCount] = field(default_factory=dict)


class Pretext(nn.Module, ABC):
    """A pretext task on any backbone.

    Args:
        backbone: to be pretrained.
        plan: of the volumes.
        settings: of the pretext task.
        tokenizer: to learn from, for kinds that need one.
    """

    needs_tokenizer: ClassVar[bool] = False
    """Whether the constructor needs a tokenizer."""
    masks: ClassVar[bool]
    """Whether voxels are replaced by the mask token."""

    def __init__(
        self,
        backbone: Backbone,
        plan: Plan,
        settings: PretextSettings,
        tokenizer: FrozenTokenizer | None = None,
    ) -> None:
        super().__init__()
        self.backbone, self.settings = backbone, settings
        self.mask_token = MaskToken(len(plan.channels) or 1) if self.masks else None

    def fit_statistics(self, volumes: Iterable[Tensor]) -> None:
        """Measure statistics of training volumes, (C, X, Y, Z) each, before the first step.

        The volumes may be on any device; the pretext task is still on the CPU.
        """
        return

    @abstractmethod
    def view(self, volumes: Tensor, random: Generators) -> Any:
        """The `View` of (B, C, X, Y, Z): visible part and targets."""

    @abstractmethod
    def compute_loss(self, features: Tensor, view: Any) -> PretextLoss:
        """Predict from the backbone's output, (B, W, X, Y, Z), and compare with the view."""

    def forward(self, volumes: Tensor, random: Generators) -> PretextLoss:
        """The loss of a batch.

        Args:
            volumes: (B, C, X, Y, Z) in [-1, 1].
            random: B generators, which determine the views.
        """
        with torch.no_grad():
            view: View = self.view(volumes, random)
        return self.compute_loss(self.backbone(self.backbone_input(view)), view)

    def compile(self, *args: Any, **options: Any) -> None:
        """Compile the backbone only, since the targets change from step to step."""
        self.backbone.compile(*args, **options)

    def backbone_input(self, view: View) -> Tensor:
        """(B, C, X, Y, Z): the volumes with masked voxels replaced by the mask token."""
        if self.mask_token is None or view.masked is None:
            return view.seen
        replaced: Tensor = self.mask_token(view.seen, view.masked)
        return replaced


class MaskToken(nn.Module):
    """A learned value per channel that replaces masked voxels; 0 at first.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(channels, 1, 1, 1))

    def forward(self, volumes: Tensor, masked: Tensor) -> Tensor:
        """(B, C, X, Y, Z) with the voxels of the mask (B, 1, X, Y, Z) replaced."""
        return torch.where(masked, self.value, volumes)


def make_pretext(
    settings: PretextSettings, backbone: Backbone, plan: Plan, tokenizer: FrozenTokenizer | None
) -> Pretext:
    """Build the pretext task of the settings on a backbone.

    Args:
        settings: kind and difficulty.
        backbone: to be pretrained.
        plan: of the volumes.
        tokenizer: for kinds that learn from one.

    Raises:
        MedarError: the kind needs a tokenizer and there is none, or the settings do not fit the
            plan.
    """
    pretext = PRETEXTS[settings.kind]
    if pretext.needs_tokenizer and tokenizer is None:
        raise MedarError(
            f"pretext.kind {settings.kind} needs a tokenizer; give the folder of a trained one "
            "(--tokenizer, pretext.tokenizer), or choose pretext.kind masked"
        )
    made: Pretext = pretext(backbone, plan, settings, tokenizer)
    return made
