"""Options of commands that sample: how tokens are chosen and decoded."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from cyclopts import Parameter

from medar.cli.options import parse_detail
from medar.devices import InferencePrecision
from medar.errors import MedarError

if TYPE_CHECKING:
    from medar.generator.settings import SamplingSettings

Number = TypeVar("Number", int, float)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """How tokens are chosen and decoded; options left out are the model's own settings."""

    guidance_scale: float | None = None
    """Classifier-free guidance: how far to move away from the unconditional model; 0 turns it off.
    It rises from 0 at the first scale to this value at the last."""
    guidance_from: int | None = None
    """First scale with guidance, counted from 0."""
    guidance_to: int | None = None
    """First scale after those with guidance; default: guidance up to the last scale."""
    temperature: str | None = None
    """Sampling temperature; below 1, likely tokens become likelier. One number, or one per scale,
    such as 1,1,0.9; auto: 1, but 0.7 and 0.3 at the last two of four or more scales."""
    top_k: str | None = None
    """Sample from the K likeliest tokens only, 0 for all; one number, or one per scale."""
    top_p: str | None = None
    """Sample only from the likeliest tokens whose probabilities sum to this; one number, or one per
    scale."""
    passes: str | None = None
    """Passes in which the tokens of a scale are drawn, each seeing those drawn before it: one
    number, or one per scale; 1 is fastest, auto takes many in small scales and one in the last."""
    detail: str | None = None
    """Steps of the detail decoder; "none": without it; "auto": its own number of steps."""
    precision: InferencePrecision | None = None
    """What networks compute in. "auto": bf16 for decoding where the device has instructions for it,
    and for tokens on CUDA; "bf16": for both; "fp32": for neither."""

    def settings(self, defaults: "SamplingSettings") -> "SamplingSettings":
        """The model's settings, overridden by these options."""
        options: dict[str, Any] = {
            "guidance_scale": self.guidance_scale,
            "guidance_from": self.guidance_from,
            "guidance_to": self.guidance_to,
            "temperature": _automatic("--temperature", self.temperature, float),
            "top_k": _per_scale("--top-k", self.top_k, int),
            "top_p": _per_scale("--top-p", self.top_p, float),
            "passes": _automatic("--passes", self.passes, int),
            "detail": None if self.detail is None else parse_detail(self.detail),
            "precision": self.precision,
        }
        return replace(defaults, **{name: v for name, v in options.items() if v is not None})


SAMPLING = SamplingOptions()


def assignments(pairs: Sequence[str]) -> dict[str, str]:
    """NAME=VALUE pairs as a dictionary."""
    values: dict[str, str] = {}
    for pair in pairs:
        name, sign, value = pair.partition("=")
        if not sign or not name or not value:
            raise MedarError(f"--set {pair}: must be NAME=VALUE, such as --set age=60")
        if name in values:
            raise MedarError(f"--set {pair}: {name} is already set to {values[name]}")
        values[name] = value
    return values


def _per_scale(
    option: str, text: str | None, kind: Callable[[str], Number]
) -> Number | tuple[Number, ...] | None:
    """One number, or one per scale."""
    if text is None:
        return None
    try:
        values = tuple(kind(part) for part in text.split(","))
    except ValueError as error:
        raise MedarError(
            f"{option} {text}: must be a number, or one per scale such as 2,1,1"
        ) from error
    return values[0] if len(values) == 1 else values


def _automatic(
    option: str, text: str | None, kind: Callable[[str], Number]
) -> str | Number | tuple[Number, ...] | None:
    """ "auto", one number, or one per scale."""
    if text == "auto":
        return text
    try:
        return _per_scale(option, text, kind)
    except MedarError as error:
        number = "a number" if kind is float else "an integer"
        raise MedarError(
            f"{option} {text}: must be auto, {number}, or one per scale such as 4,2,1"
        ) from error
