"""Tokenizers at equal data, time and training loop: medar's, its ablations, and MONAI's VQVAE.

Each row is a run of medar's training loop for the same minutes on the same prepared cases, and is
evaluated in the same way on the validation split. Rows already in OUT/results.jsonl are not run
again; a table of all rows is printed at the end.

    python benchmarks/tokenizer.py PREPARED --config configs/tokenizer/hippocampus_mr.yaml \
        --out runs/bench [--rows default:0 default:1 unquantised monai ...] [--minutes 8]

Use --steps instead of --minutes on a shared machine: the steps that each row takes in these minutes
on an idle machine, measured with short runs.

Rows: `default`; `l1` (L1 only, without spectrum and discriminator); `unquantised` (without the
quantiser); `ema` (the default), `gradient`, `fsq` (codebooks); `product`, `bsq` (65,536 codes, 16
bits per token); `4x` (half the downsampling); `tune:LR,DECAY,SIZE` (MONAI for --tune-minutes);
`monai` (with the best of these settings), `monai-2z` and `monai-4z` (z halved once and twice more:
half and a quarter of the tokens). A number after a colon is the seed.
"""

import argparse
import json
import subprocess
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from monai.networks.blocks import Convolution
from monai.networks.nets import VQVAE
from torch import Tensor, nn
from torch.nn.functional import l1_loss

from medar.data.loading import Item, PreparedDataset, make_loader, set_epoch
from medar.devices import device_of
from medar.evaluation.extractors.features import feature_set
from medar.evaluation.extractors.handcrafted import RADIOMICS, radiomics
from medar.evaluation.frechet import Reference
from medar.evaluation.reconstruction.realism import real_features
from medar.evaluation.written import as_written, file_step
from medar.settings import load_yaml
from medar.tokenizer.quantiser import Quantisation
from medar.tokenizer.settings import TokenizerSettings
from medar.tokenizer.spectrum import power_ratio
from medar.tokenizer.training import make_task
from medar.training import Task, fit

ROWS = (
    "default:0", "l1:0", "unquantised:0", "default:1", "default:2", "gradient:0", "fsq:0",
    "product:0", "bsq:0", "4x:0",
    "tune:1e-3,0.5,512", "tune:3e-4,0.5,512", "tune:1e-3,0.99,512", "tune:3e-4,0.99,512",
    "tune:1e-3,0.99,256", "monai:0", "monai-2z:0", "monai-4z:0",
)  # fmt: skip

CHANGES: dict[str, list[str]] = {
    "default": [],
    "l1": ["loss.adversarial=null", "loss.frequency_weight=0"],
    "unquantised": [],
    "ema": [],
    "gradient": ["model.codebook.kind=gradient"],
    "fsq": ["model.codebook.kind=fsq"],
    "product": ["model.codebook.kind=product", "model.codebook.size=65536"],
    "bsq": ["model.codebook.kind=bsq", "model.codebook.size=65536", "model.codebook.width=16"],
    "4x": ["plan.downsampling=[4, 4, 4]", "model.grids=null", "model.scales=7"],
}


FLAT = {"monai": 2, "monai-2z": 1, "monai-4z": 0}
"""Levels of MONAI's network that do not halve z, of three."""


def main() -> None:
    """Run the missing rows and print the table."""
    options = parse()
    results = options.out / "results.jsonl"
    options.out.mkdir(parents=True, exist_ok=True)
    for row in options.rows:
        done = read(results)
        if any(one["row"] == row for one in done):
            continue
        print(f"== {row}", flush=True)
        result = {"row": row, "commit": commit(), **run(row, options, done)}
        with results.open("a") as file:
            file.write(json.dumps(result) + "\n")
    print(table(read(results)))


def run(row: str, options: argparse.Namespace, done: list[dict[str, Any]]) -> dict[str, Any]:
    """Train and evaluate one row."""
    name, _, rest = row.partition(":")
    minutes = options.tune_minutes if name == "tune" else options.minutes
    seed = 0 if name == "tune" else int(rest or 0)
    length = f"minutes={minutes}" if options.steps is None else f"steps={options.steps}"
    changes = [*CHANGES.get(name, []), "training.minutes=null", f"training.{length}"]
    changes.append(f"training.seed={seed}")
    settings = load_yaml(TokenizerSettings, options.config, changes)
    out = options.out / row.replace(":", "-").replace(",", "_")
    ours = make_task(settings, options.prepared)
    chosen: dict[str, Any] = {}
    if name == "tune" or name in FLAT:
        chosen = setting(rest) if name == "tune" else best_setting(done)
        training = settings.training.with_learning_rate(chosen["learning_rate"])
        budget = sum(p.numel() for p in ours.model.parameters())
        task: Task[Any] = MonaiTask(options.prepared, settings, chosen, budget, FLAT.get(name, 2))
    else:
        training, task = settings.training, ours
        if name == "unquantised":
            ours.model.quantiser = Unquantised(ours.model.quantiser)
    outcome = fit(task, training, out, resume="auto")
    load_best(task, out)
    parameters = sum(p.numel() for p in task.model.parameters())
    tokens = task.tokens if isinstance(task, MonaiTask) else ours.model.config.schedule.length
    return {
        "minutes": outcome.elapsed / 60, "steps": outcome.step, "parameters": parameters,
        "tokens": tokens, **chosen, **evaluated(task, options.prepared, options.split),
    }  # fmt: skip


@torch.no_grad()
def load_best(task: Task[Any], out: Path) -> None:
    """Give a task's model the averaged weights of its run's best checkpoint."""
    state = torch.load(out / "checkpoints" / "best.pt", weights_only=True)
    task.model.load_state_dict(state["model"])
    if state["average"]:
        own = dict(task.model.named_parameters())
        for parameter, value in state["average"]["averages"].items():
            own[parameter].copy_(value)


@torch.no_grad()
def evaluated(task: Task[Any], prepared: Path, split: Any) -> dict[str, Any]:
    """PSNR, usage, spectral power and Frechet distance of a split's reconstructions."""
    model = task.model.eval()
    dataset = PreparedDataset(prepared, split=split)
    step = file_step(dataset)
    size = getattr(model, "num_embeddings", None) or model.codebook_size
    scales = [] if isinstance(model, VQVAE) else list(model.config.schedule.tokens)
    counts = torch.zeros(max(len(scales), 1), size)
    psnr, decoded, real, ours, theirs = [], [], [], [], []
    for item in dataset:
        volume = item["image"][None]
        back, indices = passed(model, volume)
        back = as_written(back, step)
        psnr.append(float(10 * torch.log10(4 / (back - volume).square().mean())))
        for one, count in zip(indices, counts, strict=False):
            count += torch.bincount(one.flatten(), minlength=size)
        decoded.append(back)
        real.append(volume)
        ours.append(radiomics(back))
        theirs.append(radiomics(as_written(volume, step)))
    cpu = torch.device("cpu")
    train = real_features(prepared, split, step=step, batch_size=4, device=cpu)
    reference = Reference(train, feature_set(RADIOMICS, train).noticeable)
    usage = (counts > 0).float().mean(1).tolist()
    large = [used for used, tokens in zip(usage, scales or [64], strict=False) if tokens >= 64]
    return {
        "psnr": sum(psnr) / len(psnr),
        "usage": float((counts.sum(0) > 0).float().mean()),
        "least_usage": min(large),
        "usage_per_scale": usage,
        "power_ratio": power_ratio(torch.cat(decoded), torch.cat(real)),
        "frechet": reference.distance(torch.cat(ours).numpy()),
        "floor": reference.distance(torch.cat(theirs).numpy()),
    }


def passed(model: nn.Module, volume: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """A volume after encoding and decoding, and its indices."""
    if isinstance(model, VQVAE):
        indices = model.index_quantize(volume)
        return model.decode_samples(indices), (indices,)
    back = model(volume)
    return back.volume, back.quantisation.indices


class Unquantised(nn.Module):
    """Replaces the quantiser: returns the latent unchanged."""

    def __init__(self, quantiser: nn.Module) -> None:
        super().__init__()
        self.codebook = quantiser.codebook.requires_grad_(False)

    def forward(self, latent: Tensor) -> Quantisation:
        """The latent, no tokens, no loss."""
        zero = latent.new_zeros(())
        return Quantisation(latent=latent, indices=(), loss=zero, residual_energy=zero)


class MonaiTask(Task[Item]):
    """MONAI's VQVAE with L1 and its own quantisation loss, in medar's loop.

    Volumes are halved three times, along z in all levels but the last `flat`: 40x56x40 voxels give
    700 tokens with flat=2, 350 with 1, 175 with 0; medar's schedule has 552, and no closer
    number is possible. The channels are chosen to match medar's number of parameters. The quantiser
    is kept in fp32, which MONAI does on CUDA devices only.
    """

    metric = "psnr"
    larger_is_better = True

    def __init__(
        self,
        prepared: Path,
        settings: TokenizerSettings,
        chosen: dict[str, Any],
        budget: int,
        flat: int = 2,
    ) -> None:
        torch.manual_seed(settings.training.seed)
        width = min(range(16, 257, 4), key=lambda w: abs(parameters_of(w, chosen, flat) - budget))
        self.model = monai_model(width, chosen, flat).to(memory_format=torch.channels_last_3d)
        inner = self.model.quantizer.forward

        def in_fp32(latent: Tensor) -> Any:
            with torch.autocast(latent.device.type, enabled=False):
                return inner(latent.float())

        self.model.quantizer.forward = in_fp32
        train = PreparedDataset(
            prepared, split="train", augmentation=settings.data.augmentation,
            seed=settings.training.seed,
        )  # fmt: skip
        self.validation = PreparedDataset(prepared, split="val")
        self.loader = make_loader(train, batch_size=settings.data.batch_size)
        x, y, z = train.plan.size
        self.tokens = (x // 8) * (y // 8) * (z // 2 ** (3 - flat))

    def batches(self, epoch: int, start: int) -> Iterator[Item]:
        """The batches of an epoch, from batch `start` on."""
        set_epoch(self.loader, epoch)
        return islice(iter(self.loader), start, None)

    def loss(self, batch: Item, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """L1 and the commitment loss."""
        volume = batch["image"].contiguous(memory_format=torch.channels_last_3d)
        decoded, quantisation = self.model(volume)
        l1 = l1_loss(decoded.float(), volume)
        return l1 + quantisation, {"l1": l1, "quantiser": quantisation}

    def evaluate(self) -> dict[str, float]:
        """PSNR of the validation cases."""
        values, device = [], device_of(self.model)
        for item in self.validation:
            volume = item["image"][None].to(device)
            error = (self.model(volume)[0].float() - volume).square().mean()
            values.append(float(10 * torch.log10(4 / error)))
        return {"psnr": sum(values) / len(values)}


def monai_model(width: int, chosen: dict[str, Any], flat_levels: int) -> VQVAE:
    """The network of MONAI's documentation with three levels, the last ones not halved along z."""
    model = VQVAE(
        spatial_dims=3, in_channels=1, out_channels=1, channels=(width, width, 2 * width),
        num_res_layers=1, num_res_channels=(width, width, 2 * width),
        num_embeddings=chosen["codebook_size"], embedding_dim=32, decay=chosen["decay"],
    )  # fmt: skip
    flat: dict[str, Any] = {
        "strides": (2, 2, 1), "kernel_size": (4, 4, 3), "padding": 1, "adn_ordering": "DA",
        "act": "RELU", "dropout": 0.0, "norm": None,
    }  # fmt: skip
    sides = ((width, width), (width, 2 * width))
    first = 2 - flat_levels
    down = [i for i, block in enumerate(model.encoder.blocks) if halves(block)][1:]
    for index, (before, after) in list(zip(down, sides, strict=True))[first:]:
        model.encoder.blocks[index] = Convolution(3, before, after, **flat)
    up = [i for i, block in enumerate(model.decoder.blocks) if doubles(block)][:2]
    for index, (after, before) in list(zip(up, reversed(sides), strict=True))[:flat_levels]:
        model.decoder.blocks[index] = Convolution(
            3, before, after, is_transposed=True, output_padding=0, **flat
        )
    return model


def halves(block: nn.Module) -> bool:
    """Whether a block of the encoder halves."""
    convolution = getattr(block, "conv", None)
    return isinstance(convolution, nn.Conv3d) and max(convolution.stride) == 2


def doubles(block: nn.Module) -> bool:
    """Whether a block of the decoder doubles."""
    return isinstance(getattr(block, "conv", None), nn.ConvTranspose3d)


def parameters_of(width: int, chosen: dict[str, Any], flat: int) -> int:
    """Parameters, codebook included."""
    with torch.device("meta"):
        return sum(p.numel() for p in monai_model(width, chosen, flat).parameters())


def setting(text: str) -> dict[str, Any]:
    """Settings of MONAI's VQVAE from the name of a row."""
    rate, decay, size = text.split(",")
    return {"learning_rate": float(rate), "decay": float(decay), "codebook_size": int(size)}


def best_setting(done: list[dict[str, Any]]) -> dict[str, Any]:
    """The setting with the best PSNR among the rows `tune:...`."""
    tuned = [one for one in done if one["row"].startswith("tune:")]
    if len(tuned) < 4:
        raise SystemExit("tune MONAI first: at least four rows tune:LR,DECAY,SIZE")
    return setting(max(tuned, key=lambda one: one["psnr"])["row"].removeprefix("tune:"))


def read(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file; none if it is absent."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def table(rows: list[dict[str, Any]]) -> str:
    """All rows as Markdown."""
    lines = [
        "| row | min | steps | parameters | tokens | PSNR dB | codes used | least, scales >= 64 | "
        "power ratio | Frechet | floor |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for one in rows:
        quantised = one["row"].split(":")[0] != "unquantised"
        usage = f"{one['usage']:.1%} | {one['least_usage']:.1%}" if quantised else "- | -"
        lines.append(
            f"| {one['row']} | {one['minutes']:.0f} | {one['steps']} | {one['parameters']:,} | "
            f"{one['tokens']} | {one['psnr']:.2f} | {usage} | {one['power_ratio']:.2f} | "
            f"{one['frechet']:.1f} | {one['floor']:.1f} |"
        )
    return "\n".join(lines)


def commit() -> str:
    """The measured commit, marked as dirty if the tree has changes."""
    result = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    )
    return result.stdout.strip()


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("prepared", type=Path, help="output of `medar data prepare`")
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", nargs="+", default=list(ROWS))
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--tune-minutes", type=float, default=2.0)
    parser.add_argument(
        "--steps", type=int, help="optimiser steps instead of minutes, on a shared machine"
    )
    parser.add_argument("--split", default="val")
    return parser.parse_args()


if __name__ == "__main__":
    main()
