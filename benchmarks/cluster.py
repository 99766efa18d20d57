"""Preparing and segmenting small cases on one and on two Dask workers of this machine.

The cases are volumes of smooth noise with a label each; the network has random weights. One and
two workers alternate, each into new folders; starting them is not counted, their first case is.
Then two workers prepare and segment once more, and one is killed in the middle of either. All
results must have the same bytes. One thread per worker. Nothing else may use the processors.

    python benchmarks/cluster.py [--cases 2000] [--side 48] [--repeats 1] [--json FILE]
"""

import argparse
import json
import os
import signal
import statistics
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import psutil
import torch
from scipy.ndimage import gaussian_filter

from medar.cluster import use_cluster
from medar.data.manifest import Manifest
from medar.data.plan import IntensityRule, Plan
from medar.data.prepare import prepare
from medar.data.sources import read_manifest
from medar.segmentation.backbones import BackboneSettings
from medar.segmentation.files import segment_files
from medar.segmentation.segmenter import Segmenter
from medar.volume import Volume, write_nifti

KILLED = 0.5
"""Fraction of the files at which a worker is killed."""


def main() -> None:
    """Run; print seconds, ratios, and whether the bytes are the same."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--side", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as scratch:
        found = measure(Path(scratch), options.cases, options.side, options.repeats)
    for name, value in found.items():
        print(f"{name}: {value}")
    if options.json is not None:
        options.json.write_text(json.dumps({**vars(options), "json": None, **found}))


def measure(scratch: Path, cases: int, side: int, repeats: int) -> dict[str, object]:
    """Seconds by number of workers, ratios, and whether all bytes are equal."""
    manifest, model, plan = make_inputs(scratch, cases, side)
    seconds: dict[str, list[float]] = {}
    for repeat in range(repeats):
        for workers in (1, 2):
            out = scratch / f"{workers}-{repeat}"
            with use_cluster(f"local:{workers}", manifest.root, out=out):
                for name, elapsed in run(manifest, plan, model, out).items():
                    seconds.setdefault(f"{name}, {workers} workers", []).append(elapsed)
    out = scratch / "killed"
    with use_cluster("local:2", manifest.root, out=out), one_killed(out, cases):
        run(manifest, plan, model, out)
    expected = bytes_of(scratch / "1-0")
    folders = [f"{workers}-{repeat}" for workers in (1, 2) for repeat in range(repeats)]
    medians = {name: round(statistics.median(elapsed), 2) for name, elapsed in seconds.items()}
    return {
        **medians,
        **{
            f"{name}, ratio": round(
                medians[f"{name}, 1 workers"] / medians[f"{name}, 2 workers"], 2
            )
            for name in ("prepare", "segment")
        },
        "same bytes": all(bytes_of(scratch / one) == expected for one in folders),
        "same bytes, one worker killed": bytes_of(out) == expected,
    }


def run(manifest: Manifest, plan: Plan, model: Segmenter, out: Path) -> dict[str, float]:
    """Prepare and segment on the present cluster: seconds of each."""
    began = time.perf_counter()
    done = prepare(manifest, plan, out / "prepared")
    prepared = time.perf_counter()
    images = manifest.root / "imagesTr"
    made = list(segment_files(model, images, out / "labels", modality="CT"))
    ended = time.perf_counter()
    assert done.made == len(made) == len(manifest)
    return {"prepare": prepared - began, "segment": ended - prepared}


@contextmanager
def one_killed(out: Path, cases: int) -> Iterator[None]:
    """Kill a worker while cases are prepared, and one while they are segmented."""

    def kill_each() -> None:
        for folder, files in (
            (out / "prepared" / "arrays", 2 * cases),
            (out / "labels", 2 * cases),
        ):
            while len(list(folder.glob("[!.]*"))) < KILLED * files:
                if ended.wait(0.02):
                    return
            children = psutil.Process().children(recursive=True)
            workers = [one for one in children if "spawn_main" in " ".join(one.cmdline())]
            os.kill(workers[0].pid, signal.SIGKILL)
            print(f"killed a worker with {len(list(folder.glob('[!.]*')))} files made")

    ended = threading.Event()
    thread = threading.Thread(target=kill_each)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def make_inputs(scratch: Path, cases: int, side: int) -> tuple[Manifest, Segmenter, Plan]:
    """Write volumes and a network; volumes are rolled copies of 16, which is fast."""
    root = scratch / "data"
    generator = np.random.default_rng(0)
    originals = [gaussian_filter(generator.normal(size=(side,) * 3), 1.0) for _ in range(16)]
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True)
    (root / "labels.json").write_text('{"1": "bright"}')
    for k in range(cases):
        array = np.roll(originals[k % 16], (k // 16 % side, k // 16 // side, 0), (0, 1, 2))
        voxels = np.clip(2000 * array, -1000, 1000).astype(np.int16)
        for folder, values in (("imagesTr", voxels), ("labelsTr", (voxels > 300).astype(np.uint8))):
            write_nifti(root / folder / f"c{k:05d}.nii.gz", Volume.from_array(values, np.eye(4)))
    plan = Plan(
        spacing=(1.5, 1.5, 1.5),
        mode="volume",
        size=(32, 32, 32),
        downsampling=(4, 4, 4),
        intensity={"CT": IntensityRule(kind="window", low=-1000.0, high=1000.0)},
        labels={1: "bright"},
    )
    torch.manual_seed(0)
    Segmenter(BackboneSettings(width=8), plan).save_pretrained(scratch / "model")
    return read_manifest(root, modality="CT"), Segmenter.from_pretrained(scratch / "model"), plan


def bytes_of(folder: Path) -> dict[str, bytes]:
    """All files below a folder, without the times of the data set's files."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "hashes.json")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


if __name__ == "__main__":
    main()
