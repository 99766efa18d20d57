"""Memory and seconds of sampling one volume's tokens; one process per mixer and grid."""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from generators import Quantised, built, parameters
from tokenizer import read

from medar.generator.conditions import Condition
from medar.generator.generator import Generator
from medar.generator.sampling import sample
from medar.generator.settings import ModelSettings, SamplingSettings
from medar.tokenizer.codebooks import CodebookSettings, make_codebook
from medar.tokenizer.quantiser import MultiScaleQuantiser
from medar.tokenizer.schedule import ScaleSchedule

MOST_SCALES = 10
QUICK = 10.0
"""Seconds below which a volume is sampled again after a warm-up."""

ModelOf = Callable[[str, argparse.Namespace, Quantised], ModelSettings]


def run_rows(options: argparse.Namespace, results: Path, names: Sequence[str], commit: str) -> None:
    """Run the rows MIXER@SIDE that are missing."""
    results.parent.mkdir(parents=True, exist_ok=True)
    for row in (f"{name}@{side}" for side in options.sides for name in names):
        if any(one["row"] == row for one in read(results)):
            continue
        print(f"== {row}", flush=True)
        with results.open("a") as file:
            file.write(json.dumps({"row": row, "commit": commit, **run_in_process(row)}) + "\n")


def run_in_process(row: str) -> dict[str, Any]:
    """Run a row in its own process; keep its first output if the system kills it."""
    command = [sys.executable, *sys.argv, "--row", row]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    lines = done.stdout.splitlines()
    if done.returncode < 0 and lines:
        skipped = f"ended by signal {-done.returncode}"
        return {**json.loads(lines[0]), "skipped": skipped}
    if done.returncode:
        raise SystemExit(f"{row}: the process failed with {done.returncode}")
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def measured(options: argparse.Namespace, model_of: ModelOf) -> dict[str, Any]:
    """Run one row in this process; computed values are printed before the measurement."""
    name, _, side = options.row.partition("@")
    torch.manual_seed(0)
    tokenizer = quantiser_of(int(side), options.codebook_size)
    settings = model_of(name, options, tokenizer)
    model = built(settings, tokenizer).eval().to(options.device)
    computed = {
        "mixer": name, "side": int(side), "parameters": parameters(model),
        "tokens": model.schedule.length, "schedule": str(model.schedule), "mlp": settings.mlp_ratio,
        "depth": settings.depth, "head_width": settings.head_width,
        "state_bytes": 4 * model.state_size,
    }  # fmt: skip
    print(json.dumps(computed), flush=True)
    if computed["state_bytes"] > options.limit_gb * 1e9:
        return {**computed, "skipped": f"its state alone exceeds {options.limit_gb:g} GB"}
    limit(options.limit_gb, options.device)
    try:
        return {**computed, **timed(model, torch.device(options.device))}
    except (MemoryError, RuntimeError) as error:  # torch's CPU allocator raises a RuntimeError
        if "memory" not in str(error):
            raise
        return {**computed, "skipped": f"needs more than {options.limit_gb:g} GB"}


def quantiser_of(side: int, codes: int) -> Quantised:
    """An untrained quantiser of a cubic grid."""
    schedule = ScaleSchedule.from_latent((side,) * 3, min(side, MOST_SCALES))
    codebook = make_codebook(CodebookSettings(size=codes))
    config = SimpleNamespace(network=SimpleNamespace(downsampling=(1, 1, 1)))
    return SimpleNamespace(quantiser=MultiScaleQuantiser(codebook, schedule), config=config)


def limit(gigabytes: float, device: str) -> None:
    """Limit the memory of this process."""
    if device.startswith("cuda"):
        there = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(gigabytes * 1e9 / there, 1.0))
    else:
        most = int(gigabytes * 1e9)
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def timed(model: Generator, device: torch.device) -> dict[str, Any]:
    """Seconds to sample one volume's tokens, and the peak memory above that in use before."""
    nothing = Condition(attributes=torch.zeros(1, 0, device=device))

    def once() -> float:
        began = time.perf_counter()
        sample(model, nothing, [0], SamplingSettings()).tokens.cpu()
        return time.perf_counter() - began

    held = resident(device, "VmRSS", reset=True)
    seconds = once()
    if seconds < QUICK:
        seconds = once()
    return {"seconds": seconds, "peak_bytes": resident(device, "VmHWM") - held}


def resident(device: torch.device, what: str, reset: bool = False) -> int:
    """Bytes in use now (VmRSS) or at most since the last reset (VmHWM), on Linux or CUDA."""
    if device.type == "cuda":
        if reset:
            torch.cuda.reset_peak_memory_stats()
        peak = what == "VmHWM"
        return torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(what)).split()[1]) * 1024


def table(rows: list[dict[str, Any]]) -> str:
    """All rows as Markdown."""
    lines = [
        "| grid | mixer | parameters | tokens | state per volume, MB | peak while sampling, MB | "
        "s per volume |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in sorted(rows, key=lambda one: int(one["side"])):
        measures = f"skipped: {one.get('skipped')} | -"
        if "seconds" in one:
            measures = f"{one['peak_bytes'] / 1e6:,.0f} | {one['seconds']:.2f}"
        lines.append(
            f"| {one['side']}^3 | {one['mixer']} | {one['parameters']:,} | {one['tokens']:,} | "
            f"{one['state_bytes'] / 1e6:,.2f} | {measures} |"
        )
    return "\n".join(lines)
