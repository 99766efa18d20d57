"""`Panel`: a volume and its label map as the page takes them, NIfTI bytes and facts.

Every file goes through `medar.volume`, NIfTI too: what the page shows lies where medar says that
it lies, and what medar refuses is not shown.
"""

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
from medar.errors import GeometryWarning, MedarError
from medar.view.files import MOST, Shown, titles
from medar.volume import Grid, ReadOptions, Volume, write_nifti
from medar.volume.display import Range, display_range, labelled_middle

MOST_LABELS = 255
"""Values of a label map: the page keeps them in a byte."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Panel:
    """One volume on the page."""

    image: bytes
    """A gzipped NIfTI file; the grid's axes lie closest to right, anterior, superior."""
    label: bytes | None
    """On the image's grid; voxels are places in `facts["labels"]`, from 1."""
    grid: Grid
    facts: dict[str, Any]
    """What the page says of it, as JSON-able values."""

    @property
    def size(self) -> int:
        """Bytes of both files."""
        return len(self.image) + len(self.label or b"")


def make_panels(
    shown: Sequence[Shown],
    options: ReadOptions,
    *,
    modality: str | None = None,
    window: Range | None = None,
    names: Mapping[int, str] | None = None,
) -> list[Panel]:
    """Read volumes and their label maps; a volume of several channels gives a panel a channel.

    Args:
        shown: files, see `choose`.
        options: how files are read.
        modality: "CT" or "MR", where neither the file nor its record says.
        window: black and white of all; default each volume's own, the same for all of CT.
        names: of label values.

    Raises:
        MedarError: a file that cannot be read without guessing, a label map on another grid or
            with too many values, or more volumes than a page shows.

    Warns:
        GeometryWarning: see `read_volume`.
        UserWarning: a volume has more channels than a page shows.
    """
    panels: list[Panel] = []
    for one, title in zip(shown, titles([one.image for one in shown]), strict=True):
        case = Case(id="volume", images=(one.image,), label=one.label)
        image = read_image(case, options)
        image = replace(image, modality=image.modality or one.modality or modality)
        label = read_label(case, options, image)
        _warn(one, image)
        for channel in range(min(image.channels, MOST)):
            only = image.with_array(image.array[channel : channel + 1])
            name = title if image.channels == 1 else f"{title}, channel {channel}"
            panels.append(_panel(name, one, only, label, window, names or {}))
    if len(panels) > MOST:
        raise MedarError(f"{len(panels)} volumes and channels; a page shows at most {MOST}")
    return panels


def overlap(panels: Sequence[Panel]) -> bool:
    """Whether the middle of every volume lies within all others, in scanner coordinates."""
    middles = [np.append((np.asarray(p.grid.shape) - 1) / 2, 1.0) for p in panels]
    for one, middle in zip(panels, middles, strict=True):
        for other in panels:
            place = (np.linalg.inv(other.grid.affine) @ one.grid.affine @ middle)[:3]
            if (place < -0.5).any() or (place > np.asarray(other.grid.shape) - 0.5).any():
                return False
    return True


def _warn(one: Shown, image: Volume) -> None:
    """What the file's geometry leaves to say, and channels beyond the page's panels."""
    for remark in image.provenance.notes if image.provenance else ():
        warnings.warn(f"{one.image}: {remark}", GeometryWarning, stacklevel=3)
    if image.channels > MOST:
        said = f"{one.image}: the first {MOST} of {image.channels} channels are shown"
        warnings.warn(said, UserWarning, stacklevel=3)


def _panel(
    title: str,
    one: Shown,
    image: Volume,
    label: Volume | None,
    window: Range | None,
    names: Mapping[int, str],
) -> Panel:
    low, high = window or display_range(image)
    facts = {
        "title": title,
        "synthetic": one.synthetic,
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
        facts["labels"] = _legend(one.label, values, counts, image, names)
        packed = _nifti(label.with_array(_places(values, label.array)))
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
    """Value, name and volume in ml of every label but 0."""
    if len(values) > MOST_LABELS:
        raise MedarError(
            f"{path}: {len(values)} different values; a label map of at most {MOST_LABELS} is "
            "shown; is this an image?"
        )
    millilitres = abs(float(np.linalg.det(image.affine[:3, :3]))) / 1000.0
    return [
        {"value": int(v), "name": names.get(int(v), ""), "ml": float(f"{n * millilitres:.4g}")}
        for v, n in zip(values, counts, strict=True)
        if v != 0
    ]


def _places(values: npt.NDArray[Any], label: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Labels as 0 for 0, and 1, 2, ... for the others in order."""
    table = np.zeros(len(values), np.uint8)
    table[values != 0] = np.arange(1, 1 + np.count_nonzero(values))
    return np.asarray(table[np.searchsorted(values, label)])


def _compact(image: Volume) -> Volume:
    """The same voxels as int16 where that holds them, half of the bytes."""
    array = image.array
    room = np.iinfo(np.int16)
    if not np.isfinite(array).all() or array.min() < room.min or array.max() > room.max:
        return image
    whole = array.astype(np.int16)
    return image.with_array(whole) if bool((whole == array).all()) else image


def _nifti(volume: Volume) -> bytes:
    with tempfile.TemporaryDirectory(prefix="medar-") as folder:
        path = Path(folder) / "volume.nii.gz"
        write_nifti(path, volume)
        return path.read_bytes()
