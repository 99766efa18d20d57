"""Segmentation of files: a volume file, a DICOM series, a folder of them, or a prepared data set.

Each label map `x.nii.gz` comes with `x.json`: names and volumes of the labels, the source file, the
model's digest, and how the volume differs from the training volumes; and on request with
`x_probabilities.nii.gz`, the probabilities of all classes. Other formats than NIfTI: `targets`.
"""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from medar.data.hashes import HashIndex
from medar.data.manifest import Case, Split
from medar.data.prepared import Prepared
from medar.data.reading import read_for_plan, read_image, reading_for
from medar.data.sources.files import (
    channel_of,
    find_volumes,
    ids_for,
    is_segmentation_file,
    split_ending,
    stem_of,
    visible,
)
from medar.data.sources.label_names import label_maps
from medar.devices import device_of, inference_precision
from medar.errors import MedarError
from medar.files import TEMPORARY, read_json_object, write_json
from medar.files import digest as content_digest
from medar.parallel import run_parallel
from medar.progress import track
from medar.segmentation.prediction import Prediction, predict, restore_probabilities
from medar.segmentation.segmenter import Segmenter
from medar.segmentation.sliding_window import DEFAULT, Models, PredictionSettings, as_ensemble
from medar.segmentation.targets import (
    DESCRIPTION,
    SEG_ENDING,
    LabelFormat,
    check_output,
    check_target,
    is_folder_of_volumes,
    write_label,
)
from medar.settings import to_dict
from medar.shared import Shared
from medar.volume import ReadOptions, Volume, write_channels
from medar.volume.counts import value_counts
from medar.volume.dicom_seg import check_seg

ENDING = ".nii.gz"
"""Of label maps of prepared data sets, and of probabilities beside formats of three axes."""
PROBABILITIES = "_probabilities"
"""Suffix of files of probabilities."""


def segment_files(
    model: Models,
    path: str | Path,
    out: str | Path,
    settings: PredictionSettings = DEFAULT,
    *,
    options: ReadOptions | None = None,
    modality: str | None = None,
    probabilities: bool = False,
    format: LabelFormat | None = None,
) -> Iterator[tuple[str, Path | MedarError]]:
    """Segment a file, or every volume of a folder.

    In a folder, label maps that an earlier run made of the same files in the same way are kept.

    Args:
        model: a network or an ensemble, in evaluation mode.
        path: a volume file, the folder of a DICOM series, or a folder of these at any depth. For a
            network with several channels, the files ID_0000, ID_0001, ... are the channels of one
            volume, in the order of the plan; any other file must hold all channels.
        out: a file, .nii, .nii.gz, .nrrd, .mha or .dcm (DICOM SEG, of a
            DICOM series); for a folder of volumes, a folder.
        settings: of prediction.
        options: reading options that differ from the plan's.
        modality: of the volumes, where the files do not state it and the plan has several rules.
        probabilities: write the probabilities of all classes too.
        format: of the label maps in a folder; default: nii.gz.

    Yields:
        A volume's path, and the label map that was written or, within a folder, the error; on a
        cluster (`medar.cluster`) in the order in which workers finish.

    Raises:
        MedarError: see `check_output`; a folder without volumes; networks with different plans; a
            single file that cannot be read or segmented.

    Warns:
        RangeWarning: see `predict`.
    """
    path, out = Path(path), Path(out)
    ending = check_output(path, out, format)
    models = as_ensemble(model)
    channels = len(models[0].plan.channels) or 1
    work = _Work(
        models=[Shared(one) for one in models],
        digest=ensemble_digest(models),
        settings=settings,
        options=options or ReadOptions(),
        modality=modality,
        probabilities=probabilities,
    )
    if not is_folder_of_volumes(path):
        beside = visible(path.parent) if channels > 1 and path.is_file() else []
        belong = (files for _, files in _volumes(beside, channels) if path in files)
        files = next(belong, [path])
        _segment_volume((files, out), work, resume=False)
        yield str(files[0]), out
        return
    pairs = _pairs(path, out, channels, ending)
    segment = partial(_segment_volume, work=work, resume=True)
    for outcome in run_parallel(segment, pairs, workers=1):
        files, target = outcome.item
        if outcome.error is None:
            yield str(files[0]), target
        else:  # also a defect of the reader costs one volume only
            yield str(files[0]), MedarError(outcome.error)


@dataclass(frozen=True, kw_only=True)
class _Work:
    """What the volumes of a folder have in common; see `segment_files`."""

    models: list[Shared[Segmenter]]
    digest: str
    """Of the models."""
    settings: PredictionSettings
    options: ReadOptions
    modality: str | None
    probabilities: bool


def _segment_volume(pair: tuple[list[Path], Path], work: _Work, *, resume: bool) -> None:
    """Segment one volume, of one or several files, unless its label map exists already.

    Args:
        pair: files and target.
        work: what to do.
        resume: keep a label map that was made in the same way.
    """
    files, target = pair
    models = [one.model for one in work.models]
    check_target(target)
    key = None
    if resume:
        hashes = HashIndex()
        key = _key([hashes[file] for file in files], models, work)
        if _is_made(target, key):
            return
    volume = read_for_plan(models[0].plan, files, work.options, work.modality)
    write_segmentation(
        target,
        models,
        volume,
        work.digest,
        work.settings,
        probabilities=work.probabilities,
        key=key,
    )


def write_segmentation(
    target: Path,
    models: Models,
    volume: Volume,
    digest: str,
    settings: PredictionSettings = DEFAULT,
    *,
    probabilities: bool = False,
    key: str | None = None,
) -> None:
    """Segment a volume and write its label map and the JSON file beside it.

    Args:
        target: see `segment_files`.
        models: see `segment_files`.
        volume: as read from a file.
        digest: of the networks, for the JSON file.
        settings: of prediction.
        probabilities: write the probabilities of all classes too.
        key: of everything that the result depends on, for the JSON file; None without one.

    Raises:
        MedarError: it cannot be segmented or written.
    """
    networks = as_ensemble(models)
    if target.name.lower().endswith(SEG_ENDING):
        check_seg(source=volume)
    if probabilities:
        made = _write_probabilities(models, volume, target, settings)
    else:
        made = predict(models, volume, settings)
    write_label(target, made.label, networks[0].plan.labels, digest)
    about = {
        **_summary(networks[0].plan.labels, volume, made),
        "model": digest,
        "precision": inference_precision(device_of(networks[0]), settings.precision),
        **({} if key is None else {"key": key}),
    }
    write_json(_beside(target, ".json"), about)


def segment_cases(
    model: Models,
    data: str | Path,
    split: Split,
    out: str | Path,
    settings: PredictionSettings = DEFAULT,
) -> list[Path]:
    """Segment every case of a split, labelled or not, from its own files and on their grid.

    Args:
        model: a network or an ensemble, in evaluation mode.
        data: a prepared data set, which records the cases' files.
        split: the cases.
        out: a folder; CASE.nii.gz and CASE.json are written there.
        settings: of prediction.

    Returns:
        The label maps.

    Raises:
        MedarError: the split is empty, or a file cannot be read or segmented.
    """
    models = as_ensemble(model)
    plan = models[0].plan
    manifest = Prepared(data).manifest()
    reading, cases = reading_for(manifest, plan.reading), manifest.select(split)
    if not cases:
        raise MedarError(f"{data}: no case in the split {split!r} to segment")
    work = _Work(
        models=[Shared(one) for one in models],
        digest=ensemble_digest(models),
        settings=settings,
        options=reading,
        modality=plan.sole_modality,
        probabilities=False,
    )
    outcomes = run_parallel(partial(_segment_case, work=work, out=Path(out)), cases, workers=1)
    for outcome in track(outcomes, total=len(cases), label="segment"):
        outcome.result()
    return [_label_map(Path(out), case) for case in cases]


def _segment_case(case: Case, work: _Work, out: Path) -> None:
    image = read_image(case, work.options)
    image = replace(image, modality=image.modality or work.modality)
    models = [one.model for one in work.models]
    write_segmentation(_label_map(out, case), models, image, work.digest, work.settings)


def _label_map(out: Path, case: Case) -> Path:
    return out / f"{case.id}{ENDING}"


def _key(hashes: list[str], models: Models, work: _Work) -> str:
    """A hash of everything that the label map of a volume depends on."""
    network, settings = as_ensemble(models)[0], work.settings
    return content_digest(
        {
            "files": hashes,
            "model": work.digest,
            "settings": to_dict(settings),
            "precision": inference_precision(device_of(network), settings.precision),
            "probabilities": work.probabilities,
            "options": to_dict(work.options),
            "modality": work.modality,
        }
    )


def _is_made(target: Path, key: str) -> bool:
    """Whether an earlier run has written a label map of this key; its JSON file comes last."""
    try:
        about = read_json_object(_beside(target, ".json"))
    except MedarError:
        return False
    return target.exists() and about.get("key") == key


def ensemble_digest(models: Models) -> str:
    """The digest of a network; of an ensemble, all of them joined by +."""
    return "+".join(model.digest for model in as_ensemble(models))


def _write_probabilities(
    models: Models, volume: Volume, target: Path, settings: PredictionSettings
) -> Prediction:
    """Segment a volume and write its probabilities, by way of a temporary file beside them."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = TemporaryDirectory(dir=target.parent, prefix=TEMPORARY)
    except OSError as error:
        raise MedarError(f"{target}: cannot be written ({error.strerror})") from error
    with folder as scratch:
        made = predict(models, volume, settings, scratch=Path(scratch))
        assert made.probabilities is not None
        channels = restore_probabilities(made.probabilities, made.trace)
        nifti = ".nii" if target.name.lower().endswith(".nii") else ENDING
        beside = _beside(target, f"{PROBABILITIES}{nifti}")
        write_channels(beside, channels, len(made.probabilities), volume, description=DESCRIPTION)
    return made


def _pairs(path: Path, out: Path, channels: int, ending: str) -> list[tuple[list[Path], Path]]:
    """The files of each volume below a folder, and the path of its label map."""
    files = [one for one in find_volumes(path) if not one.resolve().is_relative_to(out.resolve())]
    files = [one for one in files if not is_segmentation_file(one)]
    labels = label_maps([stem_of(one, path) for one in files])
    if skipped := [one for one in files if stem_of(one, path) in labels]:
        files = [one for one in files if one not in skipped]
        warnings.warn(
            f"{len(skipped)} files that are named as label maps are left out (the first: "
            f"{skipped[0]}); give such a file by its own path to segment it",
            stacklevel=3,
        )
    if not files:
        raise MedarError(f"{path}: no volume found; give a volume file or a folder of volumes")
    volumes = _volumes(files, channels)
    stems = [stem_of(name, path) for name, _ in volumes]
    ids = ids_for(stems)
    if len(set(stems)) < len(stems):
        twice = next(stem for stem in stems if stems.count(stem) > 1)
        raise MedarError(f"{path}: two volumes are named {twice!r}; rename one of them")
    return [
        (files, out / f"{ids[stem]}{ending}")
        for (_, files), stem in zip(volumes, stems, strict=True)
    ]


def _volumes(paths: Sequence[Path], channels: int) -> list[tuple[Path, list[Path]]]:
    """Name and files of each volume; channels share the name without their numbers."""
    numbered: dict[Path, dict[int, Path]] = {}
    for path in paths:
        if channels > 1 and (of := channel_of(path)):
            numbered.setdefault(of[0], {})[of[1]] = path
    several = {
        name: [files[number] for number in range(channels)]
        for name, files in numbered.items()
        if set(files) == set(range(channels))
    }
    grouped = {path for files in several.values() for path in files}
    return [*several.items(), *((path, [path]) for path in paths if path not in grouped)]


def _beside(target: Path, ending: str) -> Path:
    stem, known = split_ending(target.name)
    return target.with_name(f"{stem if known else target.stem}{ending}")


def _summary(names: dict[int, str], volume: Volume, made: Prediction) -> dict[str, Any]:
    """The content of the JSON file beside a label map, without the networks' digest."""
    label = made.label
    voxels = value_counts(label.array)
    millilitres = abs(float(np.linalg.det(label.affine[:3, :3]))) / 1000
    geometry = volume.provenance.notes if volume.provenance else ()
    return {
        "image": volume.provenance and volume.provenance.path,
        "labels": {"0": "background", **{str(v): name for v, name in names.items()}},
        "millilitres": {
            name: round(voxels.get(value, 0) * millilitres, 3) for value, name in names.items()
        },
        "notes": [*geometry, *made.notes],
        **(
            {} if made.probabilities is None else {"probabilities": ["background", *names.values()]}
        ),
    }
