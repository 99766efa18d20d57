"""The ablation of the mixers: four ways from scale to scale, at equal parameters and equal time.

Each row trains the same generator with another mixer for the same minutes on the same tokens, then
samples volumes and compares them with the held-out real ones. Rows that OUT/results.jsonl already
has are not run again; a table of all rows is printed at the end, and OUT/mixers.png drawn.

    python benchmarks/mixers.py TOKENS PREPARED --config configs/generator/hippocampus_mr.yaml \
        --out runs/mixers [--rows none:0 scale_ssm-4:0 ...] [--minutes 5] [--samples 42]
    python benchmarks/mixers.py --memory --config configs/generator/hippocampus_mr.yaml \
        --out runs/mixers [--sides 8 16 32] [--depth 16 --head-width 64] [--limit-gb 16]

Rows are named MIXER-STATE:SEED, the state N being that of `mamba` and `scale_ssm`. Depth and width
are the same in all rows; the MLP of a mixer with weights of its own is narrower, so that each row
has as many parameters as `none` with the MLP of the configuration. Sampling: temperature 1, no
guidance, the best weights by the validation split.

With --steps instead of --minutes, rows compare on a machine that others use too: equal time is then
the number of steps that each row takes in those minutes on an idle one, which short runs side by
side tell; name the rows with --rows then, as each mixer has another number.

--memory samples the tokens of one volume (batch 1, untrained, fp32, the decoder left out as all
rows share it) over cubic grids whose sides grow linearly, in a process of its own for each row of
OUT/memory.jsonl. The state's bytes are reckoned, seconds and peak measured; a row that needs more
memory than --limit-gb says so instead.
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
    """Run the rows that are not there yet, print the table, draw the plot."""
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
    """Those of the configuration, without conditions and previews."""
    changes = ["condition.attributes=[]", "condition.map=none", "data.previews=0"]
    for name in ("depth", "head_width"):
        if (value := getattr(options, name)) is not None:
            changes.append(f"model.{name}={value}")
    return load_yaml(GeneratorSettings, options.config, changes)


def model_of(name: str, options: argparse.Namespace, tokenizer: Quantised) -> ModelSettings:
    """The model with a mixer, of as many parameters as that without."""
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
        "Frechet (floor) | kernel (floor) | s a volume | state a volume |",
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
    parser.add_argument("tokens", type=Path, nargs="?", help="a folder of tokens")
    parser.add_argument("prepared", type=Path, nargs="?", help="the prepared cases they are of")
    add_options(parser, samples=42, minutes=5.0)
    parser.add_argument("--rows", nargs="+", default=list(ROWS))
    parser.add_argument("--depth", type=int, help="instead of the configuration's")
    parser.add_argument("--head-width", type=int, help="instead of the configuration's")
    parser.add_argument("--memory", action="store_true", help="measure memory, train nothing")
    parser.add_argument("--sides", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument("--codes", type=int, default=512)
    parser.add_argument("--limit-gb", type=float, default=16.0)
    parser.add_argument("--device", default="cpu", help="of --memory")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.prepared is None and not options.memory:
        parser.error("TOKENS and PREPARED are needed, or --memory")
    return options


if __name__ == "__main__":
    main()
