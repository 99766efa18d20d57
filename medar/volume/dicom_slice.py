"""`Slice`: one image of a DICOM series, a file of its own or a frame, without its pixels."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medar.errors import MedarError
from medar.volume.apart import run_apart
from medar.volume.dicom_lengths import lengths_fit
from medar.volume.gdcm import read_tags

TAGS = {
    "ImageType": "0008|0008",
    "SOPClassUID": "0008|0016",
    "SOPInstanceUID": "0008|0018",
    "AcquisitionDate": "0008|0022",
    "AcquisitionDateTime": "0008|002a",
    "AcquisitionTime": "0008|0032",
    "ContentTime": "0008|0033",
    "Modality": "0008|0060",
    "SeriesDescription": "0008|103e",
    "SequenceName": "0018|0024",
    "SliceThickness": "0018|0050",
    "KVP": "0018|0060",
    "EchoTime": "0018|0081",
    "InversionTime": "0018|0082",
    "EchoNumbers": "0018|0086",
    "SpacingBetweenSlices": "0018|0088",
    "TriggerTime": "0018|1060",
    "ConvolutionKernel": "0018|1210",
    "FlipAngle": "0018|1314",
    "DiffusionBValue": "0018|9087",
    "SeriesInstanceUID": "0020|000e",
    "AcquisitionNumber": "0020|0012",
    "InstanceNumber": "0020|0013",
    "ImagePositionPatient": "0020|0032",
    "ImageOrientationPatient": "0020|0037",
    "FrameOfReferenceUID": "0020|0052",
    "TemporalPositionIdentifier": "0020|0100",
    "StackID": "0020|9056",
    "DimensionIndexValues": "0020|9157",
    "NominalPercentageOfCardiacPhase": "0020|9241",
    "PhotometricInterpretation": "0028|0004",
    "NumberOfFrames": "0028|0008",
    "PixelSpacing": "0028|0030",
    "BitsAllocated": "0028|0100",
    "BitsStored": "0028|0101",
    "HighBit": "0028|0102",
    "PixelRepresentation": "0028|0103",
    "RescaleIntercept": "0028|1052",
    "RescaleSlope": "0028|1053",
    "FrameReferenceTime": "0054|1300",
    "ReferencedSegmentNumber": "0062|000b",
}
"""Names and numbers of the tags that are read."""


@dataclass(frozen=True, kw_only=True)
class Slice:
    """One image of a series: its tags, without its pixels."""

    path: Path
    tags: dict[str, str]
    """As text, "" for a tag that the image lacks; several values are separated by a backslash."""
    size: tuple[int, int]
    """Columns and rows."""
    frame: int | None = None
    """Index in a multi-frame file; None for a file of one slice."""

    @property
    def uid(self) -> str:
        """The series that the slice belongs to."""
        return self.tags["SeriesInstanceUID"]

    @property
    def name(self) -> str:
        """The name of the file and, in a multi-frame file, the number of the frame."""
        return self.path.name + ("" if self.frame is None else f" frame {self.frame + 1}")

    @property
    def where(self) -> str:
        """The path of the file and the number of the frame, for messages."""
        return str(self.path.with_name(self.name))

    def numbers(self, name: str, count: int) -> npt.NDArray[np.float64]:
        """The numbers of a tag.

        Raises:
            MedarError: they are not `count` finite numbers.
        """
        text = self.tags[name]
        try:
            values = np.array([float(part) for part in text.split("\\")])
        except ValueError:
            values = np.array([])
        if values.shape != (count,) or not np.isfinite(values).all():
            raise MedarError(f"{self.where}: {name} must hold {count} numbers, got {text!r}")
        return values


def read_slice(path: Path) -> Slice | None:
    """The tags of a file; None if it holds no image that GDCM can read.

    Raises:
        MedarError: it ended the process that read it.
    """
    if not lengths_fit(path):
        return None
    found = run_apart(path, read_tags, path, TAGS)
    if found is None:
        return None
    tags, size = found
    return Slice(path=path, tags={name: plain(text) for name, text in tags.items()}, size=size)


def plain(text: str) -> str:
    """The value of a tag in printable ASCII, as other characters would break messages."""
    value = text.encode("ascii", "replace").decode().strip(" \t\r\n\0")
    return "".join(c if c.isprintable() else "?" for c in value)
