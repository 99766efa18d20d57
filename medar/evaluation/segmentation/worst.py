"""The worst cases, kept for a picture: in each plane the slice with the most wrong voxels."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medar.volume import Shape3, Volume
from medar.volume.display import Range, display_range

MARGIN = 10.0
"""mm around the labels."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Slice:
    """Volumes of one voxel along one axis."""

    axis: int
    image: Volume
    truth: Volume
    predicted: Volume


@dataclass(frozen=True, kw_only=True, eq=False)
class WorstCase:
    """A case with its slices, across x, y and z."""

    name: str
    dice: float
    """Mean over its labels."""
    window: Range
    slices: tuple[Slice, ...]


class WorstCases:
    """Keeps the cases of the lowest mean Dice.

    Args:
        most: how many.
    """

    def __init__(self, most: int = 6) -> None:
        self.most = most
        self.kept: list[WorstCase] = []
        """The worst first."""

    def update(self, case: WorstCase) -> None:
        """Add a case, unless as many are worse."""
        cases = [*self.kept, case]
        self.kept = sorted(cases, key=lambda one: (one.dice, one.name))[: self.most]


def worst_case(
    name: str, image: Volume, truth: Volume, predicted: Volume, dice: float
) -> WorstCase:
    """A case with some label in truth or prediction, with the slices to draw.

    Args:
        name: of the case.
        image: its first channel is drawn.
        truth: on the image's grid.
        predicted: on the image's grid.
        dice: the mean over its labels.
    """
    low, high = _box(truth, predicted)
    parts = [_cut(one, low, high) for one in (image, truth, predicted)]
    shown = parts[1].array[0] != parts[2].array[0]
    if not shown.any():
        shown = parts[1].array[0] > 0
    slices = tuple(_slice(axis, _fullest(shown, axis), parts) for axis in range(3))
    return WorstCase(name=name, dice=dice, window=display_range(image), slices=slices)


def _box(truth: Volume, predicted: Volume) -> tuple[Shape3, Shape3]:
    """The corners of the box around the labels of both maps, with a margin."""
    labelled = (truth.array[0] > 0) | (predicted.array[0] > 0)
    low, high = [], []
    for axis, side in enumerate(labelled.shape):
        inside = np.flatnonzero(labelled.any(axis=tuple(a for a in range(3) if a != axis)))
        margin = int(np.ceil(MARGIN / truth.spacing[axis]))
        low.append(max(0, int(inside[0]) - margin))
        high.append(min(side, int(inside[-1]) + 1 + margin))
    return (low[0], low[1], low[2]), (high[0], high[1], high[2])


def _cut(volume: Volume, low: Shape3, high: Shape3) -> Volume:
    """The first channel within a box, as a volume."""
    box = tuple(map(slice, low, high))
    sides = tuple(b - a for a, b in zip(low, high, strict=True))
    grid = volume.grid.window(low, (sides[0], sides[1], sides[2]))
    return Volume(array=volume.array[(slice(0, 1), *box)].copy(), affine=grid.affine)


def _fullest(mask: npt.NDArray[np.bool_], axis: int) -> int:
    """The index of the slice of a mask with the most voxels."""
    return int(mask.sum(axis=tuple(a for a in range(3) if a != axis)).argmax())


def _slice(axis: int, index: int, parts: list[Volume]) -> Slice:
    """One slice of image, truth and prediction."""
    low, high = [0, 0, 0], list(parts[0].shape)
    low[axis], high[axis] = index, index + 1
    box = (low[0], low[1], low[2]), (high[0], high[1], high[2])
    image, truth, predicted = (_cut(one, *box) for one in parts)
    return Slice(axis=axis, image=image, truth=truth, predicted=predicted)
