"""Chances of all classes on a volume's own grid, one class after the other.

K + 1 chances a voxel of a large CT are many times the CT itself: they lie in a file, and of those
on the volume's grid there are two channels in memory at a time.
"""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt

from medar.data.preparation import Trace, to_the_border
from medar.segmentation.prediction import (
    DEFAULT,
    Models,
    PredictionSettings,
    predict,
)
from medar.volume import Volume, resample


def probabilities(model: Models, volume: Volume, settings: PredictionSettings = DEFAULT) -> Volume:
    """The chances of all classes of a volume, on its own grid, in memory.

    Args:
        model: see `predict`.
        volume: as read from a file.
        settings: how.

    Returns:
        K + 1 channels, the background first, which sum to 1; all background where the networks see
        nothing.

    Raises:
        MedarError: see `predict`.
    """
    with TemporaryDirectory() as scratch:
        made = predict(model, volume, settings, scratch=Path(scratch))
        assert made.chances is not None
        array = np.stack(list(restored_chances(made.chances, made.trace)))
    return volume.with_array(array)


def restored_chances(chances: npt.NDArray[Any], trace: Trace) -> Iterator[npt.NDArray[np.float32]]:
    """Chances from the plan's grid back to the volume's own, by trilinear interpolation.

    Args:
        chances: (K + 1, X, Y, Z), the background first.
        trace: what led to the plan's grid.

    Yields:
        Class by class (X, Y, Z) on the volume's own grid, RAS+; their sum is 1.
    """
    total = _restored(chances, 0, trace).copy()
    for place in range(1, len(chances)):
        total += _restored(chances, place, trace)
    for place in range(len(chances)):
        yield _restored(chances, place, trace) / total


def _restored(chances: npt.NDArray[Any], place: int, trace: Trace) -> npt.NDArray[np.float32]:
    """One channel; what the plan's grid does not reach is background."""
    one = Volume(array=chances[place][None], affine=trace.target.affine)
    fill = 1.0 if place == 0 else 0.0
    found: npt.NDArray[np.float32] = resample(
        to_the_border(one, trace.source), trace.source, fill=fill
    ).array[0]
    return found
