"""Super-resolution: a volume of low resolution gives the coarse scales, the others are sampled.

How many scales does it give? A volume that is r times as coarse as the plan would be encoded, at
its own resolution, to a latent grid r times as coarse. So a scale is taken to be known if it has no
more sites along any axis than that. The volume is interpolated to the plan's grid and encoded
there; the codes of known scales follow, all finer ones come from the model.
"""

from dataclasses import replace
from functools import partial

from medar.data.preparation import prepare_image
from medar.errors import MedarError
from medar.generator.known import known_scales
from medar.generator.model import Known
from medar.generator.scene import Scene, as_image, identity, latent_of, restored, whole
from medar.tokenizer.inference import device_of, field_of_view, plan_of
from medar.tokenizer.schedule import ScaleSchedule
from medar.tokenizer.tokenizer import Tokenizer
from medar.volume import Spacing, Volume

ROUNDING = 1e-2
"""Relative difference of spacings that does not cost a scale."""


def upscaling(
    tokenizer: Tokenizer, volume: Volume, scales: int | None = None, modality: str | None = None
) -> Scene:
    """The scene of a volume of which the coarse scales are known.

    Results have the plan's spacing and the volume's field of view; what of it the plan's grid does
    not reach holds the lowest intensity.

    Args:
        tokenizer: with its plan.
        volume: an image on any grid.
        scales: known scales; default `scales_given`.
        modality: what the volume is, where it does not say.

    Raises:
        MedarError: no image, a volume as fine as the plan, or scales that are not 1 to K - 1.
    """
    plan, schedule = plan_of(tokenizer), tokenizer.config.schedule
    volume = as_image(volume, "upscale", modality)
    array, trace = prepare_image(volume, whole(plan))
    if scales is None:
        scales = scales_given(schedule, trace.target.spacing, volume.spacing)
    if not 1 <= scales < len(schedule):
        raise MedarError(
            f"known scales {scales}: 1 to {len(schedule) - 1} are possible, so that one is left to "
            "be sampled"
        )
    field = volume.grid.at_spacing(trace.target.spacing)
    back = replace(trace, source=field, provenance=None)
    outside = float(1 - field_of_view(back).mean())
    note = f"{outside:.1%} of the field of view lie beyond the model's and hold the lowest value"
    return Scene(
        grid=trace.target,
        place=partial(restored, trace=back),
        known=Known(mask=known_scales(schedule, scales), latent=latent_of(tokenizer, array)).to(
            device_of(tokenizer)
        ),
        about={"upscale": identity(volume, "volume"), "known_scales": scales},
        notes=(note,) if outside else (),
    )


def scales_given(schedule: ScaleSchedule, fine: Spacing, coarse: Spacing) -> int:
    """Scales that a volume of spacing `coarse` determines on a grid of spacing `fine`; 1 or more.

    Raises:
        MedarError: it determines all of them.
    """
    factors = [max(1.0, c / f) for c, f in zip(coarse, fine, strict=True)]
    most = [n / r * (1 + ROUNDING) for n, r in zip(schedule.latent, factors, strict=True)]
    fits = [all(a <= b for a, b in zip(grid, most, strict=True)) for grid in schedule.grids]
    if all(fits):
        raise MedarError(
            f"upscale: spacing {_mm(coarse)} is hardly coarser than the plan's {_mm(fine)}, so "
            "that no scale is left to be sampled; say with known_scales (--known-scales) how many "
            "are to be kept"
        )
    return max(1, fits.index(False))


def _mm(spacing: Spacing) -> str:
    return " x ".join(f"{side:.3g}" for side in spacing) + " mm"
