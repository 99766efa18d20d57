"""What codebooks and grids hold of a latent, for their number of tokens and bits.

The encoder of a trained tokenizer stays as it is; each row trains a quantiser alone on the latents
of the training cases, for seconds, and reports the variance of the latents of the other cases that
it leaves. The squared error of reconstructions grows linearly with it, once the whole is trained.

    python benchmarks/codebooks.py PREPARED --tokenizer runs/tokenizer \
        --rows ema:512 ema:4096 product:65536 ema:512@1x1x1,2x3x2,3x4x3,5x7x5,5x7x5

A row is KIND:SIZE, with the grids of the tokenizer, or KIND:SIZE@GRIDS. Use a tokenizer trained
with a late start of quantisation: the latents of others are made for their own codebook.
"""

import argparse
from collections.abc import Sequence
from math import log2
from pathlib import Path

import torch
from torch import Tensor

from medar.data.loading import PreparedDataset
from medar.tokenizer.codebooks import CodebookSettings, make_codebook
from medar.tokenizer.quantiser import MultiScaleQuantiser, QuantiserSettings
from medar.tokenizer.schedule import ScaleSchedule
from medar.tokenizer.tokenizer import Tokenizer

ROWS = ("ema:512", "ema:4096", "product:4096", "product:65536", "product:262144")
WARM_UP = 20
"""Steps in which the learning rate rises."""


def main() -> None:
    """Print a table with one line per row."""
    options = parse()
    torch.set_num_threads(1)
    tokenizer = Tokenizer.from_pretrained(options.tokenizer, "cpu")
    train = latents(tokenizer, options.prepared, ("train",))
    held_out = latents(tokenizer, options.prepared, ("val", "test"))
    print("| row | tokens | bits | variance left | of training cases | bits used per token |")
    print("|---|---|---|---|---|---|")
    for row in options.rows:
        codebook, schedule = parsed(row, tokenizer)
        torch.manual_seed(options.seed)
        settings = QuantiserSettings(scale_dropout=0.0)
        quantiser = MultiScaleQuantiser(make_codebook(codebook), schedule, settings)
        fit(quantiser, train, options.steps, options.batch_size)
        print(line(row, quantiser, train, held_out), flush=True)


@torch.no_grad()
def latents(tokenizer: Tokenizer, prepared: Path, splits: Sequence[str]) -> Tensor:
    """The latents of all cases of some splits, (N, D, x, y, z)."""
    cases = [case for split in splits for case in PreparedDataset(prepared, split=split)]  # type: ignore[arg-type]
    return torch.cat([tokenizer.encoder(case["image"][None]).float() for case in cases])


def parsed(row: str, tokenizer: Tokenizer) -> tuple[CodebookSettings, ScaleSchedule]:
    """Codebook and schedule of a row."""
    chosen, _, grids = row.partition("@")
    kind, _, size = chosen.partition(":")
    own = tokenizer.config
    codebook = CodebookSettings(kind=kind, size=int(size), width=own.codebook.width)
    if not grids:
        return codebook, own.schedule
    sides = [tuple(int(side) for side in grid.split("x")) for grid in grids.split(",")]
    return codebook, ScaleSchedule(grids=tuple(sides))  # type: ignore[arg-type]


def fit(quantiser: MultiScaleQuantiser, train: Tensor, steps: int, batch_size: int) -> None:
    """Train codes, gains and phi on latents, (N, D, x, y, z)."""
    optimiser = torch.optim.Adam(quantiser.parameters(), betas=(0.9, 0.99))
    quantiser.train()
    for step in range(steps):
        batch = train[torch.randint(len(train), (batch_size,))]
        for group in optimiser.param_groups:
            group["lr"] = 2e-3 * min(1, (step + 1) / WARM_UP) * (1 - 0.9 * step / steps)
        optimiser.zero_grad()
        quantiser(batch).loss.backward()
        optimiser.step()
    quantiser.eval()


@torch.no_grad()
def line(row: str, quantiser: MultiScaleQuantiser, train: Tensor, held_out: Tensor) -> str:
    """A row of the table."""
    quantised = quantiser(held_out)
    tokens = quantiser.schedule.length
    bits = tokens * log2(quantiser.codebook.size)
    used = sum(entropy(one) * one.shape[1] for one in quantised.indices) / tokens
    left, of_train = (float(q.residual_energy[-1]) for q in (quantised, quantiser(train)))
    return f"| {row} | {tokens} | {bits:.0f} | {left:.3f} | {of_train:.3f} | {used:.1f} |"


def entropy(indices: Tensor) -> float:
    """Entropy of the codes of a scale, in bits; at most the logarithm of the number of tokens."""
    counts = indices.unique(return_counts=True)[1].double()
    frequencies = counts / counts.sum()
    return float(-(frequencies * frequencies.log2()).sum())


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("prepared", type=Path, help="output of `medar data prepare`")
    parser.add_argument("--tokenizer", type=Path, required=True, help="a trained tokenizer")
    parser.add_argument("--rows", nargs="+", default=list(ROWS))
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
