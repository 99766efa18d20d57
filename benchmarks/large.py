"""Processor time and memory of large volumes, at random weights, on a CPU.

    python benchmarks/large.py decode --shape 256 256 256 --width 64

Rows:
    encode      volumes to a latent
    decode      a latent to volumes
    detail      two steps of the detail decoder
    segment     a volume to its label map: windows of 128 voxels, 8 labels, no mirror images, and a
                single pointwise convolution in place of the network, so that what is measured is
                everything else; the volume at the plan's spacing or, with --spacing, at another one
    synthesize  one volume: tokens of an untrained generator of 8 blocks of width 256 on a latent
                grid of an eighth of the sides, 10 scales, 512 codes; decoded without detail

Each call is one row in its own process, and prints one line of JSON: seconds of processor time, the
process's largest resident set, what it held before, and the size of the volume itself; of segment,
also the seconds within the network. Operations are counted except for segment, where they are few
and counting, which intercepts each of them, would take longer than they do. A row with
`--within GIB` is limited to that memory for the network; by default it takes the package's budget.
"""

import argparse
import contextlib
import json
import time
from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from medar.data.plan import IntensityRule, Plan
from medar.devices import peak_memory_mib, reset_peak_memory, use_huge_pages
from medar.generator.generator import Generator
from medar.generator.settings import GeneratorConfig, ModelSettings
from medar.segmentation.backbones import BackboneSettings
from medar.segmentation.prediction import segment
from medar.segmentation.segmenter import Segmenter
from medar.segmentation.sliding_window import PredictionSettings
from medar.synthesis.synthesizer import Synthesizer
from medar.tokenizer import ScaleSchedule, Tokenizer
from medar.tokenizer.bounded import decode_within, encode_within
from medar.tokenizer.codebooks import CodebookSettings
from medar.tokenizer.detail import DetailConfig, DetailDecoder
from medar.tokenizer.network import Decoder, Encoder, NetworkConfig
from medar.tokenizer.tokenizer import TokenizerConfig
from medar.volume import Shape3, Volume

GIB = 2**30


def network(args: argparse.Namespace) -> NetworkConfig:
    """The tokenizer's network: 8x, patches of 2x2x2 voxels."""
    return NetworkConfig(
        patch_size=2,
        width=args.width,
        width_multipliers=(1, 2, 4),
        blocks_per_level=args.blocks,
        labels=args.labels,
    )


def encode(args: argparse.Namespace, shape: Shape3, budget: int | None) -> Callable[[], Any]:
    """A volume to a latent."""
    encoder, volume = Encoder(network(args)).eval(), smooth(shape)
    return lambda: encode_within(encoder, volume, budget)


def decode(args: argparse.Namespace, shape: Shape3, budget: int | None) -> Callable[[], Any]:
    """A latent to a volume."""
    config = network(args)
    latent = torch.randn(1, config.code_width, *config.latent(shape))
    decoder = Decoder(config).eval()
    return lambda: decode_within(decoder, latent, budget)


def detail(args: argparse.Namespace, shape: Shape3, budget: int | None) -> Callable[[], Any]:
    """Two steps of the detail decoder."""
    decoder, volume = DetailDecoder(DetailConfig()).eval(), smooth(shape)
    return lambda: decoder.draw(volume, [0], 2, budget)


class Timed(nn.Module):
    """A network and the processor time that its calls have taken."""

    seconds = 0.0

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, windows: Tensor) -> Tensor:
        """As the network's."""
        start = time.process_time()
        made: Tensor = self.network(windows)
        Timed.seconds += time.process_time() - start
        return made


def eight_organs() -> Plan:
    """Windows of 128 voxels of 1 mm, and 8 labels."""
    return Plan(
        spacing=(1.0, 1.0, 1.0),
        mode="patch",
        size=(128, 128, 128),
        downsampling=(4, 4, 4),
        intensity={"CT": IntensityRule(kind="window", low=-1000.0, high=1000.0)},
        labels={value: f"organ {value}" for value in range(1, 9)},
    )


def segmenting(args: argparse.Namespace, shape: Shape3, _: int | None) -> Callable[[], Any]:
    """A volume to its label map."""
    model = Segmenter(BackboneSettings(width=4), eight_organs()).eval()
    model.backbone, model.head = nn.Identity(), Timed(nn.Conv3d(1, 9, kernel_size=1))  # type: ignore[assignment]
    array = 1000 * smooth(shape)[0].numpy()
    affine = np.diag([*(args.spacing,) * 3, 1.0])
    volume = Volume.from_array(array, affine, modality="CT")
    settings = PredictionSettings(mirrors=(), memory_gib=args.within or 4.0)
    return lambda: segment(model, volume, settings)


def synthesize(args: argparse.Namespace, shape: Shape3, _: int | None) -> Callable[[], Any]:
    """A volume of an untrained model."""
    config = network(args)
    plan = Plan(
        spacing=(1.0, 1.0, 1.0),
        mode="volume",
        size=shape,
        downsampling=config.downsampling,
        intensity={"CT": IntensityRule(kind="window", low=-1000.0, high=1000.0)},
    )
    latent = config.latent(shape)
    sizes = TokenizerConfig(
        schedule=ScaleSchedule.from_latent(latent, min(10, *latent)),
        network=config,
        codebook=CodebookSettings(kind="fsq", size=512, width=config.code_width),
    )
    tokenizer = Tokenizer(sizes, plan)
    model = Generator.for_tokenizer(GeneratorConfig(model=ModelSettings(depth=8)), tokenizer)
    return lambda: Synthesizer(model, tokenizer)(1, modality="CT")


def smooth(shape: Shape3) -> Tensor:
    """A volume (1, 1, X, Y, Z) in [-1, 1]."""
    ramp = torch.linspace(-1, 1, prod(shape[1:])).view(1, 1, 1, *shape[1:])
    return ramp.expand(1, 1, *shape).clone()


ROWS = {
    "encode": encode,
    "decode": decode,
    "detail": detail,
    "segment": segmenting,
    "synthesize": synthesize,
}


def measured(step: Callable[[], Any], counter: FlopCounterMode | None) -> dict[str, Any]:
    """Processor seconds and memory of a step; with a counter, TFLOP too."""
    held = peak_memory_mib()
    reset_peak_memory()
    start, wall = time.process_time(), time.perf_counter()
    with counter or contextlib.nullcontext():
        step()
    return {
        "processor_seconds": round(time.process_time() - start, 1),
        **({"of_the_network": round(Timed.seconds, 1)} if Timed.seconds else {}),
        "seconds": round(time.perf_counter() - wall, 1),
        **({"tflop": round(counter.get_total_flops() / 1e12, 2)} if counter else {}),
        "held_mib": held,
        "peak_mib": peak_memory_mib(),
    }


def main() -> None:
    """Measure one row."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("row", choices=ROWS)
    parser.add_argument("--shape", type=int, nargs=3, default=(128, 128, 128), help="voxels")
    parser.add_argument("--width", type=int, default=64, help="of the network's finest level")
    parser.add_argument("--blocks", type=int, default=2, help="residual blocks per level")
    parser.add_argument("--labels", type=int, default=0, help="of the label head")
    parser.add_argument("--within", type=float, help="GiB of memory for the network")
    parser.add_argument(
        "--spacing", type=float, default=1.0, help="of the volume to segment, in mm"
    )
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    use_huge_pages()  # as `medar` does
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    x, y, z = args.shape
    budget = None if args.within is None else int(args.within * GIB)
    step = ROWS[args.row](args, (x, y, z), budget)
    size = {"volume_mib": round(4 * x * y * z / 2**20, 1)}
    counter = None if args.row == "segment" else FlopCounterMode(display=False)
    print(json.dumps({**vars(args), **size, **measured(step, counter)}))


if __name__ == "__main__":
    main()
