"""Preparing and reading a data set: medar against MONAI's dictionary transforms.

Both do the same work on the same files in one run, each with one process and one thread: load,
orient to RAS+, resample (linear; labels nearest), normalise, crop or pad, store; then read all of
it back. MONAI stores with `PersistentDataset`. Repetitions alternate between the two, so that a
drift of the machine affects both; medians and ratios are printed. The lower bound of filling is the
decompression of the gzip files; that of reading is copying the bytes.

    python benchmarks/prepare.py DATA [--cases 64] [--repeats 5] [--spacing 4 4 4] [--size 64 64 64]
"""

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
import warnings
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"):
    os.environ[variable] = "1"

import monai
import numpy as np
import torch
from monai import transforms as mt
from monai.data import PersistentDataset

from medar.data.fingerprint import take_fingerprint
from medar.data.hashes import HashIndex
from medar.data.loading import PreparedDataset
from medar.data.manifest import Manifest
from medar.data.plan import Plan
from medar.data.planning import make_plan
from medar.data.prepare import prepare
from medar.data.sources import read_manifest
from medar.settings import from_dict, to_dict
from medar.volume import ReadOptions
from medar.volume.interpolation import use_threads

KEYS = ["image", "label"]
Step = Callable[[], object]


def main() -> None:
    """Run both; print a table and the ratios."""
    options = parse()
    torch.set_num_threads(1)
    use_threads(1)
    warnings.simplefilter("ignore")
    manifest = read_manifest(options.data)
    labelled = tuple(case for case in manifest if case.label)
    manifest = manifest.with_cases(labelled[: options.cases])
    plan = bench_plan(manifest, options)
    with tempfile.TemporaryDirectory() as scratch:
        ours, theirs = Path(scratch) / "medar", Path(scratch) / "monai"
        filling: dict[str, Step] = {
            "floor: gzip": partial(inflate, manifest),
            "medar fill": partial(fill_medar, manifest, plan, ours),
            "monai fill": partial(fill_monai, manifest, plan, theirs),
        }
        times = measure(filling, options.repeats)
        reading: dict[str, Step] = {
            "floor: copy": partial(copy, len(manifest), plan),
            "medar read": partial(read, PreparedDataset(ours)),
            "monai read": partial(read, monai_dataset(manifest, plan, theirs)),
        }
        if options.patch:
            cut = Path(scratch) / "patches"
            patched = from_dict(Plan, {**to_dict(plan), **patch_values(options.patch)}, "patch")
            fill_medar(manifest, patched, cut)
            crop = mt.RandSpatialCropd(KEYS, options.patch, random_size=False)
            reading["medar patch"] = partial(read, PreparedDataset(cut, foreground=0.0))
            reading["monai patch"] = partial(read, monai_dataset(manifest, plan, theirs), crop)
        times |= measure(reading, options.repeats)
    report(times, manifest, plan)


def parse() -> argparse.Namespace:
    """Arguments of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--cases", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--spacing", type=float, nargs=3)
    parser.add_argument("--size", type=int, nargs=3)
    parser.add_argument("--patch", type=int, nargs=3, help="also time patches of this size")
    return parser.parse_args()


def bench_plan(manifest: Manifest, options: argparse.Namespace) -> Plan:
    """A plan that MONAI's transforms can follow too: nearest labels, whole volumes."""
    fingerprint = take_fingerprint(manifest, ReadOptions(), workers=1, hashes=HashIndex())
    overrides = {"mode": "volume", "label_interpolation": "nearest"}
    for name in ("spacing", "size"):
        if getattr(options, name):
            overrides[name] = getattr(options, name)
    return make_plan(fingerprint, manifest, overrides=overrides)


def patch_values(size: list[int]) -> dict[str, object]:
    """Changes of a plan for patches."""
    return {"mode": "patch", "size": size, "downsampling": [1, 1, 1]}


def fill_medar(manifest: Manifest, plan: Plan, folder: Path) -> None:
    """Prepare every case into an empty cache."""
    shutil.rmtree(folder, ignore_errors=True)
    prepare(manifest, plan, folder, workers=1)


def read(dataset: Any, then: Callable[[Any], object] | None = None) -> None:
    """One pass over a data set, with a transform after the cache."""
    for index in range(len(dataset)):
        item = dataset[index]
        if then:
            then(item)


def monai_transform(plan: Plan) -> mt.Compose:
    """The plan as MONAI's dictionary transforms."""
    rule = next(iter(plan.intensity.values()))
    if rule.kind == "window":
        scale = mt.ScaleIntensityRanged("image", rule.low, rule.high, -1, 1, clip=True)
    else:
        scale = mt.ScaleIntensityRangePercentilesd("image", rule.low, rule.high, -1, 1, clip=True)
    return mt.Compose(
        [
            mt.LoadImaged(KEYS),
            mt.EnsureChannelFirstd(KEYS),
            mt.Orientationd(KEYS, "RAS"),
            mt.Spacingd(KEYS, plan.spacing, mode=("bilinear", "nearest")),
            scale,
            mt.ResizeWithPadOrCropd(KEYS, plan.size),
        ]
    )


def monai_dataset(manifest: Manifest, plan: Plan, folder: Path) -> PersistentDataset:
    """MONAI's cached data set over the same files."""
    items = [{"image": str(c.images[0]), "label": str(c.label)} for c in manifest]
    return PersistentDataset(items, monai_transform(plan), cache_dir=folder)


def fill_monai(manifest: Manifest, plan: Plan, folder: Path) -> None:
    """Run the transforms on every case into an empty cache."""
    shutil.rmtree(folder, ignore_errors=True)
    read(monai_dataset(manifest, plan, folder))


def inflate(manifest: Manifest) -> None:
    """Decompress every file and nothing else: the lower bound for filling with zlib."""
    for case in manifest:
        for file in (*case.images, case.label):
            if file and file.name.endswith(".gz"):
                zlib.decompress(file.read_bytes(), wbits=31)


def copy(cases: int, plan: Plan) -> None:
    """Copy as many bytes as reading returns: an image in float32, a label in int16."""
    image, label = np.zeros(plan.size, np.float32), np.zeros(plan.size, np.int16)
    for _ in range(cases):
        image.copy()
        label.copy()


def measure(steps: dict[str, Step], repeats: int) -> dict[str, list[float]]:
    """Seconds of each step over alternating rounds; the first round is a warm-up, not counted."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for round_ in range(repeats + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if round_:
                times[name].append(time.perf_counter() - start)
    return times


def report(times: dict[str, list[float]], manifest: Manifest, plan: Plan) -> None:
    """Print a table in ms per case, and the ratios."""
    cases = len(manifest)
    print(f"{manifest.root.name}: {cases} cases to {plan.size} at {plan.spacing} mm")
    print(f"monai {monai.__version__}, torch {torch.__version__}, one thread")
    for name, values in times.items():
        middle = statistics.median(values) / cases * 1e3
        low, high = min(values) / cases * 1e3, max(values) / cases * 1e3
        print(f"  {name:<12} {middle:8.3f} ms per case  ({low:.3f} to {high:.3f})")
    ratios = {}
    for kind in ("fill", "read", "patch"):
        if f"medar {kind}" in times:
            pairs = zip(times[f"monai {kind}"], times[f"medar {kind}"], strict=True)
            ratios[kind] = round(statistics.median(theirs / ours for theirs, ours in pairs), 2)
    print(json.dumps({"ratio monai / medar": ratios}))


if __name__ == "__main__":
    main()
