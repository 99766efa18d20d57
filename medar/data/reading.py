"""Reading the volumes of a case: its channels stacked, its label on the same grid."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from medar.data.manifest import Case, Manifest
from medar.data.plan import Plan, check_reading
from medar.data.segments import read_label_header
from medar.errors import GeometryWarning, MedarError, OffGridError
from medar.volume import ReadOptions, Volume, load_volume, read_header, read_volume


def reading_for(manifest: Manifest, options: ReadOptions) -> ReadOptions:
    """The reading options of a data set: 4D files hold channels if the data set names several."""
    return replace(options, channels=True) if len(manifest.channels) > 1 else options


def merged_reading(reading: ReadOptions, options: ReadOptions | None) -> ReadOptions:
    """Reading options of a plan, in place of which those in `options` apply that are no default."""
    default = ReadOptions()
    changed = {k: v for k, v in vars(options or default).items() if v != getattr(default, k)}
    return replace(reading, **changed)


def read_image(case: Case, options: ReadOptions) -> Volume:
    """Read a case's image, (C, X, Y, Z), from one file per channel or one file for all.

    Raises:
        MedarError: a file cannot be read, or the channels lie on different grids.
    """
    return stack_channels(
        case.images,
        [
            load_volume(read_header(path, options), options, modality=case.modality)
            for path in case.images
        ],
    )


def stack_channels(paths: Sequence[Path], volumes: Sequence[Volume]) -> Volume:
    """Stack the channels of several files to one volume, (C, X, Y, Z).

    Args:
        paths: the files, for messages.
        volumes: their volumes, in the order of the channels.

    Raises:
        MedarError: they lie on different grids.
    """
    first = volumes[0]
    if len(volumes) == 1:
        return first
    for path, volume in zip(paths, volumes, strict=True):
        if not volume.grid.matches(first.grid):
            raise MedarError(
                f"{path}: its grid differs from that of {paths[0].name}; "
                "resample the channels of a case onto one grid first"
            )
    return Volume(
        array=np.concatenate([volume.array for volume in volumes]),
        affine=first.affine,
        modality=first.modality,
        provenance=first.provenance,
    )


def read_for_plan(
    plan: Plan,
    path: str | Path | Sequence[Path],
    options: ReadOptions | None = None,
    modality: str | None = None,
) -> Volume:
    """Read a volume in the way a plan's data set was read.

    Args:
        plan: its reading options apply where `options` has the defaults.
        path: a file or DICOM folder (see `medar.volume.read_volume`), or one file per channel.
        options: options that differ for this file.
        modality: "CT" or "MR" for a file that does not state it; default: `plan.sole_modality`.

    Raises:
        MedarError: a file cannot be read without guessing, NaN and Inf are to be kept, or the
            channels lie on different grids.
    """
    reading = merged_reading(plan.reading, options)
    paths = [Path(path)] if isinstance(path, str | Path) else path
    if len(plan.channels) > 1 and len(paths) == 1:
        reading = replace(reading, channels=True)
    check_reading(reading)
    volumes = [read_volume(one, **reading.to_dict(), modality=modality) for one in paths]
    volume = stack_channels(paths, volumes)
    return replace(volume, modality=volume.modality or plan.sole_modality)


def read_label_map(path: str | Path, names: Mapping[int, str]) -> Volume:
    """Read a label map without its image, (1, X, Y, Z), on its own grid.

    Args:
        path: the file.
        names: of the labels by value, see `read_label_header`.

    Raises:
        MedarError: it cannot be read without guessing.
    """
    options = ReadOptions()
    header = read_label_header([Path(path)], options, None, names)
    for note in header.notes:
        warnings.warn(f"{path}: {note}", GeometryWarning, stacklevel=2)
    return load_volume(header, options, labels=True)


class UnreadableLabelError(MedarError):
    """The label map of a case is damaged; its image need not be."""


def read_label(
    case: Case, options: ReadOptions, image: Volume, names: Mapping[int, str]
) -> Volume | None:
    """Read a case's label map, (1, X, Y, Z), on the image's grid; None if it has none.

    Args:
        case: with its label.
        options: how to read it.
        image: its image, as it was read.
        names: of the labels by value, if they have names; see `read_label_header`.

    Raises:
        UnreadableLabelError: the file cannot be read, or holds fractions.
        MedarError: the label map lies on another grid.
    """
    if case.label is None:
        return None
    try:
        header = read_label_header(case.labels, options, image.provenance, names)
        label = load_volume(header, options, labels=True)
    except OffGridError:
        raise
    except MedarError as error:
        raise UnreadableLabelError(str(error)) from error
    if label.shape != image.shape:
        raise MedarError(
            f"{case.label}: a label map must have its image's shape {_sides(image)}, got "
            f"{_sides(label)}"
        )
    if not label.grid.matches(image.grid):
        raise MedarError(
            f"{case.label}: its corners are {label.grid.distance(image.grid):.3g} mm away from "
            "the image's; correct the affine that is wrong"
        )
    return Volume(array=label.array, affine=image.affine, provenance=label.provenance)


def _sides(volume: Volume) -> str:
    return "x".join(map(str, volume.shape))
