"""`BackboneSettings`: which backbone, and its sizes; what is left open follows from the plan."""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from medar.errors import MedarError
from medar.generator.mixers.base import MixerSettings
from medar.settings import STRICT

Kind = Literal["dynunet", "segresnet", "swinunetr", "trunk"]


@dataclass(frozen=True, kw_only=True)
class TrunkSettings:
    """What only "trunk" has.

    Raises:
        MedarError: a size below 1.
    """

    __pydantic_config__: ClassVar[Any] = STRICT

    depth: int = 4
    """Blocks of the generator's kind, and heads too."""
    head_width: int = 32
    """Features of a head, an even number."""
    scales: int = 4
    """Grids from one site to the coarsest level's own, at most as many as its longest side."""
    mixer: MixerSettings = field(default_factory=lambda: MixerSettings(kind="scale_ssm"))
    """What passes from scale to scale."""

    def __post_init__(self) -> None:
        for name in ("depth", "head_width", "scales"):
            if getattr(self, name) < 1:
                raise MedarError(f"backbone trunk.{name} {getattr(self, name)}: allowed from 1")


@dataclass(frozen=True, kw_only=True)
class BackboneSettings:
    """A backbone, save what the plan says: channels, spacing and size.

    Raises:
        MedarError: a size that its kind does not take.
    """

    __pydantic_config__: ClassVar[Any] = STRICT

    kind: Kind = "dynunet"
    """"dynunet": nnU-Net's U-Net with residual blocks; "segresnet"; "swinunetr"; "trunk": medar's
    own, the tokenizer's encoder and the generator's blocks."""
    width: int = 32
    """Features of the finest level; "swinunetr" takes multiples of 12, "segresnet" of 8."""
    levels: int | None = None
    """Most levels; default as many as the plan's size allows. "swinunetr" always has 6, "trunk"
    those of the plan's downsampling."""
    blocks: Literal["residual", "plain"] = "residual"
    """Of "dynunet" alone: residual blocks, or nnU-Net's plain pairs of convolutions."""
    trunk: TrunkSettings | None = None
    """Of "trunk" alone; default its own values."""

    def __post_init__(self) -> None:
        unit = {"swinunetr": 12, "segresnet": 8}.get(self.kind, 1)
        if self.width < 1 or self.width % unit:
            raise MedarError(
                f"backbone width {self.width}: {self.kind} takes whole multiples of {unit}"
            )
        if self.levels is not None and self.kind in ("swinunetr", "trunk"):
            raise MedarError(
                f"backbone levels {self.levels}: {self.kind} has its own; leave levels out"
            )
        if self.levels is not None and self.levels < 2:
            raise MedarError(f"backbone levels {self.levels}: allowed from 2")
        if self.blocks != "residual" and self.kind != "dynunet":
            raise MedarError(
                f"backbone blocks {self.blocks}: belongs to kind dynunet, not {self.kind}; leave "
                "it out"
            )
        if self.trunk is not None and self.kind != "trunk":
            raise MedarError(
                f"backbone trunk: belongs to kind trunk, not {self.kind}; leave it out"
            )
