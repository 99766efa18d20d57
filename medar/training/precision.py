"""Device, precision and random state of a process, and the reasons for the choice."""

import contextlib
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from medar.devices import has_bf16, resolve_device
from medar.errors import MedarError
from medar.training.settings import TrainingSettings

ALLOCATOR = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
"""Environment variables that configure CUDA's allocator."""


@dataclass(frozen=True, kw_only=True)
class Precision:
    """How the forward pass is computed. Weights, gradients and optimisers are always float32."""

    device: torch.device
    dtype: torch.dtype
    compile: bool
    why: str
    """The choice in one line, with its reasons."""

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """The context of a forward pass."""
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)


def choose_precision(settings: TrainingSettings, local_rank: int = 0) -> Precision:
    """The precision that the settings ask for, on this machine.

    Args:
        settings: `device`, `precision` and `compile` are used.
        local_rank: index of the CUDA device; each process has its own.

    Raises:
        MedarError: CUDA is not available, or has fewer devices than there are processes.
    """
    device = resolve_device(settings.device)
    if device.type == "cuda":
        if local_rank >= torch.cuda.device_count():
            raise MedarError(
                f"process {local_rank} of this machine has no CUDA device of its own: there are "
                f"{torch.cuda.device_count()}; start as many processes (--nproc-per-node)"
            )
        device = torch.device("cuda", local_rank)
        use_expandable_segments()
        name = torch.cuda.get_device_name(device)
    else:
        name = "CPU"
    native = has_bf16(device)
    dtype, reason = torch.float32, "as requested"
    if settings.precision == "bf16" or (settings.precision == "auto" and native):
        dtype = torch.bfloat16
    if settings.precision == "auto":
        reason = "supported in hardware" if native else "no bf16 instructions"
    elif settings.precision == "bf16" and not native:
        reason = "as requested, but the processor has no instructions for it"
    number = "bf16" if dtype == torch.bfloat16 else "fp32"
    compiled = "compiled" if settings.compile else "not compiled"
    why = f"{name} ({device}), {number} ({reason}), {compiled}"
    return Precision(device=device, dtype=dtype, compile=settings.compile, why=why)


@contextlib.contextmanager
def fast_convolutions(device: torch.device) -> Iterator[None]:
    """On CUDA, cuDNN measures inside the block which algorithm is fastest for each shape."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = before or device.type == "cuda"
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def use_expandable_segments() -> None:
    """Let CUDA's allocator grow its segments, which fragment less, unless the user configured it.

    The allocator reads the variable at its first allocation.
    """
    if not any(name in os.environ for name in ALLOCATOR):
        os.environ[ALLOCATOR[0]] = "expandable_segments:True"


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch, on every device."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def random_state(device: torch.device) -> dict[str, Any]:
    """The state of all random generators, as tensors and plain values."""
    version, words, gauss = random.getstate()
    kind, numpy_words, *rest = np.random.get_state()
    state = {
        "python": (version, torch.tensor(words), gauss),
        "numpy": (kind, torch.tensor(np.asarray(numpy_words).tolist()), *rest),
        "torch": torch.get_rng_state(),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Restore `random_state`; a device that it does not cover keeps its own state."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words.tolist()), gauss))
    kind, numpy_words, *rest = state["numpy"]
    np.random.set_state((kind, numpy_words.numpy(), *rest))
    torch.set_rng_state(state["torch"].cpu())
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)
