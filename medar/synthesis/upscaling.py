"""Super-resolution: a volume of low resolution gives the coarse scales, the others are sampled.

The volume is interpolated to the plan's grid and encoded; its codes are the known coarse scales,
all finer ones come from the model. The decoded volume is then made consistent with the input: at
the input's resolution the result equals it (back-projection, Irani and Peleg, "Improving resolution
by image registration", CVGIP 53, 1991), and only finer detail is the model's.
"""

from dataclasses import replace
from math import prod

import numpy as np

from medar.data.preparation import Trace
from medar.devices import device_of
from medar.errors import MedarError
from medar.generator.known import KnownTokens, known_scales
from medar.synthesis.job import (
    SynthesisJob,
    as_image,
    identity,
    latent_of,
    prepared,
    restored,
    whole,
)
from medar.tokenizer.inference import Array, Labels, field_of_view
from medar.tokenizer.schedule import ScaleSchedule
from medar.tokenizer.tokenizer import Tokenizer
from medar.volume import Grid, Shape3, Spacing, Volume, resample

ROUNDS = 8
"""Iterations of back-projection: resampling blurs, so that one is not enough."""

ROUNDING = 1e-2
"""Relative difference between spacings that is ignored."""


def upscaling_job(
    tokenizer: Tokenizer, volume: Volume, scales: int | None = None, modality: str | None = None
) -> SynthesisJob:
    """A job that raises the resolution of a volume.

    Results have the plan's spacing and the volume's field of view; voxels outside the plan's grid
    have the lowest intensity.

    Args:
        tokenizer: with its plan.
        volume: an image on any grid.
        scales: known scales; default `scales_given`.
        modality: of the volume, if its file does not state it.

    Raises:
        MedarError: no image, a volume as fine as the plan, or scales that are not 1 to K - 1.
    """
    plan, schedule = tokenizer.require_plan(), tokenizer.config.schedule
    volume = as_image(volume, "upscale", modality)
    array, trace = prepared(volume, whole(plan), "upscale")
    if scales is None:
        scales = scales_given(schedule, trace.target.spacing, volume.spacing)
    if not 1 <= scales < len(schedule):
        raise MedarError(
            f"known scales {scales}: must be from 1 to {len(schedule) - 1}, so that one is left to "
            "sample"
        )
    low = _normalised(volume, trace)
    back = replace(trace, source=volume.grid.at_spacing(trace.target.spacing), provenance=None)
    mask, latent = known_scales(schedule, scales), latent_of(tokenizer, array)
    outside = float(1 - field_of_view(back).mean())
    note = f"{outside:.1%} of the field of view lie beyond the model's and hold the lowest value"

    def restore(image: Array, label: Labels | None) -> tuple[Volume, Volume | None]:
        return restored(agreeing(image, low, trace.target, volume.grid), label, back)

    return SynthesisJob(
        grid=trace.target,
        restore=restore,
        known=KnownTokens(mask=mask, latent=latent).to(device_of(tokenizer)),
        record={"upscale": identity(volume, "volume"), "known_scales": scales},
        notes=(note,) if outside else (),
    )


def scales_given(schedule: ScaleSchedule, fine: Spacing, coarse: Spacing) -> int:
    """Number of scales that a volume of spacing `coarse` gives on a grid of spacing `fine`.

    With r the ratio of the spacings (geometric mean over the axes), these are the scales with at
    most 1 / r of the latent grid's sites, at least one: a site covers several voxels along each
    side, so that a volume determines finer scales than those r times as coarse along each axis.
    The latter gave worse volumes (docs/benchmarks.md).

    Raises:
        MedarError: all scales are given.
    """
    factors = [max(1.0, c / f) for c, f in zip(coarse, fine, strict=True)]
    most = schedule.tokens[-1] / prod(factors) ** (1 / 3) * (1 + ROUNDING)
    fits = [tokens <= most for tokens in schedule.tokens]
    if all(fits):
        raise MedarError(
            f"upscale: spacing {_mm(coarse)} is hardly coarser than the plan's {_mm(fine)}, so "
            "that no scale is left to sample; set the number of scales to keep with known_scales "
            "(--known-scales)"
        )
    return max(1, fits.index(False))


def agreeing(made: Array, given: Array, fine: Grid, coarse: Grid) -> Array:
    """A volume made to equal `given` at low resolution.

    Only where the two grids overlap: what lies beyond would be blurred into the rim.

    Args:
        made: (C, X, Y, Z) in [-1, 1], on the grid `fine`.
        given: (C, x, y, z) in [-1, 1], the volume of low resolution on its own grid.
        fine: of the plan's spacing, along the axes of `coarse`.
        coarse: of `given`.
    """
    part, grid = _common(fine, coarse)
    reached = resample(_filled(grid), coarse, interpolation="nearest", fill=0.0).array
    agreed = made.copy()
    inside = agreed[part]
    for _ in range(ROUNDS):
        lowered = resample(Volume(array=inside, affine=grid.affine), coarse, fill=0.0).array
        missing = Volume(array=(given - lowered) * reached, affine=coarse.affine)
        inside = inside + resample(missing, grid, fill=0.0).array
    agreed[part] = np.clip(inside, -1.0, 1.0)
    return agreed


def _common(fine: Grid, coarse: Grid) -> tuple[tuple[slice, ...], Grid]:
    """The box of `fine` that lies within `coarse`: as slices of (C, X, Y, Z), and its grid."""
    field = coarse.at_spacing(fine.spacing)
    start = np.rint(np.linalg.solve(fine.affine, field.affine)[:3, 3]).astype(int)
    low = np.maximum(start, 0)
    sides = np.minimum(start + field.shape, fine.shape) - low
    first: Shape3 = (int(low[0]), int(low[1]), int(low[2]))
    shape: Shape3 = (int(sides[0]), int(sides[1]), int(sides[2]))
    box = (slice(a, a + n) for a, n in zip(first, shape, strict=True))
    return (slice(None), *box), fine.window(first, shape)


def _filled(grid: Grid) -> Volume:
    return Volume(array=np.ones((1, *grid.shape), np.float32), affine=grid.affine)


def _normalised(volume: Volume, trace: Trace) -> Array:
    """(C, X, Y, Z) in [-1, 1], on the volume's own grid."""
    pairs = zip(trace.windows, volume.array, strict=True)
    return np.stack([window.normalise(channel) for window, channel in pairs])


def _mm(spacing: Spacing) -> str:
    return " x ".join(f"{side:.3g}" for side in spacing) + " mm"
