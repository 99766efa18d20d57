"""The table of DICOM kinds in docs/reference/dicom.md: what medar and SimpleITK make of each.

    python benchmarks/dicom_kinds.py > table.md

Each kind is written with pydicom from a known volume, or from one that no reader should accept.
"right": voxels and positions are those that were written. "refused": an error. In bold: what should
be otherwise. ITK's warnings are not shown.
"""

import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import SimpleITK as sitk  # noqa: N813
from dicom_files import (
    AXIAL,
    ORIGIN,
    SPACING,
    classic_slices,
    compressed,
    enhanced,
    image,
    write_classic,
    write_enhanced,
)
from pydicom.dataset import Dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEGLSLossless,
    RLELossless,
)

from medar.errors import MedarError
from medar.volume import Volume, read_volume

STACK = np.random.default_rng(0).integers(-1000, 3000, (8, 40, 50)).astype(np.int16)
STEP = (0.0, 0.0, 2.5)
TILTED = {"step": (0.0, 2.5 * np.tan(np.radians(15)), 2.5)}
OBLIQUE = {"orientation": (0.0, 0.8, -0.6, 1.0, 0.0, 0.0), "step": (0.0, -1.8, -2.4)}
REVERSED = {"step": (0.0, 0.0, -2.5)}
RESCALED = {"rescale": [(1.0 + k, 10.0 * k) for k in range(8)]}
SHUFFLED = [3, 0, 7, 5, 1, 6, 4, 2]
SEG, DOSE = "1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.481.2"


class Kind(NamedTuple):
    """A kind of DICOM folder."""

    name: str
    write: Callable[[Path], Any]
    """Fills a folder."""
    geometry: dict[str, Any] | None
    """Step, orientation and rescaling of the volume in it; None: there is no one volume in it."""


def slices(folder: Path, change: Callable[[list[Dataset]], Any], **options: Any) -> None:
    """A classic series after a change to its data sets, which may replace them."""
    made = classic_slices(STACK, **options)
    for k, one in enumerate(change(made) or made):
        one.save_as(folder / f"{k:03}.dcm", enforce_file_format=True)


def encoded(syntax: str) -> Callable[[Path], Any]:
    def change(made: list[Dataset]) -> None:
        for one in made:
            if syntax == ExplicitVRBigEndian:
                one.PixelData = one.pixel_array.astype(">i2").tobytes()
            one.file_meta.TransferSyntaxUID = syntax

    return lambda folder: slices(folder, change)


def packed(compressor: str) -> Callable[[Path], Any]:
    def write(folder: Path) -> None:
        def change(made: list[Dataset]) -> None:
            for one in made:
                if compressor in ("JPEG", "JPEG2000"):
                    compressed(one, compressor, folder)
                else:
                    plugin = "pyjpegls" if compressor == JPEGLSLossless else "pydicom"
                    one.compress(compressor, encoding_plugin=plugin, generate_instance_uid=False)

        slices(folder, change)

    return write


def without_preamble(folder: Path) -> None:
    write_classic(folder, STACK)
    for path in folder.iterdir():
        content = path.read_bytes()
        # The data set follows preamble, DICM and the group of file meta information.
        path.write_bytes(content[144 + int.from_bytes(content[140:144], "little") :])


def with_table(made: list[Dataset]) -> None:
    for one in made:
        one.PixelRepresentation, one.PixelData = 0, (STACK[0] + 1000).astype(np.uint16).tobytes()
        table = Dataset()
        table.add_new("LUTDescriptor", "US", [4096, 0, 16])
        table.add_new("ModalityLUTType", "LO", "US")
        table.add_new("LUTData", "OW", np.arange(4096, dtype=np.uint16)[::-1].tobytes())
        one.ModalityLUTSequence = [table]


def uneven(made: list[Dataset]) -> None:
    for k, one in enumerate(made):
        one.ImagePositionPatient = ["10", "20", f"{30 + 4 * min(k, 4) + 7 * max(k - 4, 0)}"]
        one.SliceThickness = "4" if k < 5 else "7"


def two_times(made: list[Dataset]) -> None:
    for k, one in enumerate(made):
        one.ImagePositionPatient = ["10", "20", f"{30 + 2.5 * (k % 4)}"]
        one.AcquisitionTime = "120000" if k < 4 else "121000"


def frame_times(folder: Path) -> None:
    made = enhanced(STACK, order=[0, 1, 2, 3, 0, 1, 2, 3])
    for frame, groups in enumerate(made.PerFrameFunctionalGroupsSequence):
        groups.FrameContentSequence[0].TemporalPositionIndex = frame // 4 + 1
    made.save_as(folder / "a.dcm", enforce_file_format=True)


def single_frames(folder: Path) -> None:
    for k in range(8):
        write_enhanced(folder / f"{7 - k}.dcm", STACK, order=[k], instance=f"1.2.3.4.{k}")


def packed_frames(folder: Path) -> None:
    made = compressed(enhanced(STACK, order=SHUFFLED), "JPEG", folder)
    made.save_as(folder / "a.dcm", enforce_file_format=True)


def segmentation(folder: Path) -> None:
    masks = (STACK > 0).astype(np.uint8)
    made = enhanced(masks, sop_class=SEG, instance="1.2.7.1", SeriesInstanceUID="1.2.7")
    made.Modality = "SEG"
    made.save_as(folder / "seg.dcm", enforce_file_format=True)


def dose(folder: Path) -> None:
    made = image(DOSE, "1.2.8.1", STACK.astype(np.uint16), SeriesInstanceUID="1.2.8")
    made.Modality, made.NumberOfFrames, made.DoseGridScaling = "RTDOSE", 8, "0.001"
    made.GridFrameOffsetVector = [2.5 * k for k in range(8)]
    made.ImagePositionPatient, made.ImageOrientationPatient = list(ORIGIN), list(AXIAL)
    made.PixelSpacing = list(SPACING)
    made.save_as(folder / "dose.dcm", enforce_file_format=True)


def beside(other: Callable[[Path], Any]) -> Callable[[Path], Any]:
    def write(folder: Path) -> None:
        write_classic(folder, STACK)
        other(folder)

    return write


def classic(**options: Any) -> Callable[[Path], Any]:
    return lambda folder: write_classic(folder, STACK, **options)


def multi(**options: Any) -> Callable[[Path], Any]:
    return lambda folder: write_enhanced(folder / "a.dcm", STACK, **options)


KINDS = (
    Kind("classic series", classic(), {}),
    Kind("implicit VR", encoded(ImplicitVRLittleEndian), {}),
    Kind("big endian", encoded(ExplicitVRBigEndian), {}),
    Kind("deflated", encoded(DeflatedExplicitVRLittleEndian), {}),
    Kind("JPEG lossless", packed("JPEG"), {}),
    Kind("JPEG 2000 lossless", packed("JPEG2000"), {}),
    Kind("JPEG-LS", packed(JPEGLSLossless), {}),
    Kind("RLE", packed(RLELossless), {}),
    Kind("no preamble", without_preamble, {}),
    Kind("oblique", classic(**OBLIQUE), OBLIQUE),
    Kind("gantry tilt", classic(**TILTED), TILTED),
    Kind("names in reverse order", classic(**REVERSED), REVERSED),
    Kind("slope and intercept per slice", classic(**RESCALED), RESCALED),
    Kind("MONOCHROME1", classic(PhotometricInterpretation="MONOCHROME1"), {}),
    Kind("Modality LUT", lambda folder: slices(folder, with_table), None),
    Kind("a slice missing", lambda f: slices(f, lambda made: made[:3] + made[4:]), None),
    Kind("uneven slices", lambda folder: slices(folder, uneven), None),
    Kind("a slice twice", lambda f: slices(f, lambda made: [*made, made[3]]), None),
    Kind("two time points", lambda folder: slices(folder, two_times), None),
    Kind("enhanced", multi(), {}),
    Kind("enhanced, frames in any order", multi(order=SHUFFLED), {}),
    Kind("enhanced, frames reversed", multi(**REVERSED), REVERSED),
    Kind("enhanced, oblique", multi(order=SHUFFLED, **OBLIQUE), OBLIQUE),
    Kind("enhanced, gantry tilt", multi(**TILTED), TILTED),
    Kind("enhanced, slope per frame", multi(**RESCALED), RESCALED),
    Kind("enhanced, JPEG lossless", packed_frames, {}),
    Kind("enhanced, one frame per file", single_frames, {}),
    Kind("enhanced, a frame missing", multi(order=[0, 1, 2, 4, 5, 6, 7]), None),
    Kind("enhanced, two time points", frame_times, None),
    Kind("SEG", segmentation, None),
    Kind("RT Dose", dose, None),
    Kind("SEG beside a scan", beside(segmentation), {}),
    Kind("RT Dose beside a scan", beside(dose), {}),
)


def expected(geometry: dict[str, Any]) -> Volume:
    """The volume that was written."""
    rescale = np.array(geometry.get("rescale", [(1.0, 0.0)] * len(STACK)))
    values = STACK * rescale[:, :1, None] + rescale[:, 1:, None]
    row, column = np.array(geometry.get("orientation", AXIAL)).reshape(2, 3)
    return in_lps(values, row * SPACING[1], column * SPACING[0], geometry.get("step", STEP), ORIGIN)


def in_lps(stack: np.ndarray, x: Any, y: Any, z: Any, origin: Any) -> Volume:
    """A volume from (Z, Y, X) voxels, the steps along its axes and its origin in LPS."""
    affine = np.eye(4)
    affine[:3] = np.stack([x, y, z, origin], axis=1)
    array = stack.transpose(2, 1, 0).astype(np.float32)
    return Volume.from_array(array, np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine)


def with_medar(folder: Path) -> Volume:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return read_volume(folder)


def with_itk(folder: Path) -> Volume:
    """As SimpleITK's examples read a folder: its first series, sorted by GDCM."""
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder))
    read = sitk.ReadImage(names if len(names) > 1 else names[0])
    steps = np.array(read.GetDirection()).reshape(3, 3) * read.GetSpacing()
    return in_lps(sitk.GetArrayFromImage(read), *steps.T, read.GetOrigin())


def outcome(kind: Kind, folder: Path, read: Callable[[Path], Volume]) -> str:
    """What a reader makes of a folder, in a few words."""
    try:
        found = read(folder)
    except MedarError as error:
        text = str(error).split(": ", 1)[1]
        return f"refused: {text}" if kind.geometry is None else f"**refused**: {text}"
    except (RuntimeError, IndexError):
        return "refused" if kind.geometry is None else "**refused**"
    if kind.geometry is None:
        spacing = " x ".join(f"{side:.3g}" for side in found.spacing)
        return f"**read** as {found.shape[2]} slices, voxels of {spacing} mm"
    right = expected(kind.geometry)
    if found.shape != right.shape:
        return f"**wrong**: {' x '.join(map(str, found.shape))} voxels"
    if not np.allclose(found.affine, right.affine, atol=1e-3):
        away = found.grid.distance(right.grid)
        return f"**wrong**: corners up to {away:.3g} mm away"
    if not np.allclose(found.array, right.array, atol=1e-2):
        return f"**wrong**: {np.mean(found.array != right.array):.0%} of the voxels"
    return "right"


def table(readers: dict[str, Callable[[Path], Volume]]) -> list[str]:
    """The lines of the table."""
    lines = [f"| kind | {' | '.join(readers)} |", "|---" * (len(readers) + 1) + "|"]
    for kind in KINDS:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name) / "scan"
            folder.mkdir()
            kind.write(folder)
            cells = [outcome(kind, folder, read) for read in readers.values()]
        lines.append(f"| {' | '.join([kind.name, *cells])} |".replace(f"{name}/", ""))
    return lines


if __name__ == "__main__":
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    version = sitk.Version.VersionString()
    print("\n".join(table({"medar": with_medar, f"SimpleITK {version}": with_itk})))
