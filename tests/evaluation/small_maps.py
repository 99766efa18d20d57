"""A data set of cubes, and label maps that miss them in known ways."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medar.data.manifest import Case, Manifest
from medar.volume import Volume, write_nifti

SIDES = (16, 12, 10)
AFFINE = np.diag([1.0, 2.0, 3.0, 1.0])
NAMES = {1: "cube", 4: "block"}


def cubes(shift: int = 0, **places: Any) -> npt.NDArray[np.uint8]:
    """(X, Y, Z): label 1 at low x, label 4 at high x, moved by `shift` voxels along x."""
    array = np.zeros(SIDES, np.uint8)
    array[2 + shift : 6 + shift, 3:7, 2:6] = places.get("one", 1)
    array[9 + shift : 12 + shift, 3:9, 4:8] = places.get("four", 4)
    return array


def write_case(folder: Path, name: str, truth: npt.NDArray[Any] | None, **about: Any) -> Case:
    """An image as bright as its labels, and its truth."""
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
    """Finished label maps by case."""
    for name, array in maps.items():
        write_nifti(folder / f"{name}.nii.gz", Volume.from_array(array, AFFINE))
    return folder
