"""The least time that the presets can take on this machine: operations and bytes over its ceilings.

    python benchmarks/floors.py [--presets mr_96 ct_128 mr_160 ct_256] [--device auto] [--tiny]

Measured: FLOP/s of square matrix products in fp32 and bf16, and bytes per second of a copy.
Counted, per preset and volume: a training step of tokenizer and generator, sampling its tokens (one
volume, no guidance, passes "auto"), and decoding. Operations are those of matrix products,
convolutions and attention, two per multiply-add. Bytes are the least that must move: weights, their
gradients and optimiser state, and what the forward pass keeps, written once and read once. The
floor is the larger of both times, in the best precision of the device. No GPU kernel reaches it;
`medar ... train` prints which fraction of the ceiling a training reaches.
"""

import argparse
import json
from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import torch
from gpu_stages.measure import best_dtype, copy_bytes, dtype_name
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from medar.data.plan import Plan
from medar.data.planning import check_values
from medar.devices import DeviceName, resolve_device
from medar.environment import environment
from medar.generator.refinement import passes_by_scale
from medar.generator.settings import GeneratorSettings, ModelSettings, SamplingSettings
from medar.recipes.configs import find_config
from medar.recipes.cost import codes, generator_cost, kept_by, tokenizer_cost
from medar.settings import load_yaml
from medar.tokenizer.network import Decoder, cost
from medar.tokenizer.schedule import ScaleSchedule
from medar.tokenizer.settings import TokenizerSettings
from medar.tokenizer.tokenizer import TokenizerConfig
from medar.training.operations import gemm_ceiling

PRESETS = ("mr_96", "ct_128", "mr_160", "ct_256")
UPDATE = 44
"""Bytes per weight of a training step: read forward and backward; gradient written and read; two
moments, weight and average read and written."""


class Floor(NamedTuple):
    """Operations and bytes of one volume."""

    preset: str
    what: str
    flop: float
    bytes: float


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the ceilings, the table and one line of JSON."""
    options = parse(arguments)
    device = resolve_device(options.device)
    name = dtype_name(best_dtype(device))
    size = 2**20 if options.tiny else 2**28
    found = {
        "gemm_fp32_tflops": gemm_ceiling(device, torch.float32) / 1e12,
        "gemm_bf16_tflops": gemm_ceiling(device, torch.bfloat16) / 1e12,
        "copy_gb": copy_bytes(device, size) / 1e9,
    }
    speed, moved = found[f"gemm_{name}_tflops"] * 1e12, found["copy_gb"] * 1e9
    floors = [floor for preset in options.presets for floor in floors_of(preset)]
    rows = [{**one._asdict(), **seconds(one, speed, moved)} for one in floors]
    print(", ".join(f"{key} {value:.3g}" for key, value in found.items()), f"({device}, {name})")
    print(table(rows))
    print(json.dumps({"ceilings": found, "rows": rows, "environment": environment()}))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--presets", nargs="+", default=PRESETS)
    parser.add_argument("--device", choices=DeviceName.__args__, default="auto")  # type: ignore[attr-defined]
    parser.add_argument("--tiny", action="store_true", help="a small copy, for tests")
    return parser.parse_args(arguments)


def seconds(floor: Floor, flops: float, bytes_per_second: float) -> dict[str, float]:
    """The times of operations and of bytes, and the larger of them."""
    times = floor.flop / flops, floor.bytes / bytes_per_second
    return {"operations_s": times[0], "bytes_s": times[1], "floor_s": max(times)}


def floors_of(preset: str) -> list[Floor]:
    """Operations and bytes of a preset."""
    tokenizer = load_yaml(TokenizerSettings, find_config(preset, "tokenizer"))
    generator = load_yaml(GeneratorSettings, find_config(preset, "generator"))
    plan = check_values(tokenizer.plan, None)
    config = tokenizer.model.config(plan)
    return [
        Floor(preset, "train tokenizer", *tokenizer_step(tokenizer, config, plan)),
        Floor(preset, "train generator", *generator_step(generator, config)),
        Floor(preset, "sample", *sampling(generator.model, config)),
        Floor(preset, "decode", *decoding(config, plan)),
    ]


def tokenizer_step(
    settings: TokenizerSettings, config: TokenizerConfig, plan: Plan
) -> tuple[float, float]:
    """A step of encoder and decoder on one volume, without discriminator."""
    found = cost(config.network, plan.size)
    kept = tokenizer_cost(settings, plan).kept
    return 3 * found.flops, UPDATE * found.parameters + 2 * kept


def generator_step(settings: GeneratorSettings, config: TokenizerConfig) -> tuple[float, float]:
    """A step on the tokens of one volume; with activation checkpointing blocks run twice."""
    schedule, model = config.schedule, settings.model
    vocabulary = codes(config.codebook)
    passes = 4 if model.activation_checkpointing else 3
    flop = passes * sum(forward_flop(model, schedule, k) for k in range(len(schedule)))
    flop += 3 * 2 * schedule.length * model.width * vocabulary
    kept = generator_cost(settings, schedule, config.codebook).kept
    return flop, UPDATE * weights(model, vocabulary) + 2 * kept


def sampling(model: ModelSettings, config: TokenizerConfig) -> tuple[float, float]:
    """All passes of one volume; each reads all weights, in bf16."""
    schedule, vocabulary = config.schedule, codes(config.codebook)
    passes = passes_by_scale(SamplingSettings(), schedule, True)
    flop = sum(
        count * (forward_flop(model, schedule, k) + 2 * tokens * model.width * vocabulary)
        for k, (count, tokens) in enumerate(zip(passes, schedule.tokens, strict=True))
    )
    return flop, 2 * weights(model, vocabulary) * sum(passes)


def decoding(config: TokenizerConfig, plan: Plan) -> tuple[float, float]:
    """A latent to a volume: its features written and read once, in bf16."""
    with torch.device("meta"):
        decoder = Decoder(config.network)
        latent = torch.empty(1, config.network.code_width, *config.schedule.latent)
    with FlopCounterMode(display=False) as counter:
        kept = kept_by(lambda: decoder(latent), decoder)
    moved = kept.bytes + 4 * prod(plan.size) + 2 * parameters(decoder)
    return counter.get_total_flops(), moved


def forward_flop(model: ModelSettings, schedule: ScaleSchedule, k: int) -> float:
    """All blocks on the tokens of scale k, for mixer "none"."""
    tokens, width = schedule.tokens[k], model.width
    windowed = max(schedule.grids[k]) >= model.window_min_side
    seen = min(tokens, model.window_size**3) if windowed else tokens
    linear = 2 * (4 + 2 * model.mlp_ratio) * width**2
    return model.depth * tokens * (linear + 4 * seen * width)


def weights(model: ModelSettings, vocabulary: int) -> float:
    """Of blocks and head, without what is small."""
    return model.depth * (4 + 2 * model.mlp_ratio) * model.width**2 + model.width * vocabulary


def parameters(module: nn.Module) -> int:
    """Of a module."""
    return sum(one.numel() for one in module.parameters())


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as a Markdown table."""
    lines = ["| preset | | TFLOP | GB | operations, s | bytes, s | floor, s |", "|---" * 7 + "|"]
    for row in rows:
        cells = [row["flop"] / 1e12, row["bytes"] / 1e9]
        cells += [row[key] for key in ("operations_s", "bytes_s", "floor_s")]
        numbers = " | ".join(f"{value:.3g}" for value in cells)
        lines.append(f"| {row['preset']} | {row['what']} | {numbers} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
