"""Decoding a large latent piece by piece, in bounded memory, equal to decoding it whole.

The decoder normalises each site by itself (see `medar.tokenizer.network`), so a voxel depends on
the latent within `Decoder.reach` and on nothing else. A tile is therefore decoded together with
that margin, the margin's voxels are thrown away, and what remains is exact: no blending, no seams.
"""

from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from medar.errors import MedarError
from medar.tokenizer.network import Decoded, Decoder
from medar.volume import Shape3


class DecodedMap(NamedTuple):
    """A decoded volume with its label map; logits of many labels would not fit into memory."""

    volume: Tensor
    """(B, C, X, Y, Z)."""
    classes: Tensor | None
    """(B, 1, X, Y, Z) int16, the likeliest class, 0 the background; None without a label head."""


class Span(NamedTuple):
    """A tile along one axis, in sites of the latent."""

    start: int
    stop: int
    """From start to stop: what the tile gives."""
    low: int
    high: int
    """From low to high: what is decoded for it, the margin included."""


@torch.no_grad()
def decode_tiled(
    decoder: Decoder, latent: Tensor, tile: Shape3, overlap: Shape3 | None = None
) -> DecodedMap:
    """Decode (B, D, x, y, z) by tiles.

    An axis that tile and margins would span is decoded whole.

    Args:
        decoder: in evaluation; no gradient is kept.
        latent: (B, D, x, y, z).
        tile: sites that a tile gives along each axis, margin not counted.
        overlap: sites of margin on either side of a tile. None: the decoder's reach, with which
            the result equals whole decoding. Less is faster and leaves seams.

    Raises:
        MedarError: a tile below 1 or an overlap below 0.
    """
    overlap = decoder.reach if overlap is None else overlap
    if min(tile) < 1 or min(overlap) < 0:
        raise MedarError(
            f"tile {list(tile)} with overlap {list(overlap)}: allowed from 1, and from 0"
        )
    sizes = latent.shape[2:]
    axes = [list(spans(*of_axis)) for of_axis in zip(sizes, tile, overlap, strict=True)]
    factors = decoder.config.downsampling
    shape = [size * factor for size, factor in zip(sizes, factors, strict=True)]
    volume = classes = None
    for x, y, z in product(*axes):
        piece = latent[:, :, x.low : x.high, y.low : y.high, z.low : z.high]
        given = _cropped(decoder(piece), (x, y, z), factors)
        if volume is None:
            volume = given.volume.new_empty(*given.volume.shape[:2], *shape)
        _part(volume, (x, y, z), factors).copy_(given.volume)
        if given.classes is not None:
            if classes is None:
                classes = given.classes.new_empty(len(latent), 1, *shape)
            _part(classes, (x, y, z), factors).copy_(given.classes)
    assert volume is not None
    return DecodedMap(volume, classes)


def spans(size: int, tile: int, overlap: int) -> Iterator[Span]:
    """Tiles of an axis of `size` sites; a single one where tile and margins span it all."""
    if tile + 2 * overlap >= size:
        yield Span(0, size, 0, size)
        return
    for start in range(0, size, tile):
        stop = min(start + tile, size)
        yield Span(start, stop, max(start - overlap, 0), min(stop + overlap, size))


Spans = tuple[Span, Span, Span]


def _cropped(decoded: Decoded, at: Spans, factors: Shape3) -> DecodedMap:
    """The voxels that a tile gives, without those of its margin."""
    x, y, z = at
    origin = x.low, y.low, z.low
    volume = _part(decoded.volume, at, factors, origin)
    if decoded.logits is None:
        return DecodedMap(volume, None)
    likeliest = _part(decoded.logits, at, factors, origin).argmax(1, keepdim=True)
    return DecodedMap(volume, likeliest.to(torch.int16))


def _part(whole: Tensor, at: Spans, factors: Shape3, origin: Shape3 = (0, 0, 0)) -> Tensor:
    """The voxels that a tile gives, in an array that begins at the sites `origin`."""
    x, y, z = (
        slice((span.start - first) * factor, (span.stop - first) * factor)
        for span, factor, first in zip(at, factors, origin, strict=True)
    )
    return whole[:, :, x, y, z]
