"""Stage `speed`: training, sampling and decoding at random weights.

Volumes are random; time and memory do not depend on them. FLOPs are those of torch's counter, over
one step of training, and are divided by those of the bf16 (or fp32) matrix product of this device.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

from gpu_stages.journal import Journal
from gpu_stages.measure import (
    best_dtype,
    ceilings,
    dtype_name,
    peak_mib,
    seconds_of,
    start_peak,
)
from gpu_stages.models import MIXERS, make_generator, make_tokenizer, nothing, size_of
from gpu_stages.models import tokens as make_tokens
from gpu_stages.models import volumes as make_volumes
from medar.devices import memory_budget
from medar.generator.sampling import sample
from medar.generator.settings import SamplingSettings
from medar.tokenizer.bounded import decode_within

TRAIN_SIDES = {64: 8, 96: 8, 128: 8, 256: 1}
"""Voxels per side of the tokenizer's volumes, and volumes per batch."""
TRAIN_LATENTS = {8: 32, 16: 4, 24: 2, 32: 1}
"""Sites per side of the generator's latents, and volumes per batch."""
SAMPLE_LATENTS = (8, 16, 24, 32)
DECODE_SIDES = (256, 512)


def run(journal: Journal, device: torch.device, *, tiny: bool) -> None:
    """All steps of the stage, small sizes first, so that a short time gives the most."""
    found = journal.attempt("ceilings", partial(ceilings, device, tiny=tiny))
    peak = (found or {}).get(f"gemm_{dtype_name(best_dtype(device))}_tflops")
    sides = {16: 2} if tiny else TRAIN_SIDES
    for side, batch in sides.items():
        step = partial(train_tokenizer, device, side, batch, peak, tiny=tiny)
        journal.attempt("train tokenizer", step, side=side, batch=batch)
    for latent, batch in ({4: 2} if tiny else TRAIN_LATENTS).items():
        for mixer in MIXERS:
            step = partial(train_generator, device, latent, batch, mixer, peak, tiny=tiny)
            journal.attempt("train generator", step, latent=latent, batch=batch, mixer=mixer)
    for latent in (4,) if tiny else SAMPLE_LATENTS:
        for mixer in MIXERS:
            for dtype in (torch.float32, torch.bfloat16):
                step = partial(sampling, device, latent, mixer, dtype, tiny=tiny)
                facts = {"latent": latent, "mixer": mixer, "precision": dtype_name(dtype)}
                journal.attempt("sample", step, **facts)
    for side in (32,) if tiny else DECODE_SIDES:
        for dtype in (torch.float32, torch.bfloat16):
            for name, part in (("decode", decoding), ("detail", detail)):
                step = partial(part, device, side, dtype, tiny=tiny)
                journal.attempt(name, step, side=side, precision=dtype_name(dtype))


def training_step(
    model: nn.Module, loss: Callable[[], torch.Tensor], device: torch.device, peak: float | None
) -> dict[str, Any]:
    """Seconds, FLOPs and memory of forward, backward and AdamW."""
    optimiser = torch.optim.AdamW(
        [one for one in model.parameters() if one.requires_grad], fused=device.type == "cuda"
    )

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        with torch.autocast(device.type, best_dtype(device), enabled=device.type == "cuda"):
            value = loss()
        value.backward()
        optimiser.step()

    step()  # states of the optimiser exist from here on
    with FlopCounterMode(display=False) as counter:
        step()
    start_peak(device)
    seconds = seconds_of(step, device)
    rate = counter.get_total_flops() / seconds / 1e12
    return {
        "step_seconds": seconds,
        "tflop": counter.get_total_flops() / 1e12,
        "tflops": rate,
        "fraction_of_gemm": rate / peak if peak else None,
        "peak_mib": peak_mib(device),
        "parameters": sum(one.numel() for one in model.parameters()),
    }


def train_tokenizer(
    device: torch.device, side: int, batch: int, peak: float | None, *, tiny: bool
) -> dict[str, Any]:
    """A step of L1 and the quantiser's loss."""
    size = size_of(tiny)
    tokenizer = make_tokenizer(size, side // size.downsampling, device)
    tokenizer.detail = None
    layout: Any = torch.channels_last_3d
    tokenizer = tokenizer.to(memory_format=layout).train()
    given = make_volumes(batch, side, device).contiguous(memory_format=layout)

    def loss() -> torch.Tensor:
        out = tokenizer(given)
        return (out.volume.float() - given).abs().mean() + out.quantisation.loss

    found = training_step(tokenizer, loss, device, peak)
    return {**found, "voxels_per_second": given.numel() / found["step_seconds"]}


def train_generator(
    device: torch.device, latent: int, batch: int, mixer: str, peak: float | None, *, tiny: bool
) -> dict[str, Any]:
    """A step of cross-entropy over all tokens."""
    size = size_of(tiny)
    tokenizer = make_tokenizer(size, latent, device)
    model = make_generator(size, tokenizer, mixer, device).train()
    given, condition = make_tokens(model, batch, device), nothing(batch, device)

    def loss() -> torch.Tensor:
        return cross_entropy(model(given, condition).flatten(0, 1).float(), given.flatten())

    found = training_step(model, loss, device, peak)
    return {
        **found,
        "tokens": model.schedule.length,
        "tokens_per_second": given.numel() / found["step_seconds"],
    }


def sampling(
    device: torch.device, latent: int, mixer: str, dtype: torch.dtype, *, tiny: bool
) -> dict[str, Any]:
    """Tokens of one volume, without guidance, one pass per scale."""
    size = size_of(tiny)
    model = make_generator(size, make_tokenizer(size, latent, device), mixer, device)
    condition = nothing(1, device)
    start_peak(device)
    settings = SamplingSettings(passes=1, precision=dtype_name(dtype))
    step = partial(sample, model, condition, [0], settings)
    seconds = seconds_of(step, device, 1 if tiny else 3)
    found = {"sample_seconds": seconds, "tokens_per_second": model.schedule.length / seconds}
    return {**found, "peak_mib": peak_mib(device)}


def decoding(device: torch.device, side: int, dtype: torch.dtype, *, tiny: bool) -> dict[str, Any]:
    """A latent to a volume, within the package's budget of memory."""
    size = size_of(tiny)
    tokenizer = make_tokenizer(size, 4, device)
    latent = torch.randn(1, size.code_width, *((side // size.downsampling,) * 3), device=device)

    def step() -> None:
        decode_within(tokenizer.decoder, latent, precision=dtype_name(dtype))

    return inference(step, side, device)


def detail(device: torch.device, side: int, dtype: torch.dtype, *, tiny: bool) -> dict[str, Any]:
    """Two steps of the detail decoder on a decoded volume."""
    tokenizer = make_tokenizer(size_of(tiny), 4, device)
    given = make_volumes(1, side, device)

    def step() -> None:
        tokenizer.add_detail(given, [0], 2, precision=dtype_name(dtype))

    return inference(step, side, device)


def inference(step: Callable[[], None], side: int, device: torch.device) -> dict[str, Any]:
    """Seconds, voxels per second and memory of a step."""
    start_peak(device)
    seconds = seconds_of(step, device, 1)
    return {
        "pass_seconds": seconds,
        "voxels_per_second": side**3 / seconds,
        "budget_mib": memory_budget(device) / 2**20,
        "peak_mib": peak_mib(device),
    }
