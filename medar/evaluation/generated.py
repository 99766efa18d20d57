"""Generated volumes in files: to the prepared space of a plan, and to pictures.

A folder holds `NAME.nii.gz` (or .nii), each perhaps with its label map `NAME_label.nii.gz`.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from medar.data.cases import read_for_plan, read_label
from medar.data.intensity import Window
from medar.data.loading import PreparedDataset
from medar.data.manifest import Case
from medar.data.plan import Plan
from medar.data.preparation import prepare_image, prepare_label
from medar.errors import MedarError
from medar.evaluation.generation import Batch, HeldOut, held_out
from medar.volume import Volume

ENDINGS = (".nii", ".nii.gz")

LABEL = "_label"
"""What the name of a label map has after its volume's."""


class GeneratedFile(NamedTuple):
    """One volume, and its label map where there is one."""

    image: Path
    label: Path | None


def generated_files(folder: str | Path) -> list[GeneratedFile]:
    """The volumes of a folder, by name.

    Raises:
        MedarError: no such folder, or no volume in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise MedarError(f"{folder}: no such folder; one with generated volumes is needed")
    files = [path for path in sorted(folder.iterdir()) if path.name.lower().endswith(ENDINGS)]
    by_stem = {_stem(path): path for path in files}
    found = [
        GeneratedFile(path, by_stem.get(stem + LABEL))
        for stem, path in by_stem.items()
        if not (stem.endswith(LABEL) and stem.removesuffix(LABEL) in by_stem)
    ]
    if not found:
        raise MedarError(f"{folder}: no volume in it; files {' or '.join(ENDINGS)} are needed")
    return found


def read_generated(
    files: list[GeneratedFile], plan: Plan, *, batch_size: int = 4
) -> Iterator[Batch]:
    """Batches of the volumes as the plan prepares them, with label maps where all have one.

    Args:
        files: see `generated_files`.
        plan: of the prepared data set.
        batch_size: volumes at once.

    Raises:
        MedarError: a file cannot be read, is not of the plan's size, or only some have labels.
    """
    missing = [one.image for one in files if one.label is None]
    labelled = bool(plan.labels) and len(missing) < len(files)
    if labelled and missing:
        raise MedarError(f"{missing[0]}: no label map beside it, but others have one")
    for start in range(0, len(files), batch_size):
        pairs = [_read(one, plan, labelled) for one in files[start : start + batch_size]]
        volumes = torch.from_numpy(np.stack([image for image, _ in pairs]))
        labels = [torch.from_numpy(label) for _, label in pairs if label is not None]
        yield (volumes, torch.stack(labels)) if labelled else volumes


def _read(
    file: GeneratedFile, plan: Plan, labelled: bool
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.integer] | None]:
    """(C, X, Y, Z) in [-1, 1] and, if asked for, (1, X, Y, Z) label values."""
    # A generated volume is already cut out: around its foreground it would be cut anew.
    plan = replace(plan, centre="image")
    volume = read_for_plan(plan, file.image)
    try:
        image, trace = prepare_image(volume, plan)
    except MedarError as error:
        raise MedarError(f"{file.image}: {error}") from error
    if image.shape[1:] != plan.size:
        raise MedarError(
            f"{file.image}: {' x '.join(map(str, image.shape[1:]))} voxels at the plan's spacing; "
            f"{' x '.join(map(str, plan.size))} are needed, the plan's size"
        )
    if not labelled:
        return image, None
    case = Case(id=file.image.name, images=(file.image,), label=file.label)
    label = read_label(case, plan.reading, volume)
    assert label is not None
    try:
        return image, prepare_label(label, trace.target, plan)
    except MedarError as error:
        raise MedarError(f"{file.label}: {error}") from error


def generated_pictures(files: list[GeneratedFile], plan: Plan) -> dict[str, Volume]:
    """Generated volumes for a picture, by name.

    Raises:
        MedarError: see `read_generated`.
    """
    return {_stem(one.image): picture(_read(one, plan, labelled=False)[0], plan) for one in files}


def real_pictures(prepared: str | Path, split: HeldOut, count: int) -> dict[str, Volume]:
    """Some held-out cases for a picture, evenly over the split, by name."""
    chosen = held_out(prepared, split)
    dataset = chosen.dataset
    assert isinstance(dataset, PreparedDataset)
    places = np.linspace(0, len(chosen) - 1, min(count, len(chosen))).round().astype(int)
    return {
        dataset.prepared[place].id: picture(dataset[place]["image"].numpy(), dataset.plan)
        for place in (chosen.indices[index] for index in places)
    }


def picture(array: npt.NDArray[np.float32], plan: Plan) -> Volume:
    """A prepared array, (C, X, Y, Z), on a grid of the plan's spacing.

    In HU where all is CT with a fixed window; else in [-1, 1], as percentiles have no unit.
    """
    modality = plan.sole_modality
    rule = plan.intensity.get(modality or "")
    fixed = rule is not None and rule.kind == "window"
    window = Window(low=rule.low, high=rule.high) if rule and fixed else Window(low=-1.0, high=1.0)
    affine = np.diag([*plan.spacing, 1.0])
    return Volume(array=window.restore(array), affine=affine, modality=modality if fixed else None)


def _stem(path: Path) -> str:
    return path.name[: path.name.lower().rindex(".nii")]
