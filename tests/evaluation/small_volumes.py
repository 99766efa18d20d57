"""Small data for the tests of this folder: smooth volumes, models, and label maps of cubes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.ndimage import gaussian_filter

from medar.data.manifest import Case, Manifest
from medar.data.plan import IntensityRule, Plan
from medar.generator.generator import Generator
from medar.generator.settings import Attribute, ConditionConfig, GeneratorConfig, ModelSettings
from medar.synthesis import Synthesizer
from medar.tokenizer.codebooks import CodebookSettings
from medar.tokenizer.network import NetworkConfig
from medar.tokenizer.schedule import ScaleSchedule
from medar.tokenizer.tokenizer import Tokenizer, TokenizerConfig
from medar.volume import Volume, write_nifti


def smooth(count: int, *sides: int, seed: int = 0) -> torch.Tensor:
    """(count, 1, X, Y, Z) of blurred noise in [-1, 1]."""
    noise = np.random.default_rng(seed).normal(size=(count, 1, *sides))
    blurred = gaussian_filter(noise, (0, 0, 0.8, 0.8, 0.8))
    return torch.from_numpy(np.clip(blurred / blurred.std() / 2, -1, 1).astype(np.float32))


def make_plan(**changes: Any) -> Plan:
    values: dict[str, Any] = {
        "spacing": (1.0, 1.0, 1.0),
        "mode": "volume",
        "size": (8, 8, 8),
        "downsampling": (4, 4, 4),
        "intensity": {"CT": IntensityRule(kind="window", low=-1000.0, high=1000.0)},
        "labels": {1: "left", 2: "right"},
    }
    return Plan(**{**values, **changes})


def make_tokenizer(plan: Plan | None, *, labels: int = 0) -> Tokenizer:
    torch.manual_seed(0)
    config = TokenizerConfig(
        schedule=ScaleSchedule(grids=((1, 1, 1), (2, 2, 2))),
        network=NetworkConfig(
            width=4, width_multipliers=(1, 2), code_width=8, downsampling=(4, 4, 4), labels=labels
        ),
        codebook=CodebookSettings(size=16, width=8),
    )
    tokenizer = Tokenizer(config, plan)
    tokenizer(smooth(4, 8, 8, 8))  # the codebook starts
    return tokenizer.eval()


def make_generator(plan: Plan, *, maps: bool = True, labels: int = 0) -> Synthesizer:
    """A synthesizer without zero weights in its generator, so that conditions have an effect."""
    tokenizer = make_tokenizer(plan, labels=labels)
    condition = ConditionConfig(
        attributes=(Attribute(name="modality", values=("CT", "MR")),),
        map="label" if maps else "none",
        map_channels=len(plan.labels) + 1 if maps else 0,
        map_width=4,
    )
    config = GeneratorConfig(model=ModelSettings(depth=2, head_width=8), condition=condition)
    torch.manual_seed(1)
    model = Generator.for_tokenizer(config, tokenizer).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith("quantiser."):
                parameter += 0.2 * torch.randn_like(parameter)
    return Synthesizer(model, tokenizer)


SIDES = (16, 12, 10)
AFFINE = np.diag([1.0, 2.0, 3.0, 1.0])
NAMES = {1: "cube", 4: "block"}


def cubes(shift: int = 0, **values: Any) -> npt.NDArray[np.uint8]:
    """(X, Y, Z): label 1 at low x, label 4 at high x, moved by `shift` voxels along x."""
    array = np.zeros(SIDES, np.uint8)
    array[2 + shift : 6 + shift, 3:7, 2:6] = values.get("one", 1)
    array[9 + shift : 12 + shift, 3:9, 4:8] = values.get("four", 4)
    return array


def write_case(folder: Path, name: str, truth: npt.NDArray[Any] | None, **about: Any) -> Case:
    """A case whose image equals its label map."""
    shown = cubes() if truth is None else truth
    noise = np.random.default_rng(0).normal(0, 0.1, shown.shape)
    image = folder / f"{name}.nii.gz"
    write_nifti(image, Volume.from_array((100 * (shown + noise)).astype(np.float32), AFFINE))
    label = None
    if truth is not None:
        label = folder / f"{name}_label.nii.gz"
        write_nifti(label, Volume.from_array(truth, AFFINE))
    values: dict[str, Any] = {"id": name, "modality": "CT", "split": "test", **about}
    return Case(images=(image,), label=label, **values)


def data_set(folder: Path, cases: Sequence[Case], **changes: Any) -> Manifest:
    values: dict[str, Any] = {"root": folder, "source": "MSD", "labels": NAMES, **changes}
    return Manifest(cases=tuple(cases), **values)


def write_maps(folder: Path, maps: dict[str, npt.NDArray[Any]]) -> Path:
    """Write label maps by case."""
    for name, array in maps.items():
        write_nifti(folder / f"{name}.nii.gz", Volume.from_array(array, AFFINE))
    return folder
