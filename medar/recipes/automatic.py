"""Settings of a recipe from the data and the machine, where no configuration is given.

Sizes are tried from the largest down: the plan that its voxels give, its networks, the operations
of a step, and hence the steps that fit into the minutes. The first whose trainings have at least
`STEPS` steps, and whose smallest batch fits into the memory, is taken. Operations become seconds by
the measured speed of large matrix products on this machine, times the fraction of it that trainings
have been seen to reach on a CPU.
"""

import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from medar.data.fingerprint import Fingerprint, take_fingerprint
from medar.data.hashes import HashIndex
from medar.data.manifest import Manifest
from medar.data.plan import TISSUE_HU, Plan
from medar.data.planning import make_plan
from medar.parallel import default_workers
from medar.recipes.data import check_data, data_manifest
from medar.recipes.settings import DataSettings
from medar.settings import to_dict
from medar.volume import ReadOptions
from medar.words import format_count

MEASURED = 64
"""Volumes that are read to choose settings; preparation reads all."""
STEPS = 800
"""Fewest steps of a training that is worth its size."""
REACHED = {"tokenizer": 0.12, "generator": 0.2, "segmentation": 0.12}
"""Fraction of the speed of matrix products that trainings reached on two CPU cores."""
ROOM = 0.6
"""Fraction of the free memory that a training's step may take."""
MINUTES: dict[str, float] = {"cpu": 30.0, "cuda": 120.0}
"""Time in all by device, if none is given."""


class Size(NamedTuple):
    """Sizes that go together."""

    voxels: int
    """Of a volume or patch, at most."""
    width: int
    """Of the tokenizer's first level, or of the segmentation network."""
    blocks: int
    codes: int
    depth: int
    """Of the generator, as are the next three."""
    head_width: int
    convolutions: int
    dropout: float
    cases: int
    """Fewest training volumes; larger networks would learn fewer by heart."""


SIZES = (
    Size(30_000, 16, 1, 256, 3, 24, 3, 0.2, 0),
    Size(90_000, 16, 1, 512, 3, 32, 3, 0.2, 0),
    Size(90_000, 32, 1, 512, 3, 32, 3, 0.2, 30),
    Size(64**3, 32, 1, 1024, 4, 32, 3, 0.1, 60),
    Size(96**3, 64, 2, 4096, 12, 64, 0, 0.1, 150),
    Size(128**3, 64, 2, 4096, 16, 64, 0, 0.1, 300),
)


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What settings depend on."""

    device: Literal["cpu", "cuda"]
    cores: int
    memory: int
    """Free bytes of the CPU or the card."""
    speed: float
    """FLOP/s of large matrix products."""

    def __str__(self) -> str:
        where = "GPU" if self.device == "cuda" else f"{self.cores} CPU cores"
        return f"{where}, {self.memory / 1e9:.0f} GB free, {self.speed / 1e9:,.0f} GFLOP/s"


def this_machine() -> Machine:
    """The machine that this process runs on; its speed is measured in less than a second."""
    import torch

    from medar.devices import free_memory, has_bf16, resolve_device
    from medar.training.operations import gemm_ceiling

    device: torch.device = resolve_device("auto")
    precision = torch.bfloat16 if has_bf16(device) else torch.float32
    return Machine(
        device="cuda" if device.type == "cuda" else "cpu",
        cores=default_workers(),
        memory=free_memory(device),
        speed=gemm_ceiling(device, precision),
    )


class Data(NamedTuple):
    """A data set, measured in part."""

    settings: DataSettings
    manifest: Manifest
    fingerprint: Fingerprint
    notes: tuple[str, ...]

    def count(self, *splits: str) -> int:
        """Number of cases in splits."""
        return sum(case.split in splits for case in self.manifest)


def measure(data: DataSettings) -> Data:
    """Read some volumes of a data set, evenly spread; nothing is written.

    Volumes of unknown modality that look like CT are taken as CT.

    Raises:
        MedarError: there is no data set, or none of these volumes can be read.
    """
    check_data(data)
    manifest = data_manifest(data)
    fingerprint = _fingerprint(manifest, data.workers)
    unnamed = [case for case in fingerprint.cases if case.modality is None]
    like_ct = sum(min(case.quantiles[0]) < TISSUE_HU for case in unnamed)
    cases = len(manifest)
    notes = [f"{len(fingerprint.cases)} of {format_count(cases, 'volume')} measured"]
    if len(manifest.channels) <= 1 and like_ct > len(unnamed) / 2:
        data = replace(data, modality="CT")
        manifest = data_manifest(data)
        fingerprint = _fingerprint(manifest, data.workers)
        notes.append(f"values below {TISSUE_HU:g} are taken as CT (--modality MR if they are not)")
    return Data(data, manifest, fingerprint, tuple(notes))


def _fingerprint(manifest: Manifest, workers: int | None) -> Fingerprint:
    every = max(1, -(-len(manifest) // MEASURED))
    some = replace(manifest, cases=tuple(manifest)[::every])
    with tempfile.TemporaryDirectory() as folder:
        hashes = HashIndex(Path(folder) / "hashes.json")
        return take_fingerprint(
            some, ReadOptions(), workers=workers or default_workers(), hashes=hashes
        )


def first_fitting(candidates: Iterator[Any], fits: Callable[[Any], bool]) -> Any:
    """The first candidate with enough steps and memory, else the last."""
    found: Any = None
    for found in candidates:
        if min(found[2].values()) >= STEPS and fits(found):
            return found
    return found


def sizes_for(data: Data) -> list[Size]:
    """The sizes that the number of training volumes allows, the largest first."""
    return [size for size in reversed(SIZES) if size.cases <= data.count("train")]


def plan_for(data: Data, voxels: int, overrides: dict[str, Any]) -> Plan:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # preparation warns once
        return make_plan(data.fingerprint, data.manifest, voxels=voxels, overrides=overrides)


def fixed_values(plan: Plan) -> dict[str, Any]:
    """The values of a plan that are fixed; the others are derived from all volumes."""
    values = to_dict(plan)
    return {name: values[name] for name in ("spacing", "mode", "size", "downsampling")}


def schedule(
    steps: int, rate: float, minutes: float, optimiser: Literal["adamw", "muon"] = "adamw"
) -> dict[str, Any]:
    """A training's settings; the budget replaces the minutes."""
    every = min(2000, max(50, steps // 10))
    return {
        "minutes": minutes,
        "optimiser": optimiser,
        "learning_rate": rate,
        "min_learning_rate": rate / 20,
        "ema_decay": 0.99 if steps < 3000 else 0.995 if steps < 10_000 else 0.999,
        "evaluate_every": every,
        "save_every": every,
    }


def steps_within(flops: float, machine: Machine, name: str, minutes: float) -> int:
    """Steps within minutes, rounded to two digits."""
    steps = 60 * minutes * machine.speed * REACHED[name] / flops
    return int(float(f"{steps:.2g}"))


def basis(data: Data, machine: Machine) -> str:
    """What settings are chosen from, for people."""
    notes = "; ".join(data.notes)
    return f"no configuration: chosen from the data ({notes}) and the machine ({machine})"


def describe(plan: Plan) -> str:
    return f"{times(plan.size)} voxels of {times(plan.spacing)} mm"


def medians(data: Data) -> str:
    import numpy as np

    shapes = np.median([case.shape for case in data.fingerprint.cases], axis=0).tolist()
    spacings = np.median(data.fingerprint.spacings, axis=0).tolist()
    return f"from {times(shapes)} of {times(spacings)} mm (medians)"


def times(values: Sequence[float]) -> str:
    return "x".join(f"{value:.3g}" for value in values)
