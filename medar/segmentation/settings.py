"""`SegmentationSettings`: what a YAML in configs/segmentation holds."""

import re
from dataclasses import dataclass, field, replace
from math import inf
from typing import Any, ClassVar, Literal

from medar.data.augmentation import Augmentation
from medar.errors import MedarError
from medar.segmentation.backbones.settings import BackboneSettings
from medar.settings import STRICT
from medar.training.settings import TrainingSettings


@dataclass(frozen=True, kw_only=True)
class SyntheticSettings:
    """Synthetic volumes with label maps as training cases.

    Raises:
        MedarError: a share out of its range.
    """

    __pydantic_config__: ClassVar[Any] = STRICT

    folder: str
    """What `medar synthesize` left, or what `medar data prepare` made of it."""
    share: float = 0.5
    """Share of the training items that are synthetic: 1 for these alone."""

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise MedarError(
                f"synthetic share {self.share}: a share above 0 up to 1 is needed; for none, leave "
                "synthetic out"
            )


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """How cases reach the network.

    Raises:
        MedarError: a number out of its range.
    """

    __pydantic_config__: ClassVar[Any] = STRICT

    labels: float = 1.0
    """Share of the training subjects whose labels are used, 0.1 for a tenth, at least one subject.
    A smaller share is a part of a larger one."""
    labels_seed: int = 0
    """Decides which subjects these are."""
    fold: int | None = None
    """Cross-validation: of the annotated subjects of train and val together this part is val, the
    others are train; null for the splits as they are. From 0."""
    folds: int = 5
    """Parts that these subjects are dealt out to, by their names alone."""
    batch_size: int = 2
    """Volumes or patches a batch, over all processes together."""
    foreground: float = 1 / 3
    """Share of patches that are centred on a labelled voxel, each label being equally likely; in
    volume mode without effect."""
    augmentation: Augmentation | None = field(
        default_factory=lambda: Augmentation(
            rotation=15.0,
            scaling=0.25,
            contrast=0.25,
            brightness=0.1,
            gamma=0.3,
            noise=0.05,
        )
    )
    """Of training volumes; null for none. Axes of `flips` are mirrored in prediction too."""
    synthetic: SyntheticSettings | None = None
    """Pairs of volumes and label maps beside the real ones; null for none."""
    workers: int = 0
    """Loading processes of each process; 0 loads in the training process itself."""
    validation: int = 64
    """Most validation cases that an evaluation looks at."""

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("workers", 0), ("validation", 1)):
            if getattr(self, name) < least:
                raise MedarError(f"{name} {getattr(self, name)}: a number from {least} is needed")
        if self.folds < 2:
            raise MedarError(f"folds {self.folds}: a number from 2 is needed")
        if self.fold is not None and not 0 <= self.fold < self.folds:
            raise MedarError(f"fold {self.fold}: a number from 0 to {self.folds - 1} is needed")
        if not 0 < self.labels <= 1:
            raise MedarError(f"labels {self.labels}: a share above 0 up to 1 is needed")
        if not 0 <= self.foreground <= 1:
            raise MedarError(f"foreground {self.foreground}: a share from 0 to 1 is needed")


@dataclass(frozen=True, kw_only=True)
class LossSettings:
    """What the network is trained against.

    Raises:
        MedarError: a weight below 0 or not finite, or two of 0; levels below 0.
    """

    __pydantic_config__: ClassVar[Any] = STRICT

    cross_entropy: float = 1.0
    dice: float = 1.0
    deep_supervision: int = 0
    """Coarser levels of the decoder that are held against the labels too, each half as much as the
    finer one; 0 for the finest alone."""

    def __post_init__(self) -> None:
        weights = (self.cross_entropy, self.dice)
        if not (min(weights) >= 0 and 0 < sum(weights) < inf):
            raise MedarError(
                f"loss cross_entropy {self.cross_entropy} and dice {self.dice}: weights from 0 are "
                "needed, one of them above"
            )
        if self.deep_supervision < 0:
            raise MedarError(
                f"loss deep_supervision {self.deep_supervision}: a number of levels from 0 is "
                "needed"
            )


@dataclass(frozen=True, kw_only=True)
class TransferSettings:
    """What is done with pretrained weights.

    Raises:
        MedarError: a decay out of its range.
    """

    __pydantic_config__: ClassVar[Any] = STRICT

    part: Literal["backbone", "encoder"] = "backbone"
    """What is taken over: encoder and decoder, or the encoder alone."""
    frozen: bool = False
    """What was taken over stays as it is; the rest is trained."""
    decay: float = 1.0
    """Factor of the learning rate from each stage of the backbone to the one before it: the head
    learns at the full rate, the input at the lowest. 1 for the same rate everywhere."""

    def __post_init__(self) -> None:
        if not 0 < self.decay <= 1:
            raise MedarError(f"transfer decay {self.decay}: a factor above 0 up to 1 is needed")


@dataclass(frozen=True, kw_only=True)
class SegmentationSettings:
    """One segmentation network, from prepared cases to model.

    Raises:
        MedarError: deep supervision of a backbone that stays as it is.
    """

    __pydantic_config__: ClassVar[Any] = STRICT

    plan: dict[str, Any] = field(default_factory=dict)
    """Values of the plan that are given; the others are derived from the data set."""
    backbone: BackboneSettings = field(default_factory=BackboneSettings)
    data: DataSettings = field(default_factory=DataSettings)
    loss: LossSettings = field(default_factory=LossSettings)
    transfer: TransferSettings = field(default_factory=TransferSettings)
    training: TrainingSettings

    def __post_init__(self) -> None:
        still = self.transfer.frozen and self.transfer.part == "backbone"
        if still and self.loss.deep_supervision:
            raise MedarError(
                f"loss deep_supervision {self.loss.deep_supervision}: transfer.frozen leaves no "
                "level to learn from it; 0 is needed, or transfer.part encoder"
            )

    def within(self, minutes: float | None) -> "SegmentationSettings":
        """The same with another limit of time, where one is given."""
        return replace(self, training=self.training.within(minutes))

    def with_labels(self, share: float | None) -> "SegmentationSettings":
        """The same with the labels of another share of the subjects, where one is given."""
        if share is None:
            return self
        return replace(self, data=replace(self.data, labels=share))


def share_of(text: str) -> float:
    """A share as it is typed: "10%", "10 %" or "0.1".

    Raises:
        MedarError: none of these, or not above 0 up to all.
    """
    found = re.fullmatch(r"([0-9]*\.?[0-9]+)\s*(%?)", text.strip())
    share = float(found[1]) / (100 if found[2] else 1) if found else 0.0
    if not 0 < share <= 1:
        raise MedarError(
            f"labels {text}: a share of the subjects is needed, such as 10% or 0.1, at most 100%"
        )
    return share
