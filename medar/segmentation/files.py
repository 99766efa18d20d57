"""Files through a segmentation network: a file, a DICOM series, or a folder of such.

Beside each label map, `x.nii.gz`, lies `x.json`: the names of its labels, how much of each there
is, and what it was made from and by.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from medar.data.sources.files import find_volumes, ids_for, is_dicom_folder, split_ending, stem_of
from medar.errors import MedarError
from medar.files import write_json
from medar.segmentation.folder import model_digest
from medar.segmentation.network import Segmenter
from medar.segmentation.prediction import DEFAULT, PredictionSettings, segment
from medar.tokenizer.inference import read_for
from medar.volume import ReadOptions, Volume, write_nifti

ENDING = ".nii.gz"


def is_folder_of_volumes(path: Path) -> bool:
    """Whether a path is a folder of several volumes, rather than a file or a DICOM series."""
    return path.is_dir() and not is_dicom_folder(path)


def check_output(path: Path, out: Path) -> None:
    """Refuse an OUT that cannot hold what is made of a path, before any work is done.

    Raises:
        MedarError: a folder's label maps need a folder, a file's a NIfTI file.
    """
    ending = out.name.lower().endswith((".nii", ".nii.gz"))
    if is_folder_of_volumes(path):
        if ending or (out.exists() and not out.is_dir()):
            raise MedarError(
                f"{out}: {path} is a folder, so its label maps need one; name a folder"
            )
    elif not ending:
        raise MedarError(f"{out}: label maps are written as .nii or .nii.gz")
    if out.resolve() == path.resolve():
        raise MedarError(f"{out}: would replace what is to be segmented; name another place")


def segment_files(
    model: Segmenter,
    path: str | Path,
    out: str | Path,
    settings: PredictionSettings = DEFAULT,
    *,
    options: ReadOptions | None = None,
    modality: str | None = None,
) -> Iterator[tuple[str, Path | MedarError]]:
    """Segment a file or every volume of a folder, one after the other.

    Args:
        model: in evaluation mode.
        path: a volume file, the folder of a DICOM series, or a folder of such, at any depth.
        out: a file, .nii or .nii.gz; for a folder of volumes a folder.
        settings: how.
        options: what files leave open, where the model's plan does not say it.
        modality: what the volumes are, where the files do not say and the plan has several rules.

    Yields:
        A volume's path and the label map that was written, or, in a folder, why there is none.

    Raises:
        MedarError: what `check_output` refuses; no volume in a folder; a single file that cannot
            be read or segmented.
    """
    path, out = Path(path), Path(out)
    check_output(path, out)
    digest = model_digest(model)
    several = is_folder_of_volumes(path)
    for source, target in _pairs(path, out) if several else [(path, out)]:
        try:
            volume = read_for(model.plan, source, options, modality)
            label = segment(model, volume, settings)
            write_nifti(target, label, grid="source", description="medar segment")
            write_json(_beside(target), _about(model, volume, label, digest))
        except MedarError as error:
            if not several:
                raise
            yield str(source), error
            continue
        yield str(source), target


def _pairs(path: Path, out: Path) -> list[tuple[Path, Path]]:
    """Every volume below a folder, and its label map's file."""
    found = [one for one in find_volumes(path) if not one.resolve().is_relative_to(out.resolve())]
    if not found:
        raise MedarError(f"{path}: no volume found; a volume file or a folder of them is needed")
    stems = {one: stem_of(one, path) for one in found}
    ids = ids_for(stems.values())
    if len(set(stems.values())) < len(found):
        twice = next(stem for stem in stems.values() if list(stems.values()).count(stem) > 1)
        raise MedarError(
            f"{path}: two files are named {twice!r} with different endings; rename one of them"
        )
    return [(one, out / f"{ids[stem]}{ENDING}") for one, stem in stems.items()]


def _beside(target: Path) -> Path:
    return target.with_name(f"{split_ending(target.name)[0]}.json")


def _about(model: Segmenter, volume: Volume, label: Volume, digest: str) -> dict[str, Any]:
    """What the JSON beside a label map says."""
    values, counts = np.unique(label.array, return_counts=True)
    voxels = dict(zip(values.tolist(), counts.tolist(), strict=True))
    millilitres = abs(float(np.linalg.det(label.affine[:3, :3]))) / 1000
    return {
        "image": volume.provenance and volume.provenance.path,
        "labels": {"0": "background", **{str(v): name for v, name in model.plan.labels.items()}},
        "millilitres": {
            name: round(voxels.get(value, 0) * millilitres, 3)
            for value, name in model.plan.labels.items()
        },
        "model": digest,
        "notes": list(volume.provenance.notes) if volume.provenance else [],
    }
