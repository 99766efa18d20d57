"""Writing label maps as DICOM SEG, through highdicom, on the slices of the series they belong to.

Each segment refers to the series, its study and, frame by frame, to the slices of the scan; patient
and study are those of the scan. Planes have the positions of the slices, so that a tilted, reversed
or enhanced series keeps its geometry.
"""

import hashlib
import warnings
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from medar.errors import MedarError, one_line
from medar.files import atomic_path
from medar.version import __version__
from medar.volume.dicom import ordered_series
from medar.volume.dicom_codes import code_name, label_text
from medar.volume.dicom_slice import Slice
from medar.volume.header import file_grid
from medar.volume.volume import Volume
from medar.volume.write import as_stored

MAKER = "medar"
REQUIRED = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID")
"""Attributes that a SEG refers to."""
MAY_LACK = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID",
    "StudyDate", "StudyTime",
)  # fmt: skip
"""Attributes that a SEG must state, if need be as empty."""
SINGLE_FRAME = "1.2.840.10008.5.1.4.1.1.2"
"""A class of one slice per file: highdicom takes several files of no other."""
SERIES_NUMBER = 1000
"""Added to the number of the scan's series."""


class _Source(NamedTuple):
    """The scan that a SEG belongs to."""

    images: list[Any]
    """Data sets without pixels: one per slice, or a single one of all frames."""
    planes: list[int]
    """The slice of each image, or of each frame."""
    sop_class: str
    """Of the files, which `images` do not state for enhanced files of one frame."""


def check_seg(*, source: Volume | None = None) -> None:
    """Check that a SEG can be written, before any work is done.

    Args:
        source: the scan that it will belong to, if that is known.

    Raises:
        MedarError: highdicom is not installed, or the scan is not DICOM.
    """
    if find_spec("highdicom") is None:
        raise MedarError(
            "DICOM SEG needs the package highdicom; install it with `pip install 'medar[dicom]'`"
        )
    if source is not None and (source.provenance is None or source.provenance.format != "DICOM"):
        path = source.provenance.path if source.provenance else "volume"
        raise MedarError(
            f"{path}: not DICOM, so that a DICOM SEG could not refer to it; write another format"
        )


def write_seg(
    path: str | Path,
    label: Volume,
    names: Mapping[int, str],
    *,
    model: str,
    description: str = "",
) -> None:
    """Write a label map as a DICOM SEG with one binary segment per label.

    The same label map of the same scan gets the same unique identifiers.

    Args:
        path: ends in .dcm.
        label: (1, X, Y, Z), with the provenance of the scan, which is a DICOM series.
        names: of the labels by value; segments are numbered from 1 in the order of the values.
        model: identifies what made the label map, such as a digest of weights.
        description: what the file is.

    Raises:
        MedarError: see `check_seg`; the series has changed, lacks what a SEG refers to, or is of
            several files with several frames each; the file cannot be written.
    """
    path = Path(path)
    check_seg(source=label)
    provenance = label.provenance
    assert provenance is not None
    folder, slices, affine, _ = ordered_series(Path(provenance.path), provenance.series)
    columns, rows = slices[0].size
    if not file_grid(folder, (columns, rows, len(slices)), affine).matches(provenance.grid):
        raise MedarError(f"{folder}: the series has changed since it was read; run it again")
    voxels = as_stored(path, label, "source")[0][0]
    numbers = np.zeros(max(names) + 1, dtype=np.uint8 if len(names) < 256 else np.uint16)
    numbers[sorted(names)] = np.arange(1, len(names) + 1)
    planes = np.ascontiguousarray(numbers[voxels].transpose(2, 1, 0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of values in the scan that the standard does not allow
        try:
            made = _segmentation(_source(folder, slices), planes, names, model, description)
            with atomic_path(path) as temporary:
                made.save_as(temporary, enforce_file_format=True)
        except OSError as error:
            raise MedarError(f"{path}: cannot be written ({error.strerror or error})") from error
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            raise MedarError(
                f"{folder}: no DICOM SEG can refer to this series ({one_line(error)}); write "
                "another format"
            ) from error


def seg_description(path: Path) -> str | None:
    """The description in a SEG that `write_seg` has written; None for any other file."""
    if find_spec("pydicom") is None:
        return None
    import pydicom

    try:
        file = pydicom.dcmread(path, stop_before_pixels=True)
        return str(file.ContentDescription) if file.Manufacturer == MAKER else None
    except Exception:  # pydicom raises many types
        return None


def _source(folder: Path, slices: list[Slice]) -> _Source:
    """The data sets of a series that highdicom takes.

    Raises:
        MedarError: one lacks what a SEG refers to; several files with several frames each.
    """
    sop_class = slices[0].tags["SOPClassUID"]
    paths = list(dict.fromkeys(one.path for one in slices))
    if len(paths) == 1:
        frames = [one.frame or 0 for one in slices]
        return _Source([_data_set(slices[0])], np.argsort(frames).tolist(), sop_class)
    if len(paths) < len(slices):
        raise MedarError(
            f"{folder}: {len(paths)} files with several frames each, to which medar writes no "
            "DICOM SEG; write another format"
        )
    return _Source([_data_set(one) for one in slices], list(range(len(slices))), sop_class)


def _data_set(one: Slice) -> Any:
    """The attributes of a file; those of a single enhanced frame as of a classic slice."""
    import pydicom

    file = pydicom.dcmread(one.path, stop_before_pixels=True)
    for name in REQUIRED:
        if not file.get(name):
            raise MedarError(
                f"{one.path}: no {name}, which a DICOM SEG refers to; write another format"
            )
    for name in MAY_LACK:
        if name not in file:
            setattr(file, name, "")
    if one.frame is None or int(file.get("NumberOfFrames") or 1) > 1:
        return file
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
        setattr(file, name, one.tags[name].split("\\"))
    file.SliceThickness = one.tags["SliceThickness"]
    file.SOPClassUID = SINGLE_FRAME
    for name in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        file.pop(name, None)
    del file.NumberOfFrames
    return file


def _segmentation(
    source: _Source,
    planes: npt.NDArray[Any],
    names: Mapping[int, str],
    model: str,
    description: str,
) -> Any:
    """highdicom's SEG.

    Args:
        source: the scan.
        planes: (slices, rows, columns), the number of the segment of each voxel, 0 for none.
        names: see `write_seg`.
        model: see `write_seg`.
        description: see `write_seg`.
    """
    import highdicom
    from pydicom.sr.codedict import codes
    from pydicom.uid import generate_uid

    first = source.images[0]
    if not first.get("SliceThickness") and "SharedFunctionalGroupsSequence" not in first:
        for image in source.images:
            image.SliceThickness = f"{_distance(source.images):.6g}"
    algorithm = highdicom.AlgorithmIdentificationSequence(
        name=MAKER, family=codes.DCM.ArtificialIntelligence, version=__version__
    )
    content = hashlib.sha256(planes.tobytes()).hexdigest()
    basis = [first.SOPInstanceUID, model, content, *names.values()]
    made = highdicom.seg.Segmentation(
        source_images=source.images,
        pixel_array=planes[source.planes],
        segmentation_type="BINARY",
        segment_descriptions=[
            _segment(number, names[value], algorithm)
            for number, value in enumerate(sorted(names), start=1)
        ],
        series_instance_uid=generate_uid(entropy_srcs=["series", *basis]),
        sop_instance_uid=generate_uid(entropy_srcs=["instance", *basis]),
        series_number=SERIES_NUMBER + int(first.get("SeriesNumber") or 0),
        instance_number=1,
        manufacturer=MAKER,
        manufacturer_model_name=MAKER,
        software_versions=__version__,
        device_serial_number=model[:64],
        series_description="Segmentation by medar",
        content_description=description or None,
        content_label="SEGMENTATION",
        omit_empty_frames=bool(planes.any()),
        specific_character_set="ISO_IR 192",  # label names may be in any script
    )
    for element in made.iterall():
        if element.keyword == "ReferencedSOPClassUID":
            element.value = source.sop_class
    return made


def _segment(number: int, name: str, algorithm: Any) -> Any:
    """highdicom's description of a segment."""
    import highdicom

    coded = code_name(name)
    made = highdicom.seg.SegmentDescription(
        segment_number=number,
        segment_label=label_text(name),
        segmented_property_category=coded.category,
        segmented_property_type=coded.kind,
        algorithm_type="AUTOMATIC",
        algorithm_identification=algorithm,
    )
    if coded.side is not None:
        made.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [
            highdicom.sr.CodedConcept.from_code(coded.side)
        ]
    return made


def _distance(images: list[Any]) -> float:
    """The distance of the first two slices along their normal, in mm."""
    row, column = np.array(images[0].ImageOrientationPatient, dtype=np.float64).reshape(2, 3)
    a, b = (np.array(one.ImagePositionPatient, dtype=np.float64) for one in images[:2])
    return float(abs(np.cross(row, column) @ (b - a)))
