"""The slices of a DICOM volume in their order, and the affine that follows from it.

Slices are sorted by position, never by name or number, and must be evenly spaced: the affine
follows from the first and the last position.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medar.errors import MedarError
from medar.volume.dicom_slice import Slice
from medar.volume.geometry import LPS_TO_RAS, SHEAR_TOLERANCE, Affine, shear_of

UNEVEN = 0.05
"""Largest deviation from even spacing, as a fraction of the step: stored positions are rounded."""

SAME_POSITION = 0.01
"""Slices closer than this, in mm, have the same position."""

WHOLE = 0.1
"""Largest deviation of a gap from a whole number of steps, in steps, where slices are missing."""

MAX_STEPS = 3
"""Largest number of different steps that a message lists."""

DISTINGUISHING = (
    "StackID",
    "TemporalPositionIdentifier",
    "EchoTime",
    "EchoNumbers",
    "InversionTime",
    "TriggerTime",
    "NominalPercentageOfCardiacPhase",
    "DiffusionBValue",
    "AcquisitionNumber",
    "ImageType",
    "FlipAngle",
    "SequenceName",
    "KVP",
    "ConvolutionKernel",
    "FrameReferenceTime",
    "AcquisitionDateTime",
    "AcquisitionDate",
    "AcquisitionTime",
    "ContentTime",
    "InstanceNumber",
    "DimensionIndexValues",
)
"""Tags that may distinguish slices at the same position, in the order of checking."""


def check_alike(slices: list[Slice]) -> None:
    """Check that all slices of a series have the same size, pixel spacing and orientation."""
    first = slices[0]
    spacing = first.numbers("PixelSpacing", 2)
    orientation = first.numbers("ImageOrientationPatient", 6)
    if not (spacing > 0).all():
        raise MedarError(
            f"{first.where}: PixelSpacing must be positive, got {first.tags['PixelSpacing']}"
        )
    for one in slices[1:]:
        differs = None
        if one.size != first.size:
            differs = f"{one.size[0]}x{one.size[1]} pixels", f"{first.size[0]}x{first.size[1]}"
        elif not np.allclose(one.numbers("PixelSpacing", 2), spacing, atol=1e-4):
            differs = f"PixelSpacing {one.tags['PixelSpacing']}", first.tags["PixelSpacing"]
        elif not np.allclose(one.numbers("ImageOrientationPatient", 6), orientation, atol=1e-3):
            name = "ImageOrientationPatient"
            differs = f"{name} {one.tags[name]}", first.tags[name]
        if differs:
            raise MedarError(
                f"{one.where}: {differs[0]} where {first.name} has {differs[1]}; all slices of "
                "a volume must agree: split the series"
            )


def arrange(
    folder: Path, slices: list[Slice], skipped: str
) -> tuple[list[Slice], Affine, list[str]]:
    """The slices from first to last along their normal, their affine in RAS+, and notes."""
    row, column = directions(slices[0])
    normal = np.cross(row, column)
    points = np.array([one.numbers("ImagePositionPatient", 3) for one in slices])
    order = np.argsort(points @ normal, kind="stable")
    slices, points = [slices[i] for i in order], points[order]
    _check_even(folder, slices, points, normal, skipped)
    between_rows, between_columns = slices[0].numbers("PixelSpacing", 2)
    affine = np.eye(4)
    affine[:3, 0] = row * between_columns
    affine[:3, 1] = column * between_rows
    affine[:3, 2] = (points[-1] - points[0]) / (len(points) - 1)
    affine[:3, 3] = points[0]
    notes = [skipped] if skipped else []
    if shear_of(affine) > SHEAR_TOLERANCE:
        cosine = affine[:3, 2] @ normal / np.linalg.norm(affine[:3, 2])
        tilt = np.degrees(np.arccos(np.clip(cosine, -1.0, 1.0)))
        notes.append(f"gantry tilt of {tilt:.2f} degrees; the grid is kept sheared, as acquired")
    return slices, LPS_TO_RAS @ affine, notes


def directions(one: Slice) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Unit vectors along a row and along a column of pixels, in LPS."""
    both = one.numbers("ImageOrientationPatient", 6).reshape(2, 3)
    lengths = np.linalg.norm(both, axis=1)
    if np.abs(lengths - 1).max() > 1e-2 or abs(both[0] @ both[1]) > 1e-2:
        raise MedarError(
            f"{one.where}: ImageOrientationPatient must be two orthogonal unit vectors, got "
            f"{one.tags['ImageOrientationPatient']}"
        )
    row, column = both / lengths[:, None]
    return row, column


def _check_even(
    folder: Path,
    slices: Sequence[Slice],
    points: npt.NDArray[np.float64],
    normal: npt.NDArray[np.float64],
    skipped: str,
) -> None:
    """Check that no slices share a position, are missing, or are unevenly spaced."""
    repeated = np.flatnonzero(np.diff(points @ normal) < SAME_POSITION)
    if repeated.size:
        a, b = slices[repeated[0]], slices[repeated[0] + 1]
        difference, advice = _difference(a, b)
        raise MedarError(
            f"{folder}: {repeated.size} slice(s) have the same position as another, such as "
            f"{a.name} and {b.name} ({difference}); {advice}"
        )
    count = len(points) - 1
    step = (points[-1] - points[0]) / count
    even = points[0] + np.arange(count + 1)[:, None] * step
    if np.linalg.norm(points - even, axis=1).max() <= UNEVEN * np.linalg.norm(step):
        return
    steps = np.linalg.norm(np.diff(points, axis=0), axis=1)
    usual = float(np.sort(steps)[(count - 1) // 2])
    missing = np.rint(steps / usual).astype(int) - 1
    gaps = np.flatnonzero(missing > 0)
    noted = f" ({skipped})" if skipped else ""
    whole = np.abs(steps / usual - np.rint(steps / usual)).max() <= WHOLE
    acquired = _acquired_apart(slices, gaps) if whole else ""
    if not gaps.size or not whole or acquired:
        raise MedarError(
            f"{folder}: uneven slices: {_described(steps)}{acquired}; resample them to an even "
            f"grid with the scanner's software first{noted}"
        )
    k = int(gaps[0])
    raise MedarError(
        f"{folder}: {missing[k]} slice(s) missing after slice {k + 1} of {count + 1}, between "
        f"{slices[k].name} and {slices[k + 1].name}: {steps[k]:.4g} mm where the usual "
        f"step is {usual:.4g} mm ({missing.sum()} missing in all); add the missing files{noted}"
    )


def _acquired_apart(slices: Sequence[Slice], gaps: npt.NDArray[np.intp]) -> str:
    """What shows that slices beside gaps of whole steps were acquired so; "" if nothing does."""
    numbers = [one.tags["InstanceNumber"] for one in slices]
    if all(map(_is_number, numbers)) and len(set(numbers)) == len(numbers):
        between = np.abs(np.diff(np.array(numbers, dtype=np.float64)))
        return ", numbered without a gap" if (between[gaps] == 1).all() else ""
    thickness = [float(t) for one in slices if _is_number(t := one.tags["SliceThickness"])]
    if thickness and max(thickness) > (1 + WHOLE) * abs(min(thickness)):
        return f", of SliceThickness {min(thickness):g} to {max(thickness):g} mm"
    return ""


def _is_number(text: str) -> bool:
    try:
        return bool(np.isfinite(float(text)))
    except ValueError:
        return False


def _described(steps: npt.NDArray[np.float64]) -> str:
    """The steps between slices: how many of which length, or their range."""
    counts = Counter(np.round(steps, 2).tolist())
    if len(counts) > MAX_STEPS:
        return f"{steps.min():.4g} to {steps.max():.4g} mm apart"
    return ", ".join(f"{n} step(s) of {length:.4g} mm" for length, n in sorted(counts.items()))


def _difference(a: Slice, b: Slice) -> tuple[str, str]:
    """How two slices at the same position differ, and what to do."""
    uid = a.tags["SOPInstanceUID"]
    if uid and uid == b.tags["SOPInstanceUID"] and a.frame is None and b.frame is None:
        return f"copies, both of SOPInstanceUID {uid}", "keep one of each"
    for name in DISTINGUISHING:
        if a.tags[name] != b.tags[name]:
            values = f"{a.tags[name] or 'none'} and {b.tags[name] or 'none'}"
            return f"{name} {values}", "split the series into one volume each"
    return (
        "no tag tells them apart",
        "keep one of each if they are copies, or split the series into one volume each",
    )
