"""Sampling tokens: temperature, top-k, top-p, guidance, passes; one seed per sample.

Every sample draws its random numbers from its own seed, one per token and one for its place in the
order of refinement, before anything else, and takes the token at which the cumulative distribution
exceeds the number. So a sample depends only on its seed, neither on its batch nor on the device's
random generator. Rounding may still differ between batch sizes: docs/reference/synthesis.md.

`sample` gives tokens, `sample_and_decode` decoded volumes, as many at once as fit into memory.

B batch, L tokens over all scales, T tokens of one scale, V codes, E width, X Y Z voxels.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from medar.devices import (
    InferencePrecision,
    device_of,
    free_memory,
    inference_autocast,
    inference_precision,
)
from medar.finite import check_finite
from medar.generator.conditions import Condition
from medar.generator.generator import Generator, SamplingState
from medar.generator.known import KnownTokens
from medar.generator.refinement import draw_orders, hidden_after, passes_by_scale, reveal
from medar.generator.settings import SamplingSettings
from medar.tokenizer.bounded import decode_within
from medar.tokenizer.detail import Detail
from medar.tokenizer.inference import Array, Labels, decoded_arrays
from medar.tokenizer.pyramid import TokenPyramid
from medar.tokenizer.tokenizer import Tokenizer

MAX_BATCH = 64
"""Larger batches gain no speed and show no progress."""

FREE_FRACTION = 0.5
"""Fraction of the free memory that a batch may take."""

CHOSEN = 1 << 24
"""Logits from which tokens are chosen at once; each takes several numbers meanwhile."""

FEATURES, CHOICES = 48, 10
"""Float32 numbers per token of the largest scale, in multiples of E (activations of a block) and V
(logits and derived values). Measured: 34 to 46, by mixer, and 4 to 10, with top-p (E
192 and 256, V 512 and 4096, 1400 tokens at the last scale, on a CPU)."""


def _at(value: Any, k: int) -> Any:
    return value[k] if isinstance(value, tuple) else value


def draw_numbers(seeds: Sequence[int], tokens: int) -> Tensor:
    """(B, tokens) random numbers in [0, 1), each row from its own seed."""
    rows = [torch.rand(tokens, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(rows)


@torch.no_grad()
def sample(
    model: Generator,
    condition: Condition,
    seeds: Sequence[int],
    settings: SamplingSettings,
    *,
    known: KnownTokens | None = None,
    begun: Sequence[Tensor] = (),
    until: int | None = None,
    after_scale: Callable[[SamplingState], None] | None = None,
) -> SamplingState:
    """Sample the tokens of a batch of volumes, scale by scale.

    Args:
        model: in evaluation mode.
        condition: of B volumes, on the model's device.
        seeds: one per volume.
        settings: how tokens are chosen.
        known: tokens that are given.
        begun: (B, T) tokens of each of the first scales, drawn before; the rest continues them.
            With the same condition and seeds, the result is that of drawing all scales at once.
        until: number of scales to draw; default: all.
        after_scale: called with the state after each scale.

    Returns:
        The state after the last scale: its `tokens`, and the `latent` that they stand for.

    Raises:
        MedarError: settings that do not fit the model's scales, or logits that are not finite.
    """
    schedule, refinement = model.schedule, model.config.refinement
    settings.check(schedule, refinement)
    passes = passes_by_scale(settings, schedule, refinement)
    device = condition.attributes.device
    numbers = schedule.split(draw_numbers(seeds, schedule.length).to(device))
    orders = schedule.split(draw_orders(seeds, schedule.length).to(device))
    guidance = [settings.guidance_at(k, len(schedule)) for k in range(len(schedule))]
    last_guided = max((k for k, scale in enumerate(guidance) if scale), default=-1)
    conditional = condition.map is not None or not bool(condition.attributes.isnan().all())

    autocast = partial(inference_autocast, device, token_precision(device, settings.precision))
    with autocast():
        state = model.start(condition, known)
        if any(guidance) and conditional:
            state = state.joined(model.start(condition.nothing(), known))
    batch = len(condition)
    extremes: list[Tensor] = []
    for k in range(len(schedule) if until is None else until):
        with autocast():
            # Also where the tokens are begun: the mixers have to see every scale.
            drawn = draw_scale(
                model, state, numbers[k], orders[k], settings, passes[k], guidance[k], extremes
            )
        if k < len(begun):
            drawn = begun[k]
        if k >= last_guided:
            state = state.first(batch)  # later scales are not guided, at half the cost
        model.append(state, drawn.repeat(len(state.latent) // batch, 1))
        if after_scale is not None:
            after_scale(state.first(batch))
    check_finite(torch.stack(extremes), "the generator's logits")
    return state.first(batch)


def draw_scale(
    model: Generator,
    state: SamplingState,
    numbers: Tensor,
    order: Tensor,
    settings: SamplingSettings,
    passes: int,
    guidance: float,
    extremes: list[Tensor],
) -> Tensor:
    """Draw the tokens of the next scale.

    Args:
        model: in evaluation mode.
        state: of the batch; for guidance, of the batch and then the same without conditions.
        numbers: (B, T) from [0, 1), which choose the tokens.
        order: (B, T) from [0, 1), which order them.
        settings: temperature, top-k and top-p.
        passes: in how many passes.
        guidance: its scale in the first pass. It falls with the fraction of hidden tokens, because
            revealed ones carry the condition too.
        extremes: the least and the largest logit of each pass are appended; to compare them here
            would wait for the device in each pass.

    Returns:
        (B, T) int64; at known sites the tokens are arbitrary.
    """
    k, batch = len(state.scales), len(numbers)
    copies = len(state.latent) // batch
    known = None if state.known is None else model.schedule.split(state.known.mask[:batch])[k]
    tokens: Tensor | None = None
    revealed: Tensor | None = None
    for index, after in enumerate([*reveal(order, passes, known), None]):
        given = (None if one is None else one.repeat(copies, 1) for one in (tokens, revealed))
        logits = model.next_logits(state, *given, advance=after is None).float()
        if copies > 1:
            logits, unconditional = logits.chunk(copies)
            logits = logits + guidance * hidden_after(index, passes) * (logits - unconditional)
        extremes += logits.aminmax()
        chosen = choose(logits, numbers, settings, k, len(model.schedule))
        if tokens is not None and revealed is not None:
            chosen = torch.where(revealed, tokens, chosen)
        tokens, revealed = chosen, after
    assert tokens is not None
    return tokens


def choose(
    logits: Tensor, numbers: Tensor, settings: SamplingSettings, k: int, scales: int
) -> Tensor:
    """The tokens of scale k that random numbers fall on.

    Args:
        logits: (B, T, V).
        numbers: (B, T) from [0, 1).
        settings: temperature, top-k and top-p.
        k: the scale.
        scales: how many the model has.

    Returns:
        (B, T) int64.
    """
    tokens = max(1, CHOSEN // (len(logits) * logits.shape[-1]))
    pairs = zip(torch.split(logits, tokens, 1), torch.split(numbers, tokens, 1), strict=True)
    return torch.cat([_choose(*pair, settings, k, scales) for pair in pairs], 1)


def _choose(
    logits: Tensor, numbers: Tensor, settings: SamplingSettings, k: int, scales: int
) -> Tensor:
    """`choose` for some of the tokens."""
    top_k, top_p = _at(settings.top_k, k), _at(settings.top_p, k)
    logits = filtered(logits / settings.temperature_at(k, scales), top_k, top_p)
    sums = logits.softmax(-1, dtype=torch.float32).cumsum(-1)
    thresholds = numbers[..., None].to(sums.dtype) * sums[..., -1:]
    return torch.searchsorted(sums, thresholds, right=True)[..., 0].clamp(max=logits.shape[-1] - 1)


def filtered(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Logits with -inf for all but the likeliest tokens (top-p: arXiv 1904.09751)."""
    codes = logits.shape[-1]
    if 0 < top_k < codes:
        least = logits.topk(top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if top_p < 1:
        ranked, order = logits.sort(dim=-1, descending=True)
        probabilities = ranked.softmax(-1)
        beyond = probabilities.cumsum(-1) - probabilities >= top_p
        logits = logits.masked_fill(beyond.gather(-1, order.argsort(-1)), -torch.inf)
    return logits


@torch.no_grad()
def sample_and_decode(
    model: Generator,
    tokenizer: Tokenizer,
    condition: Condition,
    seeds: Sequence[int],
    settings: SamplingSettings,
    *,
    known: KnownTokens | None = None,
    begun: TokenPyramid | None = None,
    until: int | None = None,
    batch_size: int | None = None,
    after_scale: Callable[[SamplingState], None] | None = None,
) -> Iterator[tuple[TokenPyramid, Array, Labels | None]]:
    """Sample volumes in batches and decode them one by one, in the space of the tokenizer's plan.

    Decoding starts from the latent that sampling accumulated; it equals that of the tokens.

    Args:
        model: in evaluation mode.
        tokenizer: with its plan, on the model's device.
        condition: of N volumes.
        seeds: one per volume.
        settings: how tokens are chosen.
        known: tokens of the N volumes that are given.
        begun: the first scales of the N volumes, drawn before.
        until: number of scales to draw, decoded without detail; default: all.
        batch_size: volumes sampled at once; default: limited by memory.
        after_scale: called with a batch's state after each scale.

    Yields:
        Per volume its tokens, the image (C, X, Y, Z) in [-1, 1], and with a label head the label
        map (1, X, Y, Z) in the plan's values.

    Raises:
        MedarError: settings that do not fit the model's scales or the tokenizer.
    """
    tokenizer.detail_steps(settings.detail)
    detail: Detail = settings.detail if until is None else "none"
    device, size = device_of(tokenizer), batch_size or fitting_batch_size(model, settings)
    for start in range(0, len(seeds), size):
        batch = slice(start, start + size)
        state = sample(
            model,
            condition[batch].to(device),
            seeds[batch],
            settings,
            known=None if known is None else known[batch].to(device),
            begun=() if begun is None else begun[batch].to(device).indices,
            until=until,
            after_scale=after_scale,
        )
        for index, tokens in enumerate(state.tokens):
            pyramid = TokenPyramid.from_flat(
                tokens[None], model.schedule, model.codebook_size, tokenizer.digest
            )
            latent, seed = state.latent[index : index + 1], seeds[start + index]
            yield (
                pyramid,
                *decode_sample(tokenizer, latent, seed, detail, settings.precision),
            )


def decode_sample(
    tokenizer: Tokenizer,
    latent: Tensor,
    seed: int = 0,
    detail: Detail = "none",
    precision: InferencePrecision = "auto",
) -> tuple[Array, Labels | None]:
    """The image and label map of a latent, (1, D, x, y, z); see `sample_and_decode`.

    Decoded alone, not in a batch, so that no other sample can change a bit.

    Raises:
        MedarError: see `Tokenizer.detail_steps`.
    """
    decoded = decode_within(tokenizer.decoder, latent, precision=precision)
    volume = tokenizer.add_detail(decoded.volume, [seed], detail, precision=precision)
    decoded = decoded._replace(volume=volume)
    return decoded_arrays(decoded, tokenizer.require_plan())


def token_precision(
    device: torch.device, requested: InferencePrecision = "auto"
) -> Literal["fp32", "bf16"]:
    """What logits are computed in on a device; see `SamplingSettings.precision`."""
    if requested == "auto" and device.type != "cuda":
        return "fp32"
    return inference_precision(device, requested)


def fitting_batch_size(model: Generator, settings: SamplingSettings) -> int:
    """Volumes that can be sampled at once on the model's device, from 1 to `MAX_BATCH`."""
    room = FREE_FRACTION * free_memory(device_of(model))
    return int(min(max(room // bytes_per_volume(model, settings), 1), MAX_BATCH))


def bytes_per_volume(model: Generator, settings: SamplingSettings) -> int:
    """Memory that sampling one volume takes at most, without the weights."""
    width = model.config.model.width
    carried = model.state_size + model.schedule.length * width
    passing = max(model.schedule.tokens) * (FEATURES * width + CHOICES * model.codebook_size)
    return 4 * (2 if settings.guidance_scale else 1) * (carried + passing)
