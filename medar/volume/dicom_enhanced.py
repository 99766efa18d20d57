"""Enhanced multi-frame DICOM (CT, MR, PET): the frames of a file as slices, through pydicom.

Position, orientation, spacing and rescaling of a frame stand in its functional groups: those that
all frames share, and those of the frame itself (PS3.3 C.7.6.16). They become the tags of a `Slice`,
so that frames are checked, sorted and scaled as the files of a classic series are; several files,
also of one frame each, may form a series. The order of frames in a file has no meaning.
"""

import warnings
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from medar.errors import MedarError, one_line
from medar.volume.apart import run_apart
from medar.volume.dicom_codestreams import Frame, header_fits
from medar.volume.dicom_kinds import storage_class
from medar.volume.dicom_lengths import inflates
from medar.volume.dicom_slice import TAGS, Slice, plain, read_slice
from medar.volume.dicom_values import rescale_of
from medar.volume.gdcm import read_pixels

ENHANCED = {
    "1.2.840.10008.5.1.4.1.1.2.1": "Enhanced CT",
    "1.2.840.10008.5.1.4.1.1.2.2": "Legacy Converted Enhanced CT",
    "1.2.840.10008.5.1.4.1.1.4.1": "Enhanced MR",
    "1.2.840.10008.5.1.4.1.1.4.4": "Legacy Converted Enhanced MR",
    "1.2.840.10008.5.1.4.1.1.130": "Enhanced PET",
    "1.2.840.10008.5.1.4.1.1.128.1": "Legacy Converted Enhanced PET",
}
"""SOP classes of images whose geometry stands in functional groups, even that of a single frame."""

OF_FRAMES = (
    "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SpacingBetweenSlices",
    "InstanceNumber",
)  # fmt: skip
"""Tags that frames do not have from their file."""

PIXELS = (
    "Rows", "Columns", "SamplesPerPixel", "BitsAllocated", "BitsStored", "HighBit",
    "PixelRepresentation",
)  # fmt: skip
"""Attributes that describe the pixels of a frame."""

SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"

GROUPS = {
    "FrameContentSequence": {
        "StackID": "StackID",
        "TemporalPositionIndex": "TemporalPositionIdentifier",
        "FrameAcquisitionNumber": "AcquisitionNumber",
        "FrameAcquisitionDateTime": "AcquisitionDateTime",
        "DimensionIndexValues": "DimensionIndexValues",
    },
    "PlanePositionSequence": {"ImagePositionPatient": "ImagePositionPatient"},
    "PlaneOrientationSequence": {"ImageOrientationPatient": "ImageOrientationPatient"},
    "PixelMeasuresSequence": {
        "PixelSpacing": "PixelSpacing",
        "SliceThickness": "SliceThickness",
        "SpacingBetweenSlices": "SpacingBetweenSlices",
    },
    "SegmentIdentificationSequence": {"ReferencedSegmentNumber": "ReferencedSegmentNumber"},
    "PixelValueTransformationSequence": {
        "RescaleSlope": "RescaleSlope",
        "RescaleIntercept": "RescaleIntercept",
    },
    "MREchoSequence": {"EffectiveEchoTime": "EchoTime"},
    "MRDiffusionSequence": {"DiffusionBValue": "DiffusionBValue"},
    "MRModifierSequence": {"InversionTimes": "InversionTime"},
    "MRTimingAndRelatedParametersSequence": {"FlipAngle": "FlipAngle"},
    "CardiacSynchronizationSequence": {
        "NominalCardiacTriggerDelayTime": "TriggerTime",
        "NominalPercentageOfCardiacPhase": "NominalPercentageOfCardiacPhase",
    },
    "CTXRayDetailsSequence": {"KVP": "KVP"},
    "CTReconstructionSequence": {"ConvolutionKernel": "ConvolutionKernel"},
    "CTImageFrameTypeSequence": {"FrameType": "ImageType"},
    "MRImageFrameTypeSequence": {"FrameType": "ImageType"},
    "PETFrameTypeSequence": {"FrameType": "ImageType"},
}
"""Attributes of functional groups, and the tags of a classic slice that they correspond to."""


def is_enhanced(one: Slice) -> bool:
    """Whether the geometry of a file stands in functional groups."""
    return one.tags["SOPClassUID"] in ENHANCED or one.tags["NumberOfFrames"] not in ("", "0", "1")


def read_file(path: Path) -> Slice | None:
    """The tags of a file; None if it holds no readable image.

    Enhanced files are read by pydicom, if it is installed: GDCM wants attributes that they may
    lack, and decodes pixels. Without pydicom it finds the series of such a file.
    """
    if storage_class(path) not in ENHANCED or find_spec("pydicom") is None:
        return read_slice(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return whole_file(path, read_dataset(path))
        except Exception:  # pydicom raises many types
            return None


def whole_file(path: Path, file: Any) -> Slice:
    """A file that pydicom has read, as one slice."""
    tags = {name: _text(file.get(name)) for name in TAGS}
    return Slice(path=path, tags=tags, size=(int(file.Columns), int(file.Rows)))


def frames_of(one: Slice) -> list[Slice]:
    """The frames of a multi-frame file.

    Args:
        one: the file, as `read_file` read it.

    Raises:
        MedarError: pydicom is not installed, the file is damaged, or it has no functional groups.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of values that the standard does not allow
        try:
            return frames_in(one, read_dataset(one.path))
        except MedarError:
            raise
        except Exception as error:  # pydicom raises many types
            raise MedarError(f"{one.path}: damaged ({one_line(error)})") from error


def frames_in(one: Slice, file: Any) -> list[Slice]:
    """The frames of a multi-frame file that pydicom has read (see `frames_of`)."""
    shared = file.get("SharedFunctionalGroupsSequence") or [{}]
    own = file.get("PerFrameFunctionalGroupsSequence")
    if not own:
        raise MedarError(
            f"{one.path}: multi-frame DICOM ({one.tags['NumberOfFrames'] or 1} frames) without "
            "functional groups, which state the position of each frame; convert it to NIfTI first, "
            "for instance with dcm2niix"
        )
    count = int(file.get("NumberOfFrames") or 1)
    if len(own) != count:
        raise MedarError(
            f"{one.path}: damaged: NumberOfFrames is {count}, but there are functional groups of "
            f"{len(own)} frames"
        )
    of_file = {name: _text(file.get(name)) or one.tags[name] for name in TAGS}
    # The number of a file says nothing of its frames, nor would a position.
    for name in OF_FRAMES:
        of_file[name] = ""
    of_all = _tags(shared[0])
    size = int(file.Columns), int(file.Rows)
    return [
        Slice(path=one.path, tags={**of_file, **of_all, **_tags(groups)}, size=size, frame=index)
        for index, groups in enumerate(own)
    ]


def _tags(groups: Any) -> dict[str, str]:
    """The tags that stand in functional groups."""
    found = {}
    for sequence, names in GROUPS.items():
        for item in groups.get(sequence) or ():
            for name, tag in names.items():
                if text := _text(item.get(name)):
                    found[tag] = text
    return found


def _text(value: Any) -> str:
    """A value as text, as it stands in the file; several values separated by backslashes."""
    if value is None:
        return ""
    several = not isinstance(value, str) and isinstance(value, Sequence)
    return plain("\\".join(map(str, value)) if several else str(value))


def load_frames(slices: Sequence[Slice], stack: npt.NDArray[np.float32]) -> None:
    """Read the pixels of frames, each scaled by its own slope and intercept.

    Args:
        slices: of a volume; those that are files of their own are left out.
        stack: (slices, rows, columns), to be filled.

    Raises:
        MedarError: pydicom is not installed, or the pixels are damaged.
    """
    by_file: dict[Path, dict[int, int]] = {}
    for index, one in enumerate(slices):
        if one.frame is not None:
            by_file.setdefault(one.path, {})[one.frame] = index
    for path, index_of in by_file.items():
        pydicom = load_pydicom(path)
        frames = sorted(index_of)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                for frame, stored in zip(frames, stored_frames(pydicom, path, frames), strict=True):
                    index = index_of[frame]
                    slope, intercept = rescale_of(slices[index].tags)
                    stack[index] = stored.astype(np.float64) * slope + intercept
            except MedarError:
                raise
            except Exception as error:  # pydicom raises many types
                reason = one_line(error)
                raise MedarError(f"{path}: its pixels cannot be read ({reason})") from error


def stored_frames(
    pydicom: ModuleType, path: Path, frames: Sequence[int]
) -> Iterator[npt.NDArray[Any]]:
    """The stored values of some frames, (rows, columns) each, in ascending order.

    Compressed frames are decoded by GDCM, as those of classic series are: pydicom by itself
    knows few of the codecs.
    """
    syntax = pydicom.filereader.read_file_meta_info(path).TransferSyntaxUID
    if not syntax.is_encapsulated:
        # A deflated file cannot be read frame by frame.
        source = read_dataset(path, pixels=True) if syntax.is_deflated else path
        yield from pydicom.pixels.iter_pixels(source, indices=frames, raw=True)
        return
    file = read_dataset(path, pixels=True)
    tables = file.get("ExtendedOffsetTable"), file.get("ExtendedOffsetTableLengths")
    packed = pydicom.encaps.generate_frames(
        file.PixelData,
        number_of_frames=int(file.get("NumberOfFrames") or 1),
        extended_offsets=tables if all(tables) else None,
    )
    requested = set(frames)
    frame = Frame(file.Rows, file.Columns, file.SamplesPerPixel, file.BitsAllocated)
    with TemporaryDirectory() as folder:
        for index, content in enumerate(packed):
            if index in requested:
                if not header_fits(content, str(syntax), frame):
                    raise MedarError(
                        f"{path}: its compressed pixels are damaged (frame {index + 1} has not the "
                        f"header of {frame.columns} x {frame.rows} pixels of {frame.bits} bits); "
                        "get the file again"
                    )
                yield _decoded(pydicom, file, content, Path(folder) / "frame.dcm", path)


def _decoded(
    pydicom: ModuleType, file: Any, content: bytes, target: Path, path: Path
) -> npt.NDArray[Any]:
    """A compressed frame of a file at `path`, decoded by way of a file of one slice."""
    one = pydicom.Dataset()
    one.file_meta = pydicom.dataset.FileMetaDataset()
    one.file_meta.TransferSyntaxUID = file.file_meta.TransferSyntaxUID
    one.file_meta.MediaStorageSOPClassUID = one.SOPClassUID = SECONDARY_CAPTURE
    one.file_meta.MediaStorageSOPInstanceUID = one.SOPInstanceUID = pydicom.uid.generate_uid()
    one.PhotometricInterpretation = "MONOCHROME2"  # GDCM would invert MONOCHROME1
    for name in PIXELS:
        setattr(one, name, file[name].value)
    one.PixelData = pydicom.encaps.encapsulate([content])
    one["PixelData"].VR = "OB"
    one.save_as(target, enforce_file_format=True)
    decoded: npt.NDArray[Any] = run_apart(path, read_pixels, target, path, rescaled=False)
    return decoded.reshape(file.Rows, file.Columns)


def read_dataset(path: Path, *, pixels: bool = False) -> Any:
    """The data set of a file, by pydicom.

    Args:
        path: the file.
        pixels: whether to read them too.

    Raises:
        MedarError: pydicom is not installed, or the file is deflated and inflates without end.
        Exception: of many types, if the file is damaged.
    """
    if not inflates(path):
        raise MedarError(f"{path}: damaged: its deflated elements do not end; get the file again")
    return load_pydicom(path).dcmread(path, stop_before_pixels=not pixels)


def load_pydicom(path: Path, kind: str = "enhanced multi-frame DICOM") -> ModuleType:
    """The package pydicom, which reads a file.

    Raises:
        MedarError: it is not installed.
    """
    try:
        import pydicom
        import pydicom.encaps
        import pydicom.pixels
    except ImportError as error:
        raise MedarError(
            f"{path}: {kind}, which needs the package pydicom; install it with "
            "`pip install 'medar[dicom]'`"
        ) from error
    module: ModuleType = pydicom
    return module
