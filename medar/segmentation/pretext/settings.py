"""`PretrainSettings`: the content of a YAML in configs/segmentation/pretrain_*.yaml."""

from collections.abc import Callable
from dataclasses import field, replace
from typing import Annotated, Any, Literal

from pydantic import Field

from medar.errors import MedarError
from medar.registry import C, Registry
from medar.segmentation.backbones.settings import BackboneSettings
from medar.settings import Fraction, NonNegativeFloat, PositiveInt, settings
from medar.tokenizer.settings import DataSettings
from medar.training.settings import TrainingSettings

PRETEXTS: Registry[Any] = Registry(
    "pretext",
    "medar.pretexts",
    {
        "next_scale": "medar.segmentation.pretext.next_scale:NextScalePretext",
        "mixture": "medar.segmentation.pretext.next_scale:MixturePretext",
        "semantic_order": "medar.segmentation.pretext.semantic_order:SemanticOrderPretext",
        "masked": "medar.segmentation.pretext.masked:MaskedPretext",
    },
)
"""Subclasses of `Pretext` by the name that `PretextSettings.kind` takes."""

BUILT_IN = ("next_scale", "mixture", "semantic_order", "masked")


def register_pretext(name: str) -> Callable[[C], C]:
    """Class decorator that makes a `Pretext` available as `pretext.kind: NAME`.

    Raises:
        MedarError: another class has the name.
    """
    return PRETEXTS.register(name)


@settings
class MixtureSettings:
    """Relative frequencies of the three predictions of "mixture".

    Raises:
        MedarError: all three are 0.
    """

    random: NonNegativeFloat = 1.0
    """The tokens of masked blocks, from the rest of the volume."""
    next: NonNegativeFloat = 1.0
    """The tokens of the next scale, from the scales before."""
    all: NonNegativeFloat = 1.0
    """The tokens of all later scales, from the scales before."""

    def __post_init__(self) -> None:
        if not (self.random or self.next or self.all):
            raise MedarError("at least one of random, next and all must be above 0")


@settings(
    renamed={
        "balance": "scale_exponent",
        "hidden": "mask_ratio",
        "block": "mask_block_size",
        "distance": "loss",
        "normalised": "normalise_targets",
    }
)
class PretextSettings:
    """The pretext task: the view of the backbone, and the prediction.

    Raises:
        MedarError: an unknown kind, or options for a kind that has none.
    """

    kind: str = "next_scale"
    """"next_scale": the tokens of a scale, from the volume decoded from the scales before.
    "mixture": these, those of all later scales, and those of masked blocks. "semantic_order": the
    features of harder regions, from easier ones. "masked": the voxels of masked blocks. Or the name
    of a registered class."""
    tokenizer: str | None = None
    """Folder of a trained tokenizer; needed by all kinds except "masked"."""
    scale_exponent: Fraction = 0.5
    """"next_scale", "mixture": a scale of T tokens is drawn, or weighted, in proportion to T to
    this power."""
    mixture: MixtureSettings = field(default_factory=MixtureSettings)
    mask_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.6
    """"masked", "mixture": fraction of the blocks that is masked. The blocks of "mixture" are the
    sites of the tokenizer's finest grid."""
    mask_block_size: tuple[PositiveInt, PositiveInt, PositiveInt] = (8, 8, 8)
    """"masked": voxels per side of a block."""
    loss: Literal["l1", "l2"] = "l1"
    """"masked": distance between voxels."""
    normalise_targets: bool = False
    """"masked": predict blocks normalised to mean 0 and standard deviation 1."""
    stages: Annotated[int, Field(ge=2)] = 4
    """"semantic_order": number of parts, of equally many sites, in which a volume is revealed."""
    difficulty: Literal["residual", "similarity"] = "residual"
    """"semantic_order": difficulty of a site. "residual": the part of its feature that the coarser
    half of the scales does not explain; "similarity": distance from the volume's mean feature."""
    options: dict[str, Any] = field(default_factory=dict)
    """Settings of a registered class, which reads them itself."""

    def __post_init__(self) -> None:
        PRETEXTS.check(self.kind, "kind")
        if self.options and self.kind in BUILT_IN:
            raise MedarError(
                f"options are for registered pretexts, not for kind {self.kind}: "
                f"{', '.join(self.options)}"
            )

    @property
    def needs_tokenizer(self) -> bool:
        """Whether the kind learns from a tokenizer."""
        return bool(PRETEXTS[self.kind].needs_tokenizer)


@settings
class PretrainSettings:
    """The pretraining of a backbone, from prepared cases to model; labels are not used."""

    plan: dict[str, Any] = field(default_factory=dict)
    """Values of the plan to set; the others are derived from the data set."""
    backbone: BackboneSettings = field(default_factory=BackboneSettings)
    pretext: PretextSettings = field(default_factory=PretextSettings)
    data: DataSettings = field(default_factory=DataSettings)
    training: TrainingSettings

    def within(self, minutes: float | None) -> "PretrainSettings":
        """The same settings with another time limit, or unchanged for None."""
        return replace(self, training=self.training.within(minutes))

    def with_tokenizer(self, folder: str | None) -> "PretrainSettings":
        """The same settings with another tokenizer, or unchanged for None."""
        if folder is None:
            return self
        return replace(self, pretext=replace(self.pretext, tokenizer=folder))
