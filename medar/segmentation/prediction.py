"""From a volume to its label map, on the volume's own grid.

    volume -> prepared by the plan -> overlapping windows -> softmax, the mean over mirrors
    and networks, blended by Gaussian weights (MONAI) -> likeliest class -> the volume's own grid

Chances of all classes for a whole volume may not fit into memory: where they would not, the volume
is taken slab by slab. Each slab sees every window that reaches into it, so that slabs give what
the whole would give.

B batch, C channels, X Y Z voxels, K labels (the background not counted).
"""

import shutil
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, combinations
from math import prod
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from medar.data.augmentation import AXES, mirrored_labels
from medar.data.preparation import Trace, prepare_image, restore_label
from medar.errors import MedarError, RangeWarning
from medar.segmentation.network import Segmenter
from medar.segmentation.ranges import outside
from medar.settings import STRICT, to_dict
from medar.volume import Shape3, Volume


@dataclass(frozen=True, kw_only=True)
class PredictionSettings:
    """How volumes are segmented.

    Raises:
        MedarError: a number out of its range.
    """

    __pydantic_config__: ClassVar[Any] = STRICT

    overlap: float = 0.5
    """Share of a window that it has in common with its neighbour."""
    mirrors: tuple[Literal["x", "y", "z"], ...] | None = None
    """Axes to mirror along, the mean being taken; default those that the model was trained with,
    none to be quick. x is left-right: labels of the two sides trade places."""
    batch_size: int = 1
    """Windows that go through the network at once."""
    budget: float = 4.0
    """GiB that the chances of all classes may take before a volume is taken in slabs."""

    def __post_init__(self) -> None:
        if not 0 <= self.overlap < 1:
            raise MedarError(f"overlap {self.overlap}: a share from 0 to below 1 is needed")
        if self.batch_size < 1 or self.budget <= 0:
            raise MedarError(
                f"batch_size {self.batch_size}, budget {self.budget}: from 1, and above 0"
            )
        if self.mirrors is not None and not set(self.mirrors) <= set(AXES):
            raise MedarError(f"mirrors {list(self.mirrors)}: allowed x, y, z")


DEFAULT = PredictionSettings()


def prediction_settings(mirrors: str | None, overlap: float = 0.5) -> PredictionSettings:
    """Settings as they are typed: mirrors "none" or some of "xyz", None for the model's own.

    Raises:
        MedarError: other letters, or an overlap that is no share.
    """
    if mirrors is None:
        return PredictionSettings(overlap=overlap)
    if mirrors != "none" and not set(mirrors) <= set(AXES):
        raise MedarError(f"mirrors {mirrors}: 'none', or some of the letters xyz are needed")
    letters = "" if mirrors == "none" else mirrors
    chosen: Any = tuple(axis for axis in AXES if axis in letters)
    return PredictionSettings(overlap=overlap, mirrors=chosen)


Models = Segmenter | Sequence[Segmenter]
"""One network, or several of one plan whose chances are averaged."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Prediction:
    """What was made of a volume."""

    label: Volume
    """On the volume's own grid; 0 where the networks see nothing."""
    notes: tuple[str, ...]
    """What of the volume lies outside of what the networks were trained on."""
    chances: npt.NDArray[np.float32] | None
    """(K + 1, X, Y, Z) on the plan's grid, in a file, where they were kept."""
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
        model: in evaluation mode; computes on the device that it is on. Of several, the mean.
        volume: as read from a file.
        settings: how.
        scratch: a folder to keep the chances of all classes in; they may exceed the memory.

    Raises:
        MedarError: a volume that the plan has no intensity rule for, mirrors along x of labels
            that have no counterpart, or networks of different plans.

    Warns:
        RangeWarning: spacing or intensities are not those that the networks were trained on.
    """
    models = ensemble(model)
    plan = models[0].plan
    name = volume.provenance.path if volume.provenance else "volume"
    try:
        array, trace = prepare_image(volume, plan)
    except MedarError as error:
        raise MedarError(f"{name}: {error}") from error
    notes = dict.fromkeys(
        note for one in models for note in outside(one.ranges, plan, volume.spacing, array)
    )
    for note in notes:
        warnings.warn(f"{name}: {note}", RangeWarning, stacklevel=2)
    kept = None
    if scratch is not None:
        kept = _file_of_chances(scratch, (len(plan.labels) + 1, *array.shape[1:]))
    classes = np.zeros((1, *array.shape[1:]), np.int16)
    image = torch.from_numpy(array.copy())
    del array  # read-only; of a large volume one copy is enough
    for place, chances in chances_of(models, image, settings):
        classes[place] = chances.argmax(1).numpy()
        if kept is not None:
            kept[:, *place[1:]] = chances[0].numpy()
    values = np.array([0, *plan.labels], dtype=plan.label_dtype)
    label = restore_label(values[classes], trace)
    return Prediction(label=label, notes=tuple(notes), chances=kept, trace=trace)


def _file_of_chances(scratch: Path, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """An array in a file; a full disk would end the process, so that room is asked for before.

    Raises:
        MedarError: not enough room.
    """
    needed, free = 4 * prod(shape), shutil.disk_usage(scratch).free
    if needed > free:
        raise MedarError(
            f"{scratch.parent}: {free / 2**30:.1f} GiB free, {needed / 2**30:.1f} GiB needed for "
            "the chances of all classes; make room, or leave probabilities out"
        )
    return np.memmap(scratch / "chances", np.float32, "w+", shape=shape)


def ensemble(model: Models) -> list[Segmenter]:
    """The networks, one or several, after a look at their plans.

    Raises:
        MedarError: none, or networks whose volumes or classes are not the same.
    """
    models = [model] if isinstance(model, nn.Module) else list(model)
    if not models:
        raise MedarError("no network to segment with; at least one is needed")
    first = to_dict(models[0].plan)
    for number, other in enumerate(models[1:], start=2):
        for name, value in to_dict(other.plan).items():
            # Logits are in the order of the labels.
            alike = str(value) == str(first[name]) if name == "labels" else value == first[name]
            if name != "downsampling" and not alike:
                raise MedarError(
                    f"network {number} of the ensemble: its plan has {name} {value}, the first "
                    f"has {first[name]}; networks of one plan are needed"
                )
    return models


@torch.no_grad()
def classes_of(model: Models, image: Tensor, settings: PredictionSettings = DEFAULT) -> Tensor:
    """The likeliest class of each voxel of a prepared image.

    Args:
        model: see `predict`.
        image: (C, X, Y, Z) in [-1, 1], of any extent, on the CPU.
        settings: how.

    Returns:
        (1, X, Y, Z) int16 on the CPU: 0 the background, i + 1 the i-th of the plan's labels.
    """
    found = torch.zeros((1, *image.shape[1:]), dtype=torch.int16)
    for place, chances in chances_of(model, image, settings):
        found[place] = chances.argmax(1)
    return found


Place = tuple[slice, slice, slice, slice]
"""A box of a (C, X, Y, Z) array."""


@torch.no_grad()
def chances_of(
    model: Models, image: Tensor, settings: PredictionSettings = DEFAULT
) -> Iterator[tuple[Place, Tensor]]:
    """The chances of all classes of a prepared image, slab by slab.

    Args:
        model: see `predict`.
        image: (C, X, Y, Z) in [-1, 1], of any extent, on the CPU.
        settings: how; slabs fit `budget`, if they can.

    Yields:
        The box that a slab fills, and its (1, K + 1, x, y, z) float32 on the CPU, background first.
    """
    models = ensemble(model)
    plan = models[0].plan
    x, y, z = image.shape[1:]
    axis = 1 + int(np.argmax(image.shape[1:]))
    for slab in slabs((x, y, z), plan.size, axis - 1, settings, len(plan.labels) + 1):
        seen = image.narrow(axis, slab.start, slab.stop - slab.start)
        own = [slice(0, side) for side in (1, x, y, z)]
        own[axis] = slice(slab.low, slab.high)
        size = slab.high - slab.low
        chances = _chances(models, seen, settings).narrow(1 + axis, slab.low - slab.start, size)
        yield (own[0], own[1], own[2], own[3]), chances


class Slab(NamedTuple):
    """A part of a volume along one axis, in voxels."""

    low: int
    high: int
    """From low to high: what is segmented."""
    start: int
    stop: int
    """From start to stop: what is looked at for it, all windows that reach into it."""


def slabs(
    sides: Shape3, window: Shape3, axis: int, settings: PredictionSettings, classes: int
) -> Iterator[Slab]:
    """Cut a volume along an axis so that the chances of a slab fit the budget, if they can.

    Windows lie where they lie in the whole volume: every `step` voxels, the last one pushed back
    to end with the volume.

    Args:
        sides: of the volume.
        window: the network's.
        axis: the one to cut.
        settings: `overlap` and `budget` are used.
        classes: K + 1.
    """
    size, wide = sides[axis], window[axis]
    across = prod(max(n, w) for n, w in zip(sides, window, strict=True)) // max(size, wide)
    # Chances and weights in float32, the likeliest class in int64.
    most = int(settings.budget * 2**30 / (across * 4 * (classes + 3)))
    if size <= max(most, wide):
        yield Slab(0, size, 0, size)
        return
    step = max(1, int(wide * (1 - settings.overlap)))
    keep, last = max(step, most - 2 * wide), size - wide
    for low in range(0, size, keep):
        high = min(low + keep, size)
        first = max(0, -((wide - 1 - low) // step) * step)
        start = min(first, last // step * step)
        stop = (high - 1) // step * step + wide
        yield Slab(low, high, start, size if stop >= size or last < high else stop)


def _chances(models: list[Segmenter], image: Tensor, settings: PredictionSettings) -> Tensor:
    """(C, X, Y, Z) to (1, K + 1, X, Y, Z), by windows."""
    from monai.inferers import sliding_window_inference

    plan = models[0].plan
    axes = [one.mirrors if settings.mirrors is None else settings.mirrors for one in models]
    swapped = swapped_classes(plan.labels) if any("x" in chosen for chosen in axes) else []

    def window(part: Tensor) -> Tensor:
        total = mirrored_mean(models[0], part, axes[0], swapped)
        for one, chosen in zip(models[1:], axes[1:], strict=True):
            total += mirrored_mean(one, part, chosen, swapped)
        return total / len(models)

    blended = sliding_window_inference(
        image[None],
        roi_size=plan.size,
        sw_batch_size=settings.batch_size,
        predictor=window,
        overlap=settings.overlap,
        mode="gaussian",
        cval=-1.0,
        sw_device=next(models[0].parameters()).device,
        device=torch.device("cpu"),
    )
    assert isinstance(blended, Tensor)
    return blended


def mirrored_mean(
    model: Segmenter, volumes: Tensor, axes: Sequence[str], swapped: list[int]
) -> Tensor:
    """The mean of the classes' chances over a batch and all its mirror images, mirrored back.

    Args:
        model: see `predict`.
        volumes: (B, C, X, Y, Z).
        axes: to mirror along.
        swapped: class by class, which one it is in a left-right mirror.

    Returns:
        (B, K + 1, X, Y, Z) float32.
    """
    every = list(chain.from_iterable(combinations(axes, n) for n in range(len(axes) + 1)))
    total: Tensor | None = None
    for chosen in every:
        dims = [2 + AXES.index(axis) for axis in chosen]
        chances = model(volumes.flip(dims)).float().softmax(1).flip(dims)
        if "x" in chosen:
            chances = chances[:, swapped]
        total = chances if total is None else total + chances
    assert total is not None
    return total / len(every)


def swapped_classes(labels: dict[int, str]) -> list[int]:
    """Class by class, background first, which one it is in a left-right mirror.

    Raises:
        MedarError: a name says left or right and its counterpart is missing.
    """
    swap, values = mirrored_labels(labels), list(labels)
    return [0, *(1 + values.index(swap.get(value, value)) for value in values)]
