"""What reconstructions lose: medar's decoders beside MONAI's autoencoders and plain interpolation.

Each row reconstructs the same held-out cases, with the same lesions and thin structures inserted,
and is judged by `medar.evaluation.reconstruction.panel`. Rows in OUT/results.jsonl are not run
again; their pages are in the rows' folders, and a table of all rows is printed at the end.

    python benchmarks/panel.py PREPARED --config configs/tokenizer/hippocampus_mr.yaml \
        --out runs/panel [--rows long=MODEL monai kl-16 pool-2 ...] [--minutes 8] \
        [--segmenter SEGMENTER]

Rows:
    NAME=MODEL      a trained tokenizer of medar: its decoder, and its detail decoder if it has one
    medar           medar's tokenizer, trained here
    unquantised     the same without the quantiser: an autoencoder with as many floats as its latent
    monai           MONAI's VQVAE, as in benchmarks/tokenizer.py, 700 tokens for hippocampus MR
    monai-2z        the same with z halved once more: 350 tokens
    kl-W            MONAI's AutoencoderKL with W channels at full resolution, as in its tutorials
    pool-K          means of blocks of K^3 voxels, interpolated: what these floats hold untrained

Compare monai and monai-2z with medar (equal tokens lie between them), kl-W and pool-2 with
unquantised (floats). Rows that are trained here train for --minutes, or for --steps on a machine
with other load, with the same data, batch size and augmentation.
"""

import argparse
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import torch
from generators import folder_of, length, parameters, run_rows
from peers.first import KlTask
from tokenizer import FLAT, MonaiTask, Unquantised, load_best, read, setting
from torch import Tensor, nn
from torch.nn.functional import avg_pool3d, interpolate

from medar.data.prepared import Prepared
from medar.evaluation.reconstruction.panel import evaluate_panel, methods_of
from medar.evaluation.reconstruction.panel_meters import Reconstruct
from medar.report.artifacts import write_panel
from medar.segmentation.segmenter import Segmenter
from medar.settings import load_yaml
from medar.tokenizer.settings import TokenizerSettings
from medar.tokenizer.tokenizer import Tokenizer
from medar.tokenizer.training import make_task
from medar.training import Task, fit

ROWS = ("medar", "unquantised", "monai", "monai-2z", "kl-16", "pool-2", "pool-4")


def main() -> None:
    """Run the missing rows and print the table."""
    options = parse()
    run_rows(options, lambda row: run(row, options))
    print(table(read(options.out / "results.jsonl")))


def run(row: str, options: argparse.Namespace) -> dict[str, Any]:
    """Train one row, if need be, and evaluate it."""
    methods, about = made(row, options)
    segmenter = Segmenter.from_pretrained(options.segmenter, "cpu") if options.segmenter else None
    panel = evaluate_panel(
        methods, options.prepared, options.split, segmenter=segmenter, limit=options.limit
    )
    write_panel(panel, folder_of(options, row.partition("=")[0]) / "panel")
    return {**about, **panel.report.to_dict()}


def made(row: str, options: argparse.Namespace) -> tuple[dict[str, Reconstruct], dict[str, Any]]:
    """What reconstructs in a row, by name, and its size."""
    name, _, folder = row.partition("=")
    kind, _, number = name.partition("-")
    if folder:
        tokenizer = Tokenizer.from_pretrained(folder, "cpu")
        about = {"parameters": parameters(tokenizer), "tokens": tokenizer.config.schedule.length}
        return {f"{name} {key}": one for key, one in methods_of(tokenizer).items()}, about
    if kind == "pool":
        floats = prod(-(-side // int(number)) for side in Prepared(options.prepared).plan.size)
        return {name: pooled(int(number))}, {"parameters": 0, "floats": floats}
    task, about = task_of(name, options)
    settings = load_yaml(TokenizerSettings, options.config).training
    if not isinstance(task.model, Tokenizer):
        settings = settings.with_learning_rate(setting(options.vqvae)["learning_rate"])
    training = replace(settings, seed=options.seed, **length(options.minutes, options.steps))
    out = folder_of(options, row)
    outcome = fit(task, training, out, resume="auto")
    load_best(task, out)
    about |= {"minutes": outcome.elapsed / 60, "steps": outcome.step}
    return {name: passing(task.model.eval())}, {"parameters": parameters(task.model), **about}


def task_of(name: str, options: argparse.Namespace) -> tuple[Task[Any], dict[str, Any]]:
    """The untrained model of a row, and the size of its code."""
    settings = load_yaml(TokenizerSettings, options.config, [f"training.seed={options.seed}"])
    if name.startswith("kl-"):
        kl = KlTask(options.prepared, settings, int(name.removeprefix("kl-")))
        latent = kl.model.encode(kl.validation[0]["image"][None])[0]
        return kl, {"floats": latent.numel()}
    ours = make_task(settings, options.prepared)
    if name in FLAT:
        chosen, budget = setting(options.vqvae), parameters(ours.model)
        task = MonaiTask(options.prepared, settings, chosen, budget, FLAT[name])
        return task, {"tokens": task.tokens}
    config = ours.model.config
    if name == "unquantised":
        ours.model.quantiser = Unquantised(ours.model.quantiser)
        return ours, {"floats": prod(config.schedule.latent) * config.network.code_width}
    if name != "medar":
        raise SystemExit(f"{name}: unknown row; known rows: {', '.join(ROWS)}, NAME=MODEL")
    return ours, {"tokens": config.schedule.length}


def passing(model: nn.Module) -> Reconstruct:
    """One pass through a model, whatever else it returns; on its own device."""

    @torch.no_grad()
    def reconstruct(volumes: Tensor) -> Tensor:
        inputs = volumes.to(next(model.parameters()).device)
        if hasattr(model, "reconstruct") and not isinstance(model, Tokenizer):
            back: Tensor = model.reconstruct(inputs)  # AutoencoderKL: the mean of its latent
            return back
        out = model(inputs)
        volume: Tensor = out.volume if isinstance(model, Tokenizer) else out[0]
        return volume

    return reconstruct


def pooled(factor: int) -> Reconstruct:
    """Means of blocks, brought back by trilinear interpolation."""

    def reconstruct(volumes: Tensor) -> Tensor:
        means = avg_pool3d(volumes, factor, ceil_mode=True)
        return interpolate(means, scale_factor=factor, mode="trilinear")[
            ..., : volumes.shape[2], : volumes.shape[3], : volumes.shape[4]
        ]

    return reconstruct


def table(rows: list[dict[str, Any]]) -> str:
    """All rows as Markdown; structures of the strongest contrast, mean of both signs."""
    labels = list(
        dict.fromkeys(n for r in rows for m in r["methods"].values() for n in m["organs"])
    )
    lines = [
        "| method | steps | parameters | tokens or floats | PSNR dB | power ratio | "
        "sphere 4 / 8 / 12 | tube 2 / 6 | plate 1 / 4 | smallest lesion (mm) | "
        + " | ".join(f"{name}: bias, spread, sharpness, Dice (original)" for name in labels)
        + " |",
        "|---" * (10 + len(labels)) + "|",
    ]
    for row in rows:
        code = f"{row['tokens']} tokens" if "tokens" in row else f"{row['floats']} floats"
        for name, one in row["methods"].items():
            kept = [
                " / ".join(recovered(one, shape, size) for size in sizes)
                for shape, sizes in (("sphere", (4, 8, 12)), ("tube", (2, 6)), ("plate", (1, 4)))
            ]
            lines.append(
                f"| {name} | {row.get('steps', '-')} | {row['parameters']:,} | {code} | "
                f"{one['fidelity']['psnr']:.2f} | {one['fidelity']['power_ratio']:.2f} | "
                f"{' | '.join(kept)} | {smallest(one)} | "
                + " | ".join(organ(one["organs"].get(label)) for label in labels)
                + " |"
            )
    return "\n".join(lines)


def recovered(method: dict[str, Any], shape: str, size: float) -> str:
    """Contrast recovered of a shape and size at the strongest contrast, mean of both signs."""
    rows = [one for one in method["structures"] if one["shape"] == shape]
    strongest = max((abs(one["contrast"]) for one in rows), default=0)
    values = [
        one["recovered"]
        for one in rows
        if one["voxels"] == size and abs(one["contrast"]) == strongest
    ]
    return f"{sum(values) / len(values):.2f}" if values else "-"


def smallest(method: dict[str, Any]) -> str:
    """Detection limits of spheres, by contrast."""
    return ", ".join(
        f"{one['contrast']:+.3g}: "
        + (f"{one['mm']:g}" if one["mm"] is not None else f"> {one['largest_mm']:g}")
        for one in method["limits"]
        if one["shape"] == "sphere"
    )


def organ(one: dict[str, Any] | None) -> str:
    """A label's values in one cell."""
    if one is None:
        return "-"
    numbers = [f"{one['bias']:+.3g}"]
    numbers += [
        "-" if one[k] is None else f"{one[k]:.2f}" for k in ("spread_ratio", "gradient_ratio")
    ]
    if one["dice"] is not None:
        numbers.append(f"{one['dice']:.3f} ({one['dice_original']:.3f})")
    return ", ".join(numbers)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("prepared", type=Path, help="output of `medar data prepare`")
    parser.add_argument("--config", type=Path, required=True, help="of medar's tokenizer")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", nargs="+", default=list(ROWS))
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--steps", type=int, help="optimiser steps, instead of minutes")
    parser.add_argument("--seed", type=int, default=0, help="of the training")
    parser.add_argument("--split", default="test")
    parser.add_argument("--limit", type=int, help="maximum number of cases")
    parser.add_argument("--segmenter", type=Path, help="folder of a segmentation network")
    parser.add_argument(
        "--vqvae", default="1e-3,0.5,512", help="LR,DECAY,CODES as tuned by benchmarks/tokenizer.py"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
