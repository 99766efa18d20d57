"""`TokenizerSettings`: what a YAML in configs/tokenizer holds, and the model that it describes."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from medar.data.augmentation import Augmentation
from medar.data.plan import Plan
from medar.errors import MedarError
from medar.settings import STRICT
from medar.tokenizer.codebooks import CodebookSettings
from medar.tokenizer.losses import DiscriminatorConfig
from medar.tokenizer.network import NetworkConfig
from medar.tokenizer.residual import QuantiserSettings
from medar.tokenizer.schedule import ScaleSchedule
from medar.tokenizer.tokenizer import TokenizerConfig
from medar.training.settings import TrainingSettings
from medar.volume import Shape3


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """The tokenizer, save what the plan says: channels, size, downsampling and labels."""

    __pydantic_config__: ClassVar[Any] = STRICT

    patch: int = 2
    """Voxels along a side that enter as channels of one site."""
    width: int = 32
    """Features at the first level, the dial for size."""
    growth: tuple[int, ...] = (1, 2, 4)
    """Multiples of it at each level, from the first down."""
    blocks: int = 1
    """Residual blocks per level, in the encoder and in the decoder."""
    checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    scales: int | None = None
    """Scales of the pyramid, whose sides grow linearly; default as many as the latent grid's
    longest side, at most 10."""
    grids: tuple[Shape3, ...] | None = None
    """The grids themselves, coarse to fine, instead of `scales`."""
    codebook: CodebookSettings = field(default_factory=CodebookSettings)
    quantiser: QuantiserSettings = field(default_factory=QuantiserSettings)
    label_head: bool = False
    """Decode label maps too, from the same tokens."""

    def config(self, plan: Plan) -> TokenizerConfig:
        """The tokenizer for volumes of a plan.

        Raises:
            MedarError: the grids do not fit the plan, or the plan has no labels for a label head.
        """
        if self.label_head and not plan.labels:
            raise MedarError(
                "model.label_head true: the plan names no labels; use labelled data, or false"
            )
        return TokenizerConfig(
            schedule=self._schedule(plan.latent),
            network=NetworkConfig(
                channels=len(plan.channels) or 1,
                patch=self.patch,
                width=self.width,
                growth=self.growth,
                blocks=self.blocks,
                checkpointing=self.checkpointing,
                code_width=self.codebook.width,
                downsampling=plan.downsampling,
                labels=len(plan.labels) if self.label_head else 0,
            ),
            codebook=self.codebook,
            quantiser=self.quantiser,
        )

    def _schedule(self, latent: Shape3) -> ScaleSchedule:
        if self.grids is None:
            return ScaleSchedule.from_latent(latent, self.scales or min(max(latent), 10))
        if self.scales is not None:
            raise MedarError(f"model.scales {self.scales} and model.grids exclude each other")
        schedule = ScaleSchedule(grids=self.grids)
        schedule.check_latent(latent)
        return schedule


@dataclass(frozen=True, kw_only=True)
class AdversarialSettings:
    """A patch discriminator, which gives texture back.

    Raises:
        MedarError: a weight below 0, or a learning rate that is not above it.
    """

    __pydantic_config__: ClassVar[Any] = STRICT

    weight: float = 0.003
    """Of the hinge loss's generator side."""
    adaptive: bool = False
    """Multiply the weight by the ratio of gradient norms at the decoder's last layer
    (arXiv 2012.09841)."""
    feature_matching: float = 0.03
    """Weight of the difference between the discriminators' features (arXiv 1711.11585)."""
    learning_rate: float = 1.0
    """Of the discriminator, relative to the tokenizer's."""
    width: int = 16
    """Features of the discriminators' first layer."""
    layers: int = 3
    """Layers of the first discriminator; each further one has as many more."""
    scales: int = 1
    """Discriminators, each with a larger patch than the one before."""

    def __post_init__(self) -> None:
        if min(self.weight, self.feature_matching) < 0:
            raise MedarError(
                f"adversarial weight {self.weight}, feature_matching {self.feature_matching}: "
                "numbers from 0 are needed"
            )
        if self.learning_rate <= 0:
            raise MedarError(
                f"adversarial learning_rate {self.learning_rate}: a number above 0 is needed"
            )

    def discriminator(self, channels: int) -> DiscriminatorConfig:
        """The discriminators for volumes of so many channels."""
        return DiscriminatorConfig(
            channels=channels, width=self.width, layers=self.layers, scales=self.scales
        )


@dataclass(frozen=True, kw_only=True)
class LossSettings:
    """What the tokenizer is trained against; L1 and the quantiser's own loss have weight 1.

    Raises:
        MedarError: a weight below 0, a start that is no share, or a perceptual weight without a
            file.
    """

    __pydantic_config__: ClassVar[Any] = STRICT

    frequency: float = 0.0
    """Weight of the difference of log spectra; 0 leaves it out."""
    perceptual: float = 0.0
    """Weight of the distance between MedicalNet's features; 0 leaves it out."""
    perceptual_file: Path | None = None
    """Local weights for it, resnet_10_23dataset.pth."""
    labels: float = 1.0
    """Weight of cross-entropy plus Dice of the label head, where the model has one."""
    adversarial: AdversarialSettings | None = None
    """The patch discriminator; null leaves it out."""
    texture_start: float = 0.8
    """Share of the run after which the losses that give texture back, `frequency` and
    `adversarial`, join in: from the start they keep a network from learning anything else."""

    def __post_init__(self) -> None:
        for name in ("frequency", "perceptual", "labels"):
            if getattr(self, name) < 0:
                raise MedarError(f"{name} {getattr(self, name)}: a number from 0 is needed")
        if not 0 <= self.texture_start < 1:
            raise MedarError(
                f"texture_start {self.texture_start}: a share from 0 to below 1 is needed"
            )
        if self.perceptual and self.perceptual_file is None:
            raise MedarError(
                f"perceptual {self.perceptual} without perceptual_file: name the local weights "
                "of MedicalNet's ResNet-10, or set 0"
            )


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """How volumes reach the model.

    Raises:
        MedarError: a number out of its range.
    """

    __pydantic_config__: ClassVar[Any] = STRICT

    batch_size: int = 4
    """Volumes a batch, over all processes together."""
    augmentation: Augmentation | None = None
    """Of training volumes; null for none."""
    workers: int = 0
    """Loading processes of each process; 0 loads in the training process itself."""
    validation: int = 64
    """Most validation cases that an evaluation looks at."""

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("workers", 0), ("validation", 1)):
            if getattr(self, name) < least:
                raise MedarError(f"{name} {getattr(self, name)}: a number from {least} is needed")


@dataclass(frozen=True, kw_only=True)
class TokenizerSettings:
    """One tokenizer, from data to model."""

    __pydantic_config__: ClassVar[Any] = STRICT

    plan: dict[str, Any] = field(default_factory=dict)
    """Values of the plan that are given; the others are derived from the data set."""
    model: ModelSettings = field(default_factory=ModelSettings)
    loss: LossSettings = field(default_factory=LossSettings)
    data: DataSettings = field(default_factory=DataSettings)
    training: TrainingSettings

    def within(self, minutes: float | None) -> "TokenizerSettings":
        """The same with another limit of time, where one is given."""
        return replace(self, training=self.training.within(minutes))
