"""Settings of a generator: the content of YAMLs in configs/generator and of model folders.

`GeneratorSettings` is one training run. `GeneratorConfig` is what a trained network is built from:
`ModelSettings` as in the YAML, and the conditions as they were found in the training data.
"""

from dataclasses import field, replace
from typing import Annotated, Any, Literal

from pydantic import Field

from medar.data.augmentation import Augmentation
from medar.data.loading import loading_workers
from medar.data.source import Degradation, Source
from medar.devices import InferencePrecision
from medar.errors import MedarError
from medar.generator.mixers import MixerSettings
from medar.settings import (
    OPTIONAL,
    Depth,
    Fraction,
    FractionBelowOne,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Width,
    settings,
    to_dict,
)
from medar.tokenizer.detail import Detail
from medar.tokenizer.schedule import ScaleSchedule
from medar.training.settings import TrainingSettings

Probability = Annotated[float, Field(gt=0, le=1)]

LAST_TEMPERATURES = (0.7, 0.3)
"""Temperatures of the last two scales with "auto". Measured: docs/results.md."""


@settings(
    renamed={
        "mlp": "mlp_ratio",
        "window": "window_size",
        "window_from": "window_min_side",
    }
)
class ModelSettings:
    """The transformer; the tokenizer gives schedule, codebook size and code width."""

    depth: Depth = 6
    """Number of blocks, and of heads too: the dial for size."""
    head_width: Annotated[int, Field(ge=2, le=65_536, multiple_of=2)] = 32
    """Features of a head; 64 from a depth of 16 on suits GPUs."""
    mlp_ratio: PositiveFloat = 4.0
    """Hidden features of each block's MLP, in multiples of the width."""
    dropout: FractionBelowOne = 0.0
    """Dropout probability at the end of each layer, in training."""
    window_size: PositiveInt = 8
    """Sites along a side of the windows in which large grids attend."""
    window_min_side: PositiveInt = 12
    """Longest side of a grid from which attention is limited to windows."""
    mixer: MixerSettings = field(default_factory=MixerSettings)
    """How information passes from coarse scales to fine ones."""
    convolutions: NonNegativeInt = 0
    """Blocks of convolutions over the grid of each scale, before the transformer; see
    `medar.generator.convolutions`."""
    activation_checkpointing: bool = False
    """Recompute each block's activations in the backward pass: less memory, about a third more
    time."""
    crop_side: PositiveInt | None = None
    """Sites along a side of the random crops of larger grids that training sees, a multiple of
    `window_size`; null: training sees whole volumes. See `medar.generator.crops`."""

    def __post_init__(self) -> None:
        self._check_crop()
        if self.mlp_ratio * self.width < 1:
            raise MedarError(
                f"mlp_ratio must be at least {1 / self.width:.3g} (one hidden feature), got "
                f"{self.mlp_ratio:g}"
            )

    def _check_crop(self) -> None:
        side = self.crop_side
        if side is None:
            return
        if side % self.window_size or side < self.window_min_side:
            raise MedarError(
                f"crop_side must be a multiple of window_size {self.window_size} and at least "
                f"window_min_side {self.window_min_side}, got {side}"
            )
        if self.mixer.kind != "none":
            raise MedarError(
                f"crop_side {side} needs mixer.kind none, got {self.mixer.kind!r}: the mixer's "
                "state would hold crops in training and whole scales while sampling"
            )

    @property
    def width(self) -> int:
        """E, features of a token."""
        return self.depth * self.head_width


@settings
class Attribute:
    """Something that a volume can be requested to have: a category, or a number."""

    name: str
    values: tuple[str, ...] = ()
    """The values of a category; none for a number."""
    mean: float = 0.0
    """Of a number, over the training cases."""
    deviation: PositiveFloat = 1.0
    """Of a number, over the training cases."""

    def __post_init__(self) -> None:
        if len(set(self.values)) < len(self.values):
            raise MedarError(f"attribute {self.name!r}: duplicate value in {list(self.values)}")

    @property
    def categorical(self) -> bool:
        """Whether it is a category."""
        return bool(self.values)


@settings
class ConditionConfig:
    """The conditions that a trained generator takes."""

    attributes: tuple[Attribute, ...] = ()
    map: Literal["none", "label", "source"] = "none"
    """A condition per voxel: the label map, or a source volume."""
    map_channels: NonNegativeInt = 0
    """M: labels and background of the label map, 2 of a source volume; 0 without a map."""
    map_width: Width = 16
    """Features of the first level of the map's encoder."""
    augmentation: bool = False
    """Whether training marked augmented items by a learnt vector, which sampling never adds."""
    source: Source | None = field(default=None, metadata=OPTIONAL)
    """What the source volumes are; None for other maps."""

    def __post_init__(self) -> None:
        if (self.map == "source") != (self.source is not None):
            raise MedarError(f"map {self.map!r} and source {self.source}: give both or neither")
        if (self.map == "none") != (self.map_channels == 0):
            raise MedarError(
                f"map {self.map!r} with {self.map_channels} channels: 'none' needs 0 channels, "
                "others 1 or more"
            )


@settings
class GeneratorConfig:
    """A generator's network: its sizes and its conditions."""

    model: ModelSettings = field(default_factory=ModelSettings)
    condition: ConditionConfig = field(default_factory=ConditionConfig)
    refinement: bool = False
    """Whether training revealed a part of a scale's tokens, so that a scale can be drawn in several
    passes."""

    @property
    def function(self) -> dict[str, Any]:
        """The values that decide what the network computes: those of equal models are equal."""
        values = to_dict(self)
        for name in ("activation_checkpointing", "crop_side"):
            del values["model"][name]
        # Later than the others: models without them keep their digest, and runs can be resumed.
        mixer = values["model"]["mixer"]
        if mixer["kind"] != "scale_ssm":
            del mixer["state_max_side"]
        if mixer["every"] == 1:
            del mixer["every"]
        if not values["model"]["convolutions"]:
            del values["model"]["convolutions"]
        return values


@settings(renamed={"guidance": "guidance_scale"})
class SamplingSettings:
    """How tokens are chosen, and decoded."""

    temperature: Literal["auto"] | PositiveFloat | tuple[PositiveFloat, ...] = "auto"
    """Divides the logits; below 1 likely tokens become likelier. One value, or one per scale;
    "auto": 1, but 0.7 and 0.3 at the last two of four or more scales."""
    top_k: NonNegativeInt | tuple[NonNegativeInt, ...] = 0
    """Keep only the k likeliest tokens; 0 keeps all. One value, or one per scale."""
    top_p: Probability | tuple[Probability, ...] = 1.0
    """Keep only the likeliest tokens whose probabilities sum to this. One value, or one per
    scale."""
    guidance_scale: NonNegativeFloat = 0.0
    """Strength of classifier-free guidance (arXiv 2207.12598) at the last scale: logits become
    `c + guidance_scale * (c - u)`, c with and u without the condition. 0 turns it off. It rises
    linearly from 0 at the first scale."""
    guidance_from: NonNegativeInt = 0
    """The first scale with guidance, from 0."""
    guidance_to: NonNegativeInt | None = None
    """The scale before which guidance ends; default: after the last. Guidance at late scales costs
    most and changes least."""
    passes: Literal["auto"] | PositiveInt | tuple[PositiveInt, ...] = "auto"
    """Passes in which the tokens of a scale are drawn, at most one per token; each pass sees the
    tokens of those before it (`medar.generator.refinement`). 1 draws all tokens of a scale at once,
    independently. One value, or one per scale; "auto": many in small scales, one in the last."""
    detail: Detail = "auto"
    """Steps of the tokenizer's detail decoder; "none": without it; "auto": its own number of steps,
    or none if the tokenizer has no detail decoder."""
    precision: InferencePrecision = "auto"
    """"fp32" or "bf16" for tokens and decoding. "auto": bf16 for decoding where the device has
    instructions for it, and for tokens on CUDA only; on a CPU it gains little there. Rounding
    changes most tokens of a sample, but not what samples are like."""

    def check(self, schedule: ScaleSchedule, refinement: bool = True) -> None:
        """Check the values against a generator.

        Per-scale values must match the number of scales, guidance must affect at least one, and
        more than one pass needs a model trained for it.

        Args:
            schedule: the generator's.
            refinement: `GeneratorConfig.refinement`.

        Raises:
            MedarError: naming the setting.
        """
        scales = len(schedule)
        if not refinement and self.passes not in ("auto", 1):
            raise MedarError(
                f"passes must be 1 or auto, got {self.passes}: this generator was trained with "
                "refinement_fraction 0; train it with a fraction above 0"
            )
        for name in ("temperature", "top_k", "top_p", "passes"):
            value = getattr(self, name)
            if isinstance(value, tuple) and len(value) != scales:
                raise MedarError(
                    f"{name} has {len(value)} values, the model {scales} scales; give one value, "
                    "or one per scale"
                )
        if self.guidance_scale and not any(self.guidance_at(k, scales) for k in range(scales)):
            end = scales if self.guidance_to is None else self.guidance_to
            raise MedarError(
                f"guidance_scale {self.guidance_scale:g} from scale {self.guidance_from} to before "
                f"{end} affects no scale; the model has scales 0 to {scales - 1}, and guidance is "
                "always 0 at scale 0"
            )

    def temperature_at(self, k: int, scales: int) -> float:
        """The temperature at scale k of `scales`.

        Coarse scales decide what the anatomy is, so that a temperature below 1 there would cost
        variety. The last ones hold most of the tokens, and what is wrong in them looks like noise.
        """
        if isinstance(self.temperature, tuple):
            return self.temperature[k]
        if self.temperature == "auto":
            last = k - scales + len(LAST_TEMPERATURES)
            return LAST_TEMPERATURES[last] if scales >= 4 and last >= 0 else 1.0
        return self.temperature

    def guidance_at(self, k: int, scales: int) -> float:
        """The guidance scale at scale k of `scales`."""
        end = scales if self.guidance_to is None else self.guidance_to
        if not self.guidance_from <= k < end:
            return 0.0
        return self.guidance_scale * (k / (scales - 1) if scales > 1 else 1.0)


@settings(renamed={"drop": "drop_probability"})
class ConditionSettings:
    """The conditions to train with."""

    attributes: tuple[str, ...] | None = None
    """Names of attributes, `modality` among them; categories where values are texts. Default: the
    modality, where the cases have several."""
    map: Literal["none", "label", "source"] = "none"
    """"label": the label map is a condition at every scale; "source": another volume of the case
    is, which the generator then translates. The tokens must hold these."""
    map_width: Width = 16
    """Features of the first level of the map's encoder."""
    drop_probability: Fraction = 0.1
    """Probability that a training item loses all its conditions, which guidance needs; and that it
    loses its map alone, or any one of several attributes."""


@settings(
    renamed={
        "balance": "scale_weight_power",
        "smoothing": "label_smoothing",
        "correction": "corrupted_token_fraction",
        "correction_items": "corrupted_item_fraction",
        "known_boxes": "known_box_fraction",
        "known_scales": "known_scale_fraction",
    }
)
class ObjectiveSettings:
    """What the generator learns."""

    scale_weight_power: Fraction = 1.0
    """A scale of T tokens has weight T to this power: 1 weighs every token equally, 0 every
    scale."""
    label_smoothing: Fraction = 0.0
    """Label smoothing of the cross-entropy."""
    corrupted_token_fraction: Fraction = 0.1
    """Fraction of tokens replaced by random ones in corrupted training items, the targets of later
    scales being recomputed (arXiv 2412.04431): the model learns to correct sampling errors."""
    corrupted_item_fraction: Fraction = 0.5
    """Fraction of training items that are corrupted."""
    known_box_fraction: Fraction = 0.1
    """Fraction of training items in which all tokens outside, or inside, a box are known, for
    inpainting and outpainting."""
    known_scale_fraction: Fraction = 0.0
    """Fraction of training items in which the coarse scales are known."""
    refinement_fraction: Fraction = 0.5
    """Fraction of training items in which a random part of one scale's tokens is known, so that
    sampling can draw a scale in several passes; see `SamplingSettings.passes`."""

    def __post_init__(self) -> None:
        if self.known_box_fraction + self.known_scale_fraction > 1:
            raise MedarError(
                f"known_box_fraction {self.known_box_fraction:g} and known_scale_fraction "
                f"{self.known_scale_fraction:g} must sum to at most 1"
            )


@settings
class TokenSettings:
    """How volumes are encoded where tokens are made as part of the run."""

    variants: NonNegativeInt = 0
    """Augmented variants per case, besides the volume itself."""
    augmentation: Augmentation | None = None
    """How they are augmented; default: `Augmentation`'s own values."""
    degradation: Degradation | None = field(default=None, metadata=OPTIONAL)
    """For `condition.map: source` without pairs: each volume, degraded like this, is its source."""


@settings
class DataSettings:
    """How tokens reach the model."""

    batch_size: PositiveInt = 16
    """Volumes per batch, over all processes."""
    workers: NonNegativeInt | None = None
    """Loading processes of each training process; 0 loads in the training process itself. null: on
    CUDA the processors of the machine, shared by its processes, at most 16; on a CPU 0."""
    validation: PositiveInt = 64
    """Largest number of validation cases per evaluation."""
    original_fraction: Fraction = 0.3
    """Probability that a training item is the volume itself; the others are augmented variants, if
    the tokens have any. A learnt vector marks those, and sampling leaves it out: variants teach
    without showing in the samples (as in arXiv 2206.00364, augmentation regularization). 0: only
    variants, without the mark, so that samples look like them."""
    previews: NonNegativeInt = 4
    """Volumes sampled at each evaluation, under the conditions of as many validation cases."""


@settings
class GeneratorSettings:
    """One generator, from tokens to model."""

    model: ModelSettings = field(default_factory=ModelSettings)
    condition: ConditionSettings = field(default_factory=ConditionSettings)
    objective: ObjectiveSettings = field(default_factory=ObjectiveSettings)
    tokens: TokenSettings = field(default_factory=TokenSettings)
    data: DataSettings = field(default_factory=DataSettings)
    training: TrainingSettings

    def __post_init__(self) -> None:
        if self.tokens.degradation is not None and self.condition.map != "source":
            raise MedarError(
                f"tokens.degradation makes source volumes, but condition.map is "
                f"{self.condition.map!r}; set it to 'source', or leave degradation out"
            )

    def encoding(self) -> dict[str, Any]:
        """Arguments of `encode_data_set` that give the tokens to train on."""
        return {
            "device": self.training.device,
            "variants": self.tokens.variants,
            "augmentation": self.tokens.augmentation,
            "maps": self.condition.map == "label",
            "degradation": self.tokens.degradation,
            "workers": loading_workers(self.data.workers, self.training.device),
        }

    def within(self, minutes: float | None) -> "GeneratorSettings":
        """The same with another time limit, where one is given."""
        return replace(self, training=self.training.within(minutes))
