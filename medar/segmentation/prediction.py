"""From a volume to its label map and class probabilities, on the volume's own grid.

    volume -> prepared by the plan -> class probabilities by sliding windows
    -> most probable class -> the volume's own grid

X Y Z voxels, K labels (without the background).
"""

import shutil
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from medar.data.preparation import Trace, prepare_image, restore_label, to_the_border
from medar.errors import MedarError, RangeWarning
from medar.segmentation.sliding_window import (
    DEFAULT,
    Models,
    PredictionSettings,
    as_ensemble,
    predict_rows,
)
from medar.segmentation.training_range import out_of_range
from medar.volume import Volume, resample


@dataclass(frozen=True, kw_only=True, eq=False)
class Prediction:
    """The segmentation of a volume."""

    label: Volume
    """On the volume's own grid; 0 where the networks see nothing."""
    notes: tuple[str, ...]
    """How the volume differs from the training volumes."""
    probabilities: npt.NDArray[np.float32] | None
    """(K + 1, X, Y, Z) on the plan's grid, in a file, if they were kept."""
    trace: Trace
    """From the volume's grid to the plan's."""


def segment(model: Models, volume: Volume, settings: PredictionSettings = DEFAULT) -> Volume:
    """The label map of a volume, on its own grid; see `predict`."""
    return predict(model, volume, settings).label


def predict(
    model: Models,
    volume: Volume,
    settings: PredictionSettings = DEFAULT,
    *,
    scratch: Path | None = None,
) -> Prediction:
    """Segment a volume.

    Args:
        model: a network or an ensemble, in evaluation mode, on the device to compute on.
        volume: as read from a file.
        settings: of prediction.
        scratch: folder for a file with the probabilities of all classes; default: not kept.

    Raises:
        MedarError: the plan has no intensity rule for the volume, mirroring along x needs labels
            that are missing, or the networks have different plans.

    Warns:
        RangeWarning: spacing or intensities are unlike those of the training volumes.
    """
    models = as_ensemble(model)
    plan = models[0].plan
    name = volume.provenance.path if volume.provenance else "volume"
    try:
        array, trace = prepare_image(volume, plan)
    except MedarError as error:
        raise MedarError(f"{name}: {error}") from error
    notes = dict.fromkeys(
        note
        for one in models
        for note in out_of_range(one.training_range, plan, volume.spacing, array)
    )
    for note in notes:
        warnings.warn(f"{name}: {note}", RangeWarning, stacklevel=2)
    kept = None
    if scratch is not None:
        kept = _probability_file(scratch, (len(plan.labels) + 1, *array.shape[1:]))
    values = np.array([0, *plan.labels], dtype=plan.label_dtype)
    made = np.zeros((1, *array.shape[1:]), plan.label_dtype)
    for box, blended in predict_rows(models, image_tensor(array), settings):
        made[box] = values[blended.classes.cpu().numpy()]
        if kept is not None:
            kept[:, *box[1:]] = blended.probabilities[0].cpu().numpy()
    del array, blended  # the sums of all classes would stay in memory
    label = restore_label(made, trace)
    return Prediction(label=label, notes=tuple(notes), probabilities=kept, trace=trace)


def predict_probabilities(
    model: Models, volume: Volume, settings: PredictionSettings = DEFAULT
) -> Volume:
    """The probabilities of all classes of a volume, on its own grid, in memory.

    Args:
        model: see `predict`.
        volume: as read from a file.
        settings: of prediction.

    Returns:
        K + 1 channels, background first, that sum to 1; background where the networks see nothing.

    Raises:
        MedarError: see `predict`.
    """
    with TemporaryDirectory() as scratch:
        made = predict(model, volume, settings, scratch=Path(scratch))
        assert made.probabilities is not None
        array = np.stack(list(restore_probabilities(made.probabilities, made.trace)))
    return volume.with_array(array)


def restore_probabilities(
    probabilities: npt.NDArray[Any], trace: Trace
) -> Iterator[npt.NDArray[np.float32]]:
    """Probabilities from the plan's grid to the volume's own, by trilinear interpolation.

    All classes of a large CT are many times its size, so only two channels are in memory at once.

    Args:
        probabilities: (K + 1, X, Y, Z), background first.
        trace: from the volume's grid to the plan's.

    Yields:
        Each class, (X, Y, Z) on the volume's own grid, RAS+; they sum to 1.
    """
    total = _restored(probabilities, 0, trace).copy()
    for index in range(1, len(probabilities)):
        total += _restored(probabilities, index, trace)
    for index in range(len(probabilities)):
        yield _restored(probabilities, index, trace) / total


def _restored(probabilities: npt.NDArray[Any], index: int, trace: Trace) -> npt.NDArray[np.float32]:
    """One channel; background outside the plan's grid."""
    channel = Volume(array=probabilities[index][None], affine=trace.target.affine)
    fill = 1.0 if index == 0 else 0.0
    restored: npt.NDArray[np.float32] = resample(
        to_the_border(channel, trace.source), trace.source, fill=fill
    ).array[0]
    return restored


def image_tensor(array: npt.NDArray[np.float32]) -> torch.Tensor:
    """A prepared image as a tensor that shares its memory; not to be written to.

    Torch warns of read-only arrays, and a second copy of a large volume may not fit.
    """
    shared = array.view()
    try:
        shared.setflags(write=True)
    except ValueError:  # the memory itself is read-only, as that of a mapped file
        shared = array.copy()
    return torch.from_numpy(shared)


def _probability_file(scratch: Path, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """An array in a file, after a check of the free space: a full disk would end the process.

    Raises:
        MedarError: not enough space.
    """
    needed, free = 4 * prod(shape), shutil.disk_usage(scratch).free
    if needed > free:
        raise MedarError(
            f"{scratch.parent}: {free / 2**30:.1f} GiB free, {needed / 2**30:.1f} GiB needed for "
            "the probabilities of all classes; make room, or leave probabilities out"
        )
    return np.memmap(scratch / "probabilities", np.float32, "w+", shape=shape)
