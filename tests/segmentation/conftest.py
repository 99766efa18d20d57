"""Tiny plans, volumes and data; `small_segmenters.py` is importable by the tests of this folder."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medar.data.manifest import Case, Manifest, Split
from medar.data.prepare import prepare
from medar.volume import Volume, write_nifti

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from small_segmenters import make_plan, smooth

torch.set_num_threads(1)

SPLITS: tuple[Split, ...] = ("train",) * 6 + ("val",) * 2
ANNOTATED: dict[int, tuple[int, ...]] = {4: (3,), 5: ()}
"""Case 4 is annotated for one label only, case 5 for none."""


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Eight CT volumes of 16 x 12 x 8; bright voxels are organ 3 at low x and organ 7 at high x.

    Cases 0 and 1 belong to one subject.
    """
    folder = tmp_path_factory.mktemp("data")
    cases = []
    for number, split in enumerate(SPLITS):
        array = smooth(16, 12, 8, seed=number)
        image, label = folder / f"c{number}.nii.gz", folder / f"c{number}_label.nii.gz"
        write_nifti(image, Volume.from_array(array * 1000, np.eye(4)))
        side = np.where(np.arange(16) < 8, 3, 7)[:, None, None]
        organs = np.where(array > 0.2, side, 0).astype(np.uint8)
        write_nifti(label, Volume.from_array(organs, np.eye(4)))
        cases.append(
            Case(
                id=f"c{number}", subject=f"s{max(number, 1)}", images=(image,),
                label=label, modality="CT", split=split, annotated=ANNOTATED.get(number),
            )
        )  # fmt: skip
    return Manifest(root=folder, source="MSD", cases=tuple(cases), labels={3: "liver", 7: "spleen"})


@pytest.fixture(scope="session")
def prepare_with(data: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Prepare the volumes with a changed plan or changed cases."""

    def make(manifest: Manifest = data, **changes: Any) -> Path:
        folder = tmp_path_factory.mktemp("changed") / "prepared"
        prepare(manifest, make_plan(**changes), folder, workers=1)
        return folder

    return make


@pytest.fixture(scope="session")
def prepared(prepare_with: Callable[..., Path]) -> Path:
    return prepare_with()


@pytest.fixture(scope="session")
def unlabelled(data: Manifest, prepare_with: Callable[..., Path]) -> Path:
    """The volumes without label maps."""
    cases = tuple(replace(case, label=None, annotated=None) for case in data.cases)
    return prepare_with(replace(data, cases=cases, labels={}), labels={})
