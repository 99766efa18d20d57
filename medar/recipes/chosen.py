"""`chosen_settings`: a recipe without a configuration."""

from collections.abc import Sequence
from typing import Any, TypeVar

from medar.errors import MedarError
from medar.recipes.settings import DataSettings, SegmentationRecipeSettings, SynthesisSettings
from medar.settings import from_dict, overridden, to_dict

Settings = TypeVar("Settings", SynthesisSettings, SegmentationRecipeSettings)


def chosen_settings(
    kind: type[Settings],
    data: DataSettings,
    minutes: float | None = None,
    overrides: Sequence[str] = (),
) -> tuple[Settings, list[str]]:
    """Settings chosen from a data set and this machine.

    Args:
        kind: of the recipe.
        data: names the data set.
        minutes: for all stages together; default: by the device.
        overrides: values that replace chosen ones, as `key.below=value`.

    Returns:
        The settings, and what was chosen, for people.

    Raises:
        MedarError: no data set or none that can be read, an override that does not fit, or several
            processes, whose measurements would differ.
    """
    from medar.recipes.automatic import measure, this_machine
    from medar.recipes.automatic_segmentation import choose_segmentation
    from medar.recipes.automatic_synthesis import choose_synthesis
    from medar.training.distributed import current_ranks

    if current_ranks().world_size > 1:
        raise MedarError(
            "no configuration: settings are chosen by one process; run the command once without "
            "torchrun and with --until prepare, then again under torchrun"
        )
    if minutes is not None and minutes <= 0:
        raise MedarError(f"--minutes must be greater than 0, got {minutes:g}")
    measured, machine = measure(data), this_machine()
    chosen: Any
    if kind is SynthesisSettings:
        chosen, lines = choose_synthesis(measured, machine, minutes)
    else:
        chosen, lines = choose_segmentation(measured, machine, minutes)
    changed = overridden(to_dict(chosen), overrides)
    where = f"chosen settings with {' '.join(overrides)}" if overrides else "chosen settings"
    return from_dict(kind, changed, where), lines
