"""Choosing tokens: temperature, top-k, top-p, classifier-free guidance; one seed a sample.

Every sample draws its random numbers from its own seed, one a token, before anything else, and
takes the token that the number falls on in the distribution's cumulative sum. So a sample depends
on its seed alone, not on the batch that it is in, nor on the device's random generator. What
remains is rounding, which may differ between sizes of a batch: docs/reference/synthesis.md.

B batch, L tokens over all scales, T tokens of one part, V codes, P parts.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from medar.errors import MedarError
from medar.generator.conditions import Condition
from medar.generator.model import Known, TokenModel
from medar.settings import NonNegativeFloat, NonNegativeInt, PositiveFloat, settings
from medar.tokenizer.schedule import ScaleSchedule

Probability = Annotated[float, Field(gt=0, le=1)]


@settings(renamed={"guidance": "guidance_scale"})
class SamplingSettings:
    """How tokens are chosen."""

    temperature: PositiveFloat | tuple[PositiveFloat, ...] = 1.0
    """Divides the logits; below 1 likely tokens become likelier. One value, or one per scale."""
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

    def check(self, schedule: ScaleSchedule) -> None:
        """Check that per-scale values match the number of scales and that guidance affects one.

        Raises:
            MedarError: naming the setting.
        """
        scales = len(schedule)
        for name in ("temperature", "top_k", "top_p"):
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

    def guidance_at(self, k: int, scales: int) -> float:
        """The guidance scale at scale k of `scales`."""
        end = scales if self.guidance_to is None else self.guidance_to
        if not self.guidance_from <= k < end:
            return 0.0
        return self.guidance_scale * (k / (scales - 1) if scales > 1 else 1.0)


def _at(value: Any, k: int) -> Any:
    return value[k] if isinstance(value, tuple) else value


def draws(seeds: Sequence[int], tokens: int) -> Tensor:
    """(B, tokens) numbers from [0, 1), each row from its own seed."""
    rows = [torch.rand(tokens, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(rows)


@torch.no_grad()
def sample(
    model: TokenModel,
    condition: Condition,
    seeds: Sequence[int],
    settings: SamplingSettings,
    *,
    known: Known | None = None,
    after_part: Callable[[int, list[Tensor]], None] | None = None,
) -> Tensor:
    """Tokens of a batch of volumes, (B, L).

    Args:
        model: in evaluation mode.
        condition: of B volumes, on the model's device.
        seeds: one a volume.
        settings: how tokens are chosen.
        known: tokens that are given.
        after_part: called with the number of each part that is done and all tokens so far.

    Raises:
        MedarError: settings that do not fit the model's scales.
    """
    schedule = model.schedule
    settings.check(schedule)
    numbers = draws(seeds, schedule.length).to(condition.attributes.device)
    memory = model.begin(condition, known)
    last = max(
        (k for k in range(len(schedule)) if settings.guidance_at(k, len(schedule))), default=-1
    )
    asked = condition.map is not None or not bool(condition.attributes.isnan().all())
    guided = last >= 0 and asked  # without a condition both are the same, at twice the cost
    free = model.begin(condition.nothing(), known) if guided else None
    chosen: list[Tensor] = []
    for part, (k, number) in enumerate(zip(_scales(model), _split(model, numbers), strict=True)):
        if k > last:
            free = None
        logits = model.step(memory).float()
        if free is not None:
            without = model.step(free).float()
            strength = settings.guidance_at(k, len(schedule))
            logits = logits + strength * (logits - without)
        tokens = model.take(memory, choose(logits, number, settings, k))
        if free is not None:
            model.take(free, tokens)
        chosen.append(tokens)
        if after_part is not None:
            after_part(part, chosen)
    return torch.cat(chosen, dim=1)


def choose(logits: Tensor, numbers: Tensor, settings: SamplingSettings, k: int) -> Tensor:
    """The tokens of scale k that random numbers fall on.

    Args:
        logits: (B, T, V).
        numbers: (B, T) from [0, 1).
        settings: temperature, top-k and top-p.
        k: the scale.

    Returns:
        (B, T) int64.
    """
    logits = filtered(
        logits / _at(settings.temperature, k), _at(settings.top_k, k), _at(settings.top_p, k)
    )
    sums = logits.softmax(-1, dtype=torch.float32).cumsum(-1)
    places = numbers[..., None].to(sums.dtype) * sums[..., -1:]
    return torch.searchsorted(sums, places, right=True)[..., 0].clamp(max=logits.shape[-1] - 1)


def filtered(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Logits with -inf for all but the likeliest tokens (top-p: arXiv 1904.09751)."""
    codes = logits.shape[-1]
    if 0 < top_k < codes:
        least = logits.topk(top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if top_p < 1:
        ranked, order = logits.sort(dim=-1, descending=True)
        chances = ranked.softmax(-1)
        beyond = chances.cumsum(-1) - chances >= top_p
        logits = logits.masked_fill(beyond.gather(-1, order.argsort(-1)), -torch.inf)
    return logits


def _scales(model: TokenModel) -> Iterator[int]:
    """The scale of each part."""
    ends = [start + tokens for start, tokens in _pairs(model.schedule)]
    done, k = 0, 0
    for tokens in model.parts:
        yield k
        done += tokens
        if done == ends[k]:
            k += 1


def _pairs(schedule: ScaleSchedule) -> list[tuple[int, int]]:
    return list(zip(schedule.offsets, schedule.tokens, strict=True))


def _split(model: TokenModel, numbers: Tensor) -> tuple[Tensor, ...]:
    return torch.split(numbers, list(model.parts), dim=1)
