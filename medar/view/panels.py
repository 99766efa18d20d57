"""`Panel`: a volume and its label map in the form that the page needs, NIfTI bytes and facts.

Every file, including NIfTI, is read by `medar.volume`: the page shows the geometry that medar
assumes, and no file that medar refuses.
"""

import math
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medar.data.case import Case
from medar.data.reading import read_image, read_label
from medar.data.segments import joined_names
from medar.errors import GeometryWarning, MedarError
from medar.view.files import MAX_PANELS, VolumeFile, titles
from medar.volume import Grid, ReadOptions, Volume, write_nifti
from medar.volume.display import Range, display_range, labelled_middle

MAX_LABELS = 255
"""Different values of a label map, which the page stores as bytes."""

PRESETS = {"soft": "40/400", "lung": "-600/1500", "bone": "300/1500", "brain": "40/80"}
"""CT windows by name, as LEVEL/WIDTH in HU."""

MAX_FLOAT = 3e38
"""About the largest single-precision number of a graphics card."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Panel:
    """One volume on the page."""

    image: bytes
    """A gzipped NIfTI file whose axes are closest to right, anterior, superior."""
    label: bytes | None
    """A gzipped NIfTI file on the grid of the image; voxel k > 0 is entry k - 1 of the labels in
    `facts`."""
    grid: Grid
    facts: dict[str, Any]
    """What the page displays, as values that JSON can hold."""

    @property
    def size(self) -> int:
        """Bytes of both files."""
        return len(self.image) + len(self.label or b"")


def make_panels(
    files: Sequence[VolumeFile],
    options: ReadOptions,
    *,
    modality: str | None = None,
    window: Range | None = None,
    names: Mapping[int, str] | None = None,
) -> list[Panel]:
    """Read volumes and their label maps; a volume of several channels gives one panel per channel.

    Args:
        files: see `select_files`.
        options: how files are read.
        modality: "CT" or "MR", used if neither the file nor its record states it.
        window: display range of all volumes; default `display_range` of each.
        names: names of label values; default: those of segments, which DICOM SEG has.

    Raises:
        MedarError: a file cannot be read without guessing, a label map has another grid or too
            many values, or there are more volumes than a page shows.

    Warns:
        GeometryWarning: see `read_volume`.
        UserWarning: a volume has more channels than a page shows.
    """
    panels: list[Panel] = []
    for one, title in zip(files, titles([one.image for one in files]), strict=True):
        case = Case(
            id="volume", images=(one.image,), label=one.label, further_labels=one.further_labels
        )
        image = read_image(case, options)
        image = replace(image, modality=image.modality or one.modality or modality)
        label = read_label(case, options, image, names or {})
        shown = names or joined_names([case.labels])
        _warn(one.image, image)
        for channel in range(min(image.channels, MAX_PANELS)):
            single = image.with_array(image.array[channel : channel + 1])
            name = title if image.channels == 1 else f"{title}, channel {channel}"
            panels.append(_panel(name, one, single, label, window, shown))
    if len(panels) > MAX_PANELS:
        raise MedarError(f"{len(panels)} volumes and channels; a page shows at most {MAX_PANELS}")
    return panels


def overlap(panels: Sequence[Panel]) -> bool:
    """Whether the centre of every volume lies inside all others, in scanner coordinates."""
    centres = [np.append((np.asarray(p.grid.shape) - 1) / 2, 1.0) for p in panels]
    for one, centre in zip(panels, centres, strict=True):
        for other in panels:
            voxel = (np.linalg.inv(other.grid.affine) @ one.grid.affine @ centre)[:3]
            if (voxel < -0.5).any() or (voxel > np.asarray(other.grid.shape) - 0.5).any():
                return False
    return True


def parse_window(text: str) -> Range:
    """The display range of a preset or of LEVEL/WIDTH.

    Raises:
        MedarError: the text is neither of the two, or the width is not above 0.
    """
    level, _, width = PRESETS.get(text, text).partition("/")
    try:
        low, high = float(level) - float(width) / 2, float(level) + float(width) / 2
    except ValueError:
        low = high = math.nan
    if not -MAX_FLOAT < low < high < MAX_FLOAT:
        raise MedarError(
            f"--window must be {', '.join(PRESETS)}, or LEVEL/WIDTH such as 40/400, got {text!r}"
        )
    return low, high


def _warn(path: Path, image: Volume) -> None:
    """Warn about remarks on the geometry, and about channels that are not shown."""
    for remark in image.provenance.notes if image.provenance else ():
        warnings.warn(f"{path}: {remark}", GeometryWarning, stacklevel=3)
    if image.channels > MAX_PANELS:
        text = f"{path}: the first {MAX_PANELS} of {image.channels} channels are shown"
        warnings.warn(text, UserWarning, stacklevel=3)


def _panel(
    title: str,
    file: VolumeFile,
    image: Volume,
    label: Volume | None,
    window: Range | None,
    names: Mapping[int, str],
) -> Panel:
    low, high = window or display_range(image)
    facts = {
        "title": title,
        "synthetic": file.synthetic,
        "modality": image.modality,
        "shape": list(image.shape),
        "spacing": [float(f"{side:.4g}") for side in image.spacing],
        "window": [low, high],
        "labels": [],
    }
    start = tuple((n - 1) // 2 for n in image.shape)
    packed = None
    if label is not None:
        values, counts = np.unique(label.array, return_counts=True)
        facts["labels"] = _legend(file.label, values, counts, image, names)
        packed = _nifti(label.with_array(_indices(values, label.array)))
        start = labelled_middle(label.array[0]) or start
    facts["start"] = [float(c) for c in (image.affine @ [*start, 1.0])[:3]]
    return Panel(image=_nifti(_compact(image)), label=packed, grid=image.grid, facts=facts)


def _legend(
    path: Path | None,
    values: npt.NDArray[Any],
    counts: npt.NDArray[Any],
    image: Volume,
    names: Mapping[int, str],
) -> list[dict[str, Any]]:
    """Value, name and volume in ml of every label, without background (0)."""
    if len(values) > MAX_LABELS:
        raise MedarError(
            f"{path}: {len(values)} different values; a label map may have at most "
            f"{MAX_LABELS}: is this an image?"
        )
    millilitres = abs(float(np.linalg.det(image.affine[:3, :3]))) / 1000.0
    return [
        {"value": int(v), "name": names.get(int(v), ""), "ml": float(f"{n * millilitres:.4g}")}
        for v, n in zip(values, counts, strict=True)
        if v != 0
    ]


def _indices(values: npt.NDArray[Any], label: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """0 for the background, and 1, 2, ... for the other values in order."""
    table = np.zeros(len(values), np.uint8)
    table[values != 0] = np.arange(1, 1 + np.count_nonzero(values))
    return np.asarray(table[np.searchsorted(values, label)])


def _compact(image: Volume) -> Volume:
    """The same voxels as int16 if that is lossless: half the size."""
    array = image.array
    limits = np.iinfo(np.int16)
    if not np.isfinite(array).all() or array.min() < limits.min or array.max() > limits.max:
        return image
    integers = array.astype(np.int16)
    return image.with_array(integers) if bool((integers == array).all()) else image


def _nifti(volume: Volume) -> bytes:
    with tempfile.TemporaryDirectory(prefix="medar-") as folder:
        path = Path(folder) / "volume.nii.gz"
        write_nifti(path, volume)
        return path.read_bytes()
