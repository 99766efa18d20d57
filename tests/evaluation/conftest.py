"""Tiny volumes, prepared; `small_volumes.py` is importable by the tests of this folder."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medar.data.manifest import Case, Manifest, Split
from medar.data.prepare import prepare
from medar.volume import Volume, write_nifti

sys.path.insert(0, str(Path(__file__).parent))

from small_volumes import make_plan, smooth

torch.set_num_threads(1)

SPLITS: tuple[Split, ...] = ("train", "train", "train", "train", "test", "test", "val")


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Seven CT volumes of 8 x 8 x 8 in three splits; the last test case has label 1 only."""
    folder = tmp_path_factory.mktemp("data")
    cases = []
    for number, (split, array) in enumerate(zip(SPLITS, smooth(7, 8, 8, 8), strict=True)):
        image, label = folder / f"c{number}.nii.gz", folder / f"c{number}_label.nii.gz"
        write_nifti(image, Volume.from_array(array[0].numpy() * 1000, np.eye(4)))
        classes = np.where(array[0].numpy() > 0.2, 1 + (number % 2), 0).astype(np.uint8)
        write_nifti(label, Volume.from_array(classes, np.eye(4)))
        cases.append(
            Case(
                id=f"c{number}", images=(image,), label=label, modality="CT", split=split,
                annotated=(1,) if number == 5 else None,
            )
        )  # fmt: skip
    names = {1: "left", 2: "right"}
    return Manifest(root=folder, source="MSD", cases=tuple(cases), labels=names)


@pytest.fixture(scope="session")
def prepared(data: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared") / "whole"
    prepare(data, make_plan(), folder, workers=1)
    return folder


@pytest.fixture(scope="session")
def prepare_with(data: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Prepare the volumes with a changed plan or changed cases."""

    def make(manifest: Manifest = data, **changes: Any) -> Path:
        folder = tmp_path_factory.mktemp("changed") / "prepared"
        prepare(manifest, make_plan(**changes), folder, workers=1)
        return folder

    return make
