"""Tokenizers, detail decoders and generators at random weights, in the sizes of the stages."""

from typing import NamedTuple

import torch
from torch import Tensor

from medar.data.plan import IntensityRule, Plan
from medar.generator.conditions import Condition
from medar.generator.generator import Generator
from medar.generator.mixers import MixerSettings
from medar.generator.settings import GeneratorConfig, ModelSettings
from medar.tokenizer import ScaleSchedule, Tokenizer
from medar.tokenizer.codebooks import CodebookSettings
from medar.tokenizer.detail import DetailConfig, DetailDecoder
from medar.tokenizer.network import NetworkConfig
from medar.tokenizer.tokenizer import TokenizerConfig

MIXERS = ("none", "attention", "mamba", "scale_ssm")


class Size(NamedTuple):
    """The sizes of the networks."""

    downsampling: int
    patch: int
    width: int
    multipliers: tuple[int, ...]
    blocks: int
    codes: int
    code_width: int
    depth: int
    head_width: int
    detail: tuple[int, ...]


FULL = Size(8, 2, 64, (1, 2, 4), 2, 4096, 32, 16, 64, (24, 48, 72))
"""As configs/tokenizer/ct_128 and configs/generator/ct_128."""
SMALL = Size(4, 1, 8, (1, 2), 1, 32, 4, 2, 8, (4, 8))


def size_of(tiny: bool) -> Size:
    """Of a stage."""
    return SMALL if tiny else FULL


def network_of(size: Size) -> NetworkConfig:
    """The tokenizer's network."""
    return NetworkConfig(
        patch_size=size.patch,
        width=size.width,
        width_multipliers=size.multipliers,
        blocks_per_level=size.blocks,
        code_width=size.code_width,
        downsampling=(size.downsampling,) * 3,
    )


def make_tokenizer(size: Size, latent: int, device: torch.device, seed: int = 0) -> Tokenizer:
    """A tokenizer whose codebook has started, with a plan and a detail decoder."""
    torch.manual_seed(seed)
    side = latent * size.downsampling
    factors = (size.downsampling,) * 3
    config = TokenizerConfig(
        schedule=ScaleSchedule.from_latent((latent,) * 3, min(latent, 10)),
        network=network_of(size),
        codebook=CodebookSettings(size=size.codes, width=size.code_width),
    )
    plan = Plan(
        spacing=(1.0, 1.0, 1.0),
        mode="volume",
        size=(side, side, side),
        downsampling=factors,
        intensity={"CT": IntensityRule(kind="window", low=-1000.0, high=1000.0)},
    )
    tokenizer = Tokenizer(config, plan).to(device)
    tokenizer.detail = DetailDecoder(DetailConfig.for_network(config.network, size.detail, 2)).to(
        device
    )
    start_codebook(tokenizer, device)
    return tokenizer.eval()


def start_codebook(tokenizer: Tokenizer, device: torch.device) -> None:
    """Fill the codebook from the latents of one volume, by a step of training."""
    with torch.no_grad():
        tokenizer.train()(volumes(1, tokenizer.config.size[0], device))
    tokenizer.eval()


def make_generator(
    size: Size, tokenizer: Tokenizer, mixer: str, device: torch.device, seed: int = 1
) -> Generator:
    """A generator of the tokenizer's tokens, all weights moved away from zero."""
    torch.manual_seed(seed)
    state = 4 if size is SMALL else 16
    sizes = ModelSettings(
        depth=size.depth,
        head_width=size.head_width,
        mixer=MixerSettings(kind=mixer, state_dim=state),
    )
    model = Generator.for_tokenizer(GeneratorConfig(model=sizes, refinement=True), tokenizer)
    model = model.cpu()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.02 * torch.randn_like(parameter)
    return model.to(device).eval()


def volumes(batch: int, side: int, device: torch.device, seed: int = 0) -> Tensor:
    """Smooth volumes (B, 1, X, Y, Z) in [-1, 1], the same on every device."""
    draw = torch.Generator().manual_seed(seed)
    coarse = torch.randn(batch, 1, *((max(side // 8, 2),) * 3), generator=draw)
    smooth = torch.nn.functional.interpolate(coarse, (side,) * 3, mode="trilinear")
    return smooth.tanh().to(device)


def tokens(model: Generator, batch: int, device: torch.device, seed: int = 2) -> Tensor:
    """Random tokens (B, L), the same on every device."""
    draw = torch.Generator().manual_seed(seed)
    shape = (batch, model.schedule.length)
    return torch.randint(model.codebook_size, shape, generator=draw).to(device)


def nothing(batch: int, device: torch.device) -> Condition:
    """No condition, for B volumes."""
    return Condition(attributes=torch.zeros(batch, 0, device=device))
