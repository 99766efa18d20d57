"""Settings of backbones, and the registry in which `BackboneSettings.kind` is looked up."""

from collections.abc import Callable
from dataclasses import field
from typing import Any, Literal

from medar.data.plan import Plan
from medar.errors import MedarError
from medar.generator.mixers.base import MixerSettings
from medar.registry import C, Registry
from medar.segmentation.backbones.base import Backbone
from medar.settings import Depth, Width, settings
from medar.tokenizer.convolution import with_reliable_convolutions

BACKBONES: Registry[Callable[..., Backbone]] = Registry(
    "backbone",
    "medar.backbones",
    {
        "dynunet": "medar.segmentation.backbones.monai:DynUNetBackbone",
        "segresnet": "medar.segmentation.backbones.monai:SegResNetBackbone",
        "swinunetr": "medar.segmentation.backbones.monai:SwinUNETRBackbone",
        "trunk": "medar.segmentation.backbones.trunk:TrunkBackbone",
    },
)
"""Classes, or functions, that build a `Backbone` from `BackboneSettings` and a `Plan`."""

WIDTH_MULTIPLE = {"swinunetr": 12, "segresnet": 8}
BUILT_IN = ("dynunet", "segresnet", "swinunetr", "trunk")


def register_backbone(name: str) -> Callable[[C], C]:
    """Decorator that makes a class available as `backbone.kind: NAME`.

    The class is called with `BackboneSettings` and a `Plan`, and must be a `Backbone`. Folders of
    models keep its import path, so that they load again wherever the class can be imported.

    Raises:
        MedarError: another class has the name.
    """
    return BACKBONES.register(name)


@settings
class TrunkSettings:
    """Settings of the backbone "trunk"."""

    depth: Depth = 4
    """Transformer blocks, and attention heads per block."""
    head_width: Width = 32
    """Features per attention head, an even number."""
    scales: Depth = 4
    """Grids from a single site to the coarsest level's grid; at most its longest side."""
    mixer: MixerSettings = field(default_factory=lambda: MixerSettings(kind="scale_ssm"))
    """How scales exchange information."""


@settings(renamed={"blocks": "block_type", "levels": "max_levels"})
class BackboneSettings:
    """A backbone; channels, spacing and size come from the plan.

    Raises:
        MedarError: unknown kind, or a value that the kind does not support.
    """

    kind: str = "dynunet"
    """"dynunet": nnU-Net's U-Net with residual blocks; "segresnet"; "swinunetr"; "trunk": the
    tokenizer's encoder and the generator's blocks; or the name of a registered class."""
    width: Width = 32
    """Features of the finest level; a multiple of 12 for "swinunetr", of 8 for "segresnet"."""
    max_levels: Depth | None = None
    """Maximum number of resolution levels, at least 2; default: limited by the plan's size.
    Fixed for "swinunetr" (6) and "trunk" (the plan's downsampling)."""
    block_type: Literal["residual", "plain"] = "residual"
    """"dynunet" only: residual blocks, or nnU-Net's plain pairs of convolutions."""
    trunk: TrunkSettings | None = None
    """"trunk" only; default `TrunkSettings()`."""
    options: dict[str, Any] = field(default_factory=dict)
    """Settings of a registered class, which reads them itself."""

    def __post_init__(self) -> None:
        BACKBONES.check(self.kind, "kind")
        multiple = WIDTH_MULTIPLE.get(self.kind, 1)
        if self.width % multiple:
            raise MedarError(
                f"width must be a multiple of {multiple} for kind {self.kind}, got {self.width}"
            )
        if self.max_levels is not None:
            if self.kind in ("swinunetr", "trunk"):
                raise MedarError(
                    f"max_levels cannot be set for kind {self.kind}, got {self.max_levels}"
                )
            if self.max_levels < 2:
                raise MedarError(f"max_levels must be at least 2, got {self.max_levels}")
        if self.block_type != "residual" and self.kind in BUILT_IN[1:]:
            raise MedarError(
                f"block_type {self.block_type} is for kind dynunet, not {self.kind}; leave it out"
            )
        if self.trunk is not None and self.kind != "trunk":
            raise MedarError(f"trunk is for kind trunk, not {self.kind}; leave it out")
        if self.options and self.kind in BUILT_IN:
            raise MedarError(
                f"options are for registered backbones, not for kind {self.kind}: "
                f"{', '.join(self.options)}"
            )


def make_backbone(settings: BackboneSettings, plan: Plan) -> Backbone:
    """Build an untrained backbone.

    Args:
        settings: kind and sizes.
        plan: channels, spacing, size and downsampling of the volumes.

    Raises:
        MedarError: the kind does not support such volumes.
    """
    return with_reliable_convolutions(BACKBONES[settings.kind](settings, plan))
