"""Processor time and memory of `medar segment`, stage by stage, for a file of a large CT.

    python benchmarks/segment_file.py --shape 512 512 600 --spacing 0.75

A made-up CT is written as .nii.gz of int16, and segmented into another file by a network at random
weights: windows of 128 voxels of 1 mm, 8 labels, no mirror images. By default a single pointwise
convolution stands for the network, so that what is measured is everything else; `--network dynunet`
takes the default backbone.

One line of JSON: processor seconds of each stage and of the network within "windows", the largest
resident set of the process in each, in MiB, and a hash of the label map, by which two versions of
the package are compared.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from hashlib import blake2b
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from large import eight_organs
from torch import nn

from medar.devices import peak_memory_mib, reset_peak_memory, use_huge_pages
from medar.segmentation import files, prediction
from medar.segmentation.backbones import BackboneSettings
from medar.segmentation.segmenter import Segmenter
from medar.segmentation.sliding_window import PredictionSettings
from medar.volume import Volume, read_volume, write_nifti
from medar.volume.interpolation import use_threads

Stages = dict[str, list[float]]
"""Processor seconds and peak MiB."""


def made_up_ct(path: Path, shape: tuple[int, int, int], spacing: float) -> None:
    """Write an ellipse of waves and noise in air, stored as scanners do, from left to right."""
    rng = np.random.default_rng(0)
    x, y, z = np.meshgrid(
        *(np.linspace(-1, 1, n, dtype=np.float32) for n in shape), sparse=True, indexing="ij"
    )
    array = np.empty(shape, np.float32)
    inside = (x**2 + 1.5 * y**2 < 0.8)[..., 0]
    for index, height in enumerate(z.ravel()):
        waves = 40 + 300 * np.sin(8 * x[..., 0] + 5 * height) * np.cos(7 * y[..., 0])
        noise = 20 * rng.standard_normal(shape[:2], np.float32)
        array[..., index] = np.where(inside, waves + noise, -1000)
    volume = Volume(array=array[None], affine=np.diag([spacing, spacing, spacing, 1.0]))
    write_nifti(path, volume, dtype=np.int16)


def network(kind: str) -> Segmenter:
    """At random weights."""
    plan = eight_organs()
    if kind == "dynunet":
        return Segmenter(BackboneSettings(), plan).eval()
    model = Segmenter(BackboneSettings(width=4), plan).eval()
    model.backbone, model.head = nn.Identity(), nn.Conv3d(1, 9, kernel_size=1)  # type: ignore[assignment]
    # Each class is the nearest of nine intensities, so that all of them occur.
    centres = torch.linspace(-1, 1, 9)
    model.head.weight.data = 40 * centres.view(9, 1, 1, 1, 1)
    model.head.bias.data = -20 * centres**2
    return model


def watch(module: Any, name: str, stage: str, stages: Stages) -> None:
    """Measure each call of a function of a module."""
    function: Callable[..., Any] = getattr(module, name)

    def watched(*given: Any, **options: Any) -> Any:
        reset_peak_memory()
        start = time.process_time()
        made = function(*given, **options)
        stages[stage] = [time.process_time() - start, peak_memory_mib() or 0.0]
        return made

    setattr(module, name, watched)


def watch_windows(stages: Stages, model: Segmenter) -> None:
    """Measure the windows of a volume, and the network within them."""
    rows, forward, seconds = prediction.predict_rows, model.forward, 0.0

    def timed(windows: torch.Tensor) -> torch.Tensor:
        nonlocal seconds
        start = time.process_time()
        made = forward(windows)
        seconds += time.process_time() - start
        return made

    def watched(*given: Any) -> Iterator[Any]:
        reset_peak_memory()
        start = time.process_time()
        yield from rows(*given)
        peak = peak_memory_mib() or 0.0
        stages["windows"] = [time.process_time() - start, peak]
        stages["network in it"] = [seconds, peak]

    model.forward = timed  # type: ignore[method-assign]
    prediction.predict_rows = watched  # type: ignore[assignment]


def main() -> None:
    """Measure one file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--shape", type=int, nargs=3, default=(256, 256, 300), help="voxels")
    parser.add_argument("--spacing", type=float, default=0.75, help="of the CT, in mm")
    parser.add_argument("--network", choices=["pointwise", "dynunet"], default="pointwise")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    use_huge_pages()  # as `medar` does
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    use_threads(args.threads)
    model, stages = network(args.network), Stages()
    watch(files, "read_for_plan", "reading", stages)
    watch(prediction, "prepare_image", "preparing", stages)
    watch_windows(stages, model)
    watch(prediction, "restore_label", "restoring", stages)
    watch(files, "write_label", "writing", stages)
    watch(files, "_summary", "counting", stages)
    with TemporaryDirectory() as folder:
        given, out = Path(folder) / "ct.nii.gz", Path(folder) / "label.nii.gz"
        x, y, z = args.shape
        made_up_ct(given, (x, y, z), args.spacing)
        start = time.process_time()
        list(files.segment_files(model, given, out, PredictionSettings(mirrors=()), modality="CT"))
        seconds = time.process_time() - start
        voxels = read_volume(out, labels=True).array
        label = blake2b(voxels.tobytes(), digest_size=8).hexdigest()
    rounded = {name: [round(of[0], 1), round(of[1])] for name, of in stages.items()}
    peak = max(of[1] for of in rounded.values())
    print(
        json.dumps(
            {**vars(args), "processor_seconds": round(seconds, 1), "peak_mib": peak, **rounded}
            | {"label": label, "values": np.unique(voxels[..., ::50]).tolist()}
        )
    )


if __name__ == "__main__":
    main()
