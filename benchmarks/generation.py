"""Generators at equal data, parameters and training time: medar's, its baselines and MONAI's.

Each row trains in medar's loop, samples volumes and compares them with the held-out real ones (all
but the train split). Rows in OUT/results.jsonl are not run again; a table of all rows is printed at
the end. Each row's folder holds its report and contact sheet.

    python benchmarks/generation.py TOKENS PREPARED --config configs/generator/hippocampus_mr.yaml \
        --tokenizer configs/tokenizer/hippocampus_mr.yaml --out runs/generation \
        [--detail configs/detail/hippocampus_mr.yaml] [--rows ours:0 ...] [--first-minutes 8]
        [--detail-minutes 8] [--minutes 10] [--samples 100]

Rows:
    ours:SEED                 the next-scale generator on TOKENS
    raster:SEED               medar's raster-order transformer with a cache, on the same tokens
    voxel:SEED                the same on voxels, averaged over --voxel and rounded to 64 levels
    tune-ar:FIRST,LR,SIZE     MONAI's DecoderOnlyTransformer on the indices of its VQVAE, sampled
                              by VQVAETransformerInferer, for --tune-minutes
    monai-ar                  the same with the best setting
    tune-ldm:FIRST,LR,SIZE    MONAI's DiffusionModelUNet with RFlowScheduler, 30 steps, in the
                              latent of FIRST, for --tune-minutes
    ldm                       the same with the best setting

Time: every row trains for --first-minutes + --minutes. The tokenizer of TOKENS must have been
trained for --first-minutes; MONAI's first stages are trained here for the same time, once for all
rows; `voxel`, which has no first stage, spends both on its transformer. Encoding is not counted.
Data: the train split with the same number of augmented variants as TOKENS. Parameters: the
transformers of `raster` and `voxel` and the second stages at SIZE 1 match `ours`; FIRST is `vqvae`,
which matches medar's tokenizer, or `kl-W`, an AutoencoderKL with W channels at full resolution (64
channels would match, but take seconds per volume on a CPU). Sampling: defaults, no guidance,
fp32. MONAI's settings are tuned on the Frechet distance of --tune-samples volumes, the metric of
the comparison; medar's are not tuned.

Detail: with --detail, every row but `voxel` adds detail to its samples, by a detail decoder that
was trained for its first stage for --detail-minutes, by the same settings for all.

On a machine with other load, use --first-steps, --detail-steps and --steps instead of minutes: the
number of steps that a row takes in that time on an idle machine. As --steps differs between rows,
select the rows with --rows.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from generators import (
    ROWS_FILE,
    Draw,
    add_options,
    built,
    drawer,
    evaluated,
    fitted,
    fitted_run,
    folder_of,
    length,
    numbers,
    parameters,
    run_rows,
    trained,
)
from peers import raster
from peers import rows as peers
from peers.detail import with_detail
from peers.voxel import read_tokenizer, voxel_tokenizer
from tokenizer import load_best, read

from medar.devices import device_of
from medar.generator.mixers import MixerSettings
from medar.generator.settings import GeneratorSettings
from medar.settings import load_yaml
from medar.tokenizer.encoding import encode_data_set
from medar.tokenizer.tokenizer import Tokenizer
from medar.tokenizer.tokens import TOKENIZER, TokenIndex

ROWS = (
    "ours:0", "tune-ar:vqvae,1e-3,1", "tune-ar:vqvae,3e-4,1", "tune-ar:vqvae,1e-3,0.5", "monai-ar",
    "tune-ldm:vqvae,1e-3,1", "tune-ldm:vqvae,3e-4,1", "tune-ldm:vqvae,1e-3,2",
    "tune-ldm:kl-16,1e-3,1", "ldm", "raster:0", "voxel:0", "ours:1", "ours:2",
)  # fmt: skip
LEVELS = 64


def main() -> None:
    """Run the missing rows and print the table."""
    options = parse()
    run_rows(options, lambda row: run(row, options))
    print(table(read(options.out / ROWS_FILE)))


def run(row: str, options: argparse.Namespace) -> dict[str, Any]:
    """Train and evaluate one row."""
    name, _, rest = row.partition(":")
    changes = ["condition.attributes=[]", "condition.map=none", "data.previews=0"]
    settings = load_yaml(GeneratorSettings, options.config, changes)
    ours = Tokenizer.from_pretrained(options.tokens / TOKENIZER, "cpu")
    budget = parameters(built(settings.model, ours))
    if name in ("ours", "raster", "voxel"):
        return run_ours(name, int(rest or 0), settings, ours, budget, options)
    kind = name.removeprefix("tune-").removeprefix("monai-")
    if kind not in peers.MAKE:
        raise SystemExit(f"{row}: unknown row; known rows: {', '.join(ROWS)}")
    minutes, folder = options.minutes, folder_of(options, row)
    chosen = peers.Setting.read(rest) if rest else None
    if chosen is None:
        chosen = peers.best_setting(kind, read(options.out / ROWS_FILE))
    else:
        minutes = options.tune_minutes
        options = argparse.Namespace(**{**vars(options), "samples": options.tune_samples})
    training = replace(settings.training, seed=0, **length(minutes, options.steps))
    settings = replace(settings, training=training)
    return peers.run(kind, chosen, settings, budget, folder, options)


def run_ours(
    name: str, seed: int, settings: GeneratorSettings, tokenizer: Tokenizer, budget: int,
    options: argparse.Namespace,
) -> dict[str, Any]:  # fmt: skip
    """A row with one of medar's own models."""
    tokens, minutes, first = options.tokens, options.minutes, options.first_minutes
    out = folder_of(options, f"{name}:{seed}")
    about: dict[str, Any] = {
        "first": "medar", "first_minutes": first, "first_parameters": peers.parameters_of(tokenizer)
    }  # fmt: skip
    if name == "voxel":
        tokens = voxel_tokens(tokenizer, options)
        minutes = minutes + first
        about = {"first": "voxels", "first_minutes": 0.0, "first_parameters": 0}
    training = replace(settings.training, seed=seed, **length(minutes, options.steps))
    settings = replace(settings, training=training)
    if name == "ours":
        found, draw = trained(settings, tokens, out), drawer(out)
    else:
        found, draw = raster_row(settings, tokens, budget, out)
    if name != "voxel":
        draw = with_detail(draw, tokenizer, None, "medar", options)
    return {**about, **found, **evaluated(draw, options, out)}


def raster_row(
    settings: GeneratorSettings, tokens: Path, budget: int, out: Path
) -> tuple[dict[str, Any], Draw]:
    """Train the raster-order transformer, with the number of parameters in `budget`."""
    tokenizer = read_tokenizer(tokens / TOKENIZER)
    plain = replace(settings.model, mixer=MixerSettings(kind="none"))
    settings = replace(settings, model=fitted(plain, tokenizer, budget, raster.built))
    task = raster.make_raster_task(settings, tokens)
    found = fitted_run(task, settings, out)
    load_best(task, out)
    model = task.model.eval()
    return found, lambda seeds: raster.drawn(model, tokenizer.to(device_of(model)), seeds)


def voxel_tokens(tokenizer: Tokenizer, options: argparse.Namespace) -> Path:
    """The folder of voxel tokens of the same cases; encoded if it is empty."""
    plan, about = tokenizer.require_plan(), TokenIndex.load(options.tokens)
    x, y, z = (side // factor for side, factor in zip(plan.size, options.voxel, strict=True))
    out = options.out / "voxel-tokens"
    voxels = voxel_tokenizer(plan, (x, y, z), LEVELS)
    encode_data_set(
        options.prepared, out, voxels, variants=about.variants,
        augmentation=about.augmentation, seed=about.seed,
    )  # fmt: skip
    return Path(out)


def table(rows: list[dict[str, Any]]) -> str:
    """All rows as Markdown."""
    lines = [
        "| row | min, first + second | steps | parameters, first + second | samples | "
        "Frechet (95 %; floor) | kernel (95 %; floor) | texture Frechet (floor) | "
        "MS-SSIM (real) | nearest training volume, ratio: features / voxels | suspects | "
        "s per volume |",
        "|---" * 12 + "|",
    ]
    for one in rows:
        lines.append(
            f"| {one['row']} | {one['first_minutes']:.0f} + {one['minutes']:.1f} | "
            f"{one['steps']} | "
            f"{one['first_parameters']:,} + {one['parameters']:,} | {one['samples']} | "
            f"{one['frechet']:.1f} ({ends(one['frechet_interval'], 1)}; "
            f"{one['frechet_floor']:.1f}) | "
            f"{one['kernel']:.3f} ({ends(one['kernel_interval'], 3)}; "
            f"{one['kernel_floor']:.3f}) | "
            f"{one['texture_frechet']:.1f} ({one['texture_floor']:.1f}) | "
            f"{one['ms_ssim']:.3f} ({one['ms_ssim_real']:.3f}) | {numbers(one['nearest'])} | "
            f"{sum(one['suspects'].values())} | {one['seconds_per_volume']:.3f} |"
        )
    return "\n".join(lines)


def ends(interval: list[float] | None, digits: int) -> str:
    """Both ends of an interval; "-" for None."""
    return "-" if interval is None else f"{interval[0]:.{digits}f}-{interval[1]:.{digits}f}"


def factors(text: str) -> tuple[int, int, int]:
    """Parse factors per axis, such as 4x4x4."""
    x, y, z = map(int, text.split("x"))
    return x, y, z


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("tokens", type=Path, help="output of `medar tokenizer encode`")
    parser.add_argument("prepared", type=Path, help="the prepared cases that were encoded")
    add_options(parser, samples=100, minutes=10.0)
    parser.add_argument(
        "--tokenizer", type=Path, help="settings of medar's tokenizer, for MONAI's first stages"
    )
    parser.add_argument("--rows", nargs="+", default=list(ROWS))
    parser.add_argument("--first-minutes", type=float, default=8.0)
    parser.add_argument("--first-steps", type=int, help="instead of --first-minutes")
    parser.add_argument(
        "--detail", type=Path, help="settings of a detail decoder, trained for each first stage"
    )
    parser.add_argument("--detail-minutes", type=float, default=8.0)
    parser.add_argument("--detail-steps", type=int, help="instead of --detail-minutes")
    parser.add_argument("--tune-minutes", type=float, default=4.0)
    parser.add_argument("--tune-samples", type=int, default=42)
    parser.add_argument(
        "--vqvae", default="1e-3,0.5,512", help="LR,DECAY,CODES as tuned by benchmarks/tokenizer.py"
    )
    parser.add_argument(
        "--voxel", type=factors, default=(4, 4, 4), help="voxels per cell in `voxel`, such as 4x4x4"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
