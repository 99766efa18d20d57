"""Optimisers at equal steps: tokenizers or generators trained with AdamW and with Muon.

Each row OPTIMISER:RATE:SEED trains CONFIG for the same number of steps with that optimiser, peak
learning rate and seed. Finished rows are not trained again; at the end, a table of all rows is
printed. Seconds are those of the training, to be compared on an idle machine only.

    python benchmarks/optimisers.py tokenizer configs/tokenizer/hippocampus_mr.yaml PREPARED \
        --steps 500 --rows adamw:0.001:0 muon:0.002:0 --out runs/optimisers
    python benchmarks/optimisers.py generator configs/generator/demo.yaml TOKENS \
        --steps 300 --rows adamw:0.006:0 muon:0.008:0 --out runs/optimisers-generator
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from medar.generator.settings import GeneratorSettings
from medar.generator.training import train_generator
from medar.settings import load_yaml
from medar.tokenizer.settings import TokenizerSettings
from medar.tokenizer.training import train_tokenizer
from medar.training import Outcome


def train(kind: str, config: Path, data: Path, row: str, steps: int, out: Path) -> Outcome:
    """Train one row, or read its finished run."""
    optimiser, rate, seed = row.split(":")
    settings = load_yaml(TokenizerSettings if kind == "tokenizer" else GeneratorSettings, config)
    chosen = replace(
        settings.training.with_learning_rate(float(rate)),
        optimiser=optimiser,  # type: ignore[arg-type]
        seed=int(seed),
        steps=steps,
        minutes=None,
        evaluate_every=steps,
        save_every=steps,
    )
    folder = out / row.replace(":", "-")
    if isinstance(settings, TokenizerSettings):
        return train_tokenizer(replace(settings, training=chosen), data, folder)
    return train_generator(replace(settings, training=chosen), data, folder)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", choices=["tokenizer", "generator"])
    parser.add_argument("config", type=Path)
    parser.add_argument("data", type=Path, help="prepared data, or tokens for a generator")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--rows", nargs="+", required=True, metavar="OPTIMISER:RATE:SEED")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    metric = "PSNR (dB)" if options.kind == "tokenizer" else "cross-entropy (nats)"
    print(f"| optimiser:rate:seed | {metric} | seconds |\n|---|---|---|")
    for row in options.rows:
        outcome = train(options.kind, options.config, options.data, row, options.steps, options.out)
        assert outcome.best is not None
        print(f"| {row} | {outcome.best:.3f} | {outcome.elapsed:.0f} |", flush=True)


if __name__ == "__main__":
    main()
