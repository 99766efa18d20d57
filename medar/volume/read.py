"""Reading a volume from any supported file, with the rules that keep geometry honest.

The way of a file: `read_header` finds the format and the geometry without touching a voxel;
`Header.load` fetches the voxels as stored; `read_volume` checks them and turns them to RAS+.
The rules (docs/reference/volumes.md lists them):

- geometry comes from the file: for NIfTI the sform, then the qform; a file with neither is refused
  unless the caller names a spacing to assume;
- NaN and Inf are counted and refused unless the caller says what replaces them;
- a fourth axis is channels only where the caller says so.
"""

import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from medar.errors import GeometryWarning, MedarError
from medar.settings import STRICT
from medar.volume.geometry import Affine, Grid, Shape3, Spacing, is_spacing
from medar.volume.volume import Provenance, Volume

NIFTI_ENDINGS = (".nii", ".nii.gz", ".hdr", ".img", ".hdr.gz", ".img.gz")
ITK_ENDINGS = (".nrrd", ".nhdr", ".mha", ".mhd")
VOLUME_ENDINGS = NIFTI_ENDINGS + ITK_ENDINGS
DICOM_ENDINGS = (".dcm", ".ima")
FORMATS = "NIfTI (.nii, .nii.gz, .hdr/.img), NRRD (.nrrd, .nhdr), MetaImage (.mha, .mhd), DICOM"


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """What the caller decides about a file that leaves a question open."""

    __pydantic_config__: ClassVar[Any] = STRICT

    channels: bool = False
    """Take a fourth axis as channels instead of refusing it."""
    assume_spacing: Spacing | Literal["header"] | None = None
    """For files that state no orientation: axes are taken as RAS+, with this spacing in mm, or
    with the spacing that the header gives. Files that state their orientation are unaffected."""
    nonfinite: float | Literal["error", "min", "keep"] = "error"
    """NaN and Inf voxels: refuse, replace by the smallest finite voxel or by a number, or keep."""
    series: str | None = None
    """The SeriesInstanceUID to take from a DICOM folder that holds several."""

    def __post_init__(self) -> None:
        spacing, policy = self.assume_spacing, self.nonfinite
        if spacing not in (None, "header") and not is_spacing(spacing):
            raise MedarError(
                f"assume_spacing={spacing!r}: 'header' or three positive numbers in mm are needed"
            )
        number = isinstance(policy, (int, float)) and np.isfinite(policy)
        if policy not in ("error", "min", "keep") and not number:
            raise MedarError(
                f"nonfinite={policy!r}: 'error', 'min', 'keep' or a finite number is needed"
            )

    def to_dict(self) -> dict[str, Any]:
        """The options as JSON-able values."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True, eq=False)
class Header:
    """What a file says about itself, before its voxels are read."""

    path: Path
    format: str
    grid: Grid
    """As stored, in the file's own orientation."""
    channels: int
    """Length of the fourth axis: 1 for a plain volume."""
    dtype: str
    """Voxel type on disk."""
    load: Callable[[], npt.NDArray[Any]]
    """Fetch the voxels, scaled, as (X, Y, Z) or (C, X, Y, Z) in the stored orientation."""
    modality: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def provenance(self) -> Provenance:
        """The header as a volume keeps it."""
        return Provenance(
            path=str(self.path),
            format=self.format,
            grid=self.grid,
            dtype=self.dtype,
            notes=self.notes,
        )


def read_header(path: str | Path, options: ReadOptions | None = None) -> Header:
    """Read what a file or DICOM folder says about its geometry; no voxel is read.

    Raises:
        MedarError: the file is absent, of another format, damaged, or leaves its geometry open.
    """
    path = Path(path)
    options = options or ReadOptions()
    try:
        if not path.is_file() and not path.is_dir():
            raise MedarError(f"{path}: no such file or folder")
        header = _header(path, options)
    except OSError as error:
        raise MedarError(f"{path}: cannot be read ({error.strerror or error})") from error
    if header.channels > 1 and not options.channels:
        raise MedarError(
            f"{path}: {header.channels} volumes along a fourth axis; "
            "pass channels=True (--channels) to take them as channels, or split the file"
        )
    return header


def _header(path: Path, options: ReadOptions) -> Header:
    """The header by the reader of the file's format."""
    name = path.name.lower()
    # Each backend is imported when its format is met: SimpleITK and nibabel are slow to load.
    if path.is_dir() or is_dicom(path):
        from medar.volume.dicom import read_dicom_header

        return read_dicom_header(path, options)
    if name.endswith((".gii", ".gii.gz")):
        raise MedarError(f"{path}: surface data, not a volume; medar reads {FORMATS}")
    if name.endswith(NIFTI_ENDINGS):
        from medar.volume.nifti import read_nifti_header

        return read_nifti_header(path, options)
    if name.endswith(ITK_ENDINGS):
        from medar.volume.itk import read_itk_header

        return read_itk_header(path, options)
    raise MedarError(f"{path}: not a volume format that medar reads; it reads {FORMATS}")


def read_volume(
    path: str | Path,
    *,
    labels: bool = False,
    channels: bool = False,
    assume_spacing: Spacing | Literal["header"] | None = None,
    nonfinite: float | Literal["error", "min", "keep"] = "error",
    series: str | None = None,
    modality: str | None = None,
) -> Volume:
    """Read a volume and turn its axes to RAS+.

    Args:
        path: a NIfTI, NRRD or MetaImage file, a DICOM file or the folder of a DICOM series.
        labels: read a label map: integers, refused if the file holds fractions.
        channels: take a fourth axis as channels.
        assume_spacing: for files without orientation: "header", or the spacing in mm.
        nonfinite: what happens to NaN and Inf: "error", "min", "keep" or a number.
        series: the SeriesInstanceUID to take from a DICOM folder that holds several.
        modality: "CT" or "MR", where the file does not say (only DICOM does).

    Returns:
        (C, X, Y, Z) float32 in the file's own units (HU for CT), or integers for labels.

    Raises:
        MedarError: the file cannot be read without guessing; the message says what to decide.

    Warns:
        GeometryWarning: sform and qform disagree, axes are sheared, spacing was assumed.
    """
    options = ReadOptions(
        channels=channels, assume_spacing=assume_spacing, nonfinite=nonfinite, series=series
    )
    header = read_header(path, options)
    for note in header.notes:
        warnings.warn(f"{path}: {note}", GeometryWarning, stacklevel=2)
    return load_volume(header, options, labels=labels, modality=modality)


def load_volume(
    header: Header, options: ReadOptions, *, labels: bool = False, modality: str | None = None
) -> Volume:
    """The volume behind a header, checked and turned to RAS+ (see `read_volume`)."""
    array = header.load()
    if array.shape[-3:] != header.grid.shape:
        raise MedarError(
            f"{header.path}: voxels of shape {array.shape[-3:]} under a header of "
            f"{header.grid.shape}; the file is damaged"
        )
    if labels and header.channels > 1:
        raise MedarError(
            f"{header.path}: a label map of {header.channels} channels; labels have one, split them"
        )
    array = as_labels(array, header.path) if labels else as_image(array)
    if not labels:
        array = replace_nonfinite(array, options.nonfinite, header.path)
    return Volume.from_array(
        array,
        header.grid.affine,
        modality=modality or header.modality,
        provenance=header.provenance,
    )


def as_image(array: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """`array` in native float32; numbers beyond its range become Inf."""
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(array, dtype=np.float32)


def as_labels(array: npt.NDArray[Any], path: str | Path) -> npt.NDArray[Any]:
    """`array` as the smallest of uint8, int16 and int32 that holds it.

    Raises:
        MedarError: it holds fractions, NaN, or numbers beyond 32 bits.
    """
    if array.dtype.kind == "f":
        if not np.isfinite(array).all():
            raise MedarError(f"{path}: NaN or Inf in a label map; labels are whole numbers")
        odd = array[array != np.rint(array)]
        if odd.size:
            raise MedarError(
                f"{path}: {odd.size} voxels of a label map are no whole numbers "
                f"(for instance {odd.flat[0]:g}); is this an image, or an interpolated label?"
            )
    low, high = int(array.min()), int(array.max())
    for dtype in (np.uint8, np.int16, np.int32):
        if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
            return np.ascontiguousarray(array, dtype=dtype)
    raise MedarError(f"{path}: label values from {low} to {high}: labels fit 32 bits")


def replace_nonfinite(
    array: npt.NDArray[np.float32],
    policy: float | Literal["error", "min", "keep"],
    path: str | Path,
) -> npt.NDArray[np.float32]:
    """Apply the caller's policy to NaN and Inf voxels (see `ReadOptions.nonfinite`)."""
    if policy == "keep" or np.isfinite(array).all():
        return array
    finite = np.isfinite(array)
    counts = f"{int(np.isnan(array).sum())} NaN and {int(np.isinf(array).sum())} Inf voxels"
    if policy == "error":
        raise MedarError(
            f"{path}: {counts} of {array.size}; pass nonfinite='min' or a number "
            "(--nonfinite min) to replace them"
        )
    if not finite.any():
        raise MedarError(f"{path}: {counts}: no finite voxel at all")
    filler = array[finite].min() if policy == "min" else policy
    return np.where(finite, array, np.float32(filler))


def assumed_affine(
    path: str | Path, spacing: Spacing | None, options: ReadOptions, *, missing: str
) -> tuple[Affine, str]:
    """The affine of a file that states no orientation, and a note that says so.

    Raises:
        MedarError: the caller did not say which spacing to assume, or the header gives none.
    """
    usable = spacing is not None and is_spacing(spacing)
    written = ", ".join(f"{s:g}" for s in spacing or ())
    if options.assume_spacing is None:
        header = f", or with 'header' for the header's own {written} mm" if usable else ""
        raise MedarError(
            f"{path}: {missing}; its orientation is unknown. To take its axes as RAS+, pass "
            f"assume_spacing (--assume-spacing) with a spacing in mm{header}"
        )
    chosen = spacing if options.assume_spacing == "header" else options.assume_spacing
    if chosen is None or not is_spacing(chosen):
        raise MedarError(
            f"{path}: {missing}, and its header gives no usable spacing ({written or 'none'}); "
            "pass the spacing in mm"
        )
    said = ", ".join(f"{s:g}" for s in chosen)
    return np.diag([*map(float, chosen), 1.0]), f"{missing}: axes taken as RAS+ at {said} mm"


def file_grid(path: str | Path, shape: Shape3, affine: Affine) -> Grid:
    """The grid that a file states.

    Raises:
        MedarError: naming the file, where the affine is not finite or is singular.
    """
    try:
        return Grid(shape=shape, affine=affine)
    except MedarError as error:
        raise MedarError(f"{path}: {error}; correct the header first") from error


def spatial_shape(path: str | Path, shape: tuple[int, ...]) -> tuple[Shape3, int]:
    """Split a stored shape into (X, Y, Z) and the number of channels, without singleton axes.

    Raises:
        MedarError: there are not three spatial axes, or more than one axis beyond them.
    """
    kept = shape[:3] + tuple(n for n in shape[3:] if n != 1)
    if len(kept) < 3 or min(kept, default=0) < 1:
        raise MedarError(f"{path}: shape {shape}; a volume has three axes of at least one voxel")
    if len(kept) > 4:
        raise MedarError(f"{path}: {len(kept)}D data of shape {shape}; medar reads 3D and 4D")
    return (kept[0], kept[1], kept[2]), kept[3] if len(kept) == 4 else 1


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM by its ending or, as many have none, by the DICM at byte 128.

    A DICOMDIR is not: it lists the files of other folders.
    """
    name = path.name.lower()
    if name.endswith(DICOM_ENDINGS):
        return True
    if name.endswith(VOLUME_ENDINGS) or name == "dicomdir":
        return False
    with path.open("rb") as file:
        file.seek(128)
        return file.read(4) == b"DICM"


def files_of(path: str | Path) -> tuple[Path, ...]:
    """Every file that a volume's content lies in: one, a header and its data, or a DICOM folder.

    Files that a header names and that do not exist are left out; reading the volume says so.
    """
    path = Path(path)
    name = path.name.lower()
    if path.is_dir():
        return tuple(sorted(p for p in path.iterdir() if p.is_file()))
    for one, other in ((".hdr", ".img"), (".img", ".hdr")):
        for packed in ("", ".gz"):
            if name.endswith(one + packed):
                beside = path.with_name(path.name[: -len(one + packed)] + other + packed)
                return tuple(sorted(p for p in (path, beside) if p.exists()))
    if name.endswith((".mhd", ".nhdr")):
        lines = path.read_text(encoding="latin-1").splitlines()
        named = [
            line.replace("=", ":").split(":", 1)[1].strip()
            for line in lines
            if line.lower().startswith(("elementdatafile", "data file", "datafile"))
        ]
        data = (path.with_name(n) for n in named)
        return (path, *(p for p in data if p.is_file() and p != path))
    return (path,)
