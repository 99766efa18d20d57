"""Encode and decode volumes of any size in bounded memory, with the same result as in one piece.

Encoder and decoder normalise each site by itself (see `medar.tokenizer.network`), so that they can
run slab by slab along the longest axis (`medar.tokenizer.slabs`): no voxel is computed twice, and
there are no seams. What fits the budget runs in one piece. In bf16, slabs equal the whole to within
its rounding.
"""

from collections.abc import Iterable, Iterator, Sequence
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from medar.devices import InferencePrecision, inference_autocast, memory_budget
from medar.finite import check_finite
from medar.tokenizer.network import Decoder, Encoder, NetworkConfig
from medar.tokenizer.slabs import (
    ALIVE,
    Neighbours,
    at_most,
    by_slabs,
    chained,
    fitting,
    inner_convolution,
    layer_of,
)

VOLUMES = "the decoded volumes"


class DecodedMap(NamedTuple):
    """A decoded volume with its label map; the logits of many labels would not fit in memory."""

    volume: Tensor
    """(B, C, X, Y, Z)."""
    classes: Tensor | None
    """(B, 1, X, Y, Z) int16, the most likely class, 0 the background; None without a label head."""


@torch.no_grad()
def decode_within(
    decoder: Decoder,
    latent: Tensor,
    budget: int | None = None,
    precision: InferencePrecision = "auto",
) -> DecodedMap:
    """Decode (B, D, x, y, z), slab by slab if the decoder would need more than `budget` bytes.

    Args:
        decoder: in evaluation mode.
        latent: (B, D, x, y, z).
        budget: in bytes; slabs are at least one site thick. Default: the device's `memory_budget`.
        precision: of the decoder; the volume is float32 in any case.

    Raises:
        MedarError: volumes or label logits that are NaN or infinite.
    """
    with inference_autocast(latent.device, precision):
        return _decode(decoder, latent, budget)


def _decode(decoder: Decoder, latent: Tensor, budget: int | None) -> DecodedMap:
    axis, sites = _slab(decoder.config, latent, latent.shape[2:], budget)
    if sites >= latent.shape[axis]:
        volume, logits = decoder(latent)
        check_finite(volume, VOLUMES)
        return DecodedMap(volume.float(), None if logits is None else _most_likely(logits))
    factors = decoder.config.downsampling
    shape = [n * factor for n, factor in zip(latent.shape[2:], factors, strict=True)]
    head, labels = inner_convolution(decoder.head, axis), None
    if decoder.label_head is not None:
        labels = inner_convolution(decoder.label_head, axis)
    whole: Tensor | None = None
    classes: Tensor | None = None
    low = 0
    for rows in _features(decoder, torch.split(latent, sites, axis), sites, axis):
        part = decoder.unfold(head(rows))
        check_finite(part, VOLUMES)
        if whole is None:
            whole = latent.new_empty(*part.shape[:2], *shape)
        size = part.shape[axis]
        whole.narrow(axis, low, size).copy_(part)
        if labels is not None:
            likely = _most_likely(decoder.unfold(labels(rows)))
            if classes is None:
                classes = likely.new_empty(len(latent), 1, *shape)
            classes.narrow(axis, low, size).copy_(likely)
        low += size
    assert whole is not None
    return DecodedMap(whole, classes)


@torch.no_grad()
def encode_within(encoder: Encoder, volumes: Tensor, budget: int | None = None) -> Tensor:
    """Encode (B, C, X, Y, Z) as (B, D, x, y, z), slab by slab if it would need more than `budget`.

    Args:
        encoder: in evaluation mode.
        volumes: (B, C, X, Y, Z) in [-1, 1].
        budget: see `decode_within`.

    Raises:
        MedarError: a side is not a multiple of its downsampling factor.
    """
    x, y, z = volumes.shape[2:]
    latent = encoder.config.latent((x, y, z))
    axis, sites = _slab(encoder.config, volumes, latent, budget)
    if sites >= latent[axis - 2]:
        whole: Tensor = encoder(volumes)
        return whole
    modules = [encoder.fold, encoder.stem, *encoder.levels, encoder.norm, nn.SiLU(), encoder.head]
    layer = chained([layer_of(module, axis) for module in modules])
    slabs = torch.split(volumes, sites * encoder.config.downsampling[axis - 2], axis)
    return torch.cat(list(by_slabs(layer, slabs)), axis)


def _features(decoder: Decoder, slabs: Iterable[Tensor], sites: int, axis: int) -> Iterator[Tensor]:
    """What the heads of a decoder need, slab by slab: features with the neighbouring rows."""
    strides = [1, *(stride[axis - 2] for stride in reversed(decoder.config.strides))]
    rows = sites
    for level, stride in zip(decoder.levels, strides, strict=True):
        before = [layer_of(decoder.stem, axis)] if level is decoder.levels[0] else []
        layer = chained([*before, layer_of(level, axis)])
        slabs = by_slabs(layer, at_most(slabs, rows, axis))
        rows *= stride
    last = layer_of(nn.Sequential(decoder.norm, nn.SiLU()), axis)
    return by_slabs(chained([last, Neighbours(axis)]), at_most(slabs, rows, axis))


def _most_likely(logits: Tensor) -> Tensor:
    check_finite(logits, "the decoder's label logits")
    return logits.argmax(1, keepdim=True).to(torch.int16)


def _slab(
    config: NetworkConfig, batch: Tensor, latent: Sequence[int], budget: int | None
) -> tuple[int, int]:
    """The axis of the slabs, 2 to 4, and the largest number of sites whose slab fits the budget.

    Args:
        config: of the network.
        batch: its input.
        latent: x, y and z.
        budget: in bytes; None: the device's.
    """
    x, y, z = latent
    budget = memory_budget(batch.device) if budget is None else budget
    longest = max(range(3), key=lambda axis: latent[axis])
    sites = sites_within(config, (x, y, z), longest, budget // len(batch))
    return 2 + longest, sites


def sites_within(config: NetworkConfig, latent: Sequence[int], axis: int, budget: int) -> int:
    """How many sites along an axis (0 to 2) a network may take at once; at least 1.

    Args:
        config: of the network.
        latent: x, y and z.
        axis: of the slabs.
        budget: in bytes, for one volume.
    """
    rows = config.downsampling[axis] // config.fold[axis]
    across = prod(latent) // latent[axis] * prod(config.downsampling) // prod(config.fold)
    # While the heads run, half of the features are alive, and twice what the heads give.
    made = 2 * prod(config.fold) * (config.channels + config.labels + 1)
    width = max(config.width, -(-(ALIVE // 2 * config.width + made) // ALIVE))
    # Each convolution keeps two rows and each block about as many; the coarser levels together keep
    # no more than the finest. The last slab has one more row per convolution.
    convolutions = 2 * config.blocks_per_level + 1
    kept = 2 * (2 * convolutions + 2 * config.blocks_per_level) + ALIVE * convolutions
    site = across * width * 4
    return fitting(latent[axis], site, kept * site // rows, budget)
