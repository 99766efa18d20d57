"""Self-correction (Infinity, arXiv 2412.04431): training on prefixes that hold errors.

Teacher forcing shows a model perfect prefixes; while sampling it meets its own errors. Here random
tokens are replaced by random codes, scale by scale, and the targets of the later scales are taken
anew: they are the codes that bring what was put in back to the volume's quantised latent.

B batch, T tokens of one scale, L tokens over all scales, V codes.
"""

import torch
from torch import Tensor

from medar.tokenizer.quantiser import MultiScaleQuantiser


@torch.no_grad()
def corrupt(
    quantiser: MultiScaleQuantiser,
    tokens: Tensor,
    share: float,
    generator: torch.Generator,
    *,
    items: float = 1.0,
    known: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Tokens with errors, and what a model that sees them should say.

    Args:
        quantiser: the tokenizer's, on the device of the tokens.
        tokens: (B, L) int64.
        share: probability of each token to be replaced by another code.
        generator: on the CPU, whatever the device of the tokens.
        items: share of the items in which tokens are replaced at all.
        known: (B, L) bool, tokens that are never replaced, since they are given.

    Returns:
        (B, L) what the model sees, and (B, L) its targets: the tokens themselves up to the scale of
        an item's first error.
    """
    if not share:
        return tokens, tokens
    schedule, codes = quantiser.schedule, quantiser.codebook.size
    wrong = torch.rand(tokens.shape, generator=generator) < share
    wrong = wrong & (torch.rand(len(tokens), 1, generator=generator) < items)
    wrong = wrong.to(tokens.device, non_blocking=True)
    if known is not None:
        wrong = wrong & ~known
    # A step of 1 to V - 1 around the codes leads to any other one, never back.
    step = torch.randint(1, codes, tokens.shape, generator=generator)
    step = step.to(tokens.device, non_blocking=True)
    own = schedule.split(tokens)
    latent = quantiser.decode(own)
    total = torch.zeros_like(latent)
    erred = wrong.new_zeros(len(tokens), 1)
    seen, targets = [], []
    for k, (mask, by) in enumerate(zip(schedule.split(wrong), schedule.split(step), strict=True)):
        target = torch.where(erred, quantiser.encode_scale(k, latent - total), own[k])
        shown = torch.where(mask, (target + by) % codes, target)
        total = total + quantiser.contribution(k, shown)
        erred = erred | mask.any(dim=1, keepdim=True)
        seen.append(shown)
        targets.append(target)
    return torch.cat(seen, dim=1), torch.cat(targets, dim=1)
