"""The encoder and the decoder: shapes, gradients, precision, and what a voxel depends on."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medar.errors import MedarError
from medar.settings import from_dict, to_dict
from medar.tokenizer.network import Decoder, Encoder, Fold, NetworkConfig, Unfold, cost
from medar.volume import Shape3

FACTORS = [(8, 8, 8), (8, 8, 4), (4, 4, 4), (4, 4, 1), (1, 2, 8), (1, 1, 1)]


def config(**changes: Any) -> NetworkConfig:
    return NetworkConfig(**{"width": 4, "code_width": 6, "downsampling": (2, 2, 2), **changes})


def both(settings: NetworkConfig) -> nn.ModuleDict:
    torch.manual_seed(0)
    return nn.ModuleDict({"encoder": Encoder(settings), "decoder": Decoder(settings)})


def loss_of(network: nn.ModuleDict, volume: Tensor) -> Tensor:
    decoded = network["decoder"](network["encoder"](volume))
    loss: Tensor = (decoded.volume.float() - volume).abs().mean()
    return loss if decoded.logits is None else loss + decoded.logits.float().square().mean()


@pytest.mark.parametrize("factors", FACTORS, ids=str)
def test_encode_and_decode_shapes(factors: Shape3) -> None:
    settings = config(downsampling=factors, channels=2, labels=3)
    network = both(settings)
    latent = (2, 1, 3)
    shape = tuple(n * factor for n, factor in zip(latent, factors, strict=True))
    volume = torch.randn(2, 2, *shape)
    encoded = network["encoder"](volume)
    decoded = network["decoder"](encoded)
    assert encoded.shape == (2, 6, *latent)
    assert decoded.volume.shape == volume.shape
    assert decoded.logits.shape == (2, 4, *shape)
    assert settings.latent((shape[0], shape[1], shape[2])) == latent


def test_the_axis_of_thick_slices_is_halved_last() -> None:
    assert config(downsampling=(8, 8, 2)).strides == ((2, 2, 1), (2, 2, 1), (2, 2, 2))
    assert config(downsampling=(16, 16, 16)).widths == (4, 8, 16, 16, 16)


@pytest.mark.parametrize("patch", [1, 2, 8])
def test_folding_keeps_shapes(patch: int) -> None:
    settings = config(downsampling=(8, 8, 4), patch_size=patch, channels=2, labels=1)
    network = both(settings)
    decoded = network["decoder"](network["encoder"](torch.randn(1, 2, 8, 16, 4)))
    assert decoded.volume.shape == (1, 2, 8, 16, 4)
    assert decoded.logits.shape == (1, 2, 8, 16, 4)
    fold, *strides = [settings.fold, *settings.strides]
    assert tuple(math.prod(axis) for axis in zip(fold, *strides, strict=True)) == (8, 8, 4)


def test_unfolding_undoes_folding() -> None:
    volume = torch.randn(2, 3, 4, 8, 6)
    factors = (2, 4, 1)
    folded = Fold(factors)(volume)
    assert folded.shape == (2, 24, 2, 2, 6)
    assert torch.equal(Unfold(factors)(folded), volume)
    assert torch.equal(folded[0, :8, 0, 0, 0], volume[0, 0, :2, :4, 0].flatten())


@pytest.mark.parametrize("patch", [0, 3, 16])
def test_an_invalid_patch_is_refused(patch: int) -> None:
    with pytest.raises(MedarError, match="patch_size must be"):
        config(downsampling=(8, 8, 8), patch_size=patch)


def test_a_gradient_reaches_every_parameter() -> None:
    network = both(config(labels=2, downsampling=(4, 4, 2), blocks_per_level=2))
    loss_of(network, torch.randn(1, 1, 8, 8, 8)).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_checkpointing_changes_nothing_but_memory() -> None:
    plain, frugal = both(config()), both(config(activation_checkpointing=True))
    frugal.load_state_dict(plain.state_dict())
    volume = torch.randn(1, 1, 8, 8, 8)
    losses = [loss_of(network, volume) for network in (plain, frugal)]
    for loss in losses:
        loss.backward()
    assert losses[0] == losses[1]
    for expected, actual in zip(plain.parameters(), frugal.parameters(), strict=True):
        torch.testing.assert_close(expected.grad, actual.grad)


def test_checkpointing_keeps_fewer_activations() -> None:
    kept: dict[bool, int] = {True: 0, False: 0}
    for checkpointing in kept:
        network = both(config(activation_checkpointing=checkpointing, blocks_per_level=3))

        def count(tensor: Tensor, key: bool = checkpointing) -> Tensor:
            kept[key] += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            loss_of(network, torch.randn(1, 1, 8, 8, 8))
    assert kept[True] < 0.5 * kept[False]


def test_the_memory_format_changes_no_value() -> None:
    network, volume = both(config()), torch.randn(2, 1, 16, 16, 16)
    expected = network["decoder"](network["encoder"](volume)).volume
    network.to(memory_format=torch.channels_last_3d)
    latent = network["encoder"](volume.to(memory_format=torch.channels_last_3d))
    assert latent.is_contiguous(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(network["decoder"](latent).volume, expected, atol=1e-5, rtol=1e-5)


def test_bf16_autocast_is_close_to_float32() -> None:
    network, volume = both(config(labels=1)), torch.randn(1, 1, 8, 8, 8)
    expected = loss_of(network, volume)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        latent = network["encoder"](volume)
        loss = loss_of(network, volume)
    loss.backward()
    assert latent.dtype == torch.bfloat16
    assert loss.item() == pytest.approx(expected.item(), rel=0.02)
    assert all(p.grad.isfinite().all() for p in network.parameters() if p.grad is not None)


def test_the_cost_counts_existing_layers() -> None:
    settings = config(downsampling=(1, 1, 1))
    counted = cost(settings, (4, 4, 4))
    network = both(settings)
    assert counted.parameters == sum(p.numel() for p in network.parameters())
    weights = sum(m.weight.numel() for m in network.modules() if isinstance(m, nn.Conv3d))
    assert counted.flops == 2 * 4**3 * weights


def test_config_dictionary_round_trip() -> None:
    settings = config(downsampling=(8, 8, 4), labels=2, width_multipliers=(1, 3))
    assert from_dict(NetworkConfig, to_dict(settings), "network.yaml") == settings


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"width": 0}, "width must be at least 1"),
        ({"labels": -1}, "labels must be at least 0"),
        ({"width_multipliers": ()}, "width_multipliers"),
        ({"downsampling": (8, 6, 8)}, "powers of two"),
        ({"downsampling": (0, 8, 8)}, "powers of two"),
    ],
    ids=str,
)
def test_invalid_values_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(MedarError, match=words):
        config(**changes)


def test_an_indivisible_size_is_refused() -> None:
    with pytest.raises(MedarError, match="9 x 8 x 8 voxels: each side must be a multiple"):
        Encoder(config())(torch.zeros(1, 1, 9, 8, 8))
