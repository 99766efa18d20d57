"""Translation: a volume of the patient, the source, steers every scale, as a label map does.

The source is brought to the plan's grid, around its own centre, and its intensities are the map
that the generator follows. All tokens are sampled. The decoded volume is brought back to the grid
of the source, or to its field of view in the plan's spacing, for models that make thin slices of
thick ones.

X Y Z voxels.
"""

from collections.abc import Iterable
from dataclasses import replace

import torch

from medar.data.plan import Plan
from medar.data.preparation import Trace, at_plan_spacing, target_grid
from medar.data.source import prepare_source
from medar.errors import MedarError
from medar.generator.conditions import Condition
from medar.generator.maps import source_channels
from medar.generator.settings import ConditionConfig
from medar.synthesis.job import SynthesisJob, as_image, identity, name_of, restored, whole
from medar.tokenizer.decoding import windows_of
from medar.tokenizer.inference import Array, Labels, field_of_view
from medar.volume import Volume

ROUNDING = 1e-2
"""Relative difference between spacings that is ignored."""


def translation_job(
    config: ConditionConfig,
    plan: Plan,
    volume: Volume,
    modality: str | None = None,
    *,
    model_spacing: bool = False,
) -> SynthesisJob:
    """A job that translates a volume, with the map that steers it as its condition.

    Results have the volume's grid. Intensities are those of synthetic volumes (`windows_of`);
    models of degraded volumes restore the volume's own. Voxels outside the plan's grid have the
    lowest intensity.

    Args:
        config: of the generator.
        plan: of the generator.
        volume: an image on any grid.
        modality: of the results, if the plan has several.
        model_spacing: results have the plan's spacing and the volume's field of view instead.

    Raises:
        MedarError: a generator without source volumes, or with ones of another modality; no image,
            several channels, or a constant volume.
    """
    volume = _checked(config, volume, modality or plan.sole_modality)
    source, name = config.source, name_of(volume, "source")
    assert source is not None
    grid = target_grid(volume, whole(plan))
    try:
        rule = source.rule(plan, volume.modality)
        array = prepare_source(volume, rule, grid)
    except MedarError as error:
        raise MedarError(f"{name}: {error}") from error
    if source.degradation is None:
        modality = modality or plan.sole_modality
        windows, notes = windows_of(None, plan, modality)
    else:
        modality = volume.modality
        windows, notes = (rule.fit(volume.array[0]),), ()
    back = Trace(
        source=volume.grid,
        target=grid,
        windows=windows,
        modality=modality,
        provenance=volume.provenance,
    )
    if model_spacing:
        back = replace(back, source=at_plan_spacing(volume.grid, plan), provenance=None)
    elif any(abs(own / side - 1) > ROUNDING for own, side in _sides(volume, plan)):
        own, models = (" x ".join(f"{s:.3g}" for s in x.spacing) for x in (volume, plan))
        notes = (*notes, f"{name}: resampled from {own} mm to the model's {models} mm, and back")
    outside = float(1 - field_of_view(back).mean())
    if outside:
        beyond = "lie beyond the model's field of view and hold the lowest value"
        notes = (*notes, f"{name}: {outside:.1%} of the voxels {beyond}")

    def restore(image: Array, label: Labels | None) -> tuple[Volume, Volume | None]:
        return restored(image, label, back)

    return SynthesisJob(
        grid=grid,
        restore=restore,
        condition=Condition(
            attributes=torch.empty(1, 0), map=source_channels(torch.from_numpy(array.copy()))
        ),
        record={"source": identity(volume, "source"), "model_spacing": model_spacing},
        notes=notes,
    )


def _checked(config: ConditionConfig, volume: Volume, modality: str | None) -> Volume:
    """A source volume with its modality: as it states, else as in training.

    Raises:
        MedarError: see `translation_job`.
    """
    name, source = name_of(volume, "source"), config.source
    if source is None:
        raise MedarError(
            f"{name}: this generator was trained without source volumes (condition.map is "
            f"{config.map!r}), so it cannot translate; train one with condition.map=source"
        )
    trained = modality if source.degradation is not None else source.modality
    if source.degradation is None and trained and volume.modality not in (None, trained):
        raise MedarError(
            f"{name}: {volume.modality}, but this generator translates {trained}; give a {trained}"
        )
    return as_image(volume, "source", trained)


def _sides(volume: Volume, plan: Plan) -> Iterable[tuple[float, float]]:
    return zip(volume.spacing, plan.spacing, strict=True)
