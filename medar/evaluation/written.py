"""What a file would hold of a decoded volume: values within the window, in whole units.

A decoder's output may exceed [-1, 1] by a little, and differs from a constant background by amounts
that no file keeps and nobody sees. Reconstructions, samples and the real volumes they are compared
with are therefore clamped and rounded before any of them is judged. CT with fixed windows has steps
of 1 HU. Otherwise a step is a thousandth of the window: medar writes such volumes from 0 to 1000.

B batch, C channels, X Y Z voxels.
"""

import torch
from torch import Tensor

from medar.data.loading import PreparedDataset

WINDOW_STEPS = 1000
"""Steps of a window whose unit is unknown."""

PROTOCOL = (
    "every volume, real ones included, clamped to the window and rounded: to 1 HU where all cases "
    f"are CT with fixed windows, else to 1/{WINDOW_STEPS} of the window"
)


def error_units(dataset: PreparedDataset) -> tuple[Tensor, str]:
    """What a difference of 1 in [-1, 1] is worth: (cases, C), and the unit's name.

    Fixed windows have the volume's own unit, HU where all is CT. Percentiles differ from volume to
    volume, so only a fraction of the window can be compared.
    """
    prepared, channels = dataset.prepared, len(dataset.plan.channels) or 1
    modalities = [prepared[index].modality for index in range(len(prepared))]
    rules = [dataset.plan.rules(channels, modality) for modality in modalities]
    if any(rule.kind != "window" for row in rules for rule in row):
        return torch.full((len(rules), len(rules[0])), 0.5), "fraction of the intensity window"
    unit = "HU" if set(modalities) == {"CT"} else "units of the volume"
    return torch.tensor([[(rule.high - rule.low) / 2 for rule in row] for row in rules]), unit


def file_step(dataset: PreparedDataset) -> Tensor:
    """The difference in [-1, 1] between neighbouring values of a file: (C,)."""
    units, name = error_units(dataset)
    if name == "HU":
        return 1 / units[0]
    return torch.full((units.shape[1],), 2 / WINDOW_STEPS)


def as_written(volumes: Tensor, step: Tensor) -> Tensor:
    """Clamp to [-1, 1] and round to a whole number of steps above -1.

    Args:
        volumes: (B, C, X, Y, Z).
        step: (C,), see `file_step`.
    """
    size = step.to(volumes).view(-1, 1, 1, 1)
    return (((volumes.clamp(-1, 1) + 1) / size).round() * size - 1).clamp(-1, 1)
