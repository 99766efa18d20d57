"""Seconds, memory and the ceilings of a device: matrix products and copies."""

import time
from collections.abc import Callable
from statistics import median
from typing import Any, Literal

import torch

from medar.devices import has_bf16, peak_memory_mib, reset_peak_memory


def synchronise(device: torch.device) -> None:
    """Wait until the device has done all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(step: Callable[[], Any], device: torch.device, repeats: int = 5) -> float:
    """Median seconds of a step, after one that is not counted."""
    step()
    found = []
    for _ in range(repeats):
        synchronise(device)
        start = time.perf_counter()
        step()
        synchronise(device)
        found.append(time.perf_counter() - start)
    return median(found)


def start_peak(device: torch.device) -> None:
    """Restart the measurement of `peak_mib`."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    else:
        reset_peak_memory()


def peak_mib(device: torch.device) -> float | None:
    """Largest allocation on CUDA, else the largest resident set of the process, in MiB."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    return peak_memory_mib()


def gemm_flops(device: torch.device, dtype: torch.dtype, side: int) -> float:
    """FLOP/s of a square matrix product."""
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / seconds_of(lambda: a @ b, device, 10)


def copy_bytes(device: torch.device, size: int) -> float:
    """Bytes read and written per second while copying `size` bytes on the device."""
    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    return 2 * size / seconds_of(lambda: target.copy_(source), device, 10)


def ceilings(device: torch.device, *, tiny: bool) -> dict[str, Any]:
    """The most that the device can do: bf16, TF32 and fp32 products in TFLOP/s, copies in GB/s."""
    side, size = (256, 2**20) if tiny else (8192, 2**30)
    before = torch.backends.cuda.matmul.allow_tf32
    found: dict[str, Any] = {}
    try:
        torch.backends.cuda.matmul.allow_tf32 = False
        found["gemm_fp32_tflops"] = gemm_flops(device, torch.float32, side) / 1e12
        found["gemm_bf16_tflops"] = gemm_flops(device, torch.bfloat16, side) / 1e12
        if device.type == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = True
            found["gemm_tf32_tflops"] = gemm_flops(device, torch.float32, side) / 1e12
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    found["copy_gb"] = copy_bytes(device, size) / 1e9
    return found


def best_dtype(device: torch.device) -> torch.dtype:
    """bf16 where the device has instructions for it, else fp32."""
    return torch.bfloat16 if has_bf16(device) else torch.float32


def dtype_name(dtype: torch.dtype) -> Literal["bf16", "fp32"]:
    """ "bf16" or "fp32"."""
    return "bf16" if dtype == torch.bfloat16 else "fp32"
