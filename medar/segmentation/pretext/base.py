"""`Pretext`: what is seen of a volume, what of it is to be predicted, and how well that was done.

    volumes -> view: what is seen -> backbone -> features -> judge: a loss an item, and figures

A pretext task holds the backbone and a head of its own. Training leaves the backbone alone; the
head is thrown away. Everything random comes from one generator an item, so that what is seen
depends neither on the batch nor on the process that an item is in.

B batch, C channels, X Y Z voxels, W features a voxel.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from medar.segmentation.backbones import Backbone

Generators = Sequence[np.random.Generator]
"""One an item of the batch."""

Figure = tuple[Tensor, int]
"""A sum and the number of what was summed: figures of several batches can be put together."""


@dataclass(frozen=True, kw_only=True, eq=False)
class View:
    """What is seen of a batch, and, in subclasses, what is to be predicted."""

    seen: Tensor
    """(B, C, X, Y, Z)."""
    hidden: Tensor | None = None
    """(B, 1, X, Y, Z) bool: voxels of `seen` that the filler takes the place of; None for none."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Judged:
    """How well a batch was predicted."""

    losses: Tensor
    """(B,), of each item by itself."""
    figures: dict[str, Figure] = field(default_factory=dict)


class Pretext(nn.Module, ABC):
    """A pretext task on any backbone.

    Args:
        backbone: what is to be pretrained.
        channels: C.
    """

    hides: ClassVar[bool]
    """Whether voxels are hidden behind a value that is learnt."""

    def __init__(self, backbone: Backbone, channels: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.filler = Filler(channels) if self.hides else None

    def look_at(self, volumes: Iterable[Tensor]) -> None:
        """See some training volumes, (C, X, Y, Z) each, on whatever device, before the first step.

        The pretext task itself is on the CPU then.
        """
        return

    @abstractmethod
    def view(self, volumes: Tensor, random: Generators) -> Any:
        """What is seen of (B, C, X, Y, Z) and what is to be predicted: a `View`."""

    @abstractmethod
    def judge(self, features: Tensor, view: Any) -> Judged:
        """Predict from (B, W, X, Y, Z), and compare."""

    def forward(self, volumes: Tensor, random: Generators) -> Judged:
        """A batch the whole way.

        Args:
            volumes: (B, C, X, Y, Z) in [-1, 1].
            random: B generators, which decide what is seen.
        """
        with torch.no_grad():
            view: View = self.view(volumes, random)
        return self.judge(self.backbone(self.shown(view)), view)

    def compile(self, *words: Any, **options: Any) -> None:
        """Compile the backbone alone: what is asked about changes from step to step."""
        self.backbone.compile(*words, **options)

    def shown(self, view: View) -> Tensor:
        """(B, C, X, Y, Z): what the backbone is given."""
        if self.filler is None or view.hidden is None:
            return view.seen
        filled: Tensor = self.filler(view.seen, view.hidden)
        return filled


class Filler(nn.Module):
    """A value for each channel that stands where nothing is seen, learnt; the middle at first.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(channels, 1, 1, 1))

    def forward(self, volumes: Tensor, hidden: Tensor) -> Tensor:
        """(B, C, X, Y, Z) without what (B, 1, X, Y, Z) hides."""
        return torch.where(hidden, self.value, volumes)
