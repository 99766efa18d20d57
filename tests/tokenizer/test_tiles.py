"""Tiled decoding: the same result as without tiles, with bounded memory."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from medar.errors import MedarError
from medar.tokenizer.codebooks import CodebookSettings
from medar.tokenizer.network import Decoded, Decoder, NetworkConfig
from medar.tokenizer.schedule import ScaleSchedule
from medar.tokenizer.tiles import ALIVE, decode_tiled, spans, tile_within
from medar.tokenizer.tokenizer import Tokenizer, TokenizerConfig
from medar.volume import Shape3


def decoder_of(**changes: Any) -> Decoder:
    torch.manual_seed(0)
    sizes = {"width": 4, "code_width": 4, "downsampling": (2, 2, 1), **changes}
    return Decoder(NetworkConfig(**sizes)).eval()


@pytest.mark.parametrize("factors", [(2, 2, 2), (4, 2, 1)], ids=str)
def test_tiles_equal_the_whole(factors: Shape3) -> None:
    decoder = decoder_of(downsampling=factors, labels=2)
    latent = torch.randn(1, 4, 15, 2, 15)
    with torch.no_grad():
        whole = decoder(latent)
    tiled = decode_tiled(decoder, latent, (4, 2, 3))
    torch.testing.assert_close(tiled.volume, whole.volume, atol=1e-5, rtol=1e-5)
    assert tiled.classes is not None
    assert tiled.classes.dtype == torch.int16
    assert torch.equal(tiled.classes, whole.logits.argmax(1, keepdim=True).to(torch.int16))


def test_a_margin_short_by_one_site_is_not_exact() -> None:
    decoder = decoder_of()
    latent = torch.randn(1, 4, 20, 2, 2)
    with torch.no_grad():
        whole = decoder(latent).volume
    x, y, z = decoder.reach
    short = decode_tiled(decoder, latent, (4, 4, 4), (x - 1, y, z)).volume
    without = decode_tiled(decoder, latent, (4, 4, 4), (0, 0, 0)).volume
    assert not torch.equal(short, whole)
    assert (short - whole).abs().max() < 0.1 * (without - whole).abs().max()


def test_the_largest_piece_is_tile_and_margins() -> None:
    decoder = decoder_of()
    seen: list[tuple[int, ...]] = []

    def note(_: Any, inputs: tuple[Tensor, ...], __: Decoded) -> None:
        seen.append(tuple(inputs[0].shape[2:]))

    decoder.register_forward_hook(note)
    decode_tiled(decoder, torch.randn(1, 4, 24, 3, 3), (5, 5, 5))
    assert len(seen) == 5
    assert max(size[0] for size in seen) <= 5 + 2 * decoder.reach[0]


def test_a_small_latent_is_decoded_without_tiles() -> None:
    assert list(spans(9, 4, 3)) == [(0, 9, 0, 9)]
    assert list(spans(11, 4, 3)) == [(0, 4, 0, 7), (4, 8, 1, 11), (8, 11, 5, 11)]


def test_no_label_head_gives_no_label_map() -> None:
    assert decode_tiled(decoder_of(), torch.randn(1, 4, 2, 2, 2), (1, 1, 1)).classes is None


@pytest.mark.parametrize(("tile", "overlap"), [((0, 4, 4), None), ((4, 4, 4), (-1, 0, 0))])
def test_invalid_values_are_refused(tile: Shape3, overlap: Shape3 | None) -> None:
    with pytest.raises(MedarError, match="must be at least 1"):
        decode_tiled(decoder_of(), torch.randn(1, 4, 2, 2, 2), tile, overlap)


def test_tiled_decoding_with_little_memory_gives_the_same() -> None:
    torch.manual_seed(0)
    network = NetworkConfig(
        width=4, width_multipliers=(1,), code_width=4, downsampling=(2, 1, 1), labels=1
    )
    config = TokenizerConfig(
        schedule=ScaleSchedule(grids=((1, 1, 1), (24, 2, 1))),
        network=network,
        codebook=CodebookSettings(kind="fsq", size=16, width=4),
    )
    tokenizer = Tokenizer(config).eval()
    pyramid = tokenizer.encode(torch.rand(1, 1, 48, 2, 1) * 2 - 1)
    with torch.no_grad():
        whole = tokenizer.decode(pyramid)
    assert whole.logits is not None
    calls = []
    tokenizer.decoder.register_forward_hook(lambda *_: calls.append(1))
    assert torch.equal(tokenizer.decode_map(pyramid).volume, whole.volume)
    assert len(calls) == 1
    small = tokenizer.decode_map(pyramid, budget=1)
    assert len(calls) > 3
    torch.testing.assert_close(small.volume, whole.volume, atol=1e-5, rtol=1e-5)
    assert small.classes is not None
    assert torch.equal(small.classes, whole.logits.argmax(1, keepdim=True).to(torch.int16))


def test_tiles_fit_their_budget() -> None:
    decoder = Decoder(NetworkConfig(width=16))
    budget = 4 << 30
    assert tile_within(decoder, (16, 16, 16), budget) == (16, 16, 16)
    tile = tile_within(decoder, (64, 64, 64), budget)
    sides = [8 * (side + 2 * reach) for side, reach in zip(tile, decoder.reach, strict=True)]
    assert np.prod(sides) * 16 * ALIVE * 4 <= budget
    assert min(tile) > max(decoder.reach)
    assert min(tile_within(decoder, (64, 64, 64), 1)) > 1
