"""`medar run synthesis` without a configuration, on 20 data sets made of phantoms.

    python benchmarks/no_configuration.py runs/no-configuration --minutes 2

The data sets vary in modality, spacing, size, number of cases and labels. Each run must finish with
a verdict, or be refused in one line, and take no longer than its minutes; a table in Markdown is
printed at the end. Data sets whose result is in OUT/results.jsonl are not run again.

A run starts as an interpreter of its own, and all of its time counts: imports, choosing settings,
every stage. `--only` names data sets; the others keep their results.
"""

import argparse
import json
import re
import resource
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from medar.data.phantoms import make_phantom
from medar.files import write_json, write_text
from medar.volume import Volume, write_nifti


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """How a data set is made."""

    name: str
    n: int = 12
    modality: Literal["ct", "mr"] = "ct"
    spacing: float = 8.0
    """Typical voxel side in mm."""
    every: tuple[int, int, int] = (1, 1, 1)
    """Along each axis, one voxel in so many is kept: thick slices."""
    box: tuple[int, int, int] | None = None
    """Voxels around the centre that are kept; default: all."""
    labels: tuple[int, ...] | None = None
    """Labels that are kept; default: all ten. An empty tuple: files without a label in them."""
    labelled: float = 1.0
    """Fraction of cases that have a file of labels."""
    stated: bool = True
    """Whether a dataset.json names modality and labels."""


DATA_SETS = (
    DataSet(name="ct"),
    DataSet(name="mr", modality="mr"),
    DataSet(name="ct-plain", stated=False),
    DataSet(name="mr-plain", modality="mr", stated=False, labelled=0.0),
    DataSet(name="ct-fine", n=6, spacing=3.0),
    DataSet(name="mr-fine-crop", n=8, modality="mr", spacing=3.0, box=(40, 40, 40)),
    DataSet(name="ct-coarse", n=16, spacing=20.0),
    DataSet(name="mr-coarse", n=24, modality="mr", spacing=16.0),
    DataSet(name="ct-thick-slices", every=(1, 1, 4)),
    DataSet(name="mr-sagittal", modality="mr", every=(4, 1, 1)),
    DataSet(name="ct-three-slices", box=(48, 48, 3)),
    DataSet(name="mr-one-slice", modality="mr", box=(48, 48, 1)),
    DataSet(name="ct-tiny", spacing=20.0, box=(6, 6, 6)),
    DataSet(name="ct-long", box=(16, 16, 64)),
    DataSet(name="ct-one-case", n=1),
    DataSet(name="mr-two-cases", n=2, modality="mr"),
    DataSet(name="mr-three-cases", n=3, modality="mr", spacing=12.0),
    DataSet(name="ct-many", n=150, spacing=20.0),
    DataSet(name="ct-one-label", labels=(5,), spacing=12.0),
    DataSet(name="mr-half-labelled", modality="mr", labels=(), labelled=0.5, spacing=12.0),
)


def write(folder: Path, kind: DataSet) -> str:
    """Write a data set in the layout of the MSD; returns the voxels and spacing of a volume."""
    cases, text = [], ""
    for k in range(kind.n):
        phantom = make_phantom(k, modality=kind.modality, spacing=kind.spacing)
        name = f"{kind.modality}{k}.nii.gz"
        image = cut(phantom.image, kind)
        write_nifti(folder / "imagesTr" / name, image, dtype=phantom.dtype)
        case = {"image": f"./imagesTr/{name}"}
        if k < kind.labelled * kind.n:
            label = cut(phantom.label, kind)
            if kind.labels is not None:
                label = label.with_array(label.array * np.isin(label.array, kind.labels))
            write_nifti(folder / "labelsTr" / name, label)
            case["label"] = f"./labelsTr/{name}"
        cases.append(case)
        sides, spacing = ("x".join(f"{v:.3g}" for v in of) for of in (image.shape, image.spacing))
        text = f"{sides} of {spacing} mm"
    if kind.stated:
        names = {"0": "background", **{str(k): f"organ {k}" for k in kind.labels or range(1, 11)}}
        described = {
            "name": kind.name, "tensorImageSize": "3D", "labels": names, "training": cases,
            "modality": {"0": "CT" if kind.modality == "ct" else "MRI"}, "test": [],
        }  # fmt: skip
        write_json(folder / "dataset.json", described)
    return text


def cut(volume: Volume, kind: DataSet) -> Volume:
    """The box around the centre, and of it one voxel in so many along each axis."""
    sides = [min(n, b) for n, b in zip(volume.shape, kind.box or volume.shape, strict=True)]
    first = [(n - side) // 2 for n, side in zip(volume.shape, sides, strict=True)]
    kept = tuple(
        slice(a, a + side, step) for a, side, step in zip(first, sides, kind.every, strict=True)
    )
    affine = volume.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ first
    affine[:3, :3] *= kind.every
    return Volume(array=volume.array[(slice(None), *kept)], affine=affine, modality=volume.modality)


def run(data: Path, out: Path, minutes: float) -> dict[str, Any]:
    """Run the recipe; what came of it."""
    words = ["run", "synthesis", "--data", data, "--out", out, "--untracked", "--json"]
    command = [sys.executable, "-m", "medar", *map(str, words), "--minutes", f"{minutes:g}"]
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    elapsed, after = time.monotonic() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    write_text(out.with_suffix(".log"), done.stdout + done.stderr)
    return {
        **outcome(done.returncode, done.stdout, done.stderr),
        "budget": minutes,
        "minutes": round(elapsed / 60, 2),
        "cpu_minutes": round(seconds / 60, 2),
    }


def outcome(code: int, output: str, error: str) -> dict[str, Any]:
    """Whether a run finished, was refused in one line, or failed, by its exit code and output."""
    result: dict[str, Any] = {"code": code, "traceback": "Traceback" in error}
    if code == 0:
        verdict = json.loads(output)["verdict"]
        return {**result, "outcome": "finished", "line": f"{verdict['grade']}: {verdict['reason']}"}
    lines = error.strip().splitlines()
    in_one_line = code == 2 and not result["traceback"] and lines[-1].startswith("medar: ")
    kind = "refused" if in_one_line else "failed"
    return {**result, "outcome": kind, "line": lines[-1] if lines else ""}


def table(results: dict[str, dict[str, Any]]) -> str:
    """Results as a table in Markdown."""
    lines = [
        "| data set | cases | last volume | outcome | minutes of budget | CPU minutes | error |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, one in results.items():
        text = re.sub(r"\S*/", "", one["line"].removeprefix("medar: ")).replace("|", "/")
        if one["outcome"] == "finished":
            text = text.partition(":")[0]
        lines.append(
            f"| {name} | {one['n']} | {one['volume']} | {one['outcome']}: {text} | "
            f"{one['minutes']:.1f} of {one['budget']:g} | {one['cpu_minutes']:.1f} | "
            f"{'**traceback**' if one['traceback'] else 'no'} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run the data sets that have no result yet, one after the other, and print the table."""
    names = [kind.name for kind in DATA_SETS]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=2.0, help="of each run")
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    stored = args.out / "results.jsonl"
    lines = stored.read_text().splitlines() if stored.exists() else []
    results = {entry["name"]: entry for entry in map(json.loads, lines)}
    for kind in DATA_SETS:
        if kind.name in results or kind.name not in args.only:
            continue
        data, out = args.out / "data" / kind.name, args.out / kind.name
        for folder in (data, out):
            shutil.rmtree(folder, ignore_errors=True)
        volume = write(data, kind)
        result = {**asdict(kind), "volume": volume, **run(data, out, args.minutes)}
        results[kind.name] = result
        with stored.open("a") as file:
            file.write(json.dumps(result) + "\n")
        print(kind.name, result["outcome"], result["minutes"], result["line"], flush=True)
    print(table({name: results[name] for name in names if name in results}))


if __name__ == "__main__":
    main()
