"""`PretrainSettings`: what a YAML in configs/segmentation/pretrain_*.yaml holds."""

from dataclasses import dataclass, field, replace
from math import inf
from typing import Any, ClassVar, Literal

from medar.errors import MedarError
from medar.segmentation.backbones.settings import BackboneSettings
from medar.settings import STRICT
from medar.tokenizer.settings import DataSettings
from medar.training.settings import TrainingSettings
from medar.volume import Shape3

Kind = Literal["next_scale", "mixture", "semantic_order", "masked"]


@dataclass(frozen=True, kw_only=True)
class MixtureSettings:
    """How often "mixture" asks what, relative to each other.

    Raises:
        MedarError: a weight below 0 or not finite, or three of 0.
    """

    __pydantic_config__: ClassVar[Any] = STRICT

    random: float = 1.0
    """The tokens of hidden blocks, from what is left of the volume itself."""
    next: float = 1.0
    """The tokens of the next scale, from the scales before."""
    all: float = 1.0
    """The tokens of all later scales, from the scales before."""

    def __post_init__(self) -> None:
        weights = (self.random, self.next, self.all)
        if not (min(weights) >= 0 and 0 < sum(weights) < inf):
            raise MedarError(
                f"pretext mixture random {self.random}, next {self.next}, all {self.all}: numbers "
                "from 0 are needed, one of them above"
            )


@dataclass(frozen=True, kw_only=True)
class PretextSettings:
    """What is seen and what is to be predicted; of each kind, what it does not use rests.

    Raises:
        MedarError: a number out of its range.
    """

    __pydantic_config__: ClassVar[Any] = STRICT

    kind: Kind = "next_scale"
    """"next_scale": the tokens of a scale, from the volume decoded from the scales before.
    "mixture": that, those of all later scales, and those of hidden blocks. "semantic_order": the
    features of harder regions, from easier ones. "masked": the voxels of hidden blocks."""
    tokenizer: str | None = None
    """Folder of a trained tokenizer, which all kinds but "masked" need."""
    balance: float = 0.5
    """"next_scale", "mixture": a scale of T tokens is drawn, or weighs, as T to this power."""
    mixture: MixtureSettings = field(default_factory=MixtureSettings)
    hidden: float = 0.6
    """"masked", "mixture": share of the blocks that is hidden. The mixture's blocks are the sites
    of the tokenizer's finest grid."""
    block: Shape3 = (8, 8, 8)
    """"masked": voxels along the sides of a block."""
    distance: Literal["l1", "l2"] = "l1"
    """"masked": between voxels."""
    normalised: bool = False
    """"masked": predict each block less its own mean and over its own standard deviation."""
    stages: int = 4
    """"semantic_order": parts of equally many sites that a volume is revealed in."""
    difficulty: Literal["residual", "similarity"] = "residual"
    """"semantic_order": what makes a site hard. "residual": what the coarser half of the scales
    leaves of its feature; "similarity": how unlike the mean feature of the volume it is."""

    def __post_init__(self) -> None:
        if not 0 <= self.balance <= 1:
            raise MedarError(f"pretext balance {self.balance}: a number from 0 to 1 is needed")
        if not 0 < self.hidden < 1:
            raise MedarError(f"pretext hidden {self.hidden}: a share above 0, below 1 is needed")
        if min(self.block) < 1:
            raise MedarError(f"pretext block {list(self.block)}: whole numbers from 1 are needed")
        if self.stages < 2:
            raise MedarError(f"pretext stages {self.stages}: a whole number from 2 is needed")


@dataclass(frozen=True, kw_only=True)
class PretrainSettings:
    """One pretraining, from prepared cases to a backbone; no label is used."""

    __pydantic_config__: ClassVar[Any] = STRICT

    plan: dict[str, Any] = field(default_factory=dict)
    """Values of the plan that are given; the others are derived from the data set."""
    backbone: BackboneSettings = field(default_factory=BackboneSettings)
    pretext: PretextSettings = field(default_factory=PretextSettings)
    data: DataSettings = field(default_factory=DataSettings)
    training: TrainingSettings

    def within(self, minutes: float | None) -> "PretrainSettings":
        """The same with another limit of time, where one is given."""
        return replace(self, training=self.training.within(minutes))

    def with_tokenizer(self, folder: str | None) -> "PretrainSettings":
        """The same with another tokenizer, where one is given."""
        if folder is None:
            return self
        return replace(self, pretext=replace(self.pretext, tokenizer=folder))
