"""Comparisons: the device with the CPU, steps with one pass, compiled with eager, the scan."""

import os
import signal
import tempfile
from collections.abc import Callable
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gpu_stages.models import (
    make_generator,
    make_tokenizer,
    nothing,
    size_of,
    tokens,
    volumes,
)
from medar.generator.generator import Generator
from medar.generator.mixers.ssd import scan, scan_path, ssd_chunked
from medar.generator.sampling import sample
from medar.generator.settings import SamplingSettings
from medar.tokenizer import Tokenizer
from medar.training import fit
from medar.training.settings import TrainingSettings
from medar.training.task import Task

PRECISIONS = ("fp32", "tf32", "bf16")
CPU = torch.device("cpu")
Found = dict[str, Any]


def gap(mine: Tensor, expected: Tensor) -> Found:
    """The largest difference, and the largest expected value beside it."""
    mine, expected = mine.detach().float().cpu(), expected.detach().float().cpu()
    return {
        "difference": float((mine - expected).abs().max()),
        "largest": float(expected.abs().max()),
    }


@contextmanager
def tf32(allowed: bool) -> Any:
    """TF32 in matrix products and convolutions, or not."""
    backends = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = allowed
        yield
    finally:
        for backend, value in zip(backends, before, strict=True):
            backend.allow_tf32 = value


def tokens_equal(device: torch.device, precision: str, *, tiny: bool) -> Found:
    """Fraction of tokens that the device encodes as the CPU does in fp32, and decoded volumes.

    `Tokenizer.encode` would turn TF32 off.
    """
    size, latent = size_of(tiny), 4 if tiny else 8
    reference = make_tokenizer(size, latent, CPU)
    given = volumes(2, reference.config.size[0], CPU)
    expected = torch.cat(reference.encode(given).indices, 1)
    decoded = reference.decode(reference.encode(given)).volume
    tokenizer = deepcopy(reference).to(device)
    with (
        torch.no_grad(),
        tf32(precision == "tf32"),
        torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"),
    ):
        found = tokenizer.quantiser.encode(tokenizer.encoder(given.to(device)).float())
        again = tokenizer.decode(reference.encode(given).to(device)).volume
    equal = torch.cat(found, 1).cpu() == expected
    return {"equal": float(equal.float().mean()), "count": equal.numel(), **gap(again, decoded)}


def a_generator(device: torch.device, mixer: str, *, tiny: bool) -> Generator:
    """A generator of 8^3 latents, or of 4^3."""
    size, latent = size_of(tiny), 4 if tiny else 8
    return make_generator(size, make_tokenizer(size, latent, device), mixer, device)


def logits_equal(device: torch.device, mixer: str, *, tiny: bool) -> Found:
    """Logits of the device against those of the CPU, fp32."""
    size, latent = size_of(tiny), 4
    model = make_generator(size, make_tokenizer(size, latent, CPU), mixer, CPU)
    given = tokens(model, 2, CPU)
    with torch.no_grad(), tf32(False):
        expected = model(given, nothing(2, CPU))
        mine = model.to(device)(given.to(device), nothing(2, device))
    return gap(mine, expected)


def steps_equal(device: torch.device, mixer: str, *, tiny: bool) -> Found:
    """Logits scale by scale against those of one pass, fp32, on the device."""
    model = a_generator(device, mixer, tiny=tiny)
    given, condition = tokens(model, 2, device), nothing(2, device)
    with torch.no_grad(), tf32(False):
        expected = model(given, condition)
        state, found = model.start(condition), []
        for scale in model.schedule.split(given):
            found.append(model.next_logits(state))
            model.append(state, scale)
    return gap(torch.cat(found, 1), expected)


def samples_equal(device: torch.device, mixer: str, *, tiny: bool) -> Found:
    """Whether the same seed gives the same tokens twice, and in another batch."""
    model = a_generator(device, mixer, tiny=tiny)
    settings = SamplingSettings()
    first = sample(model, nothing(2, device), [5, 6], settings).tokens
    again = sample(model, nothing(2, device), [5, 6], settings).tokens
    alone = sample(model, nothing(1, device), [6], settings).tokens
    return {
        "equal": float((first == again).float().mean()),
        "equal_alone": float((first[1:] == alone).float().mean()),
    }


GENERATOR: dict[str, Callable[..., Found]] = {
    "logits": logits_equal,
    "steps": steps_equal,
    "samples": samples_equal,
}
"""Comparisons of a generator, by the name of their record."""


def compiled_equal(device: torch.device, mixer: str, *, tiny: bool) -> Found:
    """Compiled logits against eager ones, fp32."""
    model = a_generator(device, mixer, tiny=tiny)
    given, condition = tokens(model, 2, device), nothing(2, device)
    with torch.no_grad(), tf32(False):
        expected = model(given, condition)
        mine = torch.compile(model)(given, condition)
    return gap(mine, expected)


def scan_equal(device: torch.device) -> Found:
    """The scan that the device takes against the one by chunks, values and gradients."""
    draw = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw).to(device)

    length = 150
    x, b, c = normal(2, length, 4, 32), normal(2, length, 16) / 4, normal(2, length, 16) / 4
    dt, rates, before = normal(2, length, 4).sigmoid(), -normal(4).exp(), normal(2, 4, 32, 16)
    found = []
    for fast in (True, False):
        leaves = [one.clone().requires_grad_() for one in (x, dt, rates, b, c, before)]
        u, step, rate, key, query, state = leaves
        if fast:
            y, last = scan(u, step, rate, key, query, 64, state)
        else:
            y, last = ssd_chunked(u * step[..., None], step * rate, key, query, 64, state)
        (y.square().mean() + last.square().mean()).backward()
        found.append([y, last, *(leaf.grad for leaf in leaves)])
    names = ("y", "state", "grad_x", "grad_dt", "grad_a", "grad_b", "grad_c", "grad_state")
    gaps = {name: gap(*pair) for name, *pair in zip(names, *found, strict=True)}
    relative = max(one["difference"] / max(one["largest"], 1e-12) for one in gaps.values())
    return {"path": scan_path(device), "relative": relative, "gaps": gaps}


class Toy(Task[Tensor]):
    """Reconstruct volumes with a tokenizer: a few real steps for `resumption`."""

    metric = "l1"

    def __init__(self, tokenizer: Tokenizer) -> None:
        tokenizer.detail = None
        self.model: nn.Module = tokenizer.train()

    def batches(self, epoch: int, start: int) -> list[Tensor]:
        return [volumes(2, 16, CPU, seed=100 * epoch + k) for k in range(start, 4)]

    def loss(self, batch: Tensor, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        out = self.model(batch)
        total = (out.volume.float() - batch).abs().mean() + out.quantisation.loss
        return total, {"loss": total}

    def evaluate(self) -> dict[str, float]:
        device = next(self.model.parameters()).device
        given = volumes(2, 16, device, seed=7)
        return {"l1": float((self.model(given).volume - given).abs().mean())}


def resumption(device: torch.device) -> Found:
    """Weights after six steps in one run against three and three; atomics may differ on CUDA."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for name, stops in (("whole", (6,)), ("parts", (3, 6))):
            for stop in stops:
                task = Toy(make_tokenizer(size_of(True), 4, CPU))
                settings = TrainingSettings(
                    steps=6,
                    device=device.type,  # type: ignore[arg-type]
                    precision="fp32",
                    save_every=3,
                    evaluate_every=6,
                    ema_decay=0.0,
                )
                interrupt_after(task, stop if stop < 6 else None)
                try:
                    fit(task, settings, Path(folder) / name)
                except KeyboardInterrupt:
                    continue
            found.append([one.detach().clone() for one in task.model.parameters()])
    gaps = [gap(mine, expected) for mine, expected in zip(*reversed(found), strict=True)]
    difference = max(one["difference"] for one in gaps)
    return {"difference": difference, "equal": difference == 0}


def interrupt_after(task: Toy, step: int | None) -> None:
    """Send this process an interruption after a step, which `fit` turns into a checkpoint."""

    def after(done: int) -> None:
        if done == step:
            os.kill(os.getpid(), signal.SIGINT)

    task.after_step = after  # type: ignore[method-assign]
