"""`GeneratorSettings`: what a YAML in configs/generator holds."""

from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Literal

from medar.data.augmentation import Augmentation
from medar.errors import MedarError
from medar.generator.config import ConditionConfig, GeneratorConfig, Sizes
from medar.settings import STRICT
from medar.training.settings import TrainingSettings


@dataclass(frozen=True, kw_only=True)
class ModelSettings(Sizes):
    """The model; schedule, codes and conditions come from tokens and settings.

    Raises:
        MedarError: a size that cannot be.
    """

    __pydantic_config__: ClassVar[Any] = STRICT

    kind: Literal["next_scale", "raster"] = "next_scale"
    """"next_scale": a scale at a time; "raster": a token at a time, a baseline."""

    def config(self, condition: ConditionConfig) -> GeneratorConfig:
        """The model under some conditions."""
        sizes = {one.name: getattr(self, one.name) for one in fields(Sizes)}
        return GeneratorConfig(condition=condition, **sizes)


@dataclass(frozen=True, kw_only=True)
class ConditionSettings:
    """What the generator can be asked for.

    Raises:
        MedarError: a share out of its range.
    """

    __pydantic_config__: ClassVar[Any] = STRICT

    attributes: tuple[str, ...] | None = None
    """Names of attributes, `modality` among them; categories where values are texts. Default: the
    modality, where the cases have several."""
    map: Literal["none", "label"] = "none"
    """"label": the label map steers every scale; the tokens must hold maps."""
    map_width: int = 16
    """Features of the first level of the map's encoder."""
    drop: float = 0.1
    """Share of training items of which nothing is told, which guidance needs, and of those whose
    attributes, one by one, or whose map are left out alone."""

    def __post_init__(self) -> None:
        if self.map_width < 1:
            raise MedarError(f"condition map_width {self.map_width}: allowed from 1")
        if not 0 <= self.drop <= 1:
            raise MedarError(f"condition drop {self.drop}: a share from 0 to 1 is needed")


@dataclass(frozen=True, kw_only=True)
class ObjectiveSettings:
    """What the generator learns.

    Raises:
        MedarError: a share out of its range.
    """

    __pydantic_config__: ClassVar[Any] = STRICT

    balance: float = 1.0
    """A scale of T tokens weighs T to this power: 1 counts every token alike, 0 every scale."""
    smoothing: float = 0.0
    """Label smoothing of the cross-entropy."""
    correction: float = 0.1
    """Share of tokens that are replaced by random ones in training items that have any replaced,
    the targets of later scales being computed anew (arXiv 2412.04431): the model learns to mend
    what sampling gets wrong."""
    correction_items: float = 0.5
    """Share of such items."""
    known_boxes: float = 0.1
    """Share of training items of which all sites but a box, or a box alone, are given: inpainting
    and outpainting. The raster model sees no later token: it learns from all of them."""
    known_scales: float = 0.0
    """Share of training items of which coarse scales are marked as given."""

    def __post_init__(self) -> None:
        names = (
            "balance", "smoothing", "correction", "correction_items", "known_boxes", "known_scales"
        )  # fmt: skip
        for name in names:
            if not 0 <= getattr(self, name) <= 1:
                raise MedarError(
                    f"objective {name} {getattr(self, name)}: a share from 0 to 1 is needed"
                )
        if self.known_boxes + self.known_scales > 1:
            raise MedarError(
                f"objective known_boxes {self.known_boxes} and known_scales {self.known_scales}: "
                "together at most 1"
            )


@dataclass(frozen=True, kw_only=True)
class TokenSettings:
    """How volumes are encoded where tokens are made on the way.

    Raises:
        MedarError: a number out of its range.
    """

    __pydantic_config__: ClassVar[Any] = STRICT

    variants: int = 0
    """Augmented variants of each case, beside the volume as it is."""
    augmentation: Augmentation | None = None
    """How they are augmented; default `Augmentation`'s own values."""

    def __post_init__(self) -> None:
        if self.variants < 0:
            raise MedarError(f"tokens variants {self.variants}: a number from 0 is needed")


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """How tokens reach the model.

    Raises:
        MedarError: a number out of its range.
    """

    __pydantic_config__: ClassVar[Any] = STRICT

    batch_size: int = 16
    """Volumes a batch, over all processes together."""
    workers: int = 0
    """Loading processes of each process; 0 loads in the training process itself."""
    validation: int = 64
    """Most validation cases that an evaluation looks at."""
    previews: int = 4
    """Volumes that are sampled at each evaluation, with the conditions of as many validation
    cases."""

    def __post_init__(self) -> None:
        rules = (("batch_size", 1), ("workers", 0), ("validation", 1), ("previews", 0))
        for name, least in rules:
            if getattr(self, name) < least:
                raise MedarError(f"{name} {getattr(self, name)}: a number from {least} is needed")


@dataclass(frozen=True, kw_only=True)
class GeneratorSettings:
    """One generator, from tokens to model."""

    __pydantic_config__: ClassVar[Any] = STRICT

    model: ModelSettings = field(default_factory=ModelSettings)
    condition: ConditionSettings = field(default_factory=ConditionSettings)
    objective: ObjectiveSettings = field(default_factory=ObjectiveSettings)
    tokens: TokenSettings = field(default_factory=TokenSettings)
    data: DataSettings = field(default_factory=DataSettings)
    training: TrainingSettings

    def within(self, minutes: float | None) -> "GeneratorSettings":
        """The same with another limit of time, where one is given."""
        return replace(self, training=self.training.within(minutes))
