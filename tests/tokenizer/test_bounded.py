"""Encoding and decoding slab by slab: the same result as in one piece, in bounded memory."""

from math import prod
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from medar.tokenizer.bounded import decode_within, encode_within, sites_within
from medar.tokenizer.codebooks import CodebookSettings
from medar.tokenizer.network import Decoder, Encoder, NetworkConfig, ResidualBlock
from medar.tokenizer.schedule import ScaleSchedule
from medar.tokenizer.slabs import ALIVE, Waiting, by_slabs, layer_of
from medar.tokenizer.tokenizer import Tokenizer, TokenizerConfig
from medar.volume import Shape3

NETWORKS: list[dict[str, Any]] = [
    {"downsampling": (1, 1, 1)},
    {"downsampling": (2, 2, 2)},
    {"downsampling": (4, 2, 1), "blocks_per_level": 2},
    {"downsampling": (4, 4, 4), "patch_size": 2, "channels": 2},
    {"downsampling": (8, 8, 2), "patch_size": 4},
]
AXES = [(7, 2, 3), (2, 7, 3), (2, 3, 7)]


def config(**changes: Any) -> NetworkConfig:
    sizes = {"width": 4, "width_multipliers": (1, 2), "code_width": 4, "downsampling": (2, 2, 1)}
    return NetworkConfig(**{**sizes, **changes})


def moved_from_zero(network: nn.Module) -> None:
    """Norms and biases at random, so that each matters."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.3 * torch.randn_like(parameter)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("sides", AXES, ids=str)
@pytest.mark.parametrize("changes", NETWORKS, ids=str)
def test_decoding_by_slabs_equals_the_whole(changes: dict[str, Any], sides: Shape3) -> None:
    decoder = Decoder(config(labels=2, **changes)).eval()
    moved_from_zero(decoder)
    latent = torch.randn(2, 4, *sides)
    with torch.no_grad():
        whole = decoder(latent)
    decoded = decode_within(decoder, latent, budget=1, precision="fp32")
    torch.testing.assert_close(decoded.volume, whole.volume, atol=1e-5, rtol=1e-5)
    assert decoded.classes is not None
    assert decoded.classes.dtype == torch.int16
    assert torch.equal(decoded.classes, whole.logits.argmax(1, keepdim=True).to(torch.int16))


def test_decoding_by_slabs_equals_the_whole_in_bf16() -> None:
    decoder, latent = Decoder(config()).eval(), torch.randn(1, 4, 20, 2, 3)
    exact = decode_within(decoder, latent, precision="fp32").volume
    whole = decode_within(decoder, latent, precision="bf16").volume
    slabs = decode_within(decoder, latent, budget=1, precision="bf16").volume
    assert whole.dtype == slabs.dtype == torch.float32
    # A bf16 number has 8 bits, so neighbours of 1 are 2^-8 and 2^-7 away.
    torch.testing.assert_close(slabs, whole, atol=2**-8, rtol=2**-7)
    assert 0 < (whole - exact).abs().max() < 0.05 * exact.abs().max()


def test_the_precision_holds_whatever_surrounds_the_call() -> None:
    decoder, latent = Decoder(config()).eval(), torch.randn(1, 4, 6, 2, 2)
    expected = decode_within(decoder, latent, precision="fp32").volume
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(decode_within(decoder, latent, precision="fp32").volume, expected)


@pytest.mark.parametrize("sides", AXES, ids=str)
@pytest.mark.parametrize("changes", NETWORKS, ids=str)
def test_encoding_by_slabs_equals_the_whole(changes: dict[str, Any], sides: Shape3) -> None:
    encoder = Encoder(config(**changes)).eval()
    moved_from_zero(encoder)
    shape = [n * factor for n, factor in zip(sides, encoder.config.downsampling, strict=True)]
    volumes = torch.randn(2, encoder.config.channels, *shape)
    with torch.no_grad():
        whole = encoder(volumes)
    latent = encode_within(encoder, volumes, budget=1)
    torch.testing.assert_close(latent, whole, atol=1e-5, rtol=1e-5)


def test_no_voxel_is_computed_twice() -> None:
    decoder, latent = Decoder(config()).eval(), torch.randn(1, 4, 12, 2, 2)
    with FlopCounterMode(display=False) as whole, torch.no_grad():
        decoder(latent)
    with FlopCounterMode(display=False) as slabs:
        decode_within(decoder, latent, budget=1)
    assert slabs.get_total_flops() == whole.get_total_flops()


def test_a_slab_is_never_larger_than_planned() -> None:
    """What a layer computes at once grows neither with the volume nor from level to level."""
    decoder = Decoder(config(downsampling=(8, 1, 1))).eval()
    rows: list[int] = []

    def note(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        rows.append(inputs[0].shape[2])

    for module in decoder.levels[-1].modules():
        if isinstance(module, ResidualBlock):
            module.body[0].register_forward_pre_hook(note)
    for sites in (10, 40):
        decode_within(decoder, torch.randn(1, 4, sites, 3, 3), budget=1)
    assert sum(rows) == 8 * (10 + 40)
    assert max(rows) <= 8 + 1


def test_the_last_rows_wait_for_nothing() -> None:
    waiting = Waiting(2)
    waiting.put(torch.arange(3.0).view(1, 1, 3, 1, 1))
    waiting.put(torch.arange(3.0, 5.0).view(1, 1, 2, 1, 1))
    first = waiting.take(4)
    assert first is not None
    assert first.flatten().tolist() == [0, 1, 2, 3]
    assert len(waiting) == 1
    assert waiting.take(0) is None


def test_slabs_may_have_any_thickness() -> None:
    convolution = nn.Conv3d(1, 2, kernel_size=3, padding=1)
    volume = torch.randn(1, 1, 9, 4, 3)
    expected = convolution(volume)
    for sizes in ([9], [1] * 9, [2, 5, 1, 1], [1, 8]):
        made = list(by_slabs(layer_of(convolution, 2), volume.split(sizes, 2)))
        torch.testing.assert_close(torch.cat(made, 2), expected)


def test_an_unknown_layer_is_refused() -> None:
    with pytest.raises(TypeError, match="BatchNorm3d"):
        layer_of(nn.BatchNorm3d(2), 2)
    with pytest.raises(TypeError, match="Conv3d"):
        layer_of(nn.Conv3d(2, 2, kernel_size=5, padding=2), 2)


def test_no_label_head_gives_no_label_map() -> None:
    assert decode_within(Decoder(config()), torch.randn(1, 4, 3, 2, 2), budget=1).classes is None


def test_tokens_and_volumes_with_little_memory_are_the_same() -> None:
    network = config(downsampling=(2, 1, 1), labels=1)
    tokenizer = Tokenizer(
        TokenizerConfig(
            schedule=ScaleSchedule(grids=((1, 1, 1), (24, 2, 1))),
            network=network,
            codebook=CodebookSettings(kind="fsq", size=16, width=4),
        )
    ).eval()
    volume = torch.rand(1, 1, 48, 2, 1) * 2 - 1
    pyramid, small = tokenizer.encode(volume), tokenizer.encode(volume, budget=1)
    for whole, by_slab in zip(pyramid.indices, small.indices, strict=True):
        assert torch.equal(whole, by_slab)
    with torch.no_grad():
        expected = tokenizer.decode(pyramid)
    assert expected.logits is not None
    calls: list[int] = []
    tokenizer.decoder.register_forward_hook(lambda *_: calls.append(1))
    assert torch.equal(tokenizer.decode_map(pyramid, precision="fp32").volume, expected.volume)
    assert len(calls) == 1
    decoded = tokenizer.decode_map(pyramid, budget=1, precision="fp32")
    assert len(calls) == 1
    torch.testing.assert_close(decoded.volume, expected.volume, atol=1e-5, rtol=1e-5)
    assert decoded.classes is not None
    assert torch.equal(decoded.classes, expected.logits.argmax(1, keepdim=True).to(torch.int16))


def test_slabs_fit_their_budget() -> None:
    network, budget = NetworkConfig(width=64, patch_size=2, blocks_per_level=2), 4 << 30
    assert sites_within(network, (16, 16, 16), 0, budget) == 16
    sites = sites_within(network, (64, 64, 64), 0, budget)
    per_site = 64 * prod(network.downsampling) // prod(network.fold) * 64 * 64 * ALIVE * 4
    assert 1 < sites * per_site < budget
    assert sites_within(network, (64, 64, 64), 0, 1) == 1
    many = NetworkConfig(width=64, patch_size=2, blocks_per_level=2, labels=100)
    assert sites_within(many, (64, 64, 64), 0, budget) < sites
