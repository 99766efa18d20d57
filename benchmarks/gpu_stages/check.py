"""Stage `check`: the card and its ceilings, the tests marked `gpu`, parity with the CPU."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch

from gpu_stages import parity
from gpu_stages.journal import Journal
from gpu_stages.measure import ceilings
from gpu_stages.models import MIXERS
from medar.environment import environment
from medar.generator.mixers.ssd import scan_path

ROOT = Path(__file__).parents[2]


def run(journal: Journal, device: torch.device, *, tiny: bool) -> None:
    """All steps of the stage."""
    journal.attempt("card", partial(card, device))
    journal.attempt("ceilings", partial(ceilings, device, tiny=tiny))
    for precision in parity.PRECISIONS:
        step = partial(parity.tokens_equal, device, precision, tiny=tiny)
        journal.attempt("tokens", step, precision=precision)
    for mixer in MIXERS:
        for name, comparison in parity.GENERATOR.items():
            step = partial(comparison, device, mixer, tiny=tiny)
            journal.attempt(name, step, mixer=mixer)
    journal.attempt("scan", partial(parity.scan_equal, device))
    journal.attempt("resumption", partial(parity.resumption, device))
    if device.type == "cuda":
        journal.attempt("tests", partial(gpu_tests, journal.left))
        for mixer in MIXERS:
            step = partial(parity.compiled_equal, device, mixer, tiny=tiny)
            journal.attempt("compiled", step, mixer=mixer)
    else:
        journal.write("tests", skipped="no CUDA device")
        journal.write("compiled", skipped="no CUDA device")


def card(device: torch.device) -> dict[str, Any]:
    """Hardware and versions."""
    about: dict[str, Any] = {k: v for k, v in environment().items() if k != "host"}
    about["scan"] = scan_path(device)
    if device.type == "cuda":
        found = torch.cuda.get_device_properties(device)
        about |= {
            "card": found.name,
            "memory_gib": round(found.total_memory / 2**30, 1),
            "capability": f"{found.major}.{found.minor}",
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    return about


def gpu_tests(seconds: float) -> dict[str, Any]:
    """The tests marked `gpu`, in their own process."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=max(seconds, 1),
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    lines = done.stdout.strip().splitlines()
    kept = [line for line in lines if line.startswith(("FAILED", "ERROR", "SKIPPED"))]
    return {"code": done.returncode, "summary": lines[-1] if lines else "", "lines": kept[:60]}
