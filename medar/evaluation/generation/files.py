"""Generated volumes in files: read into the prepared space of a plan, and as volumes for a picture.

A folder holds `NAME.nii.gz` (or .nii), each optionally with its label map `NAME_label.nii.gz`.

B batch, C channels, X Y Z voxels.
"""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from medar.data.loading import PreparedDataset
from medar.data.manifest import Case
from medar.data.plan import Plan, Window
from medar.data.preparation import at_plan_spacing, prepare_image, prepare_label
from medar.data.reading import merged_reading, read_for_plan, read_label
from medar.errors import MedarError
from medar.evaluation.generation.batches import Batch, LazyBatches
from medar.evaluation.generation.evaluate import HeldOut
from medar.evaluation.reconstruction.cases import cases_of
from medar.volume import Shape3, Volume, read_header
from medar.words import format_count

ENDINGS = (".nii", ".nii.gz")

LABEL = "_label"
"""Suffix of a label map's name, after that of its volume."""


class GeneratedFile(NamedTuple):
    """One volume, and its label map if there is one."""

    image: Path
    label: Path | None


def generated_files(folder: str | Path) -> list[GeneratedFile]:
    """The volumes of a folder, by name.

    Raises:
        MedarError: no such folder, or no volume in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise MedarError(f"{folder}: no such folder of generated volumes")
    paths = [path for path in sorted(folder.iterdir()) if path.name.lower().endswith(ENDINGS)]
    by_stem = {_stem(path): path for path in paths}
    files = [
        GeneratedFile(path, by_stem.get(stem + LABEL))
        for stem, path in by_stem.items()
        if not (stem.endswith(LABEL) and stem.removesuffix(LABEL) in by_stem)
    ]
    if not files:
        raise MedarError(f"{folder}: contains no volumes ({' or '.join(ENDINGS)} files)")
    return files


def read_generated(
    files: list[GeneratedFile], plan: Plan, *, batch_size: int = 4
) -> LazyBatches[GeneratedFile]:
    """Batches of the volumes as the plan prepares them, with label maps if all have one.

    Args:
        files: see `generated_files`.
        plan: of the prepared data set.
        batch_size: volumes per batch.

    Raises:
        MedarError: a file cannot be read, only some have labels, or a size is not the plan's: in
            volume mode, less than half of its side or more than twice.

    Warns:
        UserWarning: volumes are cropped or padded to the plan's size.
    """
    missing = [one.image for one in files if one.label is None]
    labelled = bool(plan.labels) and len(missing) < len(files)
    if labelled and missing:
        raise MedarError(f"{missing[0]}: has no label map, but other volumes have one")
    if plan.mode == "volume":
        _check_sizes([one.image for one in files], plan)
    return LazyBatches(
        items=[files[start : start + batch_size] for start in range(0, len(files), batch_size)],
        make=partial(_read_batch, plan=plan, labelled=labelled),
    )


def _check_sizes(paths: Sequence[Path], plan: Plan) -> None:
    """Compare the sizes of files, at the plan's spacing, with the plan's; only headers are read."""
    others, options = {}, merged_reading(plan.reading, None)
    for path in paths:
        size = at_plan_spacing(read_header(path, options).grid.to_ras(), plan).shape
        if size != plan.size:
            others[path] = size
    for path, size in others.items():
        if any(2 * n < m or n > 2 * m for n, m in zip(size, plan.size, strict=True)):
            raise MedarError(
                f"{path}: {_by(size)} voxels at the plan's spacing, but the plan's size is "
                f"{_by(plan.size)}: cropped or padded, it cannot be compared; generate volumes of "
                "this size, or prepare the data with a plan of theirs"
            )
    if others:
        path, size = next(iter(others.items()))
        warnings.warn(
            f"{len(others)} of {format_count(len(paths), 'volume')} cropped or padded to the "
            f"plan's size {_by(plan.size)}, such as {path} of {_by(size)} at the plan's spacing: "
            "what is cut off or added counts",
            stacklevel=3,
        )


def _by(size: Shape3) -> str:
    return " x ".join(map(str, size))


def _read_batch(files: Sequence[GeneratedFile], plan: Plan, labelled: bool) -> Batch:
    pairs = [_read(one, plan, labelled) for one in files]
    volumes = torch.from_numpy(np.stack([image for image, _ in pairs]))
    labels = [torch.from_numpy(label) for _, label in pairs if label is not None]
    return (volumes, torch.stack(labels)) if labelled else volumes


def _read(
    file: GeneratedFile, plan: Plan, labelled: bool
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.integer] | None]:
    """(C, X, Y, Z) in [-1, 1] and, if `labelled`, (1, X, Y, Z) label values."""
    # A generated volume is already cropped; cropping to its foreground would crop it again.
    plan = replace(plan, centre="image")
    volume = read_for_plan(plan, file.image)
    try:
        image, trace = prepare_image(volume, plan)
    except MedarError as error:
        raise MedarError(f"{file.image}: {error}") from error
    if image.shape[1:] != plan.size:
        raise MedarError(
            f"{file.image}: {' x '.join(map(str, image.shape[1:]))} voxels at the plan's spacing, "
            f"expected the plan's size {' x '.join(map(str, plan.size))}"
        )
    if not labelled:
        return image, None
    case = Case(id=file.image.name, images=(file.image,), label=file.label)
    label = read_label(case, plan.reading, volume, plan.labels)
    assert label is not None
    try:
        return image, prepare_label(label, trace.target, plan)
    except MedarError as error:
        raise MedarError(f"{file.label}: {error}") from error


def generated_volumes(files: list[GeneratedFile], plan: Plan) -> dict[str, Volume]:
    """Generated volumes for a picture, by name.

    Raises:
        MedarError: see `read_generated`.
    """
    return {_stem(one.image): as_volume(_read(one, plan, labelled=False)[0], plan) for one in files}


def held_out_volumes(prepared: str | Path, split: HeldOut, count: int) -> dict[str, Volume]:
    """At most `count` held-out cases for a picture, evenly spaced over the split, by name."""
    subset = cases_of(prepared, split)
    dataset = subset.dataset
    assert isinstance(dataset, PreparedDataset)
    positions = np.linspace(0, len(subset) - 1, min(count, len(subset))).round().astype(int)
    indices = [subset.indices[position] for position in positions]
    return {
        dataset.prepared[index].id: as_volume(dataset[index]["image"].numpy(), dataset.plan)
        for index in indices
    }


def as_volume(array: npt.NDArray[np.float32], plan: Plan) -> Volume:
    """A prepared array, (C, X, Y, Z), as a volume with the plan's spacing.

    In HU if all cases are CT with a fixed window; else in [-1, 1], as percentiles have no unit.
    """
    modality = plan.sole_modality
    rule = plan.intensity.get(modality or "")
    fixed = rule is not None and rule.kind == "window"
    window = Window(low=rule.low, high=rule.high) if rule and fixed else Window(low=-1.0, high=1.0)
    affine = np.diag([*plan.spacing, 1.0])
    return Volume(array=window.restore(array), affine=affine, modality=modality if fixed else None)


def _stem(path: Path) -> str:
    return path.name[: path.name.lower().rindex(".nii")]
