"""Common parts of the generators' benchmarks: sizes, training, samples and their evaluation."""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from tokenizer import commit, read
from torch import Tensor, nn

from medar.data.plan import Plan
from medar.data.prepared import Prepared
from medar.evaluation.generation import GenerationReport, evaluate_generation
from medar.evaluation.generation.files import as_volume, held_out_volumes
from medar.files import write_json
from medar.generator.conditions import Condition
from medar.generator.generator import Generator
from medar.generator.sampling import sample_and_decode
from medar.generator.settings import (
    GeneratorConfig,
    GeneratorSettings,
    ModelSettings,
)
from medar.generator.task import GeneratorTask
from medar.generator.training import make_task
from medar.report.montages import contact_sheet
from medar.synthesis import Synthesizer
from medar.training import fit

ROWS_FILE = "results.jsonl"
DRAWN = 8
"""Number of generated and of real volumes on a contact sheet."""

Draw = Callable[[Sequence[int]], Tensor]
"""Seeds to volumes (B, C, X, Y, Z), one per seed."""


class Quantised(Protocol):
    """What `Generator.for_tokenizer` needs of a tokenizer."""

    quantiser: Any
    config: Any


Build = Callable[[ModelSettings, Quantised], nn.Module]
"""Builds an untrained model with these sizes, without conditions."""


def run_rows(options: argparse.Namespace, run: Callable[[str], dict[str, Any]]) -> None:
    """Run the rows that are not yet in OUT/results.jsonl."""
    results = options.out / ROWS_FILE
    options.out.mkdir(parents=True, exist_ok=True)
    for row in options.rows:
        if any(one["row"] == row for one in read(results)):
            continue
        print(f"== {row}", flush=True)
        result = {"row": row, "commit": commit(), **run(row)}
        with results.open("a") as file:
            file.write(json.dumps(result) + "\n")


def folder_of(options: argparse.Namespace, row: str) -> Path:
    """The folder of a row."""
    folder: Path = options.out / row.replace(":", "-").replace(",", "_")
    return folder


def length(minutes: float, steps: int | None) -> dict[str, Any]:
    """The training length as keys of `TrainingSettings`: steps if given, else minutes."""
    return {"minutes": None if steps else minutes, "steps": steps}


def parameters(model: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def built(sizes: ModelSettings, tokenizer: Quantised) -> Generator:
    """An untrained generator with these sizes, without conditions."""
    return Generator.for_tokenizer(GeneratorConfig(model=sizes), tokenizer)


def fitted(
    sizes: ModelSettings, tokenizer: Quantised, budget: int, build: Build = built
) -> ModelSettings:
    """The same sizes with an MLP width that brings the parameters closest to a budget."""
    least = parameters(build(replace(sizes, mlp_ratio=1 / sizes.width), tokenizer))
    each = sizes.depth * (2 * sizes.width + 1)  # a feature's weights and bias in every block
    hidden = 1 + round((budget - least) / each)
    if hidden < 1:
        raise SystemExit(
            f"mixer {sizes.mixer.kind}: {least:,} parameters without an MLP, but the budget is "
            f"{budget:,}; raise model.mlp_ratio in the settings"
        )
    return replace(sizes, mlp_ratio=hidden / sizes.width)


def trained(settings: GeneratorSettings, tokens: Path, out: Path) -> dict[str, Any]:
    """Train a generator on tokens and return the values for its row."""
    return fitted_run(make_task(settings, tokens), settings, out)


def fitted_run(task: GeneratorTask, settings: GeneratorSettings, out: Path) -> dict[str, Any]:
    """Train and return the values for the row."""
    outcome = fit(task, settings.training, out, resume="auto")
    lines = read(out / "metrics.jsonl")
    batches = settings.data.batch_size * settings.training.accumulation_steps
    speeds = [one["steps_per_second"] for one in lines if "steps_per_second" in one]
    return {
        "minutes": outcome.elapsed / 60, "steps": outcome.step,
        "parameters": parameters(task.model), "tokens": task.model.schedule.length,
        "state_size": task.model.state_size,
        # The median excludes intervals that contain an evaluation.
        "tokens_per_second": batches * task.model.schedule.length * statistics.median(speeds),
        **validations(lines),
    }  # fmt: skip


def validations(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Validation cross-entropy: the curve, and the best and last values in total and by scale."""
    whole = "validation/cross_entropy"
    evaluations = [one for one in lines if whole in one]
    best, last = min(evaluations, key=lambda one: one[whole]), evaluations[-1]

    def by_scale(one: dict[str, Any]) -> list[float]:
        return [value for name, value in one.items() if name.startswith(whole + "/")]

    return {
        "best": best[whole], "best_by_scale": by_scale(best), "best_step": best["step"],
        "last": last[whole], "last_by_scale": by_scale(last),
        "curve": [[one["step"], one[whole]] for one in evaluations],
    }  # fmt: skip


def drawer(run: Path) -> Draw:
    """Sample from the best model of a run, by its own settings, without conditions and guidance."""
    loaded = Synthesizer.from_pretrained(run)
    unknown = torch.full((1, len(loaded.model.config.condition.attributes)), torch.nan)

    def draw(seeds: Sequence[int]) -> Tensor:
        condition = Condition(attributes=unknown).expand(len(seeds))
        made = sample_and_decode(
            loaded.model, loaded.tokenizer, condition, seeds, loaded.sampling,
            batch_size=len(seeds),
        )  # fmt: skip
        return torch.stack([torch.from_numpy(image) for _, image, _ in made])

    return draw


def evaluated(draw: Draw, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Sample --samples volumes in batches of --batch, evaluate them, and write report and images.

    Seconds per volume include the first batch, without a warm-up.
    """
    batches, began = [], time.perf_counter()
    for start in range(0, options.samples, options.batch):
        seeds = range(start, min(start + options.batch, options.samples))
        batches.append(draw(seeds).float().clamp(-1, 1).cpu())
    seconds = (time.perf_counter() - began) / options.samples
    report = evaluate_generation(
        batches, options.prepared, split="held-out", seconds_per_volume=seconds
    )
    write_json(folder / "report.json", report.to_dict())
    pictured(torch.cat(batches)[:DRAWN], options.prepared, folder / "contact_sheet.png")
    return figures(report)


def pictured(volumes: Tensor, prepared: Path, path: Path) -> None:
    """Write a contact sheet of volumes, with real ones below."""
    plan: Plan = Prepared(prepared).plan
    made = [as_volume(volume, plan) for volume in volumes.numpy()]
    real = held_out_volumes(prepared, "held-out", DRAWN)
    contact_sheet(made, path, real=list(real.values()), real_titles=[f"real: {n}" for n in real])


def figures(report: GenerationReport) -> dict[str, Any]:
    """The values of a report that the tables show."""
    first, texture = report.distances["radiomics-v2"], report.distances["texture-v2"]
    audits = report.memorisation
    return {
        "samples": report.volumes,
        "seconds_per_volume": report.seconds_per_volume,
        "frechet": first.frechet, "frechet_interval": first.frechet_interval,
        "frechet_floor": first.frechet_floor, "frechet_samples": first.frechet_samples,
        "kernel": first.kernel, "kernel_interval": first.kernel_interval,
        "kernel_floor": first.kernel_floor,
        "texture_frechet": texture.frechet, "texture_floor": texture.frechet_floor,
        "ms_ssim": report.ms_ssim, "ms_ssim_real": report.ms_ssim_real,
        "nearest": {name: audit.ratio for name, audit in audits.items()},
        "nearer": {name: audit.fraction_nearer for name, audit in audits.items()},
        "suspects": {name: len(audit.suspects) for name, audit in audits.items()},
    }  # fmt: skip


def numbers(values: dict[str, float | None]) -> str:
    """A few numbers in one cell."""
    return " / ".join("-" if value is None else f"{value:.3g}" for value in values.values())


def add_options(parser: argparse.ArgumentParser, samples: int, minutes: float) -> None:
    """Add the options of both benchmarks."""
    parser.add_argument("--config", type=Path, required=True, help="settings of the generator")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--minutes", type=float, default=minutes, help="minutes of training per generator"
    )
    parser.add_argument(
        "--steps", type=int, help="optimiser steps instead of minutes, on a shared machine"
    )
    parser.add_argument("--samples", type=int, default=samples)
    parser.add_argument("--batch", type=int, default=10, help="volumes sampled at once")
