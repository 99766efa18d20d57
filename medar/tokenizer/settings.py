"""`TokenizerSettings`, `DetailSettings`: the content of YAMLs in configs/tokenizer and detail."""

from dataclasses import field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from medar.data.augmentation import Augmentation
from medar.data.plan import Plan
from medar.errors import MedarError
from medar.settings import (
    Depth,
    FractionBelowOne,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Width,
    settings,
)
from medar.tokenizer.codebooks import CodebookSettings
from medar.tokenizer.detail import Prediction, Widths
from medar.tokenizer.losses import DiscriminatorConfig
from medar.tokenizer.network import RENAMED, Multipliers, NetworkConfig
from medar.tokenizer.noise import WHITE, Correlation
from medar.tokenizer.quantiser import QuantiserSettings
from medar.tokenizer.schedule import Grid3, ScaleSchedule
from medar.tokenizer.tokenizer import TokenizerConfig
from medar.training.settings import TrainingSettings
from medar.volume import Shape3


@settings(renamed=RENAMED)
class ModelSettings:
    """The tokenizer without the plan's values: channels, size, downsampling and labels."""

    patch_size: PositiveInt = 2
    """Voxels per side that are folded into the channels of one site."""
    width: Width = 32
    """Features at the first level; the other levels are multiples of it."""
    width_multipliers: Multipliers = (1, 2, 4)
    """These multiples, from the first level on; the last one holds for all further levels."""
    blocks_per_level: Depth = 1
    """Residual blocks per level, in the encoder and in the decoder."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    scales: int | None = None
    """Number of scales, whose grids grow linearly; default: the longest side of the latent grid, at
    most 10."""
    grids: tuple[Grid3, ...] | None = None
    """The grids themselves, coarse to fine, instead of `scales`."""
    codebook: CodebookSettings = field(default_factory=CodebookSettings)
    quantiser: QuantiserSettings = field(default_factory=QuantiserSettings)
    label_head: bool = False
    """Decode label maps too, from the same tokens."""

    def config(self, plan: Plan) -> TokenizerConfig:
        """The tokenizer for volumes of a plan.

        Raises:
            MedarError: the grids do not fit the plan, or a label head without labels in the plan.
        """
        if self.label_head and not plan.labels:
            raise MedarError(
                "model.label_head true: the plan names no labels; use labelled data, or false"
            )
        return TokenizerConfig(
            schedule=self._schedule(plan.latent),
            network=NetworkConfig(
                channels=len(plan.channels) or 1,
                patch_size=self.patch_size,
                width=self.width,
                width_multipliers=self.width_multipliers,
                blocks_per_level=self.blocks_per_level,
                activation_checkpointing=self.activation_checkpointing,
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


@settings(
    renamed={
        "adaptive": "adaptive_weight",
        "feature_matching": "feature_matching_weight",
        "learning_rate": "learning_rate_factor",
        "scales": "discriminators",
    }
)
class AdversarialSettings:
    """A patch discriminator, which restores texture."""

    weight: NonNegativeFloat = 0.003
    """Weight of the generator's side of the hinge loss."""
    adaptive_weight: bool = False
    """Multiply the weight by the ratio of gradient norms at the decoder's last layer
    (arXiv 2012.09841)."""
    feature_matching_weight: NonNegativeFloat = 0.03
    """Weight of the difference between the discriminators' features (arXiv 1711.11585)."""
    learning_rate_factor: PositiveFloat = 1.0
    """Learning rate of the discriminator, relative to the tokenizer's."""
    width: Annotated[int, Field(ge=4, le=65_536, multiple_of=4)] = 16
    """Features of the discriminators' first layer."""
    layers: Depth = 3
    """Layers of the first discriminator; each further one has as many more."""
    discriminators: Depth = 1
    """Number of discriminators, each with a larger patch than the one before."""

    def discriminator(self, channels: int) -> DiscriminatorConfig:
        """The discriminators for volumes with this number of channels."""
        return DiscriminatorConfig(
            channels=channels,
            width=self.width,
            layers=self.layers,
            discriminators=self.discriminators,
        )


@settings(
    renamed={
        "frequency": "frequency_weight",
        "perceptual": "perceptual_weight",
        "labels": "label_weight",
        "texture_start": "texture_start_fraction",
    }
)
class LossSettings:
    """Weights of the losses; L1 and the quantiser's own loss have weight 1."""

    frequency_weight: NonNegativeFloat = 0.0
    """Weight of the difference of log spectra; 0 switches it off."""
    perceptual_weight: NonNegativeFloat = 0.0
    """Weight of the distance between MedicalNet's features; 0 switches it off."""
    perceptual_file: Path | None = None
    """MedicalNet's weights, resnet_10_23dataset.pth, as a local file."""
    label_weight: NonNegativeFloat = 1.0
    """Weight of cross-entropy plus Dice of the label head, if the model has one."""
    adversarial: AdversarialSettings | None = None
    """The patch discriminator; null: none."""
    texture_start_fraction: FractionBelowOne = 0.8
    """Fraction of the run after which the losses that restore texture, frequency and adversarial,
    start: from the beginning they would keep the network from learning anything else."""

    def __post_init__(self) -> None:
        if self.perceptual_weight and self.perceptual_file is None:
            raise MedarError(
                f"perceptual_weight {self.perceptual_weight} without perceptual_file: name the "
                "local weights of MedicalNet's ResNet-10, or set 0"
            )


@settings
class DataSettings:
    """How volumes reach the model."""

    batch_size: PositiveInt = 4
    """Volumes per batch, over all processes together."""
    augmentation: Augmentation | None = None
    """Augmentation of training volumes; null: none."""
    workers: NonNegativeInt | None = None
    """Loading processes of each training process; 0 loads in the training process itself. null: on
    CUDA the processors of the machine, shared by its processes, at most 16; on a CPU 0."""
    validation: PositiveInt = 64
    """Largest number of validation cases per evaluation."""


@settings
class TokenizerSettings:
    """A tokenizer, from data to model."""

    plan: dict[str, Any] = field(default_factory=dict)
    """Values of the plan to set; the others are derived from the data set."""
    model: ModelSettings = field(default_factory=ModelSettings)
    loss: LossSettings = field(default_factory=LossSettings)
    data: DataSettings = field(default_factory=DataSettings)
    training: TrainingSettings

    def within(self, minutes: float | None) -> "TokenizerSettings":
        """The same settings with a time limit, if one is given."""
        return replace(self, training=self.training.within(minutes))


@settings
class DetailModelSettings:
    """Sizes of the detail decoder; the others are the tokenizer's."""

    widths: Widths = (24, 48, 72)
    """Features of each level, finest first."""
    steps: PositiveInt = 4
    """Steps from noise to residual by default, for decoders without `one_step`."""
    correlation: Correlation | Literal["auto"] = WHITE
    """Of the noise, between neighbouring voxels along each axis: [0, 0, 0] is white noise; "auto":
    that of the residuals of the training volumes, for networks that are trained for a minute."""
    prediction: Prediction = "velocity"
    """"residual": for networks whose first width is less than three times the channels of a folded
    patch."""
    method: Literal["multistep", "euler"] = "multistep"
    """How the flow is followed, for decoders without `one_step`; Euler's method loses power at high
    frequencies, which hides the grain of networks that were trained for a minute."""


@settings
class OneStepSettings:
    """The last part of the training, after which one step is enough."""

    start_fraction: FractionBelowOne = 0.6
    """Fraction of the run after which it starts."""


@settings
class DetailDataSettings:
    """How volumes reach the model."""

    batch_size: PositiveInt = 4
    """Volumes per batch, over all processes together."""
    flips: tuple[Literal["x", "y", "z"], ...] = ()
    """Axes along which a decoded volume and its original may be mirrored together."""
    workers: NonNegativeInt | None = None
    """Loading processes of each training process; 0 loads in the training process itself. null: on
    CUDA the processors of the machine, shared by its processes, at most 16; on a CPU 0."""
    validation: PositiveInt = 64
    """Largest number of validation cases per evaluation."""


@settings
class DetailSettings:
    """A detail decoder, from data to model: the content of a YAML in configs/detail."""

    model: DetailModelSettings = field(default_factory=DetailModelSettings)
    one_step: OneStepSettings | None = field(default_factory=OneStepSettings)
    data: DetailDataSettings = field(default_factory=DetailDataSettings)
    training: TrainingSettings

    def within(self, minutes: float | None) -> "DetailSettings":
        """The same settings with a time limit, if one is given."""
        return replace(self, training=self.training.within(minutes))
