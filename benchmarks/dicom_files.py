"""DICOM files of many kinds, made with pydicom: the same volume as hospitals send it.

A stack of pixels is (slices, rows, columns). Slices lie `step` apart in LPS, from `ORIGIN` on; rows
and columns follow `orientation`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian

CT, MR = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4"
ENHANCED_CT, ENHANCED_MR = f"{CT}.1", f"{MR}.1"
SPACING = (0.75, 0.5)
"""Between rows and between columns, mm."""
ORIGIN = (10.0, 20.0, 30.0)
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
STUDY, SERIES, FRAME_OF_REFERENCE = "1.2.3", "1.2.3.4", "1.2.3.9"


def positions(count: int, step: Sequence[float]) -> np.ndarray:
    """The positions of slices, (count, 3), in LPS."""
    return np.array(ORIGIN) + np.arange(count)[:, None] * np.array(step)


def texts(values: Any) -> list[str]:
    """Numbers as DICOM writes them."""
    return [f"{v:.6f}" for v in np.ravel(values)]


def image(sop_class: str, instance: str, pixels: np.ndarray, **tags: Any) -> Dataset:
    """A data set with patient, study, series and pixels of (rows, columns) or (frames, ...)."""
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID = sop_class
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID = instance
    made.PatientName, made.PatientID, made.PatientBirthDate, made.PatientSex = "", "p1", "", "O"
    made.StudyInstanceUID, made.SeriesInstanceUID = STUDY, SERIES
    made.StudyDate, made.StudyTime, made.StudyID, made.AccessionNumber = "20200102", "1200", "1", ""
    made.SeriesNumber, made.FrameOfReferenceUID = 1, FRAME_OF_REFERENCE
    made.Modality = "MR" if sop_class.startswith(MR) else "CT"
    made.Rows, made.Columns = pixels.shape[-2:]
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
    bits = 8 * pixels.dtype.itemsize
    made.BitsAllocated, made.BitsStored, made.HighBit = bits, bits, bits - 1
    made.PixelRepresentation = int(pixels.dtype.kind == "i")
    made.add_new("PixelData", "OW" if bits > 8 else "OB", pixels.tobytes())
    for name, value in tags.items():
        setattr(made, name, value)
    return made


def classic_slices(
    stack: np.ndarray,
    *,
    step: Sequence[float] = (0.0, 0.0, 2.5),
    orientation: Sequence[float] = AXIAL,
    rescale: Sequence[tuple[float, float]] | None = None,
    sop_class: str = CT,
    **tags: Any,
) -> list[Dataset]:
    """One data set per slice; `rescale` are slope and intercept of each."""
    made = []
    for k, (pixels, position) in enumerate(zip(stack, positions(len(stack), step), strict=True)):
        one = image(sop_class, f"{SERIES}.{k + 1}", pixels, InstanceNumber=k + 1)
        one.ImagePositionPatient, one.ImageOrientationPatient = texts(position), texts(orientation)
        one.PixelSpacing = texts(SPACING)
        if rescale is not None:
            one.RescaleSlope, one.RescaleIntercept = map(str, rescale[k])
        for name, value in tags.items():
            setattr(one, name, value)
        made.append(one)
    return made


def write_classic(folder: Path, stack: np.ndarray, **options: Any) -> Path:
    """A classic series, one file per slice."""
    folder.mkdir(parents=True, exist_ok=True)
    for k, one in enumerate(classic_slices(stack, **options)):
        one.save_as(folder / f"{k:03}.dcm", enforce_file_format=True)
    return folder


def enhanced(
    stack: np.ndarray,
    *,
    step: Sequence[float] = (0.0, 0.0, 2.5),
    orientation: Sequence[float] = AXIAL,
    rescale: Sequence[tuple[float, float]] | None = None,
    order: Sequence[int] | None = None,
    sop_class: str = ENHANCED_CT,
    instance: str = f"{SERIES}.1",
    **tags: Any,
) -> Dataset:
    """An enhanced multi-frame file.

    `rescale` are slope and intercept per slice, shared if all are equal; `order` names the slices
    in the order of their frames, also some of them.
    """
    order = range(len(stack)) if order is None else order
    origins = positions(len(stack), step)
    made = image(sop_class, instance, stack[list(order)], NumberOfFrames=len(order), **tags)
    shared, own = Dataset(), []
    shared.PixelMeasuresSequence = [Dataset()]
    shared.PixelMeasuresSequence[0].PixelSpacing = texts(SPACING)
    shared.PixelMeasuresSequence[0].SliceThickness = "9"
    shared.PlaneOrientationSequence = [Dataset()]
    shared.PlaneOrientationSequence[0].ImageOrientationPatient = texts(orientation)
    for frame, k in enumerate(order):
        groups = Dataset()
        groups.FrameContentSequence = [Dataset()]
        groups.FrameContentSequence[0].StackID = "1"
        groups.FrameContentSequence[0].InStackPositionNumber = frame + 1
        groups.FrameContentSequence[0].DimensionIndexValues = [1, frame + 1]
        groups.PlanePositionSequence = [Dataset()]
        groups.PlanePositionSequence[0].ImagePositionPatient = texts(origins[k])
        if rescale is not None:
            target = shared if len(set(rescale)) == 1 else groups
            target.PixelValueTransformationSequence = [Dataset()]
            slope, intercept = map(str, rescale[k])
            target.PixelValueTransformationSequence[0].RescaleSlope = slope
            target.PixelValueTransformationSequence[0].RescaleIntercept = intercept
        own.append(groups)
    made.SharedFunctionalGroupsSequence, made.PerFrameFunctionalGroupsSequence = [shared], own
    return made


def write_enhanced(path: Path, stack: np.ndarray, **options: Any) -> Path:
    """An enhanced multi-frame file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    enhanced(stack, **options).save_as(path, enforce_file_format=True)
    return path


def compressed(made: Dataset, compressor: str, folder: Path) -> Dataset:
    """A data set with each frame compressed by ITK: "JPEG" (lossless) or "JPEG2000"."""
    import SimpleITK as sitk  # noqa: N813

    frames = np.reshape(made.pixel_array, (-1, made.Rows, made.Columns))
    packed = []
    for pixels in frames:
        writer = sitk.ImageFileWriter()
        writer.SetImageIO("GDCMImageIO")
        writer.UseCompressionOn()
        writer.SetCompressor(compressor)
        writer.SetFileName(str(folder / "frame.dcm"))
        writer.Execute(sitk.GetImageFromArray(pixels[None]))
        one = pydicom.dcmread(folder / "frame.dcm")
        packed += pydicom.encaps.generate_frames(one.PixelData, number_of_frames=1)
        made.file_meta.TransferSyntaxUID = one.file_meta.TransferSyntaxUID
    (folder / "frame.dcm").unlink()
    made.PixelData = encapsulate(packed)
    made["PixelData"].VR = "OB"
    return made


def segmentation(
    folder: Path,
    planes: np.ndarray,
    names: Sequence[str],
    type_: str = "BINARY",
    **options: Any,
) -> Dataset:
    """A DICOM segmentation of the classic series or the enhanced file in a folder, by highdicom.

    `planes` are (slices, rows, columns) segment numbers, or (..., segments) masks or fractions, in
    the order of the files or frames.
    """
    import highdicom
    from pydicom.sr.codedict import codes

    described = [
        highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=name,
            segmented_property_category=codes.SCT.Tissue,
            segmented_property_type=codes.SCT.Tissue,
            algorithm_type="MANUAL",
        )
        for number, name in enumerate(names, start=1)
    ]
    files = [pydicom.dcmread(path) for path in sorted(folder.iterdir())]
    sources = [one for one in files if "SegmentSequence" not in one]
    for one in sources:
        if "SharedFunctionalGroupsSequence" not in one:
            one.SliceThickness = "2.5"
    return highdicom.seg.Segmentation(
        source_images=sources,
        pixel_array=planes,
        segmentation_type=type_,
        segment_descriptions=described,
        series_instance_uid=options.pop("series", "1.2.7"),
        sop_instance_uid=options.pop("instance", "1.2.7.1"),
        series_number=7,
        instance_number=1,
        manufacturer="tests",
        manufacturer_model_name="tests",
        software_versions="1",
        device_serial_number="1",
        **options,
    )
