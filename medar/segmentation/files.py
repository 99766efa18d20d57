"""Files through a segmentation network: a file, a DICOM series, or a folder of such.

Beside each label map, `x.nii.gz`, lies `x.json`: the names of its labels, how much of each there
is, what it was made from and by, and what about it is unlike the training volumes. On request
`x_probabilities.nii.gz` too: the chances of all classes.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from medar.data.reading import read_for_plan
from medar.data.sources.files import (
    channel_of,
    find_volumes,
    ids_for,
    is_dicom_folder,
    split_ending,
    stem_of,
    visible,
)
from medar.errors import MedarError
from medar.files import TEMPORARY, write_json
from medar.segmentation.folder import model_digest
from medar.segmentation.prediction import (
    DEFAULT,
    Models,
    Prediction,
    PredictionSettings,
    ensemble,
    predict,
)
from medar.segmentation.probabilities import restored_chances
from medar.volume import ReadOptions, Volume, description_of, write_channels, write_nifti

ENDING = ".nii.gz"
SAID = "medar segment"
"""What the header of a label map says that it was made by."""
CHANCES = "_probabilities"
"""What the name of a label map's file of chances ends with."""


def is_folder_of_volumes(path: Path) -> bool:
    """Whether a path is a folder of several volumes, rather than a file or a DICOM series."""
    return path.is_dir() and not is_dicom_folder(path)


def check_output(path: Path, out: Path) -> None:
    """Refuse an OUT that cannot hold what is made of a path, before any work is done.

    Raises:
        MedarError: a folder's label maps need a folder, a file's a NIfTI file; or OUT holds what
            is to be segmented.
    """
    ending = out.name.lower().endswith((".nii", ".nii.gz"))
    if is_folder_of_volumes(path):
        if ending or (out.exists() and not out.is_dir()):
            raise MedarError(
                f"{out}: {path} is a folder, so its label maps need one; name a folder"
            )
        if path.resolve().is_relative_to(out.resolve()):
            raise MedarError(f"{out}: holds {path}, which is to be segmented; name another folder")
    elif not ending:
        raise MedarError(f"{out}: label maps are written as .nii or .nii.gz")
    else:
        check_target(out)


def check_target(target: Path) -> None:
    """Refuse to replace a file that is no label map of this module's, such as a second image.

    Raises:
        MedarError: it is there, and something else.
    """
    if target.exists() and description_of(target) != SAID:
        raise MedarError(
            f"{target}: is there, and no label map of medar segment's; name another place, or "
            "delete it"
        )


def segment_files(
    model: Models,
    path: str | Path,
    out: str | Path,
    settings: PredictionSettings = DEFAULT,
    *,
    options: ReadOptions | None = None,
    modality: str | None = None,
    probabilities: bool = False,
) -> Iterator[tuple[str, Path | MedarError]]:
    """Segment a file or every volume of a folder, one after the other.

    Args:
        model: in evaluation mode; of several networks, the mean of their chances.
        path: a volume file, the folder of a DICOM series, or a folder of such, at any depth. A
            network of several channels takes files ID_0000, ID_0001, ..., as many as it has, for
            those of one volume, in the order of its plan; any other file must hold all of them.
        out: a file, .nii or .nii.gz; for a folder of volumes a folder.
        settings: how.
        options: what files leave open, where the model's plan does not say it.
        modality: what the volumes are, where the files do not say and the plan has several rules.
        probabilities: write the chances of all classes too.

    Yields:
        A volume's path and the label map that was written, or, in a folder, why there is none.

    Raises:
        MedarError: what `check_output` refuses; no volume in a folder; networks of different
            plans; a single file that cannot be read or segmented.

    Warns:
        RangeWarning: see `predict`.
    """
    path, out = Path(path), Path(out)
    check_output(path, out)
    models = ensemble(model)
    digest = digest_of(models)
    plan, several = models[0].plan, is_folder_of_volumes(path)
    channels = len(plan.channels) or 1
    if several:
        pairs = _pairs(path, out, channels)
    else:
        beside = visible(path.parent) if channels > 1 and path.is_file() else []
        belong = (files for _, files in _volumes(beside, channels) if path in files)
        pairs = [(next(belong, [path]), out)]
    for files, target in pairs:
        source = files[0]
        try:
            check_target(target)
            volume = read_for_plan(plan, files, options, modality)
            leave(target, models, volume, digest, settings, probabilities=probabilities)
        except MedarError as error:
            if not several:
                raise
            yield str(source), error
            continue
        yield str(source), target


def leave(
    target: Path,
    models: Models,
    volume: Volume,
    digest: str,
    settings: PredictionSettings = DEFAULT,
    *,
    probabilities: bool = False,
) -> None:
    """Segment a volume and write its label map, with its JSON beside it.

    Args:
        target: .nii or .nii.gz.
        models: see `segment_files`.
        volume: as read from a file.
        digest: of the networks, for the JSON.
        settings: how.
        probabilities: write the chances of all classes too.

    Raises:
        MedarError: it cannot be segmented, or not be written.
    """
    if probabilities:
        made = _with_chances(models, volume, target, settings)
    else:
        made = predict(models, volume, settings)
    write_nifti(target, made.label, grid="source", description=SAID)
    about = {**_about(ensemble(models)[0].plan.labels, volume, made), "model": digest}
    write_json(_beside(target, ".json"), about)


def digest_of(models: Models) -> str:
    """The digest of a network, or those of several."""
    return "+".join(map(model_digest, ensemble(models)))


def _with_chances(
    models: Models, volume: Volume, target: Path, settings: PredictionSettings
) -> Prediction:
    """Segment a volume and write the chances beside the label map, by way of a file there."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = TemporaryDirectory(dir=target.parent, prefix=TEMPORARY)
    except OSError as error:
        raise MedarError(f"{target}: cannot be written ({error.strerror})") from error
    with folder as scratch:
        made = predict(models, volume, settings, scratch=Path(scratch))
        assert made.chances is not None
        channels = restored_chances(made.chances, made.trace)
        beside = _beside(target, f"{CHANCES}{split_ending(target.name)[1]}")
        write_channels(beside, channels, len(made.chances), volume, description=SAID)
    return made


def _pairs(path: Path, out: Path, channels: int) -> list[tuple[list[Path], Path]]:
    """The files of every volume below a folder, and its label map's."""
    found = [one for one in find_volumes(path) if not one.resolve().is_relative_to(out.resolve())]
    if not found:
        raise MedarError(f"{path}: no volume found; a volume file or a folder of them is needed")
    volumes = _volumes(found, channels)
    stems = [stem_of(name, path) for name, _ in volumes]
    ids = ids_for(stems)
    if len(set(stems)) < len(stems):
        twice = next(stem for stem in stems if stems.count(stem) > 1)
        raise MedarError(f"{path}: two volumes are named {twice!r}; rename one of them")
    return [
        (files, out / f"{ids[stem]}{ENDING}")
        for (_, files), stem in zip(volumes, stems, strict=True)
    ]


def _volumes(found: Sequence[Path], channels: int) -> list[tuple[Path, list[Path]]]:
    """Each volume's name and files: its channels', named without their numbers, or the one file."""
    numbered: dict[Path, dict[int, Path]] = {}
    for path in found:
        if channels > 1 and (of := channel_of(path)):
            numbered.setdefault(of[0], {})[of[1]] = path
    several = {
        name: [files[number] for number in range(channels)]
        for name, files in numbered.items()
        if set(files) == set(range(channels))
    }
    taken = {path for files in several.values() for path in files}
    return [*several.items(), *((path, [path]) for path in found if path not in taken)]


def _beside(target: Path, ending: str) -> Path:
    return target.with_name(f"{split_ending(target.name)[0]}{ending}")


def _about(names: dict[int, str], volume: Volume, made: Prediction) -> dict[str, Any]:
    """What the JSON beside a label map says, save by which networks."""
    label = made.label
    values, counts = np.unique(label.array, return_counts=True)
    voxels = dict(zip(values.tolist(), counts.tolist(), strict=True))
    millilitres = abs(float(np.linalg.det(label.affine[:3, :3]))) / 1000
    geometry = volume.provenance.notes if volume.provenance else ()
    return {
        "image": volume.provenance and volume.provenance.path,
        "labels": {"0": "background", **{str(v): name for v, name in names.items()}},
        "millilitres": {
            name: round(voxels.get(value, 0) * millilitres, 3) for value, name in names.items()
        },
        "notes": [*geometry, *made.notes],
        **({} if made.chances is None else {"probabilities": ["background", *names.values()]}),
    }
