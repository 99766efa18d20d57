"""The generator's objective: corrupted prefixes, cross-entropy per token, weights of the scales.

Corruption is the self-correction of Infinity (arXiv 2412.04431). Teacher forcing shows a model
perfect prefixes, but while sampling it meets its own errors. So random tokens are replaced by other
codes, scale by scale, and the targets of later scales are recomputed: they are the codes that lead
back to the volume's quantised latent.

B batch, L tokens over all scales, K scales, V codes.
"""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from medar.devices import send
from medar.tokenizer.quantiser import MultiScaleQuantiser
from medar.tokenizer.schedule import ScaleSchedule


@torch.no_grad()
def corrupt(
    quantiser: MultiScaleQuantiser,
    tokens: Tensor,
    fraction: float,
    generator: torch.Generator,
    *,
    items: float = 1.0,
    known: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Replace tokens by other codes, and recompute the targets after them.

    Args:
        quantiser: the tokenizer's, on the device of the tokens.
        tokens: (B, L) int64.
        fraction: probability of each token of a corrupted item to be replaced.
        generator: on the CPU, whatever the device of the tokens.
        items: fraction of the items that are corrupted.
        known: (B, L) bool, tokens that are never replaced.

    Returns:
        (B, L) inputs of the model, and (B, L) its targets, which are the tokens themselves up to
        and including the scale of an item's first error.
    """
    if not fraction:
        return tokens, tokens
    schedule, codebook_size = quantiser.schedule, quantiser.codebook.size
    wrong = torch.rand(tokens.shape, generator=generator) < fraction
    wrong = wrong & (torch.rand(len(tokens), 1, generator=generator) < items)
    wrong = send(wrong, tokens.device)
    if known is not None:
        wrong = wrong & ~known
    # An offset of 1 to V - 1, modulo V, leads to any other code and never back.
    offset = torch.randint(1, codebook_size, tokens.shape, generator=generator)
    offset = send(offset, tokens.device)
    own = schedule.split(tokens)
    latent = quantiser.decode(own)
    total = torch.zeros_like(latent)
    erred = wrong.new_zeros(len(tokens), 1)
    seen, targets = [], []
    parts = zip(schedule.split(wrong), schedule.split(offset), strict=True)
    for k, (mask, by) in enumerate(parts):
        target = torch.where(erred, quantiser.encode_scale(k, latent - total), own[k])
        shown = torch.where(mask, (target + by) % codebook_size, target)
        total = total + quantiser.contribution(k, shown)
        erred = erred | mask.any(dim=1, keepdim=True)
        seen.append(shown)
        targets.append(target)
    return torch.cat(seen, dim=1), torch.cat(targets, dim=1)


def token_losses(logits: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of each token in nats, (B, L), from (B, L, V) logits."""
    flat = logits.float().flatten(0, 1)
    losses = cross_entropy(
        flat, targets.flatten(), reduction="none", label_smoothing=label_smoothing
    )
    return losses.view_as(targets)


def scale_weights(schedule: ScaleSchedule, power: float) -> Tensor:
    """(K,) weights of the scales' mean losses, summing to 1: T ** power for T tokens."""
    weights = torch.tensor(schedule.tokens, dtype=torch.float32) ** power
    return weights / weights.sum()
