"""One volume to the plan's form and back: normalise, resample, crop or pad.

Resampling, cropping and padding are a single interpolation onto a target grid, and no interpolation
if the volume has the plan's spacing already. A `Trace` holds what the inverse needs.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from medar.data.plan import TISSUE_HU, Plan, Window
from medar.errors import MedarError
from medar.volume import Grid, Provenance, Volume, resample
from medar.volume.counts import value_counts

VERSION = 2
"""To be raised whenever the bytes of a prepared case change: older caches are then redone."""

SAME_SPACING = 1e-3
"""Relative difference below which a spacing counts as the plan's and is kept."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Trace:
    """Record of the preparation of a volume, for its inverse."""

    source: Grid
    """The volume's grid before, RAS+."""
    target: Grid
    """Its grid after."""
    windows: tuple[Window, ...]
    """The intensity window of each channel."""
    modality: str | None
    provenance: Provenance | None

    def to_dict(self) -> dict[str, Any]:
        """The trace as JSON-serialisable values."""
        origin = self.provenance
        return {
            "source": self.source.to_dict(),
            "target": self.target.to_dict(),
            "windows": [[w.low, w.high] for w in self.windows],
            "modality": self.modality,
            "provenance": origin
            and {
                "path": origin.path,
                "format": origin.format,
                "grid": origin.grid.to_dict(),
                "dtype": origin.dtype,
                "notes": list(origin.notes),
            },
        }

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> "Trace":
        """The trace from the values of `to_dict`."""
        origin = value["provenance"]
        return cls(
            source=Grid.from_dict(value["source"]),
            target=Grid.from_dict(value["target"]),
            windows=tuple(Window(low=low, high=high) for low, high in value["windows"]),
            modality=value["modality"],
            provenance=origin
            and Provenance(
                path=origin["path"],
                format=origin["format"],
                grid=Grid.from_dict(origin["grid"]),
                dtype=origin["dtype"],
                notes=tuple(origin["notes"]),
            ),
        )


def prepare_image(volume: Volume, plan: Plan) -> tuple[npt.NDArray[np.float32], Trace]:
    """Bring an image to the plan's grid and to [-1, 1].

    Returns:
        (C, X, Y, Z) float32, with X, Y, Z the plan's size in volume mode, and the trace for the
        inverse.

    Raises:
        MedarError: the volume is constant, or a channel has no intensity rule.
    """
    rules = plan.rules(volume.channels, volume.modality)
    windows = tuple(rule.fit(channel) for rule, channel in zip(rules, volume.array, strict=True))
    target = target_grid(volume, plan)
    scaled = np.empty(volume.array.shape, np.float32)
    for channel, window, source in zip(scaled, windows, volume.array, strict=True):
        for plane, given in zip(channel, source, strict=True):  # one by one, for the sake of memory
            plane[...] = window.normalise(given)
    moved = resample(volume.with_array(scaled), target, interpolation=plan.interpolation, fill=-1.0)
    array = moved.array
    if plan.interpolation == "bspline":
        array = np.clip(array, -1.0, 1.0)
    trace = Trace(
        source=volume.grid,
        target=target,
        windows=windows,
        modality=volume.modality,
        provenance=volume.provenance,
    )
    return array, trace


def prepare_label(label: Volume, target: Grid, plan: Plan) -> npt.NDArray[Any]:
    """Bring a label map to the grid of its prepared image: (1, X, Y, Z) of `Plan.label_dtype`.

    Raises:
        MedarError: a value is not one of the plan's labels.
    """
    allowed = {0, *plan.labels} | ({plan.ignore_label} if plan.ignore_label is not None else set())
    unknown = sorted(set(value_counts(label.array)) - allowed)
    if unknown:
        raise MedarError(
            f"label values {', '.join(map(str, unknown))} are not among the plan's "
            f"{', '.join(map(str, sorted(allowed)))}"
        )
    moved = resample(label, target, interpolation=plan.label_interpolation, fill=0).array
    return moved.astype(plan.label_dtype)


def restore_image(array: npt.NDArray[Any], trace: Trace) -> Volume:
    """The inverse of `prepare_image`: back to the volume's own grid and intensities.

    Args:
        array: (C, X, Y, Z) in the plan's form.
        trace: as `prepare_image` returned it.

    Returns:
        The volume; outside the plan's grid it has the lowest value of its window.
    """
    prepared = Volume(array=array, affine=trace.target.affine, modality=trace.modality)
    back = resample(to_the_border(prepared, trace.source), trace.source, fill=-1.0).array
    restored = np.stack(
        [window.restore(channel) for window, channel in zip(trace.windows, back, strict=True)]
    )
    return Volume(
        array=restored,
        affine=trace.source.affine,
        modality=trace.modality,
        provenance=trace.provenance,
    )


def restore_label(array: npt.NDArray[Any], trace: Trace) -> Volume:
    """The inverse of `prepare_label`: a label map, (1, X, Y, Z), on the volume's own grid."""
    prepared = Volume(array=array, affine=trace.target.affine)
    back = resample(to_the_border(prepared, trace.source), trace.source, fill=0)
    return Volume(array=back.array, affine=trace.source.affine, provenance=trace.provenance)


def to_the_border(volume: Volume, source: Grid) -> Volume:
    """Pad a volume on a plan's grid by repeating its outermost voxels, to cover its source grid.

    As a grid has whole voxels, each of its ends may lie up to a quarter of a voxel inside the
    volume that it was made from.

    Args:
        volume: on the target grid of a `Trace`.
        source: its source grid.
    """
    to_target = np.linalg.solve(volume.affine, source.affine)
    first = to_target[:3, 3]
    last = first + to_target[:3, :3] @ (np.asarray(source.shape) - 1)
    short = np.maximum(-0.5 - first, last + 0.5 - np.asarray(volume.shape))
    # ITK treats the very end of a grid as outside.
    more = ((short > -SAME_SPACING) & (short < 0.25 + SAME_SPACING)).astype(int)
    if not more.any():
        return volume
    x, y, z = (int(n) for n in more)
    shape = (volume.shape[0] + 2 * x, volume.shape[1] + 2 * y, volume.shape[2] + 2 * z)
    array = np.pad(volume.array, [(0, 0), (x, x), (y, y), (z, z)], mode="edge")
    return Volume(array=array, affine=volume.grid.window((-x, -y, -z), shape).affine)


def target_grid(volume: Volume, plan: Plan) -> Grid:
    """The grid that a volume is resampled to: the plan's spacing and, in volume mode, its size.

    Volumes that have the spacing already keep their lattice, so that nothing is interpolated.
    """
    grid = at_plan_spacing(volume.grid, plan)
    if plan.mode == "patch":
        return grid
    middle = (np.asarray(grid.shape) - 1) / 2
    if plan.centre == "foreground":
        inside = volume.affine @ np.append(_foreground_centre(volume), 1.0)
        middle = np.linalg.solve(grid.affine, inside)[:3]
    start = np.floor(middle - (np.asarray(plan.size) - 1) / 2 + 0.5).astype(int)
    return grid.window((int(start[0]), int(start[1]), int(start[2])), plan.size)


def at_plan_spacing(grid: Grid, plan: Plan) -> Grid:
    """A grid with the plan's spacing; its own where that is nearly the same."""
    own = np.asarray(grid.spacing)
    spacing = np.where(np.abs(own / plan.spacing - 1) < SAME_SPACING, own, plan.spacing)
    return grid.at_spacing((float(spacing[0]), float(spacing[1]), float(spacing[2])))


def _foreground_centre(volume: Volume) -> npt.NDArray[np.float64]:
    """Centre, in voxels, of the bounding box of the first channel's foreground."""
    first = volume.array[0]
    mask = first > (TISSUE_HU if volume.modality == "CT" else first.min())
    if not mask.any():
        mask = np.ones_like(mask)
    middle = []
    for axis in range(3):
        inside = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        middle.append((inside[0] + inside[-1]) / 2)
    return np.asarray(middle)
