"""`Header`: the geometry and voxel type of a file, and the rules of all formats."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from medar.errors import MedarError
from medar.settings import OPTIONAL, settings
from medar.volume.geometry import Affine, Grid, Shape3, Spacing, is_spacing
from medar.volume.volume import Provenance

NIFTI_ENDINGS = (".nii", ".nii.gz", ".hdr", ".img", ".hdr.gz", ".img.gz")
NRRD_ENDINGS = (".nrrd", ".nhdr")
META_ENDINGS = (".mha", ".mhd")
VOLUME_ENDINGS = NIFTI_ENDINGS + NRRD_ENDINGS + META_ENDINGS
DICOM_ENDINGS = (".dcm", ".ima")
FORMATS = "NIfTI (.nii, .nii.gz, .hdr/.img), NRRD (.nrrd, .nhdr), MetaImage (.mha, .mhd), DICOM"


@settings
class ReadOptions:
    """How to read a file that leaves a question open.

    Raises:
        MedarError: the spacing is not positive, or the policy for NaN and Inf is unknown.
    """

    channels: bool = False
    """Read a fourth axis as channels instead of refusing it."""
    assume_spacing: Spacing | Literal["header"] | None = None
    """For files without orientation: axes are taken as RAS+, with this spacing in mm or, for
    "header", with the spacing in the header. Files with an orientation are unaffected."""
    nonfinite: float | Literal["error", "min", "keep"] = "error"
    """NaN and Inf voxels: raise an error, replace by the smallest finite voxel or by a number, or
    keep."""
    series: str | None = None
    """SeriesInstanceUID to read from a DICOM folder that holds several series."""
    allow_outside: bool = field(default=False, metadata=OPTIONAL)
    """Read the data files that a NRRD or MetaImage header names outside of its folder."""

    def __post_init__(self) -> None:
        spacing = self.assume_spacing
        if spacing not in (None, "header") and not is_spacing(spacing):
            raise MedarError(
                f"assume_spacing must be 'header' or three positive numbers in mm, got {spacing!r}"
            )

    def to_dict(self) -> dict[str, Any]:
        """The options as JSON-able values."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True, eq=False)
class Header:
    """Properties of a file, without its voxels."""

    path: Path
    format: str
    grid: Grid
    """As stored, in the file's own orientation."""
    channels: int
    """Length of the fourth axis: 1 for a plain volume."""
    dtype: str
    """Voxel type on disk."""
    load: Callable[[], npt.NDArray[Any]]
    """Reads the voxels, scaled, as (X, Y, Z) or (C, X, Y, Z) in the stored orientation."""
    step: float = 0.0
    """Difference of values whose stored integers differ by 1; 0 for voxels stored as floats."""
    modality: str | None = None
    notes: tuple[str, ...] = ()
    series: str | None = None
    """SeriesInstanceUID of a DICOM series."""
    frame_of_reference: str | None = None
    """FrameOfReferenceUID of a DICOM series."""
    segments: Mapping[int, str] = field(default_factory=dict)
    """Names of a label map's values, without background; only DICOM segmentations have them."""

    @property
    def provenance(self) -> Provenance:
        """The header in the form of `Volume.provenance`."""
        return Provenance(
            path=str(self.path),
            format=self.format,
            grid=self.grid,
            dtype=self.dtype,
            notes=self.notes,
            series=self.series,
            frame_of_reference=self.frame_of_reference,
        )


def assumed_affine(
    path: str | Path, spacing: Spacing | None, options: ReadOptions, *, missing: str
) -> tuple[Affine, str]:
    """The affine of a file without orientation, and a note about it.

    Args:
        path: the file, for messages.
        spacing: of its header, in mm; None if it has none.
        options: whether and how a spacing may be assumed.
        missing: the missing property, for messages.

    Raises:
        MedarError: no spacing may be assumed, or the header's is unusable.
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
    shown = ", ".join(f"{s:g}" for s in chosen)
    return np.diag([*map(float, chosen), 1.0]), f"{missing}: axes taken as RAS+ at {shown} mm"


def file_grid(path: str | Path, shape: Shape3, affine: Affine) -> Grid:
    """The grid of a file.

    Raises:
        MedarError: the affine is not finite or is singular; the message names the file.
    """
    try:
        return Grid(shape=shape, affine=affine)
    except MedarError as error:
        raise MedarError(f"{path}: {error}; correct the header first") from error


def spatial_shape(path: str | Path, shape: tuple[int, ...]) -> tuple[Shape3, int]:
    """Split a stored shape into (X, Y, Z) and the number of channels, without singleton axes.

    Raises:
        MedarError: there are fewer than three spatial axes, or several axes beyond them.
    """
    kept = shape[:3] + tuple(n for n in shape[3:] if n != 1)
    if len(kept) < 3 or min(kept, default=0) < 1:
        raise MedarError(f"{path}: a volume has three axes of at least one voxel, got {shape}")
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
