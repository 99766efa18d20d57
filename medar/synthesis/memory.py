"""How many volumes are sampled at once: as many as fit into half of the memory that is free.

A sample does not depend on its batch (see `medar.generator.sampling`), so that this is a matter of
speed alone. Decoding, one volume at a time, has a budget of its own (`medar.tokenizer.inference`).

T tokens of one part, L tokens over all scales, E width, V codes.
"""

from medar.devices import device_of, free_memory
from medar.generator.model import TokenModel
from medar.generator.sampling import SamplingSettings

MOST = 64
"""Volumes at once, at most: beyond, batches gain no speed and show no progress."""

SHARE = 0.5
"""Of the free memory that a batch may take."""

FEATURES, CHOICES = 48, 10
"""Float32 numbers a token of the largest part, in multiples of E (activations of a block) and of V
(logits and what is made of them): 34 to 46, by mixer, and 4 to 10, with top-p, were measured
(E 192 and 256, V 512 and 4096, 1400 tokens at the last scale, on a CPU)."""


def batch_size(model: TokenModel, settings: SamplingSettings) -> int:
    """Volumes to be sampled at once on the model's device, 1 to `MOST`."""
    room = SHARE * free_memory(device_of(model))
    return int(min(max(room // bytes_per_volume(model, settings), 1), MOST))


def bytes_per_volume(model: TokenModel, settings: SamplingSettings) -> int:
    """What sampling one volume takes at most, the weights not counted."""
    width = model.config.width
    tokens = max(model.parts)
    carried = model.state_size + model.schedule.length * width
    passing = tokens * (FEATURES * width + CHOICES * model.codes)
    return 4 * ((2 if settings.guidance_scale else 1) * carried + passing)
