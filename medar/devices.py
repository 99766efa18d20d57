"""The device to compute on, free memory, and the peak memory of this process.

Torch and psutil are imported by the functions that need them: the recipes measure memory without
loading torch.
"""

import contextlib
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar, cast, get_args

from medar.errors import MedarError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from ctypes import CDLL

    import torch
    from torch import Tensor, nn

    M = TypeVar("M", bound=nn.Module)

DeviceName = Literal["auto", "cpu", "cuda"]

InferencePrecision = Literal["auto", "fp32", "bf16"]
"""What a trained network computes in; "auto" is bf16 where the device has instructions for it."""

MEMORY_FRACTION = 0.5
"""Fraction of the free memory that one computation may take; estimates leave out what libraries
take for themselves."""
CPU_BUDGET, CUDA_BUDGET = 4 << 30, 32 << 30

NVIDIA = Path("/proc/driver/nvidia")
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
"""Where Linux says whether it has them."""
TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4
"""Of glibc's `mallopt`."""
KEPT = 1 << 30
"""Bytes at the end of the heap that stay with the process inside `reused_memory`."""
_blocks = 0
"""Blocks of `reused_memory` that have been entered."""
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def resolve_device(name: DeviceName = "auto") -> "torch.device":
    """The device of a name; "auto" is CUDA where available, else the CPU.

    Raises:
        MedarError: CUDA was requested and is not available.
    """
    import torch

    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise MedarError("device 'cuda' is not available here; use 'cpu' or 'auto'")
    return torch.device("cuda" if available and name != "cpu" else "cpu")


def any_device(name: "str | torch.device") -> "torch.device":
    """The device of a name of `resolve_device`, or of torch, such as "cuda:1".

    Raises:
        MedarError: see `resolve_device`.
    """
    import torch

    if name in get_args(DeviceName):
        return resolve_device(cast(DeviceName, name))
    return torch.device(name)


def has_bf16(device: "torch.device") -> bool:
    """Whether a device multiplies bf16 in hardware; emulated, it is slower than fp32."""
    import torch

    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # torch before 2.9 does not report it
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(bool(capabilities.get(name)) for name in ("amx_bf16", "avx512_bf16", "bf16"))


def inference_precision(
    device: "torch.device", requested: InferencePrecision = "auto"
) -> Literal["fp32", "bf16"]:
    """What a trained network computes in on a device."""
    if requested == "auto":
        return "bf16" if has_bf16(device) else "fp32"
    return requested


def inference_autocast(
    device: "torch.device", requested: InferencePrecision = "auto"
) -> "torch.autocast":
    """The context of a forward pass in that precision, whatever the context around it says."""
    import torch

    half = inference_precision(device, requested) == "bf16"
    return torch.autocast(device.type, torch.bfloat16, enabled=half)


def device_of(module: "nn.Module") -> "torch.device":
    """The device that holds a module's parameters."""
    return next(module.parameters()).device


def to_device(module: "M", name: DeviceName = "auto") -> "M":
    """Move a module to the device of a name (see `resolve_device`).

    Raises:
        MedarError: CUDA was requested and is not available.
    """
    return module.to(resolve_device(name))


def send(tensor: "Tensor", device: "torch.device") -> "Tensor":
    """Copy a tensor of the CPU to a device without waiting: through pinned memory if it is CUDA."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def free_memory(device: "torch.device") -> int:
    """Bytes that a device can still allocate; on a CPU, including what caches would give up."""
    if device.type == "cuda":
        import torch

        # What torch holds and does not use can be allocated too.
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + cached
    import psutil

    return int(psutil.virtual_memory().available)


def has_nvidia() -> bool:
    """Whether a driver of NVIDIA is installed, without loading torch; it may have no device."""
    return NVIDIA.exists() or shutil.which("nvidia-smi") is not None


def card_memory(index: int = 0) -> int | None:
    """Bytes of a CUDA device in all, used or not; None without one."""
    if not has_nvidia():
        return None
    import torch

    if not torch.cuda.is_available():
        return None
    return int(torch.cuda.get_device_properties(index).total_memory)


def memory_budget(device: "torch.device", fraction: float = MEMORY_FRACTION) -> int:
    """Bytes that one computation may take: a fraction of the free memory, at most 32 GiB on a CUDA
    device and 4 GiB on a CPU, which other programs share."""
    most = CUDA_BUDGET if device.type == "cuda" else CPU_BUDGET
    return min(most, int(free_memory(device) * fraction))


def use_huge_pages() -> None:
    """Let torch place large tensors in pages of 2 MiB in place of 4 KiB, where Linux has them.

    Of a network on a CPU, up to a third of the processor time is spent on pages that are used for
    the first time. Without effect once torch has made a tensor, or where the variable is set.
    """
    if HUGE_PAGES.exists():
        os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


@contextlib.contextmanager
def reused_memory() -> "Iterator[None]":
    """Inside the block, memory that is freed stays with the process and is used again.

    glibc returns blocks above 32 MiB to Linux as soon as they are freed, and Linux clears each page
    of the next one. At the end of the block free memory is returned. Without effect on results,
    and on systems without glibc.
    """
    global _blocks
    glibc = _glibc()
    _blocks += 1
    if glibc is not None and _blocks == 1:
        glibc.mallopt(MMAP_MAX, 0)
        glibc.mallopt(TRIM_THRESHOLD, KEPT)
    try:
        yield
    finally:
        _blocks -= 1
        if glibc is not None and _blocks == 0:
            # What glibc itself arrives at in a process that has freed large blocks.
            glibc.mallopt(MMAP_MAX, 65536)
            glibc.mallopt(MMAP_THRESHOLD, 32 << 20)
            glibc.mallopt(TRIM_THRESHOLD, 64 << 20)
            glibc.malloc_trim(0)


def _glibc() -> "CDLL | None":
    """The C library, if it is glibc and its settings are not the user's."""
    from ctypes import CDLL

    if not sys.platform.startswith("linux") or any(n.startswith("MALLOC_") for n in os.environ):
        return None
    library = CDLL(None)
    return library if hasattr(library, "gnu_get_libc_version") else None


@contextlib.contextmanager
def without_tf32() -> "Iterator[None]":
    """No TF32 on CUDA inside the block: its ten bits would choose other tokens than a CPU does."""
    import torch

    multiply, convolve = torch.backends.cuda.matmul, torch.backends.cudnn
    before = multiply.allow_tf32, convolve.allow_tf32
    multiply.allow_tf32 = convolve.allow_tf32 = False
    try:
        yield
    finally:
        multiply.allow_tf32, convolve.allow_tf32 = before


def reset_peak_memory() -> None:
    """Restart the measurement of `peak_memory_mib`; without effect outside Linux."""
    with contextlib.suppress(OSError):
        CLEAR.write_text("5")


def peak_memory_mib() -> float | None:
    """Largest resident set of this process since `reset_peak_memory`, in MiB.

    Read from /proc, as psutil reports no peak on Linux. None on other systems. Worker processes
    are not counted.
    """
    with contextlib.suppress(OSError, ValueError, KeyError):
        lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
        return round(int(lines["VmHWM"].split()[0]) / 1024, 1)
    return None
