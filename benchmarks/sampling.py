"""Seconds and memory per volume: medar's generator, a cached raster-order transformer, MONAI's.

Every row samples volumes on the same latent grid with the number of parameters closest to
--parameters, and uses the same decoder (that of medar's tokenizer). Weights are random, since time
and memory do not depend on them. Batch 1, no guidance, all networks in --precision.
Rows run one after the other, each in its own process, so that peaks are separate.

    python benchmarks/sampling.py [--grids 5x7x5 10x14x10] [--rows ours raster ...] [--scales 10] \
        [--precision fp32] [--repeats 3]

Rows:
    ours              the next-scale generator, with --mixer, over --scales grids that grow linearly
    raster            medar's raster-order transformer with cached keys and values, over the latent
                      grid only
    raster-pyramid    the same over all tokens of the schedule of `ours`
    monai             MONAI's VQVAETransformerInferer.sample with DecoderOnlyTransformer and its
                      flash attention, which recomputes all tokens for every new one: minutes
    flow              30 steps of MONAI's RFlowScheduler with DiffusionModelUNet in the latent; its
                      grid is padded to even sides, which the network requires

--limit-tokens N times `monai` on N evenly spaced lengths of the sequence instead of all; the row is
then marked as extrapolated. Memory is the process's largest resident set (Linux) or the largest
allocation (CUDA); `held` is the memory in use before sampling.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

THREADS = os.environ.setdefault("OMP_NUM_THREADS", "2")

import torch
from monai.inferers import VQVAETransformerInferer
from monai.networks.nets import DecoderOnlyTransformer, DiffusionModelUNet
from monai.networks.schedulers import RFlowScheduler
from monai.utils.ordering import Ordering
from peers.raster import RasterModel, sample_tokens
from torch import Tensor, nn

from medar.devices import InferencePrecision, inference_autocast
from medar.environment import environment
from medar.generator.conditions import Condition
from medar.generator.generator import Generator
from medar.generator.mixers import MixerSettings
from medar.generator.sampling import sample
from medar.generator.settings import GeneratorConfig, ModelSettings, SamplingSettings
from medar.tokenizer import ScaleSchedule, Tokenizer, TokenPyramid
from medar.tokenizer.codebooks import CodebookSettings
from medar.tokenizer.network import NetworkConfig
from medar.tokenizer.tokenizer import TokenizerConfig
from medar.volume import Shape3

ROWS = ("ours", "raster", "raster-pyramid", "flow", "monai")
DEPTH = 8
STEPS = 30
MIB = 1 << 20


class Row(NamedTuple):
    """A row: candidate sizes, a constructor for the network, and a function that samples."""

    sizes: Sequence[int]
    make: Callable[[int], nn.Module]
    draw: Callable[[nn.Module], Tensor]


def main() -> None:
    """Run the rows, print the table and one line of JSON."""
    options = parse()
    if options.row:
        print(json.dumps(measure(options)))
        return
    found = []
    for grid in options.grids:
        for row in options.rows:
            print(f"== {row} at {cross(grid)}", file=sys.stderr, flush=True)
            found.append(run_in_process(row, grid, options))
    rated = [{**one, "ratio": ratio(one, found)} for one in found]
    print(table(rated))
    print(json.dumps({"rows": rated, "environment": environment(), "threads": int(THREADS)}))


def run_in_process(row: str, grid: Shape3, options: argparse.Namespace) -> dict[str, Any]:
    """Run a row in its own process, at the size that fits the budget."""
    torch.manual_seed(0)
    make = row_of(row, tokenizer_of(row, grid, options), options)
    size = sized(make, options.parameters)
    command = [sys.executable, str(Path(__file__)), *sys.argv[1:], "--row", row]
    command += ["--grids", cross(grid), "--size", str(size)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return {"row": row, "grid": cross(grid), **json.loads(done.stdout.splitlines()[-1])}


@torch.no_grad()
def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Time one row in this process."""
    torch.manual_seed(0)
    torch.set_num_threads(int(THREADS))
    device, (grid,) = torch.device(options.device), options.grids
    tokenizer = tokenizer_of(options.row, grid, options)
    row = row_of(options.row, tokenizer, options)
    model = row.make(options.size).eval().to(device)
    if isinstance(model, DiffusionModelUNet):
        model = model.to(memory_format=torch.channels_last_3d)
    tokens = tokenizer.config.schedule.length
    held = memory(device, "VmRSS")
    about = {"parameters": parameters(model), "tokens": tokens, "held_mib": held}
    if options.row == "monai" and options.limit_tokens:
        with inference_autocast(device, options.precision):
            seconds = [extrapolated(model, tokenizer, tokens, options.limit_tokens)]
        about["extrapolated_from"] = options.limit_tokens
    else:
        with inference_autocast(device, options.precision):
            warm_up(model, row, tokenizer)
            seconds = [timed(lambda: row.draw(model), device) for _ in range(options.repeats)]
    return {**about, "seconds": seconds, "peak_mib": memory(device, "VmHWM")}


def warm_up(model: nn.Module, row: Row, tokenizer: Tokenizer) -> None:
    """Sample without timing; MONAI's transformer, which takes minutes, runs a single pass."""
    if isinstance(model, DecoderOnlyTransformer):
        model(torch.zeros(1, model.max_seq_len, dtype=torch.int64, device=device_of(model)))
        row = row._replace(draw=lambda _: decoded(tokenizer, noise(tokenizer)))
    row.draw(model)


def row_of(name: str, tokenizer: Tokenizer, options: argparse.Namespace) -> Row:
    """The row of a name, for a tokenizer."""
    heads = range(4, 129, 2)
    if name == "flow":
        return Row(range(4, 513, 4), unet_of(tokenizer), lambda net: flow(net, tokenizer))
    if name == "monai":
        return Row(
            range(DEPTH, 2049, DEPTH), gpt_of(tokenizer), lambda net: monai_sample(net, tokenizer)
        )
    if name == "ours":
        kind: Callable[..., nn.Module] = Generator
        mixer = MixerSettings(kind=options.mixer)
    else:
        kind, mixer = RasterModel, MixerSettings()

    def make(size: int) -> nn.Module:
        sizes = ModelSettings(depth=DEPTH, head_width=size, mixer=mixer)
        return kind(GeneratorConfig(model=sizes), tokenizer.quantiser)

    return Row(heads, make, lambda model: ours(model, tokenizer, options.precision))


def tokenizer_of(row: str, grid: Shape3, options: argparse.Namespace) -> Tokenizer:
    """An untrained tokenizer, with one scale unless the row uses all scales."""
    scales = min(max(grid), options.scales) if row in ("ours", "raster-pyramid") else 1
    network = NetworkConfig(
        patch_size=2,
        width=32,
        width_multipliers=(1, 2, 4),
        downsampling=(options.downsampling,) * 3,
    )
    config = TokenizerConfig(
        schedule=ScaleSchedule.from_latent(grid, scales),
        network=network,
        codebook=CodebookSettings(size=options.codebook_size, width=network.code_width),
    )
    tokenizer = Tokenizer(config).eval().requires_grad_(False)
    return tokenizer.to(options.device, memory_format=torch.channels_last_3d)


def ours(model: nn.Module, tokenizer: Tokenizer, precision: InferencePrecision) -> Tensor:
    """Sample a volume with a model over medar's tokens."""
    condition = Condition(attributes=torch.zeros(1, 0, device=device_of(model)))
    if isinstance(model, Generator):
        settings = SamplingSettings(precision=precision)
        return decoded(tokenizer, sample(model, condition, [0], settings).latent)
    tokens = sample_tokens(model, condition, [0])
    pyramid = TokenPyramid.from_flat(tokens, model.schedule, model.codebook_size)
    return tokenizer.decode(pyramid).volume


def gpt_of(tokenizer: Tokenizer) -> Callable[[int], nn.Module]:
    """MONAI's transformer, with an additional token that starts a sequence."""
    length = tokenizer.config.schedule.length

    def make(width: int) -> nn.Module:
        return DecoderOnlyTransformer(
            num_tokens=tokenizer.codebook_size + 1, max_seq_len=length, attn_layers_dim=width,
            attn_layers_depth=DEPTH, attn_layers_heads=DEPTH, use_flash_attention=True,
        )  # fmt: skip

    return make


class Decoding(nn.Module):
    """The interface that MONAI's inferer expects of a VQVAE, around medar's tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.tokenizer, self.num_embeddings = tokenizer, tokenizer.codebook_size

    def decode_samples(self, indices: Tensor) -> Tensor:
        """(B, x, y, z) indices to volumes."""
        schedule = self.tokenizer.config.schedule
        pyramid = TokenPyramid.from_flat(indices.flatten(1), schedule, self.num_embeddings)
        return self.tokenizer.decode(pyramid).volume


def monai_sample(model: nn.Module, tokenizer: Tokenizer) -> Tensor:
    """Sample a volume with MONAI's inferer."""
    grid = tokenizer.config.schedule.latent
    start = torch.full((1, 1), tokenizer.codebook_size, device=device_of(model))
    volume: Tensor = VQVAETransformerInferer().sample(
        latent_spatial_dim=grid, starting_tokens=start, vqvae_model=Decoding(tokenizer),
        transformer_model=model, verbose=False,
        ordering=Ordering("raster_scan", spatial_dims=3, dimensions=(1, *grid)),
    )  # fmt: skip
    return volume


def extrapolated(model: nn.Module, tokenizer: Tokenizer, length: int, count: int) -> float:
    """Seconds for all tokens, extrapolated from `count` lengths, plus the decoder."""
    device = device_of(model)
    lengths = torch.linspace(1, length, min(count, length)).long().tolist()
    model(torch.zeros(1, length, dtype=torch.int64, device=device))
    seconds = []
    for tokens in lengths:
        row = torch.zeros(1, tokens, dtype=torch.int64, device=device)
        seconds.append(
            timed(lambda row=row: torch.multinomial(model(row)[:, -1].softmax(-1), 1), device)
        )
    areas = torch.trapezoid(torch.tensor(seconds), torch.tensor(lengths, dtype=torch.float32))
    return float(areas) + timed(lambda: decoded(tokenizer, noise(tokenizer)), device)


def unet_of(tokenizer: Tokenizer) -> Callable[[int], nn.Module]:
    """MONAI's U-Net with two levels, attention in the second, and the latent's channels."""
    channels = tokenizer.config.network.code_width

    def make(width: int) -> nn.Module:
        return DiffusionModelUNet(
            spatial_dims=3, in_channels=channels, out_channels=channels, num_res_blocks=2,
            channels=(width, 2 * width), attention_levels=(False, True), norm_num_groups=4,
            num_head_channels=(0, 2 * width), use_flash_attention=True,
        )  # fmt: skip

    return make


def flow(model: nn.Module, tokenizer: Tokenizer) -> Tensor:
    """Sample a volume with a rectified flow in the latent."""
    x, y, z = tokenizer.config.schedule.latent
    latent = noise(tokenizer, even=True)
    scheduler = RFlowScheduler(use_discrete_timesteps=False)
    scheduler.set_timesteps(STEPS, device=latent.device)
    times = [*scheduler.timesteps, torch.zeros_like(scheduler.timesteps[0])]
    for now, after in pairwise(times):
        velocity = model(latent, timesteps=now[None].float())
        latent, _ = scheduler.step(velocity, now, latent, after)
    return decoded(tokenizer, latent[:, :, :x, :y, :z])


def noise(tokenizer: Tokenizer, even: bool = False) -> Tensor:
    """A latent of noise; with `even`, sides are rounded up to even numbers."""
    sides = [side + even * (side % 2) for side in tokenizer.config.schedule.latent]
    return torch.randn(1, tokenizer.config.network.code_width, *sides, device=device_of(tokenizer))


def decoded(tokenizer: Tokenizer, latent: Tensor) -> Tensor:
    """Decode a latent to a volume."""
    volume: Tensor = tokenizer.decoder(latent).volume
    return volume


def sized(row: Row, budget: int) -> int:
    """The size with the number of parameters closest to a budget, by bisection."""
    at = bisect_left(row.sizes, budget, key=lambda size: parameters(row.make(size)))
    near = row.sizes[max(at - 1, 0) : at + 1]
    return min(near, key=lambda size: abs(parameters(row.make(size)) - budget))


def parameters(model: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def timed(act: Callable[[], object], device: torch.device) -> float:
    """Seconds of a call, including synchronisation of the device."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    act()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def memory(device: torch.device, what: str) -> float:
    """MiB in use now (VmRSS) or at most so far (VmHWM)."""
    if device.type == "cuda":
        peak = what == "VmHWM"
        held = torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()
        return round(held / MIB, 1)
    lines = Path("/proc/self/status").read_text().splitlines()
    return round(int(next(line for line in lines if line.startswith(what)).split()[1]) / 1024, 1)


def device_of(model: nn.Module) -> torch.device:
    """The device of a model's weights."""
    return next(model.parameters()).device


def ratio(one: dict[str, Any], rows: list[dict[str, Any]]) -> float | None:
    """Seconds relative to `ours` on the same grid; None if that was not run."""
    own = [r for r in rows if (r["grid"], r["row"]) == (one["grid"], "ours")]
    if not own:
        return None
    return round(statistics.median(one["seconds"]) / statistics.median(own[0]["seconds"]), 2)


def table(rows: list[dict[str, Any]]) -> str:
    """All rows as Markdown."""
    lines = [
        "| grid | row | parameters | tokens | seconds per volume (range) | ratio | held MiB | "
        "peak MiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in rows:
        middle = statistics.median(one["seconds"])
        times = "-" if one["ratio"] is None else f"{one['ratio']:g}"
        spread = f"{min(one['seconds']):.3f}-{max(one['seconds']):.3f}"
        if "extrapolated_from" in one:
            spread = f"extrapolated from {one['extrapolated_from']} lengths"
        lines.append(
            f"| {one['grid']} | {one['row']} | {one['parameters']:,} | {one['tokens']} | "
            f"{middle:.3f} ({spread}) | {times} | {one['held_mib']:.0f} | {one['peak_mib']:.0f} |"
        )
    return "\n".join(lines)


def cross(grid: Shape3) -> str:
    """Format a grid, such as 5x7x5."""
    return "x".join(map(str, grid))


def grid_of(text: str) -> Shape3:
    """Parse a grid, such as 5x7x5."""
    x, y, z = map(int, text.split("x"))
    return x, y, z


def parse() -> argparse.Namespace:
    """Arguments of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--grids", type=grid_of, nargs="+", default=[(5, 7, 5), (10, 14, 10)])
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--scales", type=int, default=10)
    parser.add_argument("--parameters", type=int, default=6_800_000)
    parser.add_argument("--codebook-size", type=int, default=512)
    parser.add_argument("--downsampling", type=int, default=8)
    parser.add_argument("--mixer", default=MixerSettings().kind)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--limit-tokens", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
