"""Cost of one training step and of sampling as the generator's grids grow, by mixer.

    python benchmarks/growth.py [--sides 8 12 16 24 32] [--mixers none mamba-16 scale_ssm-4 ...]
        [--depth 2] [--head-width 32] [--checkpointing] --out runs/growth.jsonl

Cubic latent grids of SIDE sites, SIDE scales but at most 10, 512 codes, untrained, batch 1, fp32,
one thread; a mixer's state size follows its name, and the number of blocks from one mixer to the
next may follow that, as in scale_ssm-4-2. A step corrupts tokens, runs the model, and computes
loss and gradients, without the optimiser. One process per row:

    TFLOP       of matrix products, attention and convolutions, counted by torch
    processor s of the process, the less of two runs where one takes less than 10 s
    peak MB     largest resident set of the process, less what it held before
    state MB    what sampling carries from scale to scale, computed

The last lines are the slopes of log(value) over log(tokens), fitted to all sides: 1 is linear.
Rows in OUT are not run again.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from generators import parameters
from mixer_memory import QUICK, quantiser_of, resident
from tokenizer import commit, read
from torch.utils.flop_counter import FlopCounterMode

from medar.devices import use_huge_pages
from medar.generator.conditions import Condition
from medar.generator.generator import Generator
from medar.generator.mixers import MixerSettings
from medar.generator.objective import corrupt, token_losses
from medar.generator.sampling import sample
from medar.generator.settings import GeneratorConfig, ModelSettings, SamplingSettings

MIXERS = ("none", "mamba-16", "scale_ssm-4", "attention")
COLUMNS = ("step_tflop", "step_seconds", "step_mb", "sample_tflop", "sample_seconds", "sample_mb")
CPU = torch.device("cpu")


def main() -> None:
    """Run the missing rows, and print the table."""
    options = parse()
    if options.row:
        print(json.dumps(measured(options)))
        return
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for row in (f"{name}@{side}" for side in options.sides for name in options.mixers):
        if any(one["row"] == row for one in read(options.out)):
            continue
        command = [sys.executable, *sys.argv, "--row", row]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found = {"row": row, "commit": commit(), **json.loads(done.stdout)}
        with options.out.open("a") as file:
            file.write(json.dumps(found) + "\n")
        print(f"{row}: {found}", flush=True)
    print(table(read(options.out)))


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """One row."""
    name, _, side = options.row.partition("@")
    use_huge_pages()  # as `medar` does
    torch.manual_seed(0)
    torch.set_num_threads(1)
    kind, *numbers = name.split("-")
    names = ("state_dim", "every")[: len(numbers)]
    mixer = MixerSettings(kind=kind, **dict(zip(names, map(int, numbers), strict=True)))
    sizes = ModelSettings(
        depth=options.depth,
        head_width=options.head_width,
        mixer=mixer,
        activation_checkpointing=options.checkpointing,
    )
    quantiser = quantiser_of(int(side), 512).quantiser
    model = Generator(GeneratorConfig(model=sizes, refinement=True), quantiser)
    nothing = Condition(attributes=torch.zeros(1, 0))
    tokens = torch.randint(512, (1, model.schedule.length))

    def step() -> None:
        random = torch.Generator().manual_seed(0)
        seen, targets = corrupt(model.quantiser, tokens, 0.1, random)
        token_losses(model(seen, nothing), targets).mean().backward()
        model.zero_grad()

    # Sampling first: what it leaves in the allocator is less than what a step takes.
    held = resident(CPU, "VmRSS")
    model.eval()
    found = cost("sample", lambda: sample(model, nothing, [0], SamplingSettings()), held)
    model.train()
    found |= cost("step", step, held)
    return {
        "mixer": name,
        "side": int(side),
        "tokens": model.schedule.length,
        "parameters": parameters(model),
        "state_mb": 4e-6 * sum(block.mixer.state_size for block in model._blocks()),
        **found,
    }


def cost(what: str, run: Callable[[], Any], held: int) -> dict[str, float]:
    """Operations, processor seconds, and peak memory beyond `held` bytes, of a function."""
    resident(CPU, "VmHWM", reset=True)
    seconds = timed(run)
    peak = resident(CPU, "VmHWM") - held
    if seconds < QUICK:
        seconds = min(seconds, timed(run))
    with FlopCounterMode(display=False) as counter:
        run()
    return {
        f"{what}_tflop": counter.get_total_flops() / 1e12,
        f"{what}_seconds": seconds,
        f"{what}_mb": peak / 1e6,
    }


def timed(run: Callable[[], Any]) -> float:
    """Processor seconds of a function."""
    start = time.process_time()
    run()
    return time.process_time() - start


def table(rows: list[dict[str, Any]]) -> str:
    """Rows, and slopes by mixer, as Markdown."""
    lines = [
        "| mixer | side | tokens | step: TFLOP | processor s | peak MB | sampling: TFLOP | "
        "processor s | peak MB | state MB |",
        "|---" * 10 + "|",
    ]
    names = dict.fromkeys(one["mixer"] for one in rows)
    for name in names:
        own = sorted((one for one in rows if one["mixer"] == name), key=lambda one: one["side"])
        for one in own:
            values = " | ".join(f"{one[column]:.3g}" for column in (*COLUMNS, "state_mb"))
            lines.append(f"| {name} | {one['side']} | {one['tokens']:,} | {values} |")
        if len(own) > 1:
            found = " | ".join(f"{slope(own, column):.2f}" for column in COLUMNS)
            lines.append(f"| {name} | slope | | {found} | |")
    return "\n".join(lines)


def slope(rows: list[dict[str, Any]], column: str) -> float:
    """Of log(value) over log(tokens)."""
    tokens, values = (np.log([one[name] for one in rows]) for name in ("tokens", column))
    return float(np.polyfit(tokens, values, 1)[0])


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="file of JSON lines")
    parser.add_argument("--sides", type=int, nargs="+", default=[8, 12, 16, 24, 32])
    parser.add_argument("--mixers", nargs="+", default=list(MIXERS))
    parser.add_argument("--depth", type=int, default=2)
    parser.add_argument("--head-width", type=int, default=32)
    parser.add_argument("--checkpointing", action="store_true", help="of each block's activations")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
