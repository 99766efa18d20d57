"""`Request`: the volumes to synthesize; conversion of a class and attributes to the model's."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from medar.errors import MedarError
from medar.generator.attributes import MODALITY
from medar.generator.settings import Attribute, ConditionConfig, SamplingSettings
from medar.settings import from_dict
from medar.synthesis.drafts import Draft, common_draft
from medar.synthesis.region import Region
from medar.volume import Volume


@dataclass(frozen=True, kw_only=True, eq=False)
class Request:
    """What `Synthesizer` makes, the same for all samples.

    Raises:
        MedarError: options that exclude each other, or one without another that it needs.
    """

    class_: str | None = None
    """A value of one of the model's categories."""
    attributes: Mapping[str, Any] = field(default_factory=dict)
    """By name; others are unspecified."""
    modality: str | None = None
    """"CT" or "MR": modality of the intensities, if the plan has several; also the value of the
    attribute "modality", for models that have it."""
    mask: Volume | None = None
    """A label map for samples to follow, on any grid."""
    inpaint: Volume | None = None
    """An image in which `region` is filled."""
    region: Region | None = None
    """A volume on the grid of `inpaint`, not 0 where it is filled; or a `Box`."""
    upscale: Volume | None = None
    """An image of low resolution; samples have its field of view."""
    known_scales: int | None = None
    """Scales taken from `upscale`; default: as many as its spacing allows."""
    source: Volume | None = None
    """An image to translate, for models with source volumes; samples have its grid."""
    model_spacing: bool = False
    """Samples of `source` have the plan's spacing instead."""
    guidance_scale: float | None = None
    """Replaces that of `sampling`."""
    sampling: SamplingSettings | None = None
    """How tokens are chosen; default: the model folder's settings."""
    until_scale: int | None = None
    """Draw this many scales only: drafts, decoded without detail."""
    drafts: tuple[Draft, ...] = ()
    """Continued, each by the sample of its seed; see `finishing`."""

    def __post_init__(self) -> None:
        if (self.inpaint is None) != (self.region is None):
            given = "inpaint without region" if self.region is None else "region without inpaint"
            raise MedarError(f"{given}: give both the volume and the part of it to fill")
        if self.inpaint is not None and self.upscale is not None:
            raise MedarError("inpaint and upscale exclude each other; give one of them")
        if self.source is not None:
            others = {"mask": self.mask, "inpaint": self.inpaint, "upscale": self.upscale}
            for name in (name for name, one in others.items() if one is not None):
                raise MedarError(f"source and {name} exclude each other; give one of them")
        elif self.model_spacing:
            raise MedarError("model_spacing needs source, a volume to translate")
        if self.known_scales is not None and self.upscale is None:
            raise MedarError("known_scales needs upscale, a volume of low resolution")
        if self.until_scale is not None and self.drafts:
            raise MedarError("until_scale makes drafts, it does not continue them; omit one")

    @classmethod
    def finishing(cls, drafts: Sequence[Draft], **inputs: Any) -> "Request":
        """The request that continues drafts, under the attributes and settings they began with.

        Args:
            drafts: of one request; see `Synthesizer.job` for what is checked.
            inputs: mask, inpaint, region, upscale, known_scales, source, model_spacing and
                modality, as for the drafts.
                The mask may be another: the scales that are left follow it.

        Raises:
            MedarError: no draft, several with the same seed, or drafts of several requests.
        """
        first = common_draft(drafts)
        return cls(
            attributes=first.about["attributes"],
            sampling=from_dict(SamplingSettings, first.about["sampling"], first.name),
            drafts=tuple(drafts),
            **inputs,
        )

    def all_attributes(self, condition: ConditionConfig) -> dict[str, Any]:
        """The requested attributes by name, class and modality among them.

        Args:
            condition: of the model.

        Raises:
            MedarError: no category has the class, or several have, or an attribute is requested
                with two values.
        """
        requested, named = dict(self.attributes), []
        if self.class_ is not None:
            named.append((category_of(condition.attributes, self.class_), self.class_))
        if self.modality is not None and any(a.name == MODALITY for a in condition.attributes):
            named.append((MODALITY, self.modality))
        for name, value in named:
            if str(requested.get(name, value)) != value:
                raise MedarError(
                    f"attribute {name!r} is requested both as {requested[name]!r} and {value!r}"
                )
            requested[name] = value
        return requested


def category_of(attributes: Sequence[Attribute], value: str) -> str:
    """The name of the only categorical attribute that has a value.

    Raises:
        MedarError: none has it, or several have.
    """
    names = [one.name for one in attributes if value in one.values]
    if len(names) == 1:
        return names[0]
    if names:
        raise MedarError(
            f"class {value!r}: {' and '.join(names)} have this value; name the attribute "
            f"(--set {names[0]}={value})"
        )
    known = [f"{one.name}: {', '.join(one.values)}" for one in attributes if one.categorical]
    raise MedarError(f"class {value!r}: this model knows {'; '.join(known) or 'no classes'}")
