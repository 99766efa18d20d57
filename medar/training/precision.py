"""Where a run computes and in what numbers: device, autocast, compilation, and the reason why."""

import contextlib
from dataclasses import dataclass

import torch

from medar.errors import MedarError
from medar.training.settings import TrainingSettings


@dataclass(frozen=True, kw_only=True)
class Precision:
    """How the forward pass is computed. Weights, gradients and optimisers are float32 always."""

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


def choose_precision(settings: TrainingSettings, local: int = 0) -> Precision:
    """The precision that the settings ask for, on this machine.

    Args:
        settings: `device`, `precision` and `compile` are used.
        local: number of the CUDA device, one a process.

    Raises:
        MedarError: a CUDA device is asked for and there is none.
    """
    cuda = torch.cuda.is_available()
    if settings.device == "cuda" and not cuda:
        raise MedarError("device 'cuda': there is none here; 'cpu' or 'auto' is needed")
    if cuda and settings.device != "cpu":
        if local >= torch.cuda.device_count():
            raise MedarError(
                f"process {local} of this machine has no CUDA device of its own: there are "
                f"{torch.cuda.device_count()}; start as many processes (--nproc-per-node)"
            )
        device = torch.device("cuda", local)
        name = torch.cuda.get_device_name(device)
        # Emulated bf16 is slower than fp32.
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        device, name, native = torch.device("cpu"), "CPU", _cpu_has_bf16()
    dtype, reason = torch.float32, "as asked"
    if settings.precision == "bf16" or (settings.precision == "auto" and native):
        dtype = torch.bfloat16
    if settings.precision == "auto":
        reason = "the processor has it" if native else "no bf16 instructions"
    elif settings.precision == "bf16" and not native:
        reason = "as asked, though the processor has no instructions for it"
    number = "bf16" if dtype == torch.bfloat16 else "fp32"
    compiled = "compiled, as asked" if settings.compile else "not compiled"
    why = f"{name} ({device}), {number} ({reason}), {compiled}"
    return Precision(device=device, dtype=dtype, compile=settings.compile, why=why)


def _cpu_has_bf16() -> bool:
    """Whether the processor multiplies bf16 itself; torch before 2.9 cannot tell."""
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(bool(capabilities.get(name)) for name in ("amx_bf16", "avx512_bf16", "bf16"))
