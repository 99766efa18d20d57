"""`Request`: what volumes are asked for; and how a class or attributes become the model's."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from medar.errors import MedarError
from medar.generator.attributes import MODALITY
from medar.generator.settings import Attribute, SamplingSettings
from medar.synthesis.region import Region
from medar.volume import Volume


@dataclass(frozen=True, kw_only=True, eq=False)
class Request:
    """What `Synthesizer` is asked for, the same for all samples.

    Raises:
        MedarError: options that contradict each other, or one without the other that it needs.
    """

    class_: str | None = None
    """A value of one of the model's categories, which is then found by it."""
    attributes: Mapping[str, Any] = field(default_factory=dict)
    """By name; what is not named is left open."""
    modality: str | None = None
    """"CT" or "MR": whose intensities, where the plan has several; also the attribute of that
    name, for models that have it."""
    mask: Volume | None = None
    """A label map that samples are to follow, on any grid."""
    inpaint: Volume | None = None
    """An image of which `region` is to be filled."""
    region: Region | None = None
    """A volume on the grid of `inpaint`, not 0 where it is to be filled; or a `Box`."""
    upscale: Volume | None = None
    """An image of low resolution, whose field of view samples have."""
    known_scales: int | None = None
    """Scales that `upscale` gives; default as many as its spacing allows."""
    guidance_scale: float | None = None
    """Guidance, in place of that of `sampling`."""
    sampling: SamplingSettings | None = None
    """How tokens are chosen; default the model folder's."""

    def __post_init__(self) -> None:
        if (self.inpaint is None) != (self.region is None):
            there = "inpaint without region" if self.region is None else "region without inpaint"
            raise MedarError(f"{there}: give the volume and the part of it that is to be filled")
        if self.inpaint is not None and self.upscale is not None:
            raise MedarError("inpaint and upscale: one of them at a time")
        if self.known_scales is not None and self.upscale is None:
            raise MedarError("known_scales goes with upscale, a volume of low resolution")

    def asked(self, schema: Sequence[Attribute]) -> dict[str, Any]:
        """Attributes by name, the class and the modality among them.

        Raises:
            MedarError: no category has the class, or several have, or an attribute is asked for
                twice.
        """
        asked = dict(self.attributes)
        named = []
        if self.class_ is not None:
            named.append((holder(schema, self.class_), self.class_))
        if self.modality is not None and any(one.name == MODALITY for one in schema):
            named.append((MODALITY, self.modality))
        for name, value in named:
            if str(asked.get(name, value)) != value:
                raise MedarError(f"attribute {name!r}: asked to be {asked[name]!r} and {value!r}")
            asked[name] = value
        return asked


def holder(schema: Sequence[Attribute], value: str) -> str:
    """The name of the one category that has a value.

    Raises:
        MedarError: none has it, or several have.
    """
    names = [one.name for one in schema if value in one.values]
    if len(names) == 1:
        return names[0]
    if names:
        raise MedarError(
            f"class {value!r}: {' and '.join(names)} have this value; name the attribute "
            f"(--set {names[0]}={value})"
        )
    known = [f"{one.name}: {', '.join(one.values)}" for one in schema if one.categorical]
    raise MedarError(
        f"class {value!r}: this model can be asked for {'; '.join(known) or 'no class at all'}"
    )
