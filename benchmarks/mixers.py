"""Ablation of the mixers between scales, at equal parameters and equal time.

Each row trains the same generator with another mixer for the same time on the same tokens, then
samples volumes and compares them with the held-out real ones. Rows in OUT/results.jsonl are not run
again; at the end, a table of all rows is printed and OUT/mixers.png is drawn.

    python benchmarks/mixers.py TOKENS PREPARED --config configs/generator/hippocampus_mr.yaml \
        --out runs/mixers [--rows none:0 scale_ssm-4:0 ...] [--minutes 5] [--samples 42]
    python benchmarks/mixers.py --memory --config configs/generator/hippocampus_mr.yaml \
        --out runs/mixers [--sides 8 16 32] [--depth 16 --head-width 64] [--limit-gb 16]

Rows are named MIXER-STATE:SEED, where STATE is the state size of `mamba` and `scale_ssm`. Depth and
width are the same in all rows; the MLP is narrower if the mixer has weights, so that every row has
the number of parameters of `none` with the MLP of the configuration. Sampling: defaults, no
guidance, the best weights on the validation split.

On a machine with other load, use --steps instead of --minutes: the number of steps that a row takes
in that time on an idle machine, measured with short runs. As it differs between mixers, select the
rows with --rows.

--memory samples the tokens of one volume (batch 1, untrained, fp32, without the decoder, which is
the same in all rows) over cubic grids that grow linearly, with one process per row of
OUT/memory.jsonl. The size of the state is computed, seconds and peak memory are measured. Rows that
need more memory than --limit-gb are marked as skipped.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import mixer_memory
import mixer_plot
from generators import (
    ROWS_FILE,
    Quantised,
    add_options,
    built,
    drawer,
    evaluated,
    fitted,
    folder_of,
    length,
    parameters,
    run_rows,
    trained,
)  # fmt: skip
from tokenizer import commit, read

from medar.generator.settings import GeneratorSettings, ModelSettings
from medar.settings import load_yaml
from medar.tokenizer.tokenizer import Tokenizer
from medar.tokenizer.tokens import TOKENIZER

MIXERS = (
    "none", "attention", "mamba-16", "scale_ssm-1", "scale_ssm-2", "scale_ssm-4", "scale_ssm-16"
)  # fmt: skip
ROWS = tuple(f"{mixer}:{seed}" for seed in range(3) for mixer in MIXERS)


def main() -> None:
    """Run the missing rows, print the table, draw the plot."""
    options = parse()
    if options.row:
        print(json.dumps(mixer_memory.measured(options, model_of)))
        return
    memory = options.out / "memory.jsonl"
    if options.memory:
        mixer_memory.run_rows(options, memory, MIXERS, commit())
        print(mixer_memory.table(read(memory)))
    else:
        run_rows(options, lambda row: run(row, options))
        print(table(read(options.out / ROWS_FILE)))
    mixer_plot.plot(read(options.out / ROWS_FILE), read(memory), options.out / "mixers.png")


def run(row: str, options: argparse.Namespace) -> dict[str, Any]:
    """Train and evaluate one row."""
    name, _, seed = row.partition(":")
    settings, out = settings_of(options), folder_of(options, row)
    model = model_of(name, options, Tokenizer.from_pretrained(options.tokens / TOKENIZER, "cpu"))
    training = replace(
        settings.training, seed=int(seed or 0), **length(options.minutes, options.steps)
    )
    found = trained(replace(settings, model=model, training=training), options.tokens, out)
    return {**found, "mlp": model.mlp_ratio, **evaluated(drawer(out), options, out)}


def settings_of(options: argparse.Namespace) -> GeneratorSettings:
    """The settings of the configuration, without conditions and previews."""
    changes = ["condition.attributes=[]", "condition.map=none", "data.previews=0"]
    for name in ("depth", "head_width"):
        if (value := getattr(options, name)) is not None:
            changes.append(f"model.{name}={value}")
    return load_yaml(GeneratorSettings, options.config, changes)


def model_of(name: str, options: argparse.Namespace, tokenizer: Quantised) -> ModelSettings:
    """The model with a mixer, and the number of parameters of the model without."""
    kind, _, state = name.partition("-")
    base = settings_of(options).model
    plain = replace(base, mixer=replace(base.mixer, kind="none"))
    mixer = replace(base.mixer, kind=kind)
    if state:
        mixer = replace(mixer, state_dim=int(state))
    budget = parameters(built(plain, tokenizer))
    return fitted(replace(plain, mixer=mixer), tokenizer, budget)


def table(rows: list[dict[str, Any]]) -> str:
    """All rows as Markdown, then the losses scale by scale."""
    lines = [
        "| row | min | steps | parameters | tokens/s | validation loss, best (step) | last | "
        "Frechet (floor) | kernel (floor) | s per volume | state per volume |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for one in rows:
        lines.append(
            f"| {one['row']} | {one['minutes']:.1f} | {one['steps']} | {one['parameters']:,} | "
            f"{one['tokens_per_second']:,.0f} | {one['best']:.3f} ({one['best_step']}) | "
            f"{one['last']:.3f} | {one['frechet']:.1f} ({one['frechet_floor']:.1f}) | "
            f"{one['kernel']:.3f} ({one['kernel_floor']:.3f}) | {one['seconds_per_volume']:.3f} | "
            f"{one['state_size']:,} |"
        )
    scales = max((len(one["best_by_scale"]) for one in rows), default=0)
    lines += [
        "",
        f"| loss of the best by scale | {' | '.join(str(k) for k in range(scales))} |",
        "|---" * (scales + 1) + "|",
    ]
    for one in rows:
        lines.append(f"| {one['row']} | {' | '.join(f'{v:.3f}' for v in one['best_by_scale'])} |")
    return "\n".join(lines)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("tokens", type=Path, nargs="?", help="output of `medar tokenizer encode`")
    parser.add_argument(
        "prepared", type=Path, nargs="?", help="the prepared cases that were encoded"
    )
    add_options(parser, samples=42, minutes=5.0)
    parser.add_argument("--rows", nargs="+", default=list(ROWS))
    parser.add_argument("--depth", type=int, help="instead of the configuration's")
    parser.add_argument("--head-width", type=int, help="instead of the configuration's")
    parser.add_argument("--memory", action="store_true", help="measure memory instead of training")
    parser.add_argument("--sides", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument("--codebook-size", type=int, default=512)
    parser.add_argument("--limit-gb", type=float, default=16.0)
    parser.add_argument("--device", default="cpu", help="device of --memory")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.prepared is None and not options.memory:
        parser.error("give TOKENS and PREPARED, or --memory")
    return options


if __name__ == "__main__":
    main()
