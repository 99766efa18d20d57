"""Source volumes: what a generator is conditioned on to translate one volume into another.

The source of a case is another volume of the same patient, registered to the case's own: that of
the case with the same id in a second data set (`CaseSources`); or the case's own volume, degraded
as another acquisition would have it (`degraded`), for data sets without pairs. Either way it is one
channel in [-1, 1] on the grid of the prepared case, NaN where nothing is known of it.

C channels, X Y Z voxels.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool3d, interpolate

from medar.data.augmentation import AXES
from medar.data.hashes import HashIndex
from medar.data.manifest import Manifest
from medar.data.plan import IntensityRule, Plan
from medar.data.prepared import Prepared, PreparedCase
from medar.data.reading import read_image, reading_for
from medar.errors import MedarError
from medar.files import digest
from medar.settings import NonNegativeFloat, settings
from medar.volume import Grid, Spacing, Volume, resample

AIR_TO_BONE = IntensityRule(kind="window", low=-1000.0, high=1000.0)
EACH_VOLUME = IntensityRule(kind="percentiles", low=0.5, high=99.5)


@settings
class Degradation:
    """How a source is made of the volume itself: thick slices, noise, or both.

    Raises:
        MedarError: neither is set.
    """

    slice_thickness: NonNegativeFloat = 0.0
    """In mm; slices of this thickness, without gaps, are interpolated back. 0: as they are."""
    axis: Literal["x", "y", "z"] = "z"
    """The axis across the slices: right, anterior or superior."""
    noise: NonNegativeFloat = 0.0
    """Standard deviation of Gaussian noise, where the whole range is 2; it is added to the thick
    slices, before they are interpolated."""

    def __post_init__(self) -> None:
        if not self.slice_thickness and not self.noise:
            raise MedarError("slice_thickness and noise are both 0; set at least one of them")

    def __str__(self) -> str:
        slices = f"slices of {self.slice_thickness:g} mm across {self.axis}"
        pairs = ((self.slice_thickness, slices), (self.noise, f"noise of {self.noise:g}"))
        return " and ".join(text for size, text in pairs if size)


@settings
class Source:
    """The source volumes that a generator was trained with.

    Raises:
        MedarError: not exactly one of `intensity` and `degradation` is set.
    """

    modality: str | None = None
    """"CT" or "MR"; None if it is not stated, or the volumes' own."""
    intensity: IntensityRule | None = None
    """How intensities are brought to [-1, 1]; None for degraded volumes, by the plan's rules."""
    degradation: Degradation | None = None
    """How sources were made of the volumes themselves; None for pairs."""

    def __post_init__(self) -> None:
        if (self.intensity is None) == (self.degradation is None):
            raise MedarError("set either intensity, for pairs, or degradation")

    def __str__(self) -> str:
        if self.intensity is None:
            return f"the volume itself, with {self.degradation}"
        rule = self.intensity
        unit = f"{rule.kind} {rule.low:g} to {rule.high:g}"
        return f"{self.modality or 'a volume of unknown modality'}, {unit}"

    def rule(self, plan: Plan, modality: str | None) -> IntensityRule:
        """The intensity rule of a source volume.

        Args:
            plan: of the generator.
            modality: of the volume.

        Raises:
            MedarError: the plan has several channels, or no rule for the modality.
        """
        return self.intensity or plan.rules(1, modality)[0]


def rule_for(plan: Plan, modality: str | None) -> IntensityRule:
    """The intensity rule of the sources of a modality: the plan's, if it names the modality.

    Otherwise CT: a window from -1000 to 1000 HU; anything else: the 0.5th to 99.5th percentile of
    each volume.
    """
    if modality in plan.intensity:
        return plan.intensity[modality]
    return AIR_TO_BONE if modality == "CT" else EACH_VOLUME


def prepare_source(volume: Volume, rule: IntensityRule, grid: Grid) -> npt.NDArray[np.float32]:
    """Bring a source volume to the grid of a case: (1, X, Y, Z) in [-1, 1], NaN outside the volume.

    Raises:
        MedarError: it has several channels, no common voxel with the grid, or is constant.
    """
    if volume.channels != 1:
        raise MedarError(f"{volume.channels} channels; a source volume has one")
    scaled = rule.fit(volume.array[0]).normalise(volume.array)
    moved = resample(volume.with_array(scaled), grid, fill=np.nan).array
    if np.isnan(moved).all():
        raise MedarError(
            "the source volume and the volume of its case have no common voxel; check their affines"
        )
    return moved


class CaseSources:
    """The sources of prepared cases: the volumes of another data set with the same ids.

    Args:
        prepared: the cases.
        manifest: the data set of the sources; it may hold further cases.
        hashes: of the files.

    Raises:
        MedarError: a case has no source, the data set has several channels, or a file cannot be
            read.
    """

    def __init__(self, prepared: Prepared, manifest: Manifest, hashes: HashIndex) -> None:
        self.prepared, self.hashes = prepared, hashes
        ids = [prepared[index].id for index in range(len(prepared))]
        cases = {case.id: case for case in manifest}
        missing = [name for name in ids if name not in cases]
        if missing:
            raise MedarError(
                f"{manifest.root}: no source for {len(missing)} of {len(ids)} cases, such as "
                f"{missing[0]}; a source has the id (the file name) of its case, and here they are "
                f"{manifest.cases[0].id} and so on"
            )
        if len(manifest.channels) > 1:
            raise MedarError(
                f"{manifest.root}: {len(manifest.channels)} channels; sources have one"
            )
        self._cases = {name: cases[name] for name in ids}
        self._reading = reading_for(manifest, prepared.plan.reading)
        modality = read_image(self._cases[ids[0]], self._reading).modality
        self.about = Source(modality=modality, intensity=rule_for(prepared.plan, modality))
        self._last: tuple[str, Tensor] | None = None

    def __call__(self, case: PreparedCase) -> Tensor:
        """(1, X, Y, Z) on the case's whole grid.

        Raises:
            MedarError: a file cannot be read, is of another modality than the others, or see
                `prepare_source`.
        """
        if self._last is None or self._last[0] != case.id:  # variants of a case follow each other
            source = self._cases[case.id]
            volume = read_image(source, self._reading)
            name = str(source.images[0])
            if volume.modality != self.about.modality:
                raise MedarError(
                    f"{name}: {volume.modality}, but the first source is {self.about.modality}; "
                    "sources have one modality"
                )
            rule = self.about.rule(self.prepared.plan, volume.modality)
            try:
                array = prepare_source(volume, rule, self.prepared.trace(case).target)
            except MedarError as error:
                raise MedarError(f"{name}: {error}") from error
            self._last = case.id, torch.from_numpy(array.copy())
        return self._last[1]

    def key(self, case: PreparedCase) -> str:
        """A hash of the case's source and of how it is prepared.

        Raises:
            MedarError: a file cannot be read.
        """
        source = self._cases[case.id]
        return digest([source.modality, [self.hashes[path] for path in source.images]])


def degraded(
    image: Tensor, degradation: Degradation, spacing: Spacing, seed: Sequence[int]
) -> Tensor:
    """An image, (C, X, Y, Z) in [-1, 1], as a scan of less quality; of the same shape and range.

    Args:
        image: as prepared.
        degradation: what it loses.
        spacing: in mm.
        seed: of the noise.
    """
    sides = list(image.shape[1:])
    if degradation.slice_thickness:
        axis = AXES.index(degradation.axis)
        slices = round(sides[axis] * spacing[axis] / degradation.slice_thickness)
        sides[axis] = min(max(slices, 1), sides[axis])
    low = adaptive_avg_pool3d(image[None], (sides[0], sides[1], sides[2]))
    if degradation.noise:
        drawn = np.random.default_rng(list(seed)).standard_normal(low.shape, dtype=np.float32)
        low = low + degradation.noise * torch.from_numpy(drawn)
    back = interpolate(low, image.shape[1:], mode="trilinear", align_corners=False)
    return back[0].clamp(-1.0, 1.0)
