"""What a reconstruction does to each labelled organ: intensity, spread, sharpness of its border.

The gradient across a border is taken between neighbouring voxels inside and outside, along each
axis. Each pair is weighted by the contrast of the original around it (mean of the label's voxels
less mean of the others in a box of 5 voxels), which also gives the sign. So noise cancels, borders
without contrast do not count, and an edge in the wrong place counts as lost:

    gradient = sum of w d / sum of |w|,    d the difference of a pair per mm, w its weight

B batch, C channels, X Y Z voxels.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import avg_pool3d

from medar.data.loading import UNKNOWN, PreparedDataset
from medar.evaluation.written import error_units

BOX = 5
"""Side of the box, in voxels, in which the contrast of a border is measured."""
INNER = 8
"""Least number of inner voxels for a spread."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Intensities:
    """From [-1, 1] to a unit that is comparable between cases: offset + scale * value."""

    scale: Tensor
    """(cases, C)."""
    offset: Tensor
    """(cases, C)."""
    unit: str
    """See `error_units`."""

    @classmethod
    def of(cls, dataset: PreparedDataset) -> "Intensities":
        """Those of a prepared data set."""
        scale, unit = error_units(dataset)
        if unit.startswith("fraction"):
            return cls(scale=scale, offset=torch.full_like(scale, 0.5), unit=unit)
        prepared = dataset.prepared
        centres = [
            [
                (rule.high + rule.low) / 2
                for rule in dataset.plan.rules(scale.shape[1], prepared[index].modality)
            ]
            for index in range(len(prepared))
        ]
        return cls(scale=scale, offset=torch.tensor(centres), unit=unit)

    def restore(self, volumes: Tensor, indices: Tensor) -> Tensor:
        """(B, C, X, Y, Z) of these cases in the unit, float64."""
        scale, offset = (one[indices].double()[..., None, None, None] for one in self._pair)
        return offset + scale * volumes.double()

    @property
    def _pair(self) -> tuple[Tensor, Tensor]:
        return self.scale, self.offset


@dataclass(frozen=True, kw_only=True)
class OrganScore:
    """One label of one case; intensities in the unit of `Intensities`."""

    label: str
    voxels: int
    original: float
    """Mean intensity."""
    reconstructed: float
    original_spread: float | None
    """Standard deviation over the inner voxels, whose 26 neighbours have the label too: there a
    border that has moved or softened does not count. None with fewer than `INNER` of them."""
    reconstructed_spread: float | None
    original_gradient: float | None
    """Across the border, per mm; None if the label has no border."""
    reconstructed_gradient: float | None


def organ_scores(
    original: Tensor,
    reconstruction: Tensor,
    label: Tensor,
    names: dict[str, int],
    spacing: Sequence[float],
) -> Iterator[OrganScore]:
    """Compare every label of a case that is present.

    Args:
        original: (X, Y, Z), one channel in the unit of the result.
        reconstruction: the same shape and unit.
        label: (X, Y, Z) values, -1 where unknown.
        names: value of each label that the case was annotated for, by name.
        spacing: mm per voxel.
    """
    for name, value in names.items():
        inside = label == value
        count = int(inside.sum())
        if not count:
            continue
        inner = avg_pool3d(inside[None].double(), 3, stride=1, padding=1)[0] > 1 - 1e-6
        spreads = [
            float(one[inner].std(correction=0)) if int(inner.sum()) >= INNER else None
            for one in (original, reconstruction)
        ]
        gradients = border_gradients(
            original, reconstruction, inside, (label != value) & (label != UNKNOWN), spacing
        )
        yield OrganScore(
            label=name,
            voxels=count,
            original=float(original[inside].mean()),
            reconstructed=float(reconstruction[inside].mean()),
            original_spread=spreads[0],
            reconstructed_spread=spreads[1],
            original_gradient=gradients[0] if gradients else None,
            reconstructed_gradient=gradients[1] if gradients else None,
        )


def border_gradients(
    original: Tensor,
    reconstruction: Tensor,
    inside: Tensor,
    outside: Tensor,
    spacing: Sequence[float],
) -> tuple[float, float] | None:
    """Gradients of the original and of the reconstruction across a border, per mm.

    None if no voxel inside touches one outside, or if the original has no contrast there at all.

    Args:
        original: (X, Y, Z).
        reconstruction: the same shape.
        inside: (X, Y, Z) bool.
        outside: (X, Y, Z) bool; voxels in neither are left out.
        spacing: mm per voxel.
    """
    within, without = _local_mean(original, inside), _local_mean(original, outside)
    sums = torch.zeros(3, dtype=torch.float64)
    for axis, side in enumerate(spacing):
        n = original.shape[axis] - 1
        for first, second in ((0, 1), (1, 0)):
            # Pairs of neighbours: the voxel inside and the voxel outside.
            pair = inside.narrow(axis, first, n) & outside.narrow(axis, second, n)
            weight = (within.narrow(axis, first, n) - without.narrow(axis, second, n))[pair]
            sums[0] += weight.abs().sum()
            for row, volume in ((1, original), (2, reconstruction)):
                step = volume.narrow(axis, first, n) - volume.narrow(axis, second, n)
                sums[row] += (weight * step[pair]).sum() / side
    if not sums[0] > 0:
        return None
    return float(sums[1] / sums[0]), float(sums[2] / sums[0])


def _local_mean(volume: Tensor, mask: Tensor) -> Tensor:
    """Mean over the mask's voxels within a box around each voxel; 0 where there are none."""
    stacked = torch.stack([volume * mask, mask.to(volume)])[None]
    sums = avg_pool3d(stacked, BOX, stride=1, padding=BOX // 2)[0]
    mean: Tensor = sums[0] / sums[1].clamp(min=1e-12)
    return mean
