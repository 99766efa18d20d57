"""`medar info`: versions, hardware and paths of this installation."""

import importlib.metadata
import importlib.util
import os
import platform
import sys
from pathlib import Path
from typing import Any

from medar.cli.output import print_json, print_pairs
from medar.devices import has_nvidia
from medar.parallel import default_workers

PACKAGES = (
    "medar", "torch", "monai", "nibabel", "simpleitk", "numpy", "scipy", "scikit-image", "einops",
    "mlflow", "blosc2", "isal", "matplotlib", "safetensors", "cyclopts",
)  # fmt: skip
KERNELS = ("triton", "mamba_ssm", "flash_attn", "causal_conv1d")


def info(*, json: bool = False) -> None:
    """Versions, device, threads, kernels available and paths.

    Parameters
    ----------
    json
        Print one JSON object: versions, device, threads, kernels, paths.
    """
    facts = gather()
    if json:
        print_json(facts)
    else:
        for heading, values in facts.items():
            print_pairs(heading, values)


def gather() -> dict[str, dict[str, Any]]:
    """The facts that `medar info` prints, by heading; torch is loaded only where there is a GPU."""
    device: dict[str, Any] = {"type": "cpu", "processor": _processor()}
    device["bf16"] = "avx512_bf16" in _cpu_flags()
    if has_nvidia():
        device |= _cards()
    return {
        "versions": {"python": platform.python_version(), **{p: _version(p) for p in PACKAGES}},
        "device": device,
        "threads": {
            "processors": default_workers(),
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "not set"),
        },
        "kernels": {name: importlib.util.find_spec(name) is not None for name in KERNELS},
        "paths": {
            "medar": str(Path(__file__).resolve().parents[1]),
            "python": sys.executable,
            "tracking": os.environ.get("MLFLOW_TRACKING_URI", "not set (MLFLOW_TRACKING_URI)"),
        },
    }


def _cards() -> dict[str, Any]:
    """What torch sees of the GPUs; empty if it can use none."""
    import torch

    if not torch.cuda.is_available():
        return {}
    found: dict[str, Any] = {"type": "cuda", "bf16": torch.cuda.is_bf16_supported()}
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        name = torch.cuda.get_device_name(index)
        found[f"cuda:{index}"] = f"{name}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
    return found


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_flags() -> str:
    source = Path("/proc/cpuinfo")
    lines = source.read_text().splitlines() if source.exists() else []
    return next((line for line in lines if line.startswith("flags")), "")


def _processor() -> str:
    source = Path("/proc/cpuinfo")
    lines = source.read_text().splitlines() if source.exists() else []
    named = next((line for line in lines if line.startswith("model name")), "")
    return named.partition(":")[2].strip() or platform.processor() or platform.machine()
