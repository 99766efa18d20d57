"""Decode a large latent by tiles, in bounded memory, with the same result as in one piece.

The decoder normalises each site by itself (see `medar.tokenizer.network`), so a voxel depends only
on the latent within `Decoder.reach`. A tile is decoded together with that margin, the margin's
voxels are discarded, and the rest is exact: no blending, no seams.
"""

from collections.abc import Iterator
from itertools import product
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from medar.devices import memory_budget
from medar.errors import MedarError
from medar.finite import check_finite
from medar.tokenizer.network import Decoded, Decoder
from medar.volume import Shape3

ALIVE = 6
"""Float32 features of the decoder at its finest level that are in memory at once, in multiples of
its width: 5.1 to 6.0 measured (widths 16 and 8, 96 cubed voxels, on a CPU)."""


class DecodedMap(NamedTuple):
    """A decoded volume with its label map; the logits of many labels would not fit in memory."""

    volume: Tensor
    """(B, C, X, Y, Z)."""
    classes: Tensor | None
    """(B, 1, X, Y, Z) int16, the most likely class, 0 the background; None without a label head."""


class Span(NamedTuple):
    """A tile along one axis, in sites of the latent."""

    start: int
    stop: int
    """start to stop: range that the tile contributes."""
    low: int
    high: int
    """low to high: range that is decoded, including the margin."""


def decode_within(decoder: Decoder, latent: Tensor, budget: int | None = None) -> DecodedMap:
    """Decode (B, D, x, y, z), by tiles if the decoder would need more than `budget` bytes.

    The default is the device's `memory_budget`.
    """
    x, y, z = latent.shape[2:]
    budget = memory_budget(latent.device) if budget is None else budget
    return decode_tiled(decoder, latent, tile_within(decoder, (x, y, z), budget // len(latent)))


def tile_within(decoder: Decoder, latent: Shape3, budget: int) -> Shape3:
    """The largest tile, in sites, whose decoding fits a budget in bytes.

    The longest side is halved until it fits, but not below the decoder's reach: margins would then
    cost more than they save.
    """
    voxels = prod(decoder.config.downsampling) // prod(decoder.config.fold)
    return fitting_tile(latent, decoder.reach, voxels * decoder.config.width * ALIVE * 4, budget)


def fitting_tile(sites: Shape3, reach: Shape3, bytes_per_site: int, budget: int) -> Shape3:
    """The largest tile of a grid whose computation with margins of `reach` fits a budget.

    Args:
        sites: of the grid.
        reach: sites of margin on either side.
        bytes_per_site: of the computation.
        budget: in bytes.
    """
    tile = list(sites)
    while True:
        sides = [min(t + 2 * r, n) for t, r, n in zip(tile, reach, sites, strict=True)]
        longest = max(range(3), key=lambda axis: tile[axis] / reach[axis])
        if prod(sides) * bytes_per_site <= budget or tile[longest] <= reach[longest]:
            x, y, z = tile
            return x, y, z
        tile[longest] = -(-tile[longest] // 2)


@torch.no_grad()
def decode_tiled(
    decoder: Decoder, latent: Tensor, tile: Shape3, overlap: Shape3 | None = None
) -> DecodedMap:
    """Decode (B, D, x, y, z) by tiles, without gradients.

    An axis that a tile with its margins would span is decoded in one piece.

    Args:
        decoder: in evaluation mode.
        latent: (B, D, x, y, z).
        tile: sites of a tile along each axis, without margins.
        overlap: sites of margin on either side of a tile. None: the decoder's reach, with which
            the result is exact. A smaller margin is faster and leaves seams.

    Raises:
        MedarError: a tile below 1, an overlap below 0, or an output that is NaN or infinite.
    """
    overlap = decoder.reach if overlap is None else overlap
    if min(tile) < 1 or min(overlap) < 0:
        raise MedarError(
            f"tile {list(tile)} must be at least 1 and overlap {list(overlap)} at least 0"
        )
    sizes = latent.shape[2:]
    axes = [list(spans(*of_axis)) for of_axis in zip(sizes, tile, overlap, strict=True)]
    factors = decoder.config.downsampling
    shape = [size * factor for size, factor in zip(sizes, factors, strict=True)]
    volume = classes = None
    for x, y, z in product(*axes):
        piece = latent[:, :, x.low : x.high, y.low : y.high, z.low : z.high]
        part = _cropped(decoder(piece), (x, y, z), factors)
        if volume is None:
            volume = part.volume.new_empty(*part.volume.shape[:2], *shape)
        part_of(volume, (x, y, z), factors).copy_(part.volume)
        if part.classes is not None:
            if classes is None:
                classes = part.classes.new_empty(len(latent), 1, *shape)
            part_of(classes, (x, y, z), factors).copy_(part.classes)
    assert volume is not None
    return DecodedMap(volume, classes)


def spans(size: int, tile: int, overlap: int) -> Iterator[Span]:
    """Tiles of an axis of `size` sites; a single one if a tile with its margins spans it."""
    if tile + 2 * overlap >= size:
        yield Span(0, size, 0, size)
        return
    for start in range(0, size, tile):
        stop = min(start + tile, size)
        yield Span(start, stop, max(start - overlap, 0), min(stop + overlap, size))


Spans = tuple[Span, Span, Span]


def _cropped(decoded: Decoded, at: Spans, factors: Shape3) -> DecodedMap:
    """The voxels that a tile contributes, without those of its margin."""
    x, y, z = at
    origin = x.low, y.low, z.low
    volume = part_of(decoded.volume, at, factors, origin)
    check_finite(decoded.volume, "the decoded volumes")
    if decoded.logits is None:
        return DecodedMap(volume, None)
    check_finite(decoded.logits, "the decoder's label logits")
    classes = part_of(decoded.logits, at, factors, origin).argmax(1, keepdim=True)
    return DecodedMap(volume, classes.to(torch.int16))


def with_margins(whole: Tensor, at: Spans, factors: Shape3) -> Tensor:
    """The voxels of a tile with its margins."""
    x, y, z = (
        slice(span.low * factor, span.high * factor)
        for span, factor in zip(at, factors, strict=True)
    )
    return whole[:, :, x, y, z]


def part_of(whole: Tensor, at: Spans, factors: Shape3, origin: Shape3 = (0, 0, 0)) -> Tensor:
    """The voxels that a tile contributes, in an array whose first site is `origin`."""
    x, y, z = (
        slice((span.start - first) * factor, (span.stop - first) * factor)
        for span, factor, first in zip(at, factors, origin, strict=True)
    )
    return whole[:, :, x, y, z]
