"""`SegmentationSettings`: the content of a YAML in configs/segmentation."""

import re
from dataclasses import field, replace
from typing import Annotated, Any, Literal

from pydantic import Field

from medar.data.augmentation import Augmentation
from medar.errors import MedarError
from medar.segmentation.backbones.settings import BackboneSettings
from medar.settings import Fraction, NonNegativeFloat, NonNegativeInt, PositiveInt, settings
from medar.training.settings import TrainingSettings

PositiveFraction = Annotated[float, Field(gt=0, le=1)]
"""Above 0, at most 1."""


@settings(renamed={"share": "fraction"})
class SyntheticSettings:
    """Synthetic volumes with label maps as training cases."""

    folder: str
    """Output of `medar synthesize`, or of `medar data prepare` with it as input."""
    fraction: PositiveFraction = 0.5
    """Fraction of the training items that are synthetic; 1 for synthetic cases only."""


@settings(
    renamed={
        "labels": "label_fraction",
        "labels_seed": "label_seed",
        "foreground": "foreground_fraction",
    }
)
class DataSettings:
    """How cases reach the network.

    Raises:
        MedarError: a fold that does not exist.
    """

    label_fraction: PositiveFraction = 1.0
    """Fraction of the training subjects whose labels are used, at least one subject. The subjects
    of a smaller fraction are among those of a larger one."""
    label_seed: int = 0
    """Seed that chooses these subjects."""
    fold: NonNegativeInt | None = None
    """Fold of cross-validation, from 0: this part of the annotated subjects of train and val
    becomes val, the others train; null keeps the splits."""
    folds: Annotated[int, Field(ge=2)] = 5
    """Number of folds that these subjects are dealt to, by their names only."""
    batch_size: PositiveInt = 2
    """Volumes or patches per batch, over all processes together."""
    foreground_fraction: Fraction = 1 / 3
    """Fraction of patches that are centred on a labelled voxel, each label being equally likely; no
    effect in volume mode."""
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
    """Augmentation of training volumes; null: none. Prediction averages over the axes of `flips`
    too."""
    synthetic: SyntheticSettings | None = None
    """Synthetic cases in addition to the real ones; null: none."""
    workers: NonNegativeInt | None = None
    """Loading processes of each training process; 0 loads in the training process itself. null: on
    CUDA the processors of the machine, shared by its processes, at most 16; on a CPU 0."""
    validation: PositiveInt = 64
    """Largest number of validation cases per evaluation."""

    def __post_init__(self) -> None:
        if self.fold is not None and self.fold >= self.folds:
            raise MedarError(f"fold must be at most folds - 1 = {self.folds - 1}, got {self.fold}")


@settings(renamed={"deep_supervision": "deep_supervision_levels"})
class LossSettings:
    """Weights of the training loss.

    Raises:
        MedarError: both weights are 0.
    """

    cross_entropy: NonNegativeFloat = 1.0
    """Weight of the cross-entropy."""
    dice: NonNegativeFloat = 1.0
    """Weight of 1 - Dice."""
    deep_supervision_levels: NonNegativeInt = 0
    """Coarser levels of the decoder that are trained on the labels too, each with half the weight
    of the next finer one; 0 trains the finest level only."""

    def __post_init__(self) -> None:
        if not self.cross_entropy and not self.dice:
            raise MedarError("cross_entropy or dice must be above 0")


@settings(renamed={"decay": "layer_decay"})
class TransferSettings:
    """What to do with pretrained weights."""

    part: Literal["backbone", "encoder"] = "backbone"
    """Weights to load: encoder and decoder, or the encoder only."""
    frozen: bool = False
    """Keep the loaded weights fixed and train the rest."""
    layer_decay: PositiveFraction = 1.0
    """Factor of the learning rate from each stage of the backbone to the one before it: the head
    learns at the full rate, the input stage at the lowest. 1: the same rate everywhere."""


@settings
class SegmentationSettings:
    """A segmentation network, from prepared cases to model.

    Raises:
        MedarError: deep supervision of a frozen backbone.
    """

    plan: dict[str, Any] = field(default_factory=dict)
    """Values of the plan to set; the others are derived from the data set."""
    backbone: BackboneSettings = field(default_factory=BackboneSettings)
    data: DataSettings = field(default_factory=DataSettings)
    loss: LossSettings = field(default_factory=LossSettings)
    transfer: TransferSettings = field(default_factory=TransferSettings)
    training: TrainingSettings

    def __post_init__(self) -> None:
        frozen = self.transfer.frozen and self.transfer.part == "backbone"
        if frozen and self.loss.deep_supervision_levels:
            raise MedarError(
                f"loss.deep_supervision_levels must be 0, got {self.loss.deep_supervision_levels}: "
                "transfer.frozen leaves no level to train; or set transfer.part to encoder"
            )

    def within(self, minutes: float | None) -> "SegmentationSettings":
        """The same settings with another time limit, or unchanged for None."""
        return replace(self, training=self.training.within(minutes))

    def with_label_fraction(self, fraction: float | None) -> "SegmentationSettings":
        """The same settings with another label fraction, or unchanged for None."""
        if fraction is None:
            return self
        return replace(self, data=replace(self.data, label_fraction=fraction))


def parse_fraction(text: str) -> float:
    """A label fraction as typed: "10%", "10 %" or "0.1".

    Raises:
        MedarError: not a number, or not above 0 and at most 100%.
    """
    match = re.fullmatch(r"([0-9]*\.?[0-9]+)\s*(%?)", text.strip())
    fraction = float(match[1]) / (100 if match[2] else 1) if match else 0.0
    if not 0 < fraction <= 1:
        raise MedarError(
            f"labels must be a fraction of the subjects, such as 10% or 0.1, at most 100%; got "
            f"{text!r}"
        )
    return fraction
